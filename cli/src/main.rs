//! The command line of Selvedge: asks a node, prints the answer, and says with its exit code how
//! it went. It decides nothing about the cluster.

mod args;
mod client;
mod commands;
mod contexts;
mod daemon;
mod demo;
mod failure;
mod files;
mod home;
mod machine;
mod manifest;
mod nodefile;
mod output;
mod printer;
mod session;
mod subject;
mod suggest;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use failure::Failure;
use printer::Printer;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Printer::new(cli.global.output, cli.global.quiet, cli.global.color);
    match commands::run(cli, out).await {
        Ok(code) => code,
        // Whoever read our output has seen enough (`selvedge logs web | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::from_error(error);
            printer::failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
