//! `node ls`, `node get`, `node cordon`, `node uncordon`, `node rm`.

use http::Method;

use super::confirm;
use crate::args::NodeCommand;
use crate::failure::Failure;
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

async fn set(session: &Session, text: &str, verb: &str, said: &str) -> anyhow::Result<()> {
    let node = name(text)?;
    let path = format!("/v1/nodes/{node}/{verb}");
    let changed = session.client.change(Method::POST, &path).await;
    changed.map_err(Failure::from)?;
    session.out.progress(&format!("node/{node} {said}"));
    Ok(())
}
