//! `converge`: how long it takes from a change to the last door's routes. Real, among thirty nodes in this
//! process: mesh, registry, gossip and the fleet's driver as in the daemon, on loopback, with the product's
//! interval. Modelled, among ten thousand: `sim::spread`, with a round and a silence as the real ones have
//! them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use arc_swap::ArcSwap;
use netfabric::gossip::{Gossip, GossipConfig, INTERVAL};
use netfabric::identity::{Authority, Identity, NodeKeys};
use netfabric::transport::{Kind, Mesh};
use node::consensus::{self, Registry};
use node::fleet::FleetDriver;
use node::links::{Enrolled, FeedLink, FeedServer, RaftLink};
use scheduler::fleet::{Fleet, Word};
use scheduler::model::{
    Activity, Container, ImagePin, InstanceId, InstanceReport, InstanceState, Name, NodeId,
    NodeIdentity, NodeRecord, Resources, RevisionKey, RevisionSpec, Role, Scale, ServiceKey,
    UnixMs,
};
use scheduler::registry::{Action, ClusterMeta, Command, Outcome, PutService, Reply, State};
use scheduler::route::Routes;
use tempfile::TempDir;
use tokio::sync::watch;

use super::board::{Metric, OURS};
use super::{Board, Plan};
use crate::sim::spread::{self, Event};

/// Nodes of the real part; a smaller `--most` makes them fewer.
const NODES: usize = 30;
/// Nodes of the modelled part, in cells as large as they are simulated with.
const MODELLED: usize = 10_000;
const CELL: usize = 200;
/// Tries of the model for each figure, and where all nodes are one cell.
const TRIES: u64 = 200;
const LARGE_TRIES: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

const LAST: Metric = Metric::new("last_routes_ms", "ms");
const P50: Metric = Metric::new("last_p50_ms", "ms");
const P99: Metric = Metric::new("last_p99_ms", "ms");

pub(super) fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("converge");
    let nodes = plan.most.clamp(3, NODES);
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        for round in 0..plan.rounds {
            real(&mut board, round, nodes).await?;
        }
        anyhow::Ok(())
    })?;
    modelled(&mut board, nodes);
    Ok(board)
}

fn modelled(board: &mut Board, nodes: usize) {
    let events = [
        ("registry change", Event::Change),
        ("instance ready", Event::Record),
        ("node lost", Event::Loss),
    ];
    for (what, event) in events {
        for (nodes, cell) in [(nodes, nodes), (MODELLED, CELL), (MODELLED, MODELLED)] {
            let case = format!("{what}, modelled, {nodes} nodes in cells of {cell}");
            let tries = if cell == MODELLED { LARGE_TRIES } else { TRIES };
            let mut took: Vec<u64> = (0..tries)
                .map(|seed| spread::last(event, nodes, cell, seed))
                .collect();
            took.sort_unstable();
            let at = |percent: usize| ms(took[(took.len() - 1) * percent / 100]);
            board.add(&case, OURS, 0, P50.of(at(50)));
            board.add(&case, OURS, 0, P99.of(at(99)));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of minutes")]
fn ms(millis: u64) -> f64 {
    millis as f64
}

/// One whole fleet: what it takes the last of them to show each kind of change.
async fn real(board: &mut Board, round: usize, nodes: usize) -> Result<()> {
    let mut fleet = Small::found(nodes).await?;
    let case = |what: &str| format!("{what}, real, {nodes} nodes");
    let service = key(0)?;
    let began = Instant::now();
    fleet.propose(put(&service)).await?;
    let took = fleet
        .until(began, |routes| routes.service(&service).is_some())
        .await
        .context("the service")?;
    board.add(&case("registry change"), OURS, round, LAST.of(took));

    let revision = RevisionKey {
        namespace: service.namespace.clone(),
        name: Name::new("svc-0-00001")?,
    };
    let ready = Action::MarkReady {
        revision: revision.clone(),
    };
    fleet.propose(ready).await?;
    let routed = |routes: &Routes| routes.revision(&revision).is_some();
    fleet.until(Instant::now(), routed).await?;
    let (last, began) = (nodes - 1, Instant::now());
    fleet.nodes[last].show(&service, &revision)?;
    let shown = |routes: &Routes| routes.revision(&revision).is_some_and(|r| r.ready > 0);
    let took = fleet.until(began, shown).await.context("the instance")?;
    board.add(&case("instance ready"), OURS, round, LAST.of(took));

    // Its power goes: nobody hears a goodbye.
    let began = Instant::now();
    let lost = fleet.nodes.pop().context("a node")?;
    drop(lost);
    let gone = |routes: &Routes| !shown(routes);
    let took = fleet.until(began, gone).await.context("the loss")?;
    board.add(&case("node lost"), OURS, round, LAST.of(took));
    Ok(())
}

/// Nodes without containers and doors.
struct Small {
    nodes: Vec<One>,
    founder: Registry,
    _data: TempDir,
}

struct One {
    /// Ends everything of it at once.
    runtime: Option<tokio::runtime::Runtime>,
    routes: Arc<ArcSwap<Routes>>,
    own: watch::Sender<Word>,
    registry: Registry,
}

impl Small {
    async fn found(count: usize) -> Result<Self> {
        let authority = Authority::create()?;
        let data = tempfile::tempdir()?;
        let mut identities = Vec::new();
        for id in 1..=u64::try_from(count)? {
            let keys = NodeKeys::generate()?;
            let certificate = authority.sign(&keys.csr()?, NodeId(id))?;
            let identity = Identity::new(keys, &certificate, authority.ca_pem())?;
            identities.push(Arc::new(identity));
        }
        let mut nodes: Vec<One> = Vec::new();
        let mut seed = None;
        for identity in identities {
            let dir = data.path().join(identity.node().to_string());
            std::fs::create_dir_all(&dir)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let first = nodes.first().map(|one| one.registry.clone());
            let opening = open(identity.clone(), dir, seed, first);
            let (one, addr) = runtime.spawn(opening).await??;
            seed = seed.or(Some(addr));
            let one = One {
                runtime: Some(runtime),
                routes: one.0,
                own: one.1,
                registry: one.2,
            };
            nodes.push(one);
        }
        let founder = nodes[0].registry.clone();
        let small = Self {
            nodes,
            founder,
            _data: data,
        };
        small.settle(count).await?;
        Ok(small)
    }

    /// Until all know of all.
    async fn settle(&self, count: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !self
            .nodes
            .iter()
            .all(|one| one.registry.view().state().nodes.len() == count)
        {
            ensure!(Instant::now() < end, "the nodes do not all know each other");
            tokio::time::sleep(LOOK).await;
        }
        // Failure detectors learn the usual gap between two words.
        tokio::time::sleep(INTERVAL * 10).await;
        Ok(())
    }

    async fn propose(&self, action: Action) -> Result<()> {
        propose(&self.founder, action).await.map(drop)
    }

    /// Milliseconds since `began` until all routes show it.
    async fn until(&self, began: Instant, shows: impl Fn(&Routes) -> bool) -> Result<f64> {
        let end = began + PATIENCE;
        loop {
            let missing = self.nodes.iter().filter(|one| !shows(&one.routes.load()));
            let missing = missing.count();
            if missing == 0 {
                return Ok(began.elapsed().as_secs_f64() * 1e3);
            }
            ensure!(Instant::now() < end, "{missing} nodes do not show it");
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl One {
    /// Says that it has an instance of the revision.
    fn show(&self, service: &ServiceKey, revision: &RevisionKey) -> Result<()> {
        let mut record = (**self.own.borrow()).clone();
        record.instances.push(InstanceReport {
            id: InstanceId("svc-0-00001-a".to_owned()),
            service: service.clone(),
            revision: revision.clone(),
            state: InstanceState::Ready,
            since: UnixMs(0),
            in_flight: 0,
            concurrency_milli: 0,
            failure: None,
            steward: None,
            activity: Activity::default(),
        });
        if self.own.send(record.into()).is_err() {
            bail!("the node's driver has ended");
        }
        Ok(())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Opened = (Arc<ArcSwap<Routes>>, watch::Sender<Word>, Registry);

/// Opens a node; one that is not the first is enrolled at `first`.
async fn open(
    identity: Arc<Identity>,
    dir: std::path::PathBuf,
    seed: Option<SocketAddr>,
    first: Option<Registry>,
) -> Result<(Opened, SocketAddr)> {
    let me = identity.node();
    let (known, admitted) = watch::channel(Arc::new(State::default()));
    let enrolled = Arc::new(Enrolled(admitted.clone()));
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mesh = Mesh::bind(loopback, identity.clone(), enrolled.clone())?;
    let addr = mesh.local_addr();
    let (fleet_in, fleet) = watch::channel(Arc::new(Fleet {
        me,
        ..Fleet::default()
    }));
    let mut role = None;
    if let (Some(first), Some(seed)) = (&first, seed) {
        role = Some(enrol(first, &identity, addr).await?);
        mesh.set_addr(NodeId(1), seed);
    }
    let source = FeedLink {
        mesh: mesh.clone(),
        fleet: fleet.clone(),
        registry: admitted.clone(),
    };
    let registry = registry(&identity, &dir, &mesh, source, role).await?;
    tokio::spawn(forward(registry.view().watch(), known));
    let inbox = registry.clone();
    mesh.serve_calls(Kind::Raft, move |from, message: Vec<u8>| {
        let inbox = inbox.clone();
        async move { inbox.on_message(from, &message).await }
    });
    mesh.serve(Kind::Feed, Arc::new(FeedServer(registry.clone())));
    if let Some(seed) = seed {
        // The feed's first source is whoever is connected.
        let stream = mesh.open_addr(seed, Kind::Feed, PATIENCE).await;
        drop(stream);
    }
    let config = GossipConfig {
        cluster_id: identity.cluster_id().to_owned(),
        me,
        incarnation: 1,
        advertise: addr,
        seeds: seed.into_iter().collect(),
        interval: INTERVAL,
    };
    let gossip = Gossip::start(mesh.clone(), config, enrolled)?;
    let routes = Arc::new(ArcSwap::from_pointee(Routes::default()));
    let (own, record) = watch::channel(Word::from(self_told(me, addr)?));
    let driver = FleetDriver {
        me,
        origin: "bench.test".to_owned(),
        mesh,
        gossip,
        registry: registry.clone(),
        own: record,
        experience: watch::channel(Arc::default()).1,
        images: Box::new(Vec::new),
        fleet: fleet_in,
        routes: routes.clone(),
    };
    driver.start();
    Ok(((routes, own, registry), addr))
}

async fn registry(
    identity: &Identity,
    dir: &Path,
    mesh: &Mesh,
    source: FeedLink,
    role: Option<Role>,
) -> Result<Registry> {
    let config = consensus::Config {
        node: identity.node(),
        cluster_id: identity.cluster_id().to_owned(),
        dir: dir.to_owned(),
        tuning: consensus::Tuning::default(),
    };
    let carrier = Arc::new(RaftLink(mesh.clone()));
    let source = Arc::new(source);
    match role {
        Some(Role::Follower) => {
            return Ok(Registry::open_follower(config, carrier, source).await?);
        }
        Some(Role::Voter) => return Ok(Registry::open_voter(config, carrier, source).await?),
        None => {}
    }
    let cluster = ClusterMeta {
        id: identity.cluster_id().to_owned(),
        ca_hash: identity.ca_hash(),
        created: UnixMs(0),
    };
    let founder = told_of(identity, mesh.local_addr(), Role::Voter)?;
    let registry = Registry::found(config, carrier, source, cluster, founder, UnixMs(0));
    Ok(registry.await?)
}

async fn forward(mut from: watch::Receiver<Arc<State>>, to: watch::Sender<Arc<State>>) {
    loop {
        to.send_replace(from.borrow_and_update().clone());
        if from.changed().await.is_err() {
            return;
        }
    }
}

/// The part that the registry gives the node.
async fn enrol(registry: &Registry, identity: &Identity, addr: SocketAddr) -> Result<Role> {
    let hash = format!("{:064x}", identity.node().0);
    let token = Action::CreateToken {
        hash: hash.clone(),
        expires: UnixMs(u64::MAX / 2),
    };
    propose(registry, token).await?;
    let node = told_of(identity, addr, Role::Follower)?;
    let enrol = Action::Enroll {
        token_hash: hash,
        node,
    };
    match propose(registry, enrol).await? {
        Outcome::Enrolled(told) if told.id == identity.node() => Ok(told.role),
        other => bail!("{} was enrolled as {other:?}", identity.node()),
    }
}

async fn propose(registry: &Registry, action: Action) -> Result<Outcome> {
    let command = Command {
        at: UnixMs(1),
        action,
    };
    match registry.propose(&command, PATIENCE).await? {
        Reply::Done { outcome, .. } => Ok(outcome),
        Reply::Refused(refusal) => bail!("the registry refuses: {refusal}"),
    }
}

fn told_of(identity: &Identity, mesh: SocketAddr, role: Role) -> Result<NodeIdentity> {
    Ok(NodeIdentity {
        id: identity.node(),
        name: Name::new(format!("n{}", identity.node().0))?,
        region: Name::new("here")?,
        zone: Name::new("a")?,
        mesh,
        public_key: identity.public_key().to_vec(),
        role,
        enrolled: UnixMs(0),
        revoked: false,
        cordoned: false,
        draining: false,
    })
}

fn self_told(me: NodeId, mesh: SocketAddr) -> Result<NodeRecord> {
    Ok(NodeRecord {
        node: me,
        name: Name::new(format!("n{}", me.0))?,
        region: Name::new("here")?,
        zone: Name::new("a")?,
        labels: std::collections::BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: String::new(),
        mesh,
        ingress: Vec::new(),
        serving: true,
        cordoned: false,
        capacity: Resources::default(),
        free: Resources::default(),
        registry_index: 0,
        instances: Vec::new(),
        demand: Vec::new(),
        images: Vec::new(),
        starts: Vec::new(),
    })
}

fn key(number: u32) -> Result<ServiceKey> {
    Ok(ServiceKey {
        namespace: Name::default_namespace(),
        name: Name::new(format!("svc-{number}"))?,
    })
}

fn put(key: &ServiceKey) -> Action {
    let container = Container {
        image: "app:1".to_owned(),
        cpu_millis: 100,
        memory_bytes: 64 << 20,
        ..Container::default()
    };
    Action::PutService(Box::new(PutService {
        key: key.clone(),
        spec: RevisionSpec {
            containers: vec![container],
            ..RevisionSpec::default()
        },
        image: ImagePin {
            digest: format!("sha256:{:064x}", 1),
            reference: "app:1".to_owned(),
        },
        scale: Scale::default(),
        traffic: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        uid: "u".to_owned(),
        if_version: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_shows_changes_and_losses_to_its_last_routes() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut board = Board::new("converge");
        runtime.block_on(real(&mut board, 0, 4)).unwrap();
        let lines = board.json().unwrap();
        let took = |what: &str| {
            let line = lines.lines().find(|line| line.contains(what)).unwrap();
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["median"].as_f64().unwrap()
        };
        let (change, ready, lost) = (
            took("registry change"),
            took("instance ready"),
            took("node lost"),
        );
        assert!(change < 3_000.0, "{change} ms");
        assert!(ready < 10_000.0, "{ready} ms");
        // It is asked for a while, and found lost before its heartbeat is missed, with a busy machine too.
        assert!((1_200.0..20_000.0).contains(&lost), "{lost} ms");
    }
}
