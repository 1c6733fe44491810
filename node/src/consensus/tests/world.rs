//! The small world the tests run in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::{Name, NodeId, NodeIdentity, Role, UnixMs};
use scheduler::registry::{Action, ClusterMeta, Command, Outcome, Reply};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::consensus::feed::{FeedSource, FeedStream};
use crate::consensus::sim::Disk;
use crate::consensus::{
    Carrier, CarrierError, Config, OpenError, Part, ProposeError, Registry, StoreError, Tuning,
};

pub(super) const DEADLINE: Duration = Duration::from_secs(4);
/// For conditions, on a machine that does other things too.
pub(super) const LONG: Duration = Duration::from_secs(40);
/// Where voters that are out follow.
const VOTERS: [u64; 3] = [1, 2, 3];
pub(in crate::consensus) const CLUSTER: &str = "test-cluster";

pub(super) struct World {
    dir: TempDir,
    pub tuning: Tuning,
    /// Voters' simulated disks, in a world that has them.
    disks: BTreeMap<u64, Disk>,
    nodes: Mutex<BTreeMap<NodeId, Registry>>,
    cut: Mutex<BTreeSet<NodeId>>,
    /// Requests to these are lost; their own pass.
    deaf: Mutex<BTreeSet<NodeId>>,
}

/// One node's way to the others.
struct Wire {
    world: Arc<World>,
    me: NodeId,
    sources: Vec<NodeId>,
}

fn unreachable() -> CarrierError {
    CarrierError::Unreachable(io::ErrorKind::ConnectionRefused.into())
}

#[async_trait]
impl Carrier for Wire {
    async fn call(
        &self,
        to: NodeId,
        request: Vec<u8>,
        _deadline: Duration,
    ) -> Result<Vec<u8>, CarrierError> {
        let registry = self.world.reach(self.me, to).ok_or_else(unreachable)?;
        let answer = registry.on_message(self.me, &request).await;
        let lost = || CarrierError::Lost(io::ErrorKind::ConnectionReset.into());
        self.world
            .reach(self.me, to)
            .map(|_| answer)
            .ok_or_else(lost)
    }
}

#[async_trait]
impl FeedSource for Wire {
    fn pick(&self) -> Vec<NodeId> {
        self.sources.clone()
    }

    async fn open(
        &self,
        node: NodeId,
        _deadline: Duration,
    ) -> Result<Box<dyn FeedStream>, CarrierError> {
        let registry = self.world.reach(self.me, node).ok_or_else(unreachable)?;
        let (here, there) = tokio::io::duplex(4096);
        let me = self.me;
        tokio::spawn(async move { registry.serve_feed(me, there).await });
        Ok(Box::new(here))
    }
}

impl World {
    pub fn new(tuning: Tuning) -> Arc<Self> {
        Self::with(tuning, BTreeMap::new())
    }

    /// A world whose voters' disks can be broken.
    pub fn on_disks(tuning: Tuning) -> Arc<Self> {
        Self::with(tuning, VOTERS.map(|id| (id, Disk::new(id, id))).into())
    }

    fn with(tuning: Tuning, disks: BTreeMap<u64, Disk>) -> Arc<Self> {
        Arc::new(Self {
            dir: tempfile::tempdir().unwrap(),
            tuning,
            disks,
            nodes: Mutex::default(),
            cut: Mutex::default(),
            deaf: Mutex::default(),
        })
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Option<Registry> {
        let cut = self.cut.lock().unwrap();
        let deaf = self.deaf.lock().unwrap();
        if cut.contains(&from) || cut.contains(&to) || deaf.contains(&to) {
            return None;
        }
        self.nodes.lock().unwrap().get(&to).cloned()
    }

    pub fn cut(&self, id: u64) {
        self.cut.lock().unwrap().insert(NodeId(id));
    }

    pub fn deafen(&self, id: u64) {
        self.deaf.lock().unwrap().insert(NodeId(id));
    }

    pub fn heal(&self) {
        self.deaf.lock().unwrap().clear();
        self.cut.lock().unwrap().clear();
    }

    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    fn config(&self, id: u64) -> Config {
        Config {
            node: NodeId(id),
            cluster_id: CLUSTER.to_owned(),
            dir: self.path(id),
            tuning: self.tuning.clone(),
        }
    }

    fn wire(self: &Arc<Self>, id: u64, sources: &[u64]) -> Arc<Wire> {
        let sources = sources.iter().copied().map(NodeId).collect();
        Arc::new(Wire {
            world: self.clone(),
            me: NodeId(id),
            sources,
        })
    }

    fn enter(&self, id: u64, registry: &Registry) {
        self.nodes
            .lock()
            .unwrap()
            .insert(NodeId(id), registry.clone());
    }

    pub fn disk(&self, id: u64) -> &Disk {
        &self.disks[&id]
    }

    async fn open(self: &Arc<Self>, id: u64) -> Result<Registry, OpenError> {
        let (config, wire) = (self.config(id), self.wire(id, &VOTERS));
        match self.disks.get(&id) {
            Some(disk) => Registry::voter_on_disk(disk.open(), config, wire.clone(), wire).await,
            None => Registry::open_voter(config, wire.clone(), wire).await,
        }
    }

    pub async fn found(self: &Arc<Self>) -> Registry {
        let meta = ClusterMeta {
            id: CLUSTER.to_owned(),
            ca_hash: "0".repeat(64),
            created: UnixMs(1),
        };
        let registry = self.open(1).await.unwrap();
        registry.begin(meta, identity(1), UnixMs(1)).await.unwrap();
        self.enter(1, &registry);
        registry
    }

    /// Opens a voter, also right after it was closed here (its file lock goes a moment later).
    pub async fn voter(self: &Arc<Self>, id: u64) -> Registry {
        let until = Instant::now() + LONG;
        loop {
            match self.open(id).await {
                Ok(registry) => {
                    self.enter(id, &registry);
                    return registry;
                }
                Err(OpenError::Store(StoreError::Database(error)))
                    if matches!(*error, redb::Error::DatabaseAlreadyOpen)
                        && Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("voter {id}: {error}"),
            }
        }
    }

    pub async fn follower(self: &Arc<Self>, id: u64, sources: &[u64]) -> Registry {
        let wire = self.wire(id, sources);
        let registry = Registry::open_follower(self.config(id), wire.clone(), wire)
            .await
            .unwrap();
        self.enter(id, &registry);
        registry
    }

    /// Opens a follower's folder as a node of another cluster.
    pub async fn stranger(self: &Arc<Self>, id: u64) -> Result<(), OpenError> {
        let wire = self.wire(id, &[]);
        let config = Config {
            cluster_id: "another".to_owned(),
            ..self.config(id)
        };
        Registry::open_follower(config, wire.clone(), wire)
            .await
            .map(drop)
    }

    /// Enrols the next node; the registry gives it its number.
    pub async fn enroll(&self, at: &Registry, id: u64) {
        let hash = token(1_000_000 + id);
        propose(at, create_token(&hash)).await.unwrap();
        let action = Action::Enroll {
            token_hash: hash,
            node: identity(id),
        };
        match propose(at, action).await.unwrap() {
            Reply::Done {
                outcome: Outcome::Enrolled(node),
                ..
            } => assert_eq!(node.id.0, id),
            other => panic!("{other:?}"),
        }
    }

    /// Three voters that agree.
    pub async fn three(self: &Arc<Self>) -> Vec<Registry> {
        let mut registries = vec![self.found().await];
        for id in [2, 3] {
            self.enroll(&registries[0], id).await;
            registries.push(self.voter(id).await);
        }
        for registry in &registries {
            // Past the joint configuration, in which the first two would both be needed.
            let settled = || {
                let metrics = registry.voter().unwrap().raft.metrics().borrow().clone();
                let configs = metrics
                    .membership_config
                    .membership()
                    .get_joint_config()
                    .clone();
                configs.len() == 1 && configs[0].len() == 3
            };
            until("three voters", settled).await;
        }
        registries
    }

    /// Ends a node as a killed process would, as far as others can tell.
    pub async fn kill(&self, registry: &Registry) {
        self.nodes.lock().unwrap().remove(&registry.node());
        registry.shutdown().await;
    }
}

pub(in crate::consensus) fn identity(id: u64) -> NodeIdentity {
    let name = |text: &str| Name::new(text).unwrap();
    NodeIdentity {
        id: NodeId(id),
        name: name(&format!("node-{id}")),
        region: name("par"),
        zone: name("par-1"),
        mesh: format!("127.0.0.1:{}", 9000 + id).parse().unwrap(),
        public_key: vec![u8::try_from(id).unwrap(); 32],
        role: Role::Follower,
        enrolled: UnixMs(1),
        revoked: false,
        cordoned: false,
        draining: false,
    }
}

pub(in crate::consensus) fn token(n: u64) -> String {
    format!("{n:064x}")
}

pub(in crate::consensus) fn create_token(hash: &str) -> Action {
    Action::CreateToken {
        hash: hash.to_owned(),
        expires: UnixMs(u64::MAX / 2),
    }
}

pub(super) async fn propose(at: &Registry, action: Action) -> Result<Reply, ProposeError> {
    at.propose(
        &Command {
            at: UnixMs(2),
            action,
        },
        DEADLINE,
    )
    .await
}

/// Proposes until it is done; for use where the leader is known to change.
pub(super) async fn propose_surely(at: &Registry, action: Action) {
    let until = Instant::now() + LONG;
    loop {
        match propose(at, action.clone()).await {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) fn has_token(registry: &Registry, n: u64) -> bool {
    registry.view().state().tokens.contains_key(&token(n))
}

pub(super) fn leader(registries: &[Registry]) -> Option<Registry> {
    registries
        .iter()
        .find(|registry| registry.status().part == Part::Leader)
        .cloned()
}
