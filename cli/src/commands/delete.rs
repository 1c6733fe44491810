//! `delete`: services, after asking.

use http::Method;
use scheduler::model::Name;
use tokio::time::Instant;

use super::{confirm, wait};
use crate::args::{DeleteArgs, WaitArgs};
use crate::failure::{Exit, Failure};
use crate::printer;
use crate::session::{Session, name};
use crate::subject::Subject;

pub async fn run(args: DeleteArgs, session: &Session) -> anyhow::Result<()> {
    let mut services = Vec::new();
    for text in &args.subjects {
        services.push(service(text)?);
    }
    // All are asked for before the first is gone.
    for name in &services {
        if !session.yes {
            session.service(name).await?;
        }
        confirm::destructive(session, "delete service", name.as_str())?;
    }
    for name in &services {
        let path = session.service_path(name);
        if let Err(error) = session.client.change(Method::DELETE, &path).await {
            let missing = error.is_not_found();
            let failure = if missing {
                session.no_service(name, error).await
            } else {
                error.into()
            };
            return Err(failure.into());
        }
        if !args.wait.no_wait {
            gone(session, name, &args.wait).await?;
        }
        if session.out.is_data() {
            printer::line(format!("service/{name}"))?;
        } else {
            session.out.progress(&format!("service/{name} deleted"));
        }
    }
    Ok(())
}

fn service(text: &str) -> Result<Name, Failure> {
    match Subject::parse(text)? {
        Subject::Service(text) => name(&text),
        Subject::Node(text) => Err(Failure::usage("a node is removed, not deleted")
            .hint(format!("selvedge node rm {text}"))),
        _ => Err(Failure::usage(format!(
            "`{text}` cannot be deleted: only services can"
        ))),
    }
}

/// Waits until nothing of the service runs on a node that can be reached.
async fn gone(session: &Session, name: &Name, args: &WaitArgs) -> anyhow::Result<()> {
    let until = Instant::now() + args.timeout;
    loop {
        let mut instances = session.instances_of(name).await.map_err(Failure::from)?;
        instances.retain(|i| i.alive && !i.state.is_over());
        if instances.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let message = format!("service/{name} is deleted, but instances still run");
            return Err(Failure::new(Exit::WaitTimedOut, message)
                .details(wait::unready(&instances))
                .into());
        }
        tokio::time::sleep(wait::PACE).await;
    }
}
