//! `selvedge explain`: why an instance is where it is, and what a request paid for. Receipts are
//! kept by the node that runs the instance, bills by the node the request reached, decisions by those who
//! made them (`history`); this node asks them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use futures::future::join_all;
use netfabric::ingress;
use netfabric::transport::Kind;
use netfabric::wire::api::{Bill, Explanation, InstanceView, Phase};
use netfabric::wire::peer::{PeerRequest, PeerResponse};
use scheduler::model::{InstanceId, InstanceState, NodeId, RequestId, RevisionState};
use scheduler::place::Receipt;

use super::{Api, Failure, doctor, history, services, views};

/// A peer that has not answered by then is left out.
const PEER_DEADLINE: Duration = Duration::from_secs(2);

/// What this node itself knows about `subject` (`instance/ID`, `doing/ID`, `request/ID`, `decisions/…`, or its own health), as JSON: the answer
/// to a peer's [`PeerRequest::Explain`].
pub(crate) async fn local(api: &Api, subject: &str) -> Option<Vec<u8>> {
    match subject.split_once('/')? {
        ("node", doctor::SUBJECT) => serde_json::to_vec(&api.diagnose().await?).ok(),
        ("instance", id) => {
            let receipt = api.agent.receipt(&InstanceId(id.to_owned()))?;
            serde_json::to_vec(&receipt).ok()
        }
        (history::SUBJECT, what) => serde_json::to_vec(&history::local(api, what).await?).ok(),
        ("doing", id) => serde_json::to_vec(&api.agent.doing(&InstanceId(id.to_owned()))).ok(),
        ("request", id) => {
            serde_json::to_vec(&api.ingress.explain(&RequestId(id.to_owned()))?).ok()
        }
        _ => None,
    }
}

impl Api {
    /// The local answer of another node, if it has one.
    pub(super) async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        node: NodeId,
        subject: &str,
    ) -> Option<T> {
        let bytes = if node == self.me {
            local(self, subject).await?
        } else {
            let request = PeerRequest::Explain {
                subject: subject.to_owned(),
            };
            let answer = self
                .mesh
                .call(node, Kind::Peer, &request, PEER_DEADLINE)
                .await
                .ok()?;
            let PeerResponse::Explained { json } = answer else {
                return None;
            };
            json
        };
        serde_json::from_slice(&bytes).ok()
    }

    /// The first live node's answer.
    async fn ask_all<T: serde::de::DeserializeOwned>(&self, subject: &str) -> Option<T> {
        let fleet = self.fleet();
        let nodes = fleet.nearest();
        let answers = join_all(nodes.iter().map(|m| self.ask(m.record.node, subject))).await;
        answers.into_iter().flatten().next()
    }
}

pub(super) async fn instance(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, Failure> {
    let known = views::instances(&api.fleet())
        .into_iter()
        .find(|i| i.id.0 == id);
    let receipt: Option<Receipt> = match &known {
        Some(view) => api.ask(view.node, &format!("instance/{id}")).await,
        None => api.ask_all(&format!("instance/{id}")).await,
    };
    let decisions = history::of(&api, &format!("instance/{id}")).await;
    let receipt = receipt.or_else(|| history::receipt(&decisions));
    if known.is_none() && receipt.is_none() && decisions.is_empty() {
        return Err(Failure::not_found(format!(
            "instance {id} is not known on any node in reach"
        )));
    }
    let mut why: Vec<String> = known.iter().map(where_it_is).collect();
    if let Some(view) = &known {
        let doing: Option<Vec<String>> = api.ask(view.node, &format!("doing/{id}")).await;
        why.extend(doing.unwrap_or_default());
    }
    why.extend(receipt.iter().map(decided));
    if known.is_none() {
        why.extend(history::ended(&decisions));
    }
    Ok(Json(Explanation {
        subject: format!("instance {id}"),
        receipt,
        bill: None,
        why,
        decisions,
    }))
}

fn where_it_is(view: &InstanceView) -> String {
    let place = format!(
        "{} is {} on {} in region {}",
        view.id, view.state, view.node_name, view.region
    );
    match &view.failure {
        Some(failure) => format!("{place}: {}: {}", failure.code, failure.message),
        None => place,
    }
}

fn decided(receipt: &Receipt) -> String {
    let by = receipt
        .verdicts
        .iter()
        .find(|v| v.node == receipt.decided_by)
        .map_or_else(|| receipt.decided_by.to_string(), |v| v.name.to_string());
    format!("{by} decided its placement, because of: {}", receipt.cause)
}

pub(super) async fn service(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Explanation>, Failure> {
    let key = services::service_key(namespace, name)?;
    let state = api.registry.view().state();
    let stored = state
        .services
        .get(&key)
        .ok_or_else(|| services::no_service(&key))?;
    let mut instances = views::present(&api.fleet());
    instances.retain(|i| i.namespace == key.namespace && i.service == key.name && i.alive);
    // What is parked serves nobody yet.
    instances.retain(|i| i.state != InstanceState::Parked);
    let mut why = Vec::new();
    if let Some(revision) = stored
        .status
        .latest_created
        .as_ref()
        .and_then(|k| state.revisions.get(k))
    {
        why.push(match &revision.state {
            RevisionState::Ready => {
                format!("{} is the latest revision and ready", revision.key.name)
            }
            RevisionState::Pending => {
                format!(
                    "{} is the latest revision; its first instance is not ready yet",
                    revision.key.name
                )
            }
            RevisionState::Failed { reason, message } => {
                format!(
                    "{} is the latest revision and failed: {reason}: {message}",
                    revision.key.name
                )
            }
        });
    }
    if instances.is_empty() {
        why.push("it has no instance now: the next request starts one".to_owned());
    }
    why.extend(instances.iter().map(where_it_is));
    let newest = instances.iter().max_by_key(|i| i.since);
    let receipt: Option<Receipt> = match newest {
        Some(view) => api.ask(view.node, &format!("instance/{}", view.id)).await,
        None => None,
    };
    let decisions = history::of(&api, &format!("service/{}/{}", key.namespace, key.name)).await;
    let receipt = receipt.or_else(|| history::receipt(&decisions));
    why.extend(history::number(&decisions));
    Ok(Json(Explanation {
        subject: format!("service {key}"),
        receipt,
        bill: None,
        why,
        decisions,
    }))
}

pub(super) async fn request(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, Failure> {
    let kept: ingress::Bill = api.ask_all(&format!("request/{id}")).await.ok_or_else(|| {
        let message = format!("request {id} is not known on any node in reach");
        Failure::not_found(message)
    })?;
    let mut receipt = kept.receipt.clone();
    if let (None, Some(instance), Some(node)) = (&receipt, &kept.instance, kept.node) {
        receipt = api.ask(node, &format!("instance/{instance}")).await;
    }
    let cold = kept
        .phases
        .iter()
        .any(|(phase, _)| phase == "start" || phase == "create");
    let mut why = vec![if cold {
        "it came when nothing was ready, so it waited for an instance to start".to_owned()
    } else {
        "it was answered without waiting for a start".to_owned()
    }];
    why.extend(
        kept.problem
            .iter()
            .map(|code| format!("this node refused it: {code}")),
    );
    why.extend(receipt.iter().map(decided));
    let bill = Some(shown(kept));
    Ok(Json(Explanation {
        subject: format!("request {id}"),
        receipt,
        bill,
        why,
        decisions: Vec::new(),
    }))
}

/// A bill as the API shows it.
fn shown(kept: ingress::Bill) -> Bill {
    let total_micros = kept.phases.iter().map(|(_, micros)| micros).sum();
    let phases = kept
        .phases
        .into_iter()
        .map(|(name, micros)| Phase { name, micros })
        .collect();
    Bill {
        request: kept.request,
        service: kept.service,
        revision: kept.revision,
        instance: kept.instance,
        node: kept.node,
        phases,
        status: kept.status,
        problem: kept.problem,
        at: kept.at,
        total_micros,
    }
}
