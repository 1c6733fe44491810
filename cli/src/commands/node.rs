//! `node ls`, `node get`, `node rm`.

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
