//! `completion`: a script for the shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

pub fn run(shell: Shell) {
    clap_complete::generate(
        shell,
        &mut Cli::command(),
        "selvedge",
        &mut std::io::stdout(),
    );
}
