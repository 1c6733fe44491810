//! `GET /v1/usage`: what instances use and used, gathered from the nodes they are on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use netfabric::wire::peer::{PeerRequest, PeerResponse};
use netfabric::wire::usage::UsageView;
use scheduler::model::Name;
use serde::Deserialize;

use super::{Api, Failure, gather};
use crate::meter::UsageQuery;

/// Counters younger than this are not read again: whoever asks often gets the same answer.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageParams {
    namespace: Option<Name>,
    service: Option<Name>,
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(params): Query<UsageParams>,
) -> Result<Json<UsageView>, Failure> {
    let UsageParams { namespace, service } = params;
    if service.is_some() && namespace.is_none() {
        return Err(Failure::invalid("a service has a namespace: name both"));
    }
    let query = UsageQuery { namespace, service };
    let request = PeerRequest::Usage {
        namespace: query.namespace.clone(),
        service: query.service.clone(),
    };
    let (mut view, answers) = tokio::join!(here(&api, &query), gather::others(&api, request));
    for (name, answer) in answers {
        let more: Option<UsageView> = match answer {
            Some(PeerResponse::Usage { json }) => serde_json::from_slice(&json).ok(),
            _ => None,
        };
        match more {
            Some(more) => {
                view.instances.extend(more.instances);
                view.revisions.extend(more.revisions);
            }
            None => view.missing.push(name),
        }
    }
    Ok(Json(view))
}

async fn here(api: &Api, query: &UsageQuery) -> UsageView {
    api.meter.refresh(FRESH).await;
    api.meter.view(query, api.me, &api.name)
}

/// This node's part, for a peer.
pub(crate) async fn local(api: &Api, query: &UsageQuery) -> Vec<u8> {
    serde_json::to_vec(&here(api, query).await).unwrap_or_default()
}
