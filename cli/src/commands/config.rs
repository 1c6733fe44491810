//! `config set`, `config get`, `config ls`, `config unset`.

use std::io::Write;

use http::Method;
use netfabric::wire::api::{ConfigView, ObjectChange, ObjectView};
use scheduler::model::Name;

use super::{confirm, object};
use crate::args::ConfigCommand;
use crate::failure::Failure;
use crate::session::Session;

const KIND: &str = "config";

pub async fn run(command: ConfigCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Ls => {
            let path = object::list(KIND, session);
            let all: Vec<ObjectView> = session.client.get(&path).await.map_err(Failure::from)?;
            session.out.list(&all, false)
        }
        ConfigCommand::Set(args) => {
            let (name, view) = object::set(KIND, args, session).await?;
            let said = || format!("config/{name}");
            session.out.text_or(&view, said, |_| {
                format!("config/{name} has {} keys", view.keys.len())
            })
        }
        ConfigCommand::Get { name, key } => get(&name, key.as_deref(), session).await,
        ConfigCommand::Unset { name, keys } if keys.is_empty() => {
            confirm::destructive(session, "remove config", name.as_str())?;
            let path = object::path(KIND, &name, session);
            let removed = session.client.change(Method::DELETE, &path).await;
            removed.map_err(Failure::from)?;
            session.out.progress(&format!("config/{name} removed"));
            Ok(())
        }
        ConfigCommand::Unset { name, keys } => {
            let change = ObjectChange {
                remove: keys,
                ..ObjectChange::default()
            };
            let view = object::send(KIND, &name, &change, session).await?;
            let said = || format!("config/{name}");
            session.out.text_or(&view, said, |_| {
                format!("config/{name} has {} keys", view.keys.len())
            })
        }
    }
}

/// One value as it is, byte by byte; or all of them, a line each.
async fn get(name: &Name, key: Option<&str>, session: &Session) -> anyhow::Result<()> {
    let path = object::path(KIND, name, session);
    let config: ConfigView = session.client.get(&path).await.map_err(Failure::from)?;
    if let Some(key) = key {
        let value = config.data.get(key).ok_or_else(|| {
            let keys: Vec<_> = config.data.keys().cloned().collect();
            Failure::not_found(format!("config/{name} has no key `{key}`"))
                .hint(format!("it has {}", keys.join(", ")))
        })?;
        std::io::stdout().lock().write_all(&value.0)?;
        return Ok(());
    }
    let shown =
        |(key, value): (&String, &scheduler::model::Blob)| match std::str::from_utf8(&value.0) {
            Ok(text) if !text.contains(['\n', '\r', '\0']) => format!("{key}={text}"),
            _ => format!("{key}: {} bytes", value.0.len()),
        };
    let lines = || -> Vec<String> { config.data.iter().map(shown).collect() };
    session
        .out
        .text_or(&config, || format!("config/{name}"), |_| lines().join("\n"))
}
