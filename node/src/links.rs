//! How rooms that only know a trait reach other nodes, or other rooms: each trait in a few lines.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use netfabric::gossip::Trust;
use netfabric::ingress::{Callers, Conduit, PeerDoor, PeerLink, PeerStream};
use netfabric::transport::{Admit, Branch, Handler, Kind, Mesh, MeshStream, TransportError};
use scheduler::fleet::{Fleet, Member, Word};
use scheduler::model::{NodeId, Role, ServiceKey};
use scheduler::registry::State;
use tokio::sync::watch;

use crate::consensus::{Carrier, CarrierError, FeedSource, FeedStream, Registry};
use crate::network::Network;

/// Whom the mesh admits and whose records count: nodes of the registry that are not revoked.
pub struct Enrolled(pub watch::Receiver<Arc<State>>);

impl Admit for Enrolled {
    fn admits(&self, node: NodeId) -> bool {
        // A certificate of this cluster's CA vouches for a node this registry has not heard of
        // yet: it lags behind when a node has just joined.
        self.0.borrow().nodes.get(&node).is_none_or(|n| !n.revoked)
    }
}

impl Trust for Enrolled {
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        let state = self.0.borrow();
        let identity = state.nodes.get(&node).filter(|n| !n.revoked)?;
        identity.public_key.as_slice().try_into().ok()
    }
}

/// Consensus' messages.
pub struct RaftLink(pub Mesh);

#[async_trait]
impl Carrier for RaftLink {
    async fn call(
        &self,
        to: NodeId,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, CarrierError> {
        self.0
            .call(to, Kind::Raft, &request, deadline)
            .await
            .map_err(carried)
    }
}

/// Whether a failed call may have been acted on.
fn carried(error: TransportError) -> CarrierError {
    match error {
        TransportError::UnknownAddress(_)
        | TransportError::Dial { .. }
        | TransportError::Unreachable { .. }
        | TransportError::Connect { .. }
        | TransportError::NotAdmitted { .. }
        | TransportError::WrongPeer { .. }
        | TransportError::Busy
        | TransportError::Closed => CarrierError::Unreachable(io::Error::other(error)),
        lost => CarrierError::Lost(io::Error::other(lost)),
    }
}

/// Where a follower gets its feed: nodes near first, voters before others at the same distance.
pub struct FeedLink {
    pub mesh: Mesh,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub registry: watch::Receiver<Arc<State>>,
}

#[async_trait]
impl FeedSource for FeedLink {
    fn pick(&self) -> Vec<NodeId> {
        let (fleet, state) = (self.fleet.borrow().clone(), self.registry.borrow().clone());
        if state.nodes.is_empty() {
            // A copy that was lost names nobody; whoever the seeds led to has one.
            return self.mesh.connected();
        }
        let mut nodes: Vec<_> = state.nodes.values().filter(|n| !n.revoked).collect();
        nodes.sort_by_key(|n| {
            let member = fleet.members.get(&n.id);
            let alive = member.is_some_and(Member::is_reachable);
            let rtt = member.and_then(Member::distance_micros);
            let rtt = rtt.unwrap_or(u32::MAX);
            (!alive, n.role != Role::Voter, rtt, n.id)
        });
        nodes.into_iter().map(|n| n.id).collect()
    }

    async fn open(
        &self,
        node: NodeId,
        deadline: Duration,
    ) -> Result<Box<dyn FeedStream>, CarrierError> {
        let stream = self
            .mesh
            .open(node, Kind::Feed, deadline)
            .await
            .map_err(carried)?;
        Ok(Box::new(stream))
    }
}

/// The front door's streams to other nodes' doors.
pub struct DoorLink(pub Mesh);

#[async_trait]
impl PeerLink for DoorLink {
    fn open_now(&self, node: NodeId) -> Option<Box<dyn PeerStream>> {
        let stream = self.0.open_now(node, Kind::Proxy)?;
        Some(Box::new(stream))
    }

    fn branch(&self) -> Option<Arc<dyn PeerLink>> {
        match self.0.branch() {
            Ok(branch) => Some(Arc::new(DoorBranch {
                trunk: Self(self.0.clone()),
                branch,
            })),
            Err(error) => {
                tracing::warn!(%error, "a worker of the door has no connections of its own to other nodes");
                None
            }
        }
    }

    async fn open(&self, node: NodeId, deadline: Duration) -> io::Result<Box<dyn PeerStream>> {
        match self.0.open(node, Kind::Proxy, deadline).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    async fn open_passage(&self, node: NodeId, deadline: Duration) -> io::Result<Box<dyn Conduit>> {
        match self.0.open(node, Kind::Passage, deadline).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// The same of one of the door's workers.
struct DoorBranch {
    trunk: DoorLink,
    branch: Arc<Branch>,
}

#[async_trait]
impl PeerLink for DoorBranch {
    fn open_now(&self, node: NodeId) -> Option<Box<dyn PeerStream>> {
        let stream = self.branch.open_now(node, Kind::Proxy)?;
        Some(Box::new(stream))
    }

    async fn open(&self, node: NodeId, deadline: Duration) -> io::Result<Box<dyn PeerStream>> {
        self.trunk.open(node, deadline).await
    }

    async fn open_passage(&self, node: NodeId, deadline: Duration) -> io::Result<Box<dyn Conduit>> {
        self.trunk.open_passage(node, deadline).await
    }

    async fn close(&self) {
        self.branch.close().await;
    }
}

/// Serves feeds of the registry.
pub struct FeedServer(pub Registry);

#[async_trait]
impl Handler for FeedServer {
    async fn handle(&self, from: NodeId, stream: MeshStream) {
        self.0.serve_feed(from, stream).await;
    }
}

/// Serves other doors' requests.
pub struct ProxyServer(pub PeerDoor);

#[async_trait]
impl Handler for ProxyServer {
    async fn handle(&self, _from: NodeId, stream: MeshStream) {
        match self.0.enter() {
            Some(place) => {
                let delivered = stream.delivered().map(drop);
                self.0.serve(stream, place, delivered).await;
            }
            None => stream.refuse(),
        }
    }
}

/// Serves other doors' bytes and datagrams.
pub struct PassageServer(pub PeerDoor);

#[async_trait]
impl Handler for PassageServer {
    async fn handle(&self, _from: NodeId, stream: MeshStream) {
        self.0.pass(Box::new(stream)).await;
    }
}

/// Whose containers have which addresses here: the firewall lets nobody send from another's.
pub struct Neighbours {
    pub network: Network,
    pub record: watch::Receiver<Word>,
}

impl Callers for Neighbours {
    fn who(&self, address: IpAddr) -> Option<ServiceKey> {
        let IpAddr::V4(address) = address else {
            return None;
        };
        let instance = self.network.instance_at(address)?;
        let record = self.record.borrow();
        let report = record.instances.iter().find(|r| r.id == instance)?;
        Some(report.service.clone())
    }
}
