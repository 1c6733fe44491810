//! What `secret` and `config` share: reading values from where they are and sending them.

use std::collections::BTreeMap;
use std::path::Path;

use http::Method;
use netfabric::wire::api::{ObjectChange, ObjectView};
use scheduler::model::{Blob, Name};
use scheduler::registry::object_limits::OBJECT_BYTES;

use crate::args::{SetArgs, ValueFrom};
use crate::client::REGISTRY_ANSWER;
use crate::failure::Failure;
use crate::files;
use crate::manifest::env_line;
use crate::session::Session;

/// Sets keys of the object at `/v1/KIND/NAMESPACE/NAME`.
pub async fn set(
    kind: &str,
    args: SetArgs,
    session: &Session,
) -> anyhow::Result<(Name, ObjectView)> {
    let set = values(&args)?;
    if set.is_empty() && !args.replace {
        return Err(Failure::usage("no key is given")
            .hint(format!("selvedge {kind} set {} KEY=@FILE", args.name))
            .into());
    }
    let change = ObjectChange {
        set,
        replace: args.replace,
        ..ObjectChange::default()
    };
    let view = send(kind, &args.name, &change, session).await?;
    Ok((args.name, view))
}

pub async fn send(
    kind: &str,
    name: &Name,
    change: &ObjectChange,
    session: &Session,
) -> Result<ObjectView, Failure> {
    let path = path(kind, name, session);
    let sent = session
        .client
        .send(Method::PATCH, &path, change, REGISTRY_ANSWER);
    Ok(sent.await?)
}

pub fn path(kind: &str, name: &Name, session: &Session) -> String {
    format!("/v1/{kind}s/{}/{name}", session.namespace)
}

/// The path of all objects of a kind in the session's namespace.
pub fn list(kind: &str, session: &Session) -> String {
    format!("/v1/{kind}s?namespace={}", session.namespace)
}

fn values(args: &SetArgs) -> anyhow::Result<BTreeMap<String, Blob>> {
    let mut set = BTreeMap::new();
    for file in &args.from_env_file {
        let text = String::from_utf8(files::read(file, OBJECT_BYTES)?);
        let text = text.map_err(|_| Failure::usage(format!("{} is no text", file.display())))?;
        for (number, line) in text.lines().enumerate() {
            // The line itself is not shown: it holds a value.
            let wrong = |_| {
                let message = format!("{}:{}: this is not K=V", file.display(), number + 1);
                Failure::usage(message)
            };
            if let Some(change) = env_line(line).map_err(wrong)? {
                set.insert(change.name, Blob(change.value.unwrap_or_default().into()));
            }
        }
    }
    let from_stdin = |v: &&crate::args::ValueFlag| v.from == ValueFrom::Stdin;
    if args.values.iter().filter(from_stdin).count() > 1 {
        return Err(Failure::usage("stdin can be the value of one key only").into());
    }
    for flag in &args.values {
        let bytes = match &flag.from {
            ValueFrom::Text(text) => text.clone().into_bytes(),
            ValueFrom::File(path) => files::read(path, OBJECT_BYTES)?,
            ValueFrom::Stdin => files::read(Path::new("-"), OBJECT_BYTES)?,
        };
        set.insert(flag.key.clone(), Blob(bytes));
    }
    Ok(set)
}
