//! The cluster and its nodes: status, enrolment tokens, removal.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use netfabric::identity::JoinToken;
use netfabric::wire::api::{
    ApiError, ClusterView, ErrorCode, NodeRef, NodeStatus, RegistryView, Status, TokenRequest,
    TokenResponse, VersionView,
};
use scheduler::model::{NodeIdentity, UnixMs};
use scheduler::registry::{Action, Command, Outcome, Reply};

use super::{Api, Failure, views};
use crate::clock;
use crate::consensus::ReadError;

/// How long a change may take before the caller hears that there is no quorum; the CLI promises an
/// answer within 5 s.
const CHANGE_DEADLINE: Duration = Duration::from_secs(4);
/// How long a leader may take to prove that it leads: an election, and short of the CLI's promise.
const LEADER_PROOF: Duration = Duration::from_millis(2500);
/// How long an answer waits until the change holds on this node too.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Tokens never live longer.
const MAX_TOKEN_TTL: Duration = Duration::from_hours(24);

impl Api {
    /// Proposes one change and waits until it holds here too, so that the caller's next read on
    /// this node sees it.
    pub(super) async fn change(&self, action: Action) -> Result<(u64, Outcome), Failure> {
        if !self.registry.status().quorum {
            return Err(Failure::no_quorum(&self.registry));
        }
        // The leader last heard of may be dead by now. Asked before the change is handed in, it
        // leaves no doubt about a change that cannot be made; an election may pass meanwhile.
        if let Err(ReadError::NoQuorum) = self.registry.read_index(LEADER_PROOF).await {
            return Err(Failure::no_quorum(&self.registry));
        }
        let command = Command {
            at: clock::unix(),
            action,
        };
        match self.registry.propose(&command, CHANGE_DEADLINE).await? {
            Reply::Refused(refusal) => Err(refusal.into()),
            Reply::Done { index, outcome } => {
                let reached = self.registry.view().reached(index);
                // A slow copy delays the caller's next read, not the answer.
                let _ = tokio::time::timeout(CATCH_UP, reached).await;
                Ok((index, outcome))
            }
        }
    }

    fn cluster_id(&self) -> String {
        self.registry
            .view()
            .state()
            .cluster
            .as_ref()
            .map(|c| c.id.clone())
            .unwrap_or_default()
    }
}

pub(super) async fn version(State(api): State<Arc<Api>>) -> Json<VersionView> {
    Json(VersionView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: api.name.clone(),
        cluster: api.cluster_id(),
    })
}

pub(super) async fn status(State(api): State<Arc<Api>>) -> Result<Json<Status>, Failure> {
    let state = api.registry.view().state();
    let fleet = api.fleet();
    let me = state.nodes.get(&api.me).ok_or_else(|| {
        let message = "this node's copy of the registry is still catching up";
        Failure(ApiError::new(ErrorCode::Unreachable, message))
    })?;
    let registry = api.registry.status();
    let live = views::instances(&fleet).into_iter().filter(|i| i.alive);
    let instances = views::counts(live.map(|i| i.state));
    Ok(Json(Status {
        cluster: ClusterView {
            id: api.cluster_id(),
        },
        node: NodeRef {
            id: me.id,
            name: me.name.clone(),
            region: me.region.clone(),
            zone: me.zone.clone(),
        },
        registry: RegistryView {
            index: state.index,
            leader: registry.leader,
            voters: registry.voters,
            quorum: registry.quorum,
            role: me.role,
            failed: registry.failed.map(|outage| outage.why),
        },
        nodes: members(&state.nodes, |n| views::node(n, &fleet)),
        services: u32::try_from(state.services.len()).unwrap_or(u32::MAX),
        instances,
    }))
}

fn members<T>(
    nodes: &std::collections::BTreeMap<scheduler::model::NodeId, NodeIdentity>,
    view: impl Fn(&NodeIdentity) -> T,
) -> Vec<T> {
    nodes.values().filter(|n| !n.revoked).map(view).collect()
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Vec<NodeStatus>> {
    let fleet = api.fleet();
    Json(members(&api.registry.view().state().nodes, |n| {
        views::node(n, &fleet)
    }))
}

pub(super) fn find(api: &Api, name: &str) -> Result<NodeIdentity, Failure> {
    let state = api.registry.view().state();
    let found = state
        .nodes
        .values()
        .find(|n| !n.revoked && n.name.as_str() == name);
    found
        .cloned()
        .ok_or_else(|| Failure::not_found(format!("node {name} does not exist")))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<NodeStatus>, Failure> {
    Ok(Json(views::node(&find(&api, &name)?, &api.fleet())))
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    let node = find(&api, &name)?.id;
    let (index, _) = api.change(Action::RemoveNode { node }).await?;
    Ok(Json(serde_json::json!({ "index": index })))
}

pub(super) async fn cordon(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    set_intake(&api, &name, (true, false)).await
}

pub(super) async fn drain(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    set_intake(&api, &name, (true, true)).await
}

pub(super) async fn uncordon(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    set_intake(&api, &name, (false, false)).await
}

/// Whether it takes new instances, and whether those it has leave.
async fn set_intake(
    api: &Api,
    name: &str,
    (cordoned, draining): (bool, bool),
) -> Result<Json<serde_json::Value>, Failure> {
    let node = find(api, name)?.id;
    let action = Action::CordonNode {
        node,
        cordoned,
        draining,
    };
    let (index, _) = api.change(action).await?;
    Ok(Json(serde_json::json!({ "index": index })))
}

pub(super) async fn create_token(
    State(api): State<Arc<Api>>,
    body: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Json<TokenResponse>, Failure> {
    let ttl = Duration::from_secs(body?.0.ttl_seconds);
    if ttl.is_zero() || ttl > MAX_TOKEN_TTL {
        return Err(Failure::invalid(
            "ttlSeconds: a token lives between 1 second and 24 hours",
        ));
    }
    let token = JoinToken::create(api.ca_hash.clone()).map_err(|error| {
        Failure(ApiError::new(
            ErrorCode::Internal,
            format!("no token could be made: {error}"),
        ))
    })?;
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let expires = UnixMs(clock::unix().0.saturating_add(ttl_ms));
    api.change(Action::CreateToken {
        hash: token.secret_hash(),
        expires,
    })
    .await?;
    let (address, token) = (api.mesh_address.to_string(), token.reveal());
    let line = format!("selvedge join {address} --token {token}");
    Ok(Json(TokenResponse {
        token,
        address,
        line,
        expires,
    }))
}
