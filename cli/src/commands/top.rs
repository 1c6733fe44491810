//! `top`: what instances, services or nodes use now, the busiest first.

use netfabric::wire::usage::UsageView;

use crate::args::{Format, TopArgs};
use crate::failure::Failure;
use crate::output::{self, TopKind};
use crate::session::Session;

pub async fn run(args: TopArgs, session: &Session) -> anyhow::Result<()> {
    // A node's load is of all namespaces.
    let all = args.all_namespaces || args.kind == TopKind::Nodes;
    let view: UsageView = session.usage(all).await.map_err(Failure::from)?;
    let rows = output::top_rows(&view, args.kind, args.all_namespaces);
    session.out.missing(&view.missing);
    if rows.is_empty() && !session.out.is_data() {
        session.out.hint("nothing runs here");
        return Ok(());
    }
    let wide = session.out.format == Format::Wide;
    let names = || {
        let kind = match args.kind {
            TopKind::Instances => "instance",
            TopKind::Services => "service",
            TopKind::Nodes => "node",
        };
        let names: Vec<String> = rows.iter().map(|r| format!("{kind}/{}", r.name)).collect();
        names.join("\n")
    };
    session
        .out
        .text_or(&rows, names, |_| output::top_table(&rows, args.kind, wide))
}
