//! Takes new nodes in: checks the request, has the registry use up the token and number the node,
//! and signs its key. Only voters hold the CA's key; a follower passes the request on to one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use netfabric::identity::{Authority, Vault, csr_public_key};
use netfabric::transport::join::{JoinHandler, JoinPeer, JoinRefusal, JoinRequest, JoinResponse};
use netfabric::transport::{Kind, Mesh};
use netfabric::wire::codec;
use netfabric::wire::peer::{PeerRequest, PeerResponse};
use scheduler::model::{NodeId, NodeIdentity, Role};
use scheduler::registry::{Action, Command, Outcome, Refusal, Reply, State};

use crate::clock;
use crate::consensus::{ProposeError, Registry};

/// The registry's answer; a joiner waits a little longer.
const DECIDE: Duration = Duration::from_secs(8);
/// For a voter to answer what a follower passed on.
const PASS_ON: Duration = Duration::from_secs(12);

/// Decides about joiners on this node.
pub struct Enrol {
    pub me: NodeId,
    pub registry: Registry,
    /// The CA, on voters.
    pub authority: Option<Authority>,
    /// The key of the cluster's secrets, which every node is given.
    pub vault: Option<Vault>,
    pub mesh: Mesh,
}

#[async_trait]
impl JoinHandler for Enrol {
    async fn join(
        &self,
        from: SocketAddr,
        token_hash: String,
        request: JoinRequest,
    ) -> Result<JoinResponse, JoinRefusal> {
        tracing::info!(%from, node = %request.name, "a machine asks to join");
        match &self.authority {
            Some(authority) => self.enroll(authority, token_hash, request).await,
            None => self.pass_on(&token_hash, &request).await,
        }
    }
}

impl Enrol {
    /// Serves a join that a follower passed on.
    pub async fn passed_on(&self, token_hash: String, request: &[u8]) -> Vec<u8> {
        let decided: Result<JoinResponse, JoinRefusal> =
            match (codec::decode(request), &self.authority) {
                (Ok(request), Some(authority)) => self.enroll(authority, token_hash, request).await,
                (Err(error), _) => Err(JoinRefusal::Invalid(error.to_string())),
                (_, None) => Err(JoinRefusal::NoQuorum(
                    "this node cannot sign certificates".to_owned(),
                )),
            };
        codec::encode(&decided).unwrap_or_default()
    }

    async fn enroll(
        &self,
        authority: &Authority,
        token_hash: String,
        request: JoinRequest,
    ) -> Result<JoinResponse, JoinRefusal> {
        let invalid = |error: &dyn std::fmt::Display| JoinRefusal::Invalid(error.to_string());
        let public_key = csr_public_key(&request.csr).map_err(|e| invalid(&e))?;
        let node = NodeIdentity {
            id: NodeId(0),
            name: request.name,
            region: request.region,
            zone: request.zone,
            mesh: request.mesh,
            public_key: public_key.to_vec(),
            role: Role::Follower,
            enrolled: clock::unix(),
            revoked: false,
            cordoned: false,
            draining: false,
        };
        let command = Command {
            at: clock::unix(),
            action: Action::Enroll { token_hash, node },
        };
        let node = match self.registry.propose(&command, DECIDE).await {
            Ok(Reply::Done {
                outcome: Outcome::Enrolled(node),
                ..
            }) => node,
            Ok(Reply::Done { .. }) => return Err(JoinRefusal::Busy),
            Ok(Reply::Refused(refusal)) => return Err(refused(refusal)),
            Err(error) => return Err(undecided(&error)),
        };
        let certificate = authority
            .sign(&request.csr, node.id)
            .map_err(|e| invalid(&e))?;
        tracing::info!(node = %node.id, name = %node.name, role = ?node.role, "a node joined");
        let state = self.registry.view().state();
        Ok(JoinResponse {
            node: node.id,
            cluster_id: authority.cluster_id().to_owned(),
            certificate,
            ca: authority.ca_pem().to_owned(),
            ca_key: (node.role == Role::Voter).then(|| authority.key_pem()),
            secrets_key: self.vault.as_ref().map(|v| v.reveal().to_string()),
            peers: peers(&state, node.id),
            registry: serde_json::to_vec(&*state).map_err(|e| invalid(&e))?,
        })
    }

    /// Asks the voters in turn.
    async fn pass_on(
        &self,
        token_hash: &str,
        request: &JoinRequest,
    ) -> Result<JoinResponse, JoinRefusal> {
        let request = codec::encode(request).map_err(|e| JoinRefusal::Invalid(e.to_string()))?;
        for voter in self
            .registry
            .status()
            .voters
            .into_iter()
            .filter(|v| *v != self.me)
        {
            let ask = PeerRequest::Join {
                token_hash: token_hash.to_owned(),
                request: request.clone(),
            };
            let answer = self.mesh.call(voter, Kind::Peer, &ask, PASS_ON).await;
            if let Ok(PeerResponse::Joined { decided }) = answer
                && let Ok(decided) = codec::decode(&decided)
            {
                return decided;
            }
        }
        Err(JoinRefusal::NoQuorum("no voter is in reach".to_owned()))
    }
}

fn peers(state: &State, newcomer: NodeId) -> Vec<JoinPeer> {
    let others = state
        .nodes
        .values()
        .filter(|n| !n.revoked && n.id != newcomer);
    others
        .map(|n| JoinPeer {
            node: n.id,
            mesh: n.mesh,
            public_key: n.public_key.clone(),
        })
        .collect()
}

fn refused(refusal: Refusal) -> JoinRefusal {
    match refusal {
        Refusal::TokenUnknown => JoinRefusal::TokenUnknown,
        Refusal::TokenUsed => JoinRefusal::TokenUsed,
        Refusal::TokenExpired => JoinRefusal::TokenExpired,
        Refusal::NameTaken(name) => JoinRefusal::NameTaken(name),
        other => JoinRefusal::Invalid(other.to_string()),
    }
}

fn undecided(error: &ProposeError) -> JoinRefusal {
    JoinRefusal::NoQuorum(error.to_string())
}

/// Serves joins from now on.
pub fn serve(mesh: &Mesh, enrol: Arc<Enrol>) {
    mesh.serve_join(enrol);
}
