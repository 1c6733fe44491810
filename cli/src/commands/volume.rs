//! `volume ls`, `volume rm`.

use http::Method;
use netfabric::wire::api::VolumeView;

use super::{confirm, object};
use crate::args::VolumeCommand;
use crate::failure::Failure;
use crate::session::Session;

const KIND: &str = "volume";

pub async fn run(command: VolumeCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Ls => {
            let path = object::list(KIND, session);
            let all: Vec<VolumeView> = session.client.get(&path).await.map_err(Failure::from)?;
            session.out.list(&all, false)
        }
        VolumeCommand::Rm { name } => {
            confirm::destructive(session, "remove volume and its data", name.as_str())?;
            let path = object::path(KIND, &name, session);
            let removed = session.client.change(Method::DELETE, &path).await;
            removed.map_err(Failure::from)?;
            session.out.progress(&format!("volume/{name} removed"));
            Ok(())
        }
    }
}
