//! `scale`: the bounds of a service's instances.

use http::Method;
use netfabric::wire::api::{ScaleRequest, ServiceView};
use serde_json::Value;
use tokio::time::Instant;

use super::wait;
use crate::args::ScaleArgs;
use crate::client::ANSWER;
use crate::failure::{Exit, Failure};
use crate::output::scale_bounds;
use crate::session::{Session, name};

pub async fn run(args: ScaleArgs, session: &Session) -> anyhow::Result<()> {
    let name = name(&args.name)?;
    let request = ScaleRequest {
        min: args.scale.min,
        max: args.scale.max,
    };
    let path = format!("{}/scale", session.service_path(&name));
    let answer: Result<Value, _> = session
        .client
        .send(Method::POST, &path, &request, ANSWER)
        .await;
    if let Err(error) = answer {
        return Err(if error.is_not_found() {
            session.no_service(&name, error).await
        } else {
            error.into()
        }
        .into());
    }
    let mut view = session.service(&name).await?;
    session.out.progress(&format!(
        "service/{name} scaled to {}",
        scale_bounds(&view.service.scale)
    ));
    if !args.wait.no_wait && args.scale.min > 0 {
        let until = Instant::now() + args.wait.timeout;
        view = enough_ready(session, view, args.scale.min, until).await?;
    }
    if session.out.is_data() {
        session.out.one(&view)
    } else {
        Ok(())
    }
}

/// Waits until `min` instances are ready, saying how many are.
async fn enough_ready(
    session: &Session,
    mut view: ServiceView,
    min: u32,
    until: Instant,
) -> anyhow::Result<ServiceView> {
    let mut seen = wait::Seen::default();
    loop {
        let name = &view.service.key.name;
        let instances = session.instances_of(name).await.map_err(Failure::from)?;
        seen.report(&instances, session.out);
        let serving = view.instances.ready + view.instances.frozen;
        if serving >= min {
            return Ok(view);
        }
        if Instant::now() >= until {
            let message = format!("{serving} of {min} instances of {name} are ready");
            return Err(Failure::new(Exit::WaitTimedOut, message)
                .details(wait::unready(&instances))
                .hint(format!("selvedge explain service/{name}"))
                .into());
        }
        tokio::time::sleep(wait::PACE).await;
        view = session.service(name).await?;
    }
}
