//! Services, revisions and instances: reads, scale and delete.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use netfabric::wire::api::{ErrorCode, INDEX_HEADER, InstanceView, ScaleRequest, ServiceView};
use scheduler::model::{Name, Revision, RevisionKey, Scale, Service, ServiceKey};
use scheduler::registry::{self, Action, Outcome};
use serde::Deserialize;

use super::{Api, Failure, views};
use crate::clock;
use crate::consensus::ReadError;

/// How long a consistent read may take; the CLI promises an answer within 5 s.
const READ_DEADLINE: Duration = Duration::from_secs(4);

/// How fresh an answer has to be.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Freshness {
    /// Not older than anything that was acknowledged before the call. Otherwise the answer is
    /// this node's own copy.
    #[serde(default)]
    consistent: bool,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Filter {
    namespace: Option<Name>,
    service: Option<Name>,
}

pub(super) fn service_key(namespace: String, name: String) -> Result<ServiceKey, Failure> {
    Ok(ServiceKey {
        namespace: Name::new(namespace)?,
        name: Name::new(name)?,
    })
}

impl Api {
    /// The state to answer a read from.
    async fn read(&self, consistent: bool) -> Result<Arc<registry::State>, Failure> {
        if consistent {
            // Known at once, as for changes.
            if !self.registry.status().quorum {
                return Err(ReadError::NoQuorum.into());
            }
            self.registry.read_index(READ_DEADLINE).await?;
        }
        Ok(self.registry.view().state())
    }

    /// The newest state, to make a change upon.
    pub(super) async fn newest(&self) -> Result<Arc<registry::State>, Failure> {
        self.read(true).await.map_err(|f| cannot_change(self, f))
    }

    pub(super) fn service_view(&self, state: &registry::State, service: &Service) -> ServiceView {
        let secure = state.secure_hosts(clock::unix());
        views::service(state, &self.fleet(), (&self.origin, &secure), service)
    }
}

/// An answer with the index of the state it was made from; `404` has one too.
fn read_at(index: u64, answer: impl IntoResponse) -> Response {
    ([(INDEX_HEADER, index.to_string())], answer).into_response()
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Query(filter): Query<Filter>,
    Query(Freshness { consistent }): Query<Freshness>,
) -> Result<Response, Failure> {
    let state = api.read(consistent).await?;
    let wanted = |s: &&Service| {
        filter
            .namespace
            .as_ref()
            .is_none_or(|n| *n == s.key.namespace)
    };
    let services = state.services.values().filter(wanted);
    let (fleet, secure) = (api.fleet(), state.secure_hosts(clock::unix()));
    let view = |service| views::service(&state, &fleet, (&api.origin, &secure), service);
    let views: Vec<_> = services.map(view).collect();
    Ok(read_at(state.index, Json(views)))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(Freshness { consistent }): Query<Freshness>,
) -> Result<Response, Failure> {
    let key = service_key(namespace, name)?;
    let state = api.read(consistent).await?;
    let service = state.services.get(&key).ok_or_else(|| no_service(&key));
    let answer = service.map(|service| Json(api.service_view(&state, service)));
    Ok(read_at(state.index, answer))
}

pub(super) fn no_service(key: &ServiceKey) -> Failure {
    Failure::not_found(format!("service {key} does not exist"))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, Failure> {
    let key = service_key(namespace, name)?;
    let (index, _) = api.change(Action::DeleteService { key }).await?;
    Ok(Json(serde_json::json!({ "index": index })))
}

pub(super) async fn scale(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Result<Json<ScaleRequest>, JsonRejection>,
) -> Result<Json<ServiceView>, Failure> {
    let Json(ScaleRequest { min, max }) = body?;
    let key = service_key(namespace, name)?;
    if max != 0 && min > max {
        return Err(Failure::invalid(format!(
            "scale: {min}..{max} has its minimum above its maximum"
        )));
    }
    // The new scale is made from the present one, so that one must not be an old copy.
    let state = api.newest().await?;
    let service = state.services.get(&key).ok_or_else(|| no_service(&key))?;
    let scale = Scale {
        min,
        max,
        ..service.scale.clone()
    };
    match api.change(Action::SetScale { key, scale }).await? {
        (_, Outcome::Service { service, .. }) => {
            let state = api.registry.view().state();
            Ok(Json(api.service_view(&state, &service)))
        }
        _ => Ok(Json(api.service_view(&state, service))),
    }
}

/// A read that fails before a change is the change's failure.
fn cannot_change(api: &Api, failure: Failure) -> Failure {
    match failure.0.code {
        ErrorCode::NoQuorum => Failure::no_quorum(&api.registry),
        _ => failure,
    }
}

pub(super) async fn revisions(
    State(api): State<Arc<Api>>,
    Query(filter): Query<Filter>,
) -> Json<Vec<Revision>> {
    let state = api.registry.view().state();
    let wanted = |r: &&Revision| {
        filter
            .namespace
            .as_ref()
            .is_none_or(|n| *n == r.key.namespace)
            && filter.service.as_ref().is_none_or(|n| *n == r.service.name)
    };
    Json(state.revisions.values().filter(wanted).cloned().collect())
}

pub(super) async fn revision(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Revision>, Failure> {
    let key = RevisionKey {
        namespace: Name::new(namespace)?,
        name: Name::new(name)?,
    };
    let state = api.registry.view().state();
    let revision = state.revisions.get(&key).cloned();
    revision
        .map(Json)
        .ok_or_else(|| Failure::not_found(format!("revision {key} does not exist")))
}

pub(super) async fn instances(
    State(api): State<Arc<Api>>,
    Query(filter): Query<Filter>,
) -> Json<Vec<InstanceView>> {
    let mut all = views::present(&api.fleet());
    all.retain(|i| {
        filter.namespace.as_ref().is_none_or(|n| *n == i.namespace)
            && filter.service.as_ref().is_none_or(|n| *n == i.service)
    });
    Json(all)
}

pub(super) async fn instance(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<InstanceView>, Failure> {
    let found = views::instances(&api.fleet())
        .into_iter()
        .find(|i| i.id.0 == id);
    found
        .map(Json)
        .ok_or_else(|| Failure::not_found(format!("instance {id} is not known")))
}
