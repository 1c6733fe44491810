//! `GET /v1/usage`: what instances use and used, gathered from the nodes they are on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use futures::future::join_all;
use netfabric::transport::Kind;
use netfabric::wire::peer::{PeerRequest, PeerResponse};
use netfabric::wire::usage::UsageView;
use scheduler::model::{Name, NodeId};
use serde::Deserialize;

use super::{Api, Failure};
use crate::meter::UsageQuery;

/// A node that has not answered by then is missing in the answer.
const PEER_DEADLINE: Duration = Duration::from_secs(2);
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
    let fleet = api.fleet();
    let peers: Vec<(NodeId, Name)> = fleet
        .nearest()
        .iter()
        .map(|member| (member.record.node, member.record.name.clone()))
        .filter(|(node, _)| *node != api.me)
        .collect();
    let asked = peers.iter().map(|(node, _)| there(&api, *node, &query));
    let (mut view, answers) = tokio::join!(here(&api, &query), join_all(asked));
    for ((_, name), answer) in peers.into_iter().zip(answers) {
        match answer {
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

async fn there(api: &Api, node: NodeId, query: &UsageQuery) -> Option<UsageView> {
    let request = PeerRequest::Usage {
        namespace: query.namespace.clone(),
        service: query.service.clone(),
    };
    let answer = api.mesh.call(node, Kind::Peer, &request, PEER_DEADLINE);
    match answer.await {
        Ok(PeerResponse::Usage { json }) => serde_json::from_slice(&json).ok(),
        _ => None,
    }
}

/// This node's part, for a peer.
pub(crate) async fn local(api: &Api, query: &UsageQuery) -> Vec<u8> {
    serde_json::to_vec(&here(api, query).await).unwrap_or_default()
}
