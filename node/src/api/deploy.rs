//! Deploy: check everything that can be checked, pin the image, then propose; and the long poll
//! that follows a revision until it is ready or failed.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use netfabric::wire::api::{
    ApiError, DeployRequest, DeployResponse, ErrorCode, InstanceView, WaitResponse,
};
use scheduler::model::{
    ImagePin, Meta, Name, Revision, RevisionKey, RevisionSpec, RevisionState, Service, ServiceKey,
    ServiceStatus, domains_of,
};
use scheduler::place::{Ask, Promised, Receipt, displace, place};
use scheduler::registry::{Action, Outcome, PutService, validate};
use serde::Deserialize;

use super::{Api, Failure, domains, services, views};
use crate::agent::unsupported;
use crate::clock;

/// A `wait` call is answered by then; callers ask again.
const MAX_WAIT: Duration = Duration::from_secs(30);

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Result<Json<DeployRequest>, JsonRejection>,
) -> Result<Json<DeployResponse>, Failure> {
    let Json(request) = body?;
    let key = services::service_key(namespace, name)?;
    // Asked before the image is resolved: without quorum the answer is known at once.
    if !request.dry_run && !api.registry.status().quorum {
        return Err(Failure::no_quorum(&api.registry));
    }
    let dry_run = request.dry_run;
    let mut put = put_service(key, request);
    validate(&put)?;
    domains::outside(&api.origin, &domains_of(&put.annotations))?;
    if let Some(missing) = unsupported(&put.spec) {
        return Err(Failure::invalid(missing));
    }
    put.image = pin(&api, &put).await?;
    let receipt = can_place(&api, &put)?;
    if dry_run {
        let (image, service) = (put.image.clone(), preview(&api, put));
        let index = api.registry.view().state().index;
        let receipt = Some(receipt);
        return Ok(Json(DeployResponse {
            service,
            created_revision: None,
            image,
            index,
            receipt,
        }));
    }
    let image = put.image.clone();
    let (index, outcome) = api.change(Action::PutService(Box::new(put))).await?;
    let Outcome::Service {
        service,
        created_revision,
    } = outcome
    else {
        return Err(Failure::internal("the registry answered no service"));
    };
    let receipt = Some(receipt);
    Ok(Json(DeployResponse {
        service: *service,
        created_revision,
        image,
        index,
        receipt,
    }))
}

fn put_service(key: ServiceKey, request: DeployRequest) -> PutService {
    PutService {
        key,
        image: unpinned(&request.spec),
        spec: request.spec,
        scale: request.scale,
        traffic: request.traffic,
        labels: request.labels,
        annotations: request.annotations,
        uid: ulid::Ulid::generate().to_string(),
        if_version: request.if_version,
    }
}

/// Stands for the image while the words around it are checked.
fn unpinned(spec: &RevisionSpec) -> ImagePin {
    let reference = spec.main().map(|c| c.image.clone()).unwrap_or_default();
    ImagePin {
        reference,
        digest: format!("sha256:{:064}", 0),
    }
}

/// Resolves the image's tag to the digest every instance of the revision will run.
async fn pin(api: &Api, put: &PutService) -> Result<ImagePin, Failure> {
    let Some(container) = put.spec.main() else {
        return Err(Failure::invalid("spec.containers: one container is needed"));
    };
    Ok(api
        .images
        .pin(
            put.key.namespace.as_str(),
            &container.image,
            &container.image_pull_policy,
        )
        .await?)
}

/// Asks placement where an instance could go now, or who would make room for it; nowhere is an error with each node's reason.
fn can_place(api: &Api, put: &PutService) -> Result<Receipt, Failure> {
    let revision = Revision {
        key: RevisionKey {
            namespace: put.key.namespace.clone(),
            name: put.key.name.clone(),
        },
        service: put.key.clone(),
        generation: 0,
        created: clock::unix(),
        spec: put.spec.clone(),
        image: put.image.clone(),
        state: RevisionState::Pending,
    };
    let ask = Ask {
        from: api.me,
        cause: "deploy".to_owned(),
        ..Ask::default()
    };
    let (fleet, state) = (api.fleet(), api.registry.view().state());
    let known = |key: &RevisionKey| state.revisions.get(key);
    let receipt = place(&fleet, &revision, &ask);
    // What has priority may find the nodes full.
    let receipt = displace(
        receipt,
        &fleet,
        &revision,
        &ask,
        &Promised::default(),
        known,
    );
    if receipt.ranked().next().is_some() {
        return Ok(receipt);
    }
    let message = format!("no node can take an instance of {}", put.key);
    Err(Failure(
        ApiError::new(ErrorCode::CannotPlace, message)
            .hint("lower --cpu or --memory, loosen --region or --node-label, or join a node")
            .details(receipt.refusals()),
    ))
}

/// The service as it would be stored.
fn preview(api: &Api, put: PutService) -> Service {
    let state = api.registry.view().state();
    let known = state.services.get(&put.key);
    Service {
        meta: Meta {
            labels: put.labels,
            annotations: put.annotations,
            ..known.map(|s| s.meta.clone()).unwrap_or_default()
        },
        status: known.map_or_else(ServiceStatus::default, |s| s.status.clone()),
        key: put.key,
        spec: put.spec,
        scale: put.scale,
        traffic: put.traffic,
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WaitQuery {
    revision: Option<Name>,
    timeout_ms: Option<u64>,
}

pub(super) async fn wait(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<WaitResponse>, Failure> {
    let service = services::service_key(namespace, name)?;
    let patience = query
        .timeout_ms
        .map_or(MAX_WAIT, Duration::from_millis)
        .min(MAX_WAIT);
    let deadline = tokio::time::Instant::now() + patience;
    let mut changes = api.registry.view().watch();
    loop {
        let state = changes.borrow_and_update().clone();
        let key = match &query.revision {
            Some(name) => RevisionKey {
                namespace: service.namespace.clone(),
                name: name.clone(),
            },
            None => latest(&state, &service)?,
        };
        let revision = state
            .revisions
            .get(&key)
            .ok_or_else(|| Failure::not_found(format!("revision {key} does not exist")))?;
        let decided = revision.state != RevisionState::Pending;
        let waited = tokio::time::timeout_at(deadline, changes.changed());
        if decided || !matches!(waited.await, Ok(Ok(()))) {
            let state = revision.state.clone();
            return Ok(Json(WaitResponse {
                state,
                instances: of_revision(&api, &key),
            }));
        }
    }
}

fn latest(
    state: &scheduler::registry::State,
    service: &ServiceKey,
) -> Result<RevisionKey, Failure> {
    let stored = state
        .services
        .get(service)
        .ok_or_else(|| services::no_service(service))?;
    let latest = stored.status.latest_created.clone();
    latest.ok_or_else(|| Failure::not_found(format!("service {service} has no revision")))
}

fn of_revision(api: &Api, key: &RevisionKey) -> Vec<InstanceView> {
    let mut all = views::present(&api.fleet());
    all.retain(|i| i.namespace == key.namespace && i.revision == key.name);
    all
}
