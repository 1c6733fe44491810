//! `describe`: everything about one thing.

use crate::failure::Failure;
use crate::output;
use crate::session::{Session, find, name};
use crate::subject::Subject;

pub async fn run(subject: &str, session: &Session) -> anyhow::Result<()> {
    match Subject::parse(subject)? {
        Subject::Service(text) => service(&text, session).await,
        Subject::Revision(text) => revision(&text, session).await,
        Subject::Instance(text) => {
            let instance = find(session.instances(false).await?, &text)?;
            let named = || format!("instance/{}", instance.id);
            session.out.text_or(&instance, named, |now| {
                output::describe_instance(&instance, now)
            })
        }
        Subject::Node(text) => node(&text, session).await,
        Subject::Image(_) => Err(Failure::usage("there is no more to say of an image")
            .hint("selvedge image ls -o wide")
            .into()),
        Subject::Domain(text) => Err(Failure::usage("a domain is checked, not described")
            .hint(format!("selvedge domain check {text}"))
            .into()),
        Subject::Request(id) => Err(Failure::usage("a request is explained, not described")
            .hint(format!("selvedge explain {id}"))
            .into()),
    }
}

async fn service(text: &str, session: &Session) -> anyhow::Result<()> {
    let view = session.service(&name(text)?).await?;
    let key = &view.service.key;
    let mut revisions = session.revisions(false).await?;
    revisions.retain(|revision| revision.service == *key);
    let instances = session
        .instances_of(&key.name)
        .await
        .map_err(Failure::from)?;
    // A node of an earlier version does not count; the rest is as true without.
    let used = session.used_by(&key.name).await.ok();
    let named = || format!("service/{}", key.name);
    session.out.text_or(&view, named, |now| {
        output::describe_service(&view, &revisions, &instances, used.as_ref(), now)
    })
}

async fn revision(text: &str, session: &Session) -> anyhow::Result<()> {
    let revision = find(session.revisions(false).await?, text)?;
    let mut instances = session.instances(false).await?;
    instances.retain(|instance| instance.revision == revision.key.name);
    let named = || format!("revision/{}", revision.key.name);
    session.out.text_or(&revision, named, |now| {
        output::describe_revision(&revision, &instances, now)
    })
}

async fn node(text: &str, session: &Session) -> anyhow::Result<()> {
    let node = find(session.nodes().await.map_err(Failure::from)?, text)?;
    let mut instances = session.instances(true).await?;
    instances.retain(|instance| instance.node == node.id);
    // A node that is gone does not say; the rest is known without it.
    let diagnosis = session.diagnosis(Some(&node.name)).await.ok();
    let named = || format!("node/{}", node.name);
    session.out.text_or(&node, named, |now| {
        output::describe_node(&node, diagnosis.as_ref(), &instances, now)
    })
}
