//! `POST /v1/instances/ID/{exec,copy,port-forward}`: answered with a switch of protocol once what was
//! asked has begun, wherever the instance is; then the connection is the session's.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use netfabric::wire::api::{ApiError, ErrorCode};
use netfabric::wire::touch::{PROTOCOL, Touch, Wish};
use scheduler::model::{InstanceId, InstanceState, NodeId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Api, Failure, MAX_BODY, views};

/// The switch is a matter of one round trip.
const SWITCH: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
pub(super) struct Port {
    port: u16,
}

pub(super) async fn exec(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let (upgrade, body) = switching(request)?;
    let wish = Wish::Exec(json(body).await?);
    begin(&api, id, wish, upgrade).await
}

pub(super) async fn copy(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let (upgrade, body) = switching(request)?;
    let wish = Wish::Copy(json(body).await?);
    begin(&api, id, wish, upgrade).await
}

pub(super) async fn forward(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Query(Port { port }): Query<Port>,
    request: Request,
) -> Result<Response, Failure> {
    let (upgrade, _) = switching(request)?;
    if port == 0 {
        return Err(Failure::invalid("port 0 is no port"));
    }
    begin(&api, id, Wish::Forward(port), upgrade).await
}

/// The connection after the switch, and the request's body.
fn switching(request: Request) -> Result<(OnUpgrade, Body), Failure> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    match upgrade.filter(|_| asks_for_us(&parts.headers)) {
        Some(upgrade) => Ok((upgrade, body)),
        None => Err(Failure::invalid(format!(
            "this path needs the headers `Connection: upgrade` and `Upgrade: {PROTOCOL}`"
        ))),
    }
}

fn asks_for_us(headers: &HeaderMap) -> bool {
    let wanted = headers.get(UPGRADE).and_then(|v| v.to_str().ok());
    wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(PROTOCOL))
}

async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| {
        Failure(ApiError::new(
            ErrorCode::TooLarge,
            "the body is larger than 1 MiB, or broke off",
        ))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::invalid(error.to_string()))
}

async fn begin(api: &Api, id: String, wish: Wish, upgrade: OnUpgrade) -> Result<Response, Failure> {
    let instance = InstanceId(id);
    let node = node_of(api, &instance)?;
    let begun = api.toucher.begin(node, Touch { instance, wish }).await;
    let session = begun.map_err(Failure)?;
    tokio::spawn(async move {
        if let Ok(Ok(connection)) = tokio::time::timeout(SWITCH, upgrade).await {
            session.serve(TokioIo::new(connection)).await;
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// The node that has the instance, as this one knows. An instance that has ended is told apart from
/// one that never was.
fn node_of(api: &Api, id: &InstanceId) -> Result<NodeId, Failure> {
    let all = views::instances(&api.fleet());
    let found = all.into_iter().find(|instance| instance.id == *id);
    let found = found.ok_or_else(|| {
        let error = ApiError::new(ErrorCode::NotFound, format!("instance {id} is not known"));
        Failure(error.hint("selvedge get instances"))
    })?;
    if matches!(found.state, InstanceState::Stopped | InstanceState::Failed) {
        let message = format!(
            "instance {id} does not run any more: it is {:?}",
            found.state
        );
        let error = ApiError::new(ErrorCode::Conflict, message);
        return Err(Failure(error.hint("selvedge get instances")));
    }
    Ok(found.node)
}
