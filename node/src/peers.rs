//! What this node does for its peers and asks of them: start and stop instances, and the few reads
//! only one node can answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use netfabric::ingress::Starter;
use netfabric::transport::{Kind, Mesh};
use netfabric::wire::decision::Deed;
use netfabric::wire::peer::{PeerRequest, PeerResponse, StartRefusal, StartRequest, Started};
use scheduler::model::{InstanceId, NodeId, ServiceKey};
use scheduler::place::Receipt;

use crate::agent::Agent;
use crate::api::{self, Api};
use crate::enrol::Enrol;
use crate::meter::UsageQuery;
use crate::telemetry::decisions::{Decisions, Told};

/// What a peer may take beyond the asker's patience before it counts as unreachable.
const GRACE: Duration = Duration::from_secs(2);
/// A stop is only taken note of; the drain goes on after the answer.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// Starts and stops instances wherever they are to be.
#[derive(Clone)]
pub struct Peers {
    pub me: NodeId,
    pub agent: Agent,
    pub mesh: Mesh,
    pub decisions: Decisions,
}

impl Peers {
    /// Asks the node to drain and stop an instance. A node that does not answer keeps it; the
    /// steward asks again.
    pub async fn stop(&self, node: NodeId, instance: &InstanceId, cause: &str) {
        if node == self.me {
            self.agent.stop(instance, cause);
            return;
        }
        let request = PeerRequest::Stop {
            instance: instance.clone(),
            cause: cause.to_owned(),
        };
        let answer: Result<PeerResponse, _> = self
            .mesh
            .call(node, Kind::Peer, &request, STOP_DEADLINE)
            .await;
        if let Err(error) = answer {
            tracing::debug!(%node, %instance, %error, "a stop did not reach its node");
        }
    }
}

#[async_trait]
impl Starter for Peers {
    async fn start(&self, node: NodeId, request: StartRequest) -> Result<Started, StartRefusal> {
        if node == self.me {
            return self.agent.start(request).await;
        }
        let deadline = Duration::from_millis(request.patience_millis).saturating_add(GRACE);
        let request = PeerRequest::Start(Box::new(request));
        match self.mesh.call(node, Kind::Peer, &request, deadline).await {
            Ok(PeerResponse::Started(started)) => Ok(started),
            Ok(PeerResponse::StartRefused(refusal)) => Err(refusal),
            Ok(other) => Err(StartRefusal::Unreachable(format!(
                "unexpected answer {other:?}"
            ))),
            Err(error) => Err(StartRefusal::Unreachable(error.to_string())),
        }
    }

    fn unplaced(&self, service: &ServiceKey, receipt: &Receipt, why: &str) {
        let told = Told {
            instance: None,
            why: why.to_owned(),
            receipt: Some(receipt.clone()),
        };
        self.decisions
            .note(Deed::Unplaced, (service, &receipt.revision), told);
    }
}

/// Answers peers' calls.
pub fn serve(mesh: &Mesh, agent: Agent, api: Arc<Api>, enrol: Arc<Enrol>) {
    mesh.serve_calls(Kind::Peer, move |from, request: PeerRequest| {
        let (agent, api, enrol) = (agent.clone(), api.clone(), enrol.clone());
        async move { answer(&agent, &api, &enrol, from, request).await }
    });
}

async fn answer(
    agent: &Agent,
    api: &Api,
    enrol: &Enrol,
    from: NodeId,
    request: PeerRequest,
) -> PeerResponse {
    match request {
        PeerRequest::Start(request) => match agent.start(*request).await {
            Ok(started) => PeerResponse::Started(started),
            Err(refusal) => PeerResponse::StartRefused(refusal),
        },
        PeerRequest::Stop { instance, cause } => {
            tracing::debug!(%from, %instance, cause, "a peer asks to stop an instance");
            if agent.stop(&instance, &cause) {
                PeerResponse::Stopping
            } else {
                PeerResponse::UnknownInstance
            }
        }
        PeerRequest::Explain { subject } => match api::explain_local(api, &subject).await {
            Some(json) => PeerResponse::Explained { json },
            None => PeerResponse::UnknownSubject,
        },
        PeerRequest::Usage { namespace, service } => PeerResponse::Usage {
            json: api::usage_local(api, &UsageQuery { namespace, service }).await,
        },
        PeerRequest::ImageUsage => PeerResponse::ImageUsage {
            json: api::image_shares_local(api).await,
        },
        PeerRequest::Join {
            token_hash,
            request,
        } => PeerResponse::Joined {
            decided: enrol.passed_on(token_hash, &request).await,
        },
    }
}
