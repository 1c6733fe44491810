//! `explain`: why an instance is where it is, or what a cold request paid. `why-not`: why the next one
//! would not go to a node.

use netfabric::wire::api::Explanation;

use crate::client::{ClientError, encoded};
use crate::failure::Failure;
use crate::output;
use crate::session::{Session, find, name};
use crate::subject::Subject;

pub async fn run(subject: &str, session: &Session) -> anyhow::Result<()> {
    let path = match Subject::parse(subject)? {
        Subject::Service(text) => match by_name(&text, session).await? {
            Some(path) => path,
            None => instance(&text, session).await?,
        },
        Subject::Instance(text) => instance(&text, session).await?,
        Subject::Request(id) => format!("/v1/explain/request/{}", encoded(&id)),
        Subject::Revision(_) | Subject::Node(_) | Subject::Image(_) | Subject::Domain(_) => {
            return Err(Failure::usage(format!(
                "`{subject}` was not placed, so there is nothing to explain"
            ))
            .hint("explain service/NAME, instance/NAME or a request id")
            .into());
        }
    };
    show(&path, session).await
}

pub async fn why_not(service: &str, node: &str, session: &Session) -> anyhow::Result<()> {
    let (service, node) = (name(service)?, name(node)?);
    let namespace = &session.namespace;
    show(
        &format!("/v1/explain/why-not/{namespace}/{service}/{node}"),
        session,
    )
    .await
}

async fn show(path: &str, session: &Session) -> anyhow::Result<()> {
    let explanation: Explanation = session.client.get(path).await.map_err(Failure::from)?;
    let named = || explanation.subject.clone();
    session
        .out
        .text_or(&explanation, named, |_| output::explanation(&explanation))
}

/// The path for a service, when there is one of this name; a bare name may be an instance's too.
async fn by_name(text: &str, session: &Session) -> Result<Option<String>, Failure> {
    let name = name(text)?;
    let known: Result<serde_json::Value, ClientError> =
        session.client.get(&session.service_path(&name)).await;
    match known {
        Ok(_) => Ok(Some(format!(
            "/v1/explain/service/{}/{name}",
            session.namespace
        ))),
        Err(error) if error.is_not_found() => {
            let instances = session.instances(false).await?;
            if instances.iter().any(|i| i.id.0.starts_with(text)) {
                return Ok(None);
            }
            Err(session.no_service(&name, error).await)
        }
        Err(error) => Err(error.into()),
    }
}

/// The path for an instance. One that no node lists any more may still be remembered.
async fn instance(text: &str, session: &Session) -> Result<String, Failure> {
    let id = match find(session.instances(false).await?, text) {
        Ok(instance) => instance.id.0,
        Err(failure) if failure.exit == crate::failure::Exit::NotFound => text.to_owned(),
        Err(failure) => return Err(failure),
    };
    Ok(format!("/v1/explain/instance/{}", encoded(&id)))
}
