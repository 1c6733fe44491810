//! One file per verb.

mod cert;
mod completion;
mod config;
mod confirm;
mod cp;
mod delete;
mod demo;
mod deploy;
mod describe;
mod doctor;
mod domain;
mod exec;
mod explain;
mod get;
mod image;
mod join;
mod logs;
mod node;
mod object;
mod port_forward;
mod scale;
mod secret;
mod status;
mod token;
mod top;
mod up;
mod version;
mod volume;
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
        Command::Doctor { node } => return doctor::run(node.as_ref(), &session()?).await,
        Command::Explain { subject } => explain::run(&subject, &session()?).await?,
        Command::WhyNot { service, node } => explain::why_not(&service, &node, &session()?).await?,
        Command::Top(args) => top::run(args, &session()?).await?,
        Command::Exec(args) => return exec::run(args, &session()?).await,
        Command::Cp(args) => cp::run(args, &session()?).await?,
        Command::PortForward(args) => port_forward::run(args, &session()?).await?,
        Command::Logs(args) => logs::run(args, &session()?).await?,
        Command::Scale(args) => scale::run(args, &session()?).await?,
        Command::Delete(args) => delete::run(args, &session()?).await?,
        Command::Secret(command) => secret::run(command, &session()?).await?,
        Command::Config(command) => config::run(command, &session()?).await?,
        Command::Domain(command) => domain::run(command, &session()?).await?,
        Command::Cert(command) => cert::run(command, &session()?).await?,
        Command::Volume(command) => volume::run(command, &session()?).await?,
        Command::Image(command) => image::run(command, &session()?).await?,
        Command::Node(command) => node::run(command, &session()?).await?,
        Command::Token(command) => token::run(command, &session()?).await?,
        Command::Version => version::run(&global, out).await?,
        Command::Completion { shell } => completion::run(shell),
    }
    Ok(ExitCode::SUCCESS)
}
