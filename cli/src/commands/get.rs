//! `get`, `ls`: lists, or single things by name or unique prefix.

use netfabric::wire::api::ImageView;
use serde::Serialize;

use crate::args::GetArgs;
use crate::failure::Failure;
use crate::output::Row;
use crate::session::{Session, find};
use crate::subject::{Kind, Subject};

pub async fn run(args: GetArgs, session: &Session) -> anyhow::Result<()> {
    let (kind, names) = wanted(&args)?;
    let all = args.all_namespaces;
    match kind {
        Kind::Service => show(session, session.services(all).await?, &names, all),
        Kind::Revision => show(session, session.revisions(all).await?, &names, all),
        Kind::Instance => show(session, session.instances(all).await?, &names, all),
        Kind::Node => show(
            session,
            session.nodes().await.map_err(Failure::from)?,
            &names,
            false,
        ),
        Kind::Image => {
            let images: Vec<ImageView> = session
                .client
                .get("/v1/images")
                .await
                .map_err(Failure::from)?;
            show(session, images, &names, false)
        }
        Kind::Domain => show(session, session.domains(all).await?, &names, all),
    }
}

/// `get KIND [NAME…]` or `get KIND/NAME`.
fn wanted(args: &GetArgs) -> Result<(Kind, Vec<String>), Failure> {
    if !args.kind.contains('/') && !args.kind.contains('@') {
        return Ok((Kind::from_word(&args.kind)?, args.names.clone()));
    }
    let (kind, name) = match Subject::parse(&args.kind)? {
        Subject::Service(name) => (Kind::Service, name),
        Subject::Revision(name) => (Kind::Revision, name),
        Subject::Instance(name) => (Kind::Instance, name),
        Subject::Node(name) => (Kind::Node, name),
        Subject::Image(name) => (Kind::Image, name),
        Subject::Domain(name) => (Kind::Domain, name),
        Subject::Request(id) => {
            return Err(Failure::usage("a request is explained, not listed")
                .hint(format!("selvedge explain {id}")));
        }
    };
    let names = std::iter::once(name)
        .chain(args.names.iter().cloned())
        .collect();
    Ok((kind, names))
}

fn show<T: Row + Serialize + Clone>(
    session: &Session,
    items: Vec<T>,
    names: &[String],
    namespaced: bool,
) -> anyhow::Result<()> {
    if let [name] = names {
        return session.out.one(&find(items, name)?);
    }
    if names.is_empty() {
        return session.out.list(&items, namespaced);
    }
    let mut found = Vec::new();
    for name in names {
        found.push(find(items.clone(), name)?);
    }
    session.out.list(&found, namespaced)
}
