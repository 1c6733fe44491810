//! `secret set`, `secret ls`, `secret rm`. Values go in and never come out.

use http::Method;
use netfabric::wire::api::ObjectView;

use super::{confirm, object};
use crate::args::SecretCommand;
use crate::failure::Failure;
use crate::session::Session;

const KIND: &str = "secret";

pub async fn run(command: SecretCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        SecretCommand::Ls => {
            let path = object::list(KIND, session);
            let all: Vec<ObjectView> = session.client.get(&path).await.map_err(Failure::from)?;
            session.out.list(&all, false)
        }
        SecretCommand::Set(args) => {
            let (name, view) = object::set(KIND, args, session).await?;
            let said = || format!("secret/{name}");
            session.out.text_or(&view, said, |_| {
                format!("secret/{name} has {} keys", view.keys.len())
            })
        }
        SecretCommand::Rm { name } => {
            confirm::destructive(session, "remove secret", name.as_str())?;
            let path = object::path(KIND, &name, session);
            let removed = session.client.change(Method::DELETE, &path).await;
            removed.map_err(Failure::from)?;
            session.out.progress(&format!("secret/{name} removed"));
            Ok(())
        }
    }
}
