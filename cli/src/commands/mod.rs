//! One file per verb.

mod completion;
mod confirm;
mod cp;
mod delete;
mod demo;
mod deploy;
mod describe;
mod exec;
mod explain;
mod get;
mod image;
mod join;
mod logs;
mod node;
mod port_forward;
mod scale;
mod status;
mod token;
mod up;
mod version;
mod wait;

use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::printer::Printer;
use crate::session::Session;

/// Runs the command that was asked for.
pub async fn run(cli: Cli, out: Printer) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    let session = || Session::new(&global, out);
    match command {
        Command::Up(args) => return up::run(args, out).await,
        Command::Join(args) => {
            return join::run(args, global.token.as_deref(), out).await;
        }
        Command::Demo(args) => return demo::run(args, out).await,
        Command::Deploy(args) => deploy::run(*args, &session()?).await?,
        Command::Get(args) => get::run(args, &session()?).await?,
        Command::Status => status::run(&session()?).await?,
        Command::Describe { subject } => describe::run(&subject, &session()?).await?,
        Command::Explain { subject } => explain::run(&subject, &session()?).await?,
        Command::Exec(args) => return exec::run(args, &session()?).await,
        Command::Cp(args) => cp::run(args, &session()?).await?,
        Command::PortForward(args) => port_forward::run(args, &session()?).await?,
        Command::Logs(args) => logs::run(args, &session()?).await?,
        Command::Scale(args) => scale::run(args, &session()?).await?,
        Command::Delete(args) => delete::run(args, &session()?).await?,
        Command::Image(command) => image::run(command, &session()?).await?,
        Command::Node(command) => node::run(command, &session()?).await?,
        Command::Token(command) => token::run(command, &session()?).await?,
        Command::Version => version::run(&global, out).await?,
        Command::Completion { shell } => completion::run(shell),
    }
    Ok(ExitCode::SUCCESS)
}
