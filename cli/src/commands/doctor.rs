//! `doctor`: what a node's kernel protects containers with. Ends with 1 when something required is
//! missing.

use std::process::ExitCode;

use scheduler::model::Name;

use crate::failure::Failure;
use crate::output;
use crate::session::Session;

pub async fn run(node: Option<&Name>, session: &Session) -> anyhow::Result<ExitCode> {
    let diagnosis = session.diagnosis(node).await.map_err(Failure::from)?;
    let named = || format!("node/{}", diagnosis.node);
    session
        .out
        .text_or(&diagnosis, named, |_| output::diagnosis(&diagnosis))?;
    Ok(if diagnosis.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
