//! `demo`: three nodes on this machine, to see Selvedge work; `demo down`: no trace of them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::{DemoAction, DemoArgs};
use crate::contexts::{self, Context};
use crate::demo::{self, CONTEXT, DemoOptions, Scorecard};
use crate::printer::Printer;

pub async fn run(args: DemoArgs, out: Printer) -> anyhow::Result<ExitCode> {
    let options = DemoOptions {
        dir: args.dir,
        nodes: args.nodes,
    };
    match args.action {
        Some(DemoAction::Down) => down(&options, out).await,
        None => up(&options, out).await,
    }
}

async fn up(options: &DemoOptions, out: Printer) -> anyhow::Result<ExitCode> {
    let played = demo::up(options, &mut |line| out.progress(line)).await;
    if options.is_there() {
        let context = Context {
            addr: options.address(),
            token: None,
        };
        contexts::add(&contexts_file()?, CONTEXT, context)?;
    }
    let card = played?;
    out.text_or(&card, || CONTEXT.to_owned(), |_| shown(&card))?;
    out.hint("it runs on; what to type next:");
    for step in demo::next_steps(options) {
        out.hint(&format!("  {step}"));
    }
    Ok(if card.kept() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn shown(card: &Scorecard) -> String {
    let verdict = if card.kept() {
        "Every promise was kept."
    } else {
        "A promise was BROKEN."
    };
    format!("\n{}\n\n  {verdict}\n", card.table())
}

async fn down(options: &DemoOptions, out: Printer) -> anyhow::Result<ExitCode> {
    let removed = demo::down(options).await?;
    contexts::remove(&contexts_file()?, CONTEXT)?;
    out.text_or(&removed, || CONTEXT.to_owned(), |_| removed.to_string())?;
    out.hint(&format!(
        "the images stay in {} for the next time",
        demo::IMAGES
    ));
    Ok(ExitCode::SUCCESS)
}

fn contexts_file() -> anyhow::Result<PathBuf> {
    contexts::path().context("there is no home folder for the contexts file: set SELVEDGE_CONFIG")
}
