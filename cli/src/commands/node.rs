//! `node ls`, `node get`, `node cordon`, `node drain`, `node uncordon`, `node rm`.

use std::time::Duration;

use http::Method;
use netfabric::wire::api::InstanceView;
use scheduler::model::InstanceState;
use tokio::time::{Instant, sleep};

use super::{confirm, wait};
use crate::args::NodeCommand;
use crate::failure::{Exit, Failure};
use crate::session::{Session, find, name};

pub async fn run(command: NodeCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        NodeCommand::Ls => {
            let nodes = session.nodes().await.map_err(Failure::from)?;
            session.out.list(&nodes, false)
        }
        NodeCommand::Get { name } => {
            let nodes = session.nodes().await.map_err(Failure::from)?;
            session.out.one(&find(nodes, &name)?)
        }
        NodeCommand::Cordon { name } => {
            let said = "takes no new instances";
            set(session, &name, "cordon", said).await
        }
        NodeCommand::Drain { name, deadline } => drain(session, &name, deadline).await,
        NodeCommand::Uncordon { name } => {
            let said = "takes instances again";
            set(session, &name, "uncordon", said).await
        }
        NodeCommand::Rm { name: text } => {
            let node = name(&text)?;
            confirm::destructive(session, "remove node", node.as_str())?;
            let path = format!("/v1/nodes/{node}/remove");
            session
                .client
                .change(Method::POST, &path)
                .await
                .map_err(Failure::from)?;
            session.out.progress(&format!(
                "node/{node} removed: no node talks to it any more"
            ));
            Ok(())
        }
    }
}

/// Waits until nothing runs on the node any more, saying what still does.
async fn drain(session: &Session, text: &str, deadline: Duration) -> anyhow::Result<()> {
    set(session, text, "drain", "drains").await?;
    let (node, until) = (name(text)?, Instant::now() + deadline);
    let mut seen = wait::Seen::default();
    loop {
        let mut left = session.instances(true).await?;
        let runs = |i: &InstanceView| !i.state.is_over() && i.state != InstanceState::Parked;
        left.retain(|i| i.node_name == node && runs(i));
        if left.is_empty() {
            session.out.progress(&format!(
                "node/{node} is drained; it takes no instances until `selvedge node uncordon {node}`"
            ));
            return Ok(());
        }
        seen.report(&left, session.out);
        if Instant::now() >= until {
            let message = format!("node/{node} still has {} instances", left.len());
            return Err(Failure::new(Exit::WaitTimedOut, message)
                .details(left.iter().map(wait::line).collect())
                .hint("why they stay: selvedge explain service/NAME")
                .into());
        }
        sleep(wait::PACE).await;
    }
}

async fn set(session: &Session, text: &str, verb: &str, said: &str) -> anyhow::Result<()> {
    let node = name(text)?;
    let path = format!("/v1/nodes/{node}/{verb}");
    let changed = session.client.change(Method::POST, &path).await;
    changed.map_err(Failure::from)?;
    session.out.progress(&format!("node/{node} {said}"));
    Ok(())
}
