//! Asking before something is destroyed.

use std::io::{self, BufRead, IsTerminal};

use crate::failure::Failure;
use crate::printer;
use crate::session::Session;

/// Passes with `-y`, or when the name is typed on a terminal. Without a terminal there is nobody
/// to ask, so it fails instead of hanging.
pub fn destructive(session: &Session, what: &str, name: &str) -> anyhow::Result<()> {
    if session.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("{what} {name} needs a yes"))
            .hint("add -y to go on without being asked")
            .into());
    }
    printer::ask(&format!("{what} {name}? Type its name to go on:"));
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() == name {
        return Ok(());
    }
    Err(Failure::usage(format!("that was not `{name}`; nothing was changed")).into())
}
