//! One node's door with everything around it made up: registry, fleet, starter, links.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use scheduler::fleet::Member;
use scheduler::model::{
    Caller, Container, ImagePin, InstanceId, InstanceReport, InstanceState, Listen, Meta, Name,
    NodeRecord, PLAIN_HTTP, Protocol, RATE, Resources, Revision, RevisionKey, RevisionSpec,
    RevisionState, SLOW_START, STICKY, Scale, Service, ServiceKey, ServiceStatus, TrafficTarget,
    UnixMs,
};

use super::super::*;
use super::app::App;
use crate::identity::Vault;

pub const ORIGIN: &str = "edge.test";
/// The service's own.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn service() -> ServiceKey {
    ServiceKey {
        namespace: Name::default_namespace(),
        name: name("web"),
    }
}

pub fn revision() -> RevisionKey {
    RevisionKey::of(&service(), 1).unwrap()
}

/// What is deployed: `web` with one revision.
#[derive(Clone)]
pub struct Deployed {
    pub hard: u32,
    pub target: u32,
    pub max: u32,
    pub timeout_seconds: u32,
    pub state: RevisionState,
    pub protocol: Protocol,
    pub listen: Vec<Listen>,
    pub callers: Vec<Caller>,
    pub plain_http: bool,
    pub rate: Option<&'static str>,
    pub introduced: bool,
    /// Shares of the first, second, … revision; without any there is one.
    pub split: Vec<u32>,
    pub sticky: Option<&'static str>,
    pub slow_start: Option<&'static str>,
    /// Other services: their namespace, name, and who may call them.
    pub beside: Vec<(&'static str, &'static str, Vec<Caller>)>,
    /// Of the first, second, … node; `here` without.
    pub regions: Vec<&'static str>,
}

impl Default for Deployed {
    fn default() -> Self {
        Self {
            hard: 0,
            target: 0,
            max: 0,
            timeout_seconds: 10,
            state: RevisionState::Ready,
            protocol: Protocol::Http1,
            listen: vec![],
            callers: vec![],
            plain_http: false,
            rate: None,
            introduced: false,
            split: vec![],
            sticky: None,
            slow_start: None,
            beside: vec![],
            regions: vec![],
        }
    }
}

impl Deployed {
    pub fn state(&self) -> State {
        let mut spec = RevisionSpec {
            container_concurrency: self.hard,
            timeout_seconds: self.timeout_seconds,
            listen: self.listen.clone(),
            callers: self.callers.clone(),
            containers: vec![Container::default()],
            ..RevisionSpec::default()
        };
        spec.containers[0].ports = vec![scheduler::model::ContainerPort {
            container_port: 8080,
            protocol: self.protocol,
        }];
        let ready = self.state == RevisionState::Ready;
        let revision = Revision {
            key: revision(),
            service: service(),
            generation: 1,
            created: UnixMs(0),
            spec: spec.clone(),
            image: ImagePin {
                reference: "registry.test/web:1".into(),
                digest: "sha256:0".into(),
            },
            state: self.state.clone(),
        };
        let service = Service {
            key: service(),
            meta: Meta {
                address: Some(ADDRESS),
                annotations: self.annotations(),
                ..Meta::default()
            },
            spec,
            scale: Scale {
                max: self.max,
                target: self.target,
                ..Scale::default()
            },
            traffic: self.traffic(),
            status: ServiceStatus {
                latest_created: Some(revision.key.clone()),
                latest_ready: ready.then(|| revision.key.clone()),
            },
        };
        let mut state = State {
            index: 7,
            ..State::default()
        };
        state.services.insert(service.key.clone(), service);
        for generation in 1..=self.split.len().max(1) as u64 {
            let revision = Revision {
                key: RevisionKey::of(&super::world::service(), generation).unwrap(),
                generation,
                ..revision.clone()
            };
            state.revisions.insert(revision.key.clone(), revision);
        }
        for (namespace, other, callers) in &self.beside {
            let key = ServiceKey {
                namespace: name(namespace),
                name: name(other),
            };
            let mut service = state.services[&super::world::service()].clone();
            let revision = Revision {
                key: RevisionKey::of(&key, 1).unwrap(),
                service: key.clone(),
                ..revision.clone()
            };
            service.status.latest_created = Some(revision.key.clone());
            service.status.latest_ready = Some(revision.key.clone());
            service.spec.callers.clone_from(callers);
            service.meta.address = None;
            service.traffic = vec![];
            service.key = key.clone();
            state.revisions.insert(revision.key.clone(), revision);
            state.services.insert(key, service);
        }
        state
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let said = [
            (PLAIN_HTTP, self.plain_http.then_some("allow")),
            (RATE, self.rate),
            (STICKY, self.sticky),
            (SLOW_START, self.slow_start),
        ];
        let said = said
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        said.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn traffic(&self) -> Vec<TrafficTarget> {
        let target = |(generation, percent): (u64, &u32)| TrafficTarget {
            revision: Some(RevisionKey::of(&service(), generation).unwrap().name),
            percent: *percent,
            tag: None,
        };
        (1..).zip(&self.split).map(target).collect()
    }
}

/// The revision of an instance that is called after it, `web-00002-x`; any other one's is the first.
fn revision_of(id: &InstanceId) -> RevisionKey {
    let named = id.0.rsplit_once('-').map(|(name, _)| name);
    let named = named.filter(|name| name.contains("-0000"));
    named.map_or_else(revision, |text| RevisionKey {
        namespace: Name::default_namespace(),
        name: name(text),
    })
}

fn member(id: u64, region: &str, instances: &[InstanceId]) -> Member {
    let room = Resources {
        cpu_millis: 8_000,
        memory_bytes: 8 << 30,
        instances: 100,
    };
    let report = |id: &InstanceId| InstanceReport {
        id: id.clone(),
        service: service(),
        revision: revision_of(id),
        state: InstanceState::Ready,
        since: UnixMs(0),
        in_flight: 0,
        concurrency_milli: 0,
        failure: None,
        steward: None,
        activity: scheduler::model::Activity::default(),
    };
    let record = NodeRecord {
        node: NodeId(id),
        name: name(&format!("node-{id}")),
        region: name(region),
        zone: name(region),
        labels: BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: String::new(),
        mesh: "127.0.0.1:1".parse().unwrap(),
        ingress: vec![],
        serving: true,
        cordoned: false,
        capacity: room,
        free: room,
        registry_index: 7,
        instances: instances.iter().map(report).collect(),
        demand: vec![],
        starts: vec![],
        images: vec![],
    };
    let rtt = u32::try_from(id).unwrap() * 1_000;
    Member::new(record, true, Some(rtt))
}

/// How starts go.
#[derive(Clone)]
pub enum Starts {
    /// Ready after this long.
    After(Duration),
    Fail(StartRefusal),
}

/// A starter that opens instances in the table of the node it is asked for.
pub struct FakeStarter {
    pub how: Mutex<BTreeMap<NodeId, Starts>>,
    pub asked: Mutex<Vec<NodeId>>,
    /// Why no node took an instance, each time.
    pub unplaced: Mutex<Vec<String>>,
    pub apps: Mutex<Vec<App>>,
    locals: Mutex<BTreeMap<NodeId, Arc<Local>>>,
    deployed: Deployed,
    next: AtomicU32,
}

#[async_trait]
impl Starter for FakeStarter {
    async fn start(&self, node: NodeId, request: StartRequest) -> Result<Started, StartRefusal> {
        assert_eq!(request.index, 7);
        self.asked.lock().unwrap().push(node);
        let how = self.how.lock().unwrap().get(&node).cloned();
        let delay = match how.unwrap_or(Starts::After(Duration::from_millis(30))) {
            Starts::After(delay) => delay,
            Starts::Fail(refusal) => return Err(refusal),
        };
        tokio::time::sleep(delay).await;
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let instance = InstanceId(format!("{}-{number}", request.revision.name));
        let app = App::start(&instance.0).await;
        let local = self.locals.lock().unwrap()[&node].clone();
        let Deployed {
            protocol,
            hard,
            introduced,
            ..
        } = self.deployed;
        let key = request.revision;
        local.open(instance.clone(), key, app.addr, protocol, hard, introduced);
        self.apps.lock().unwrap().push(app);
        let ready = u64::try_from(delay.as_micros()).unwrap();
        let phases = vec![("ready".to_owned(), ready)];
        Ok(Started { instance, phases })
    }

    fn unplaced(&self, _: &ServiceKey, _: &Receipt, why: &str) {
        self.unplaced.lock().unwrap().push(why.to_owned());
    }
}

impl FakeStarter {
    pub fn starts(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

/// A pipe's end that is dropped is heard of at once.
impl PeerStream for tokio::io::DuplexStream {
    fn answered(self: Box<Self>) {}
}

/// Links between the made-up nodes: a pipe to the other's peer door.
#[derive(Default)]
pub struct Pipes {
    doors: Mutex<BTreeMap<NodeId, PeerDoor>>,
}

#[async_trait]
impl PeerLink for Pipes {
    fn open_now(&self, node: NodeId) -> Option<Box<dyn PeerStream>> {
        let door = self.doors.lock().unwrap().get(&node).cloned()?;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let place = door.enter()?;
        tokio::spawn(async move { door.serve(far, place, async {}).await });
        Some(Box::new(near))
    }

    async fn open(&self, node: NodeId, _deadline: Duration) -> io::Result<Box<dyn PeerStream>> {
        let opened = self.open_now(node);
        opened.ok_or(io::ErrorKind::ConnectionRefused.into())
    }

    async fn open_passage(&self, node: NodeId, _: Duration) -> io::Result<Box<dyn Conduit>> {
        let door = self.doors.lock().unwrap().get(&node).cloned();
        let door = door.ok_or(io::ErrorKind::ConnectionRefused)?;
        // TCP and no pipe: a connection that is cut must be seen to be.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let near = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
        let (far, _) = listener.accept().await?;
        tokio::spawn(async move { door.pass(Box::new(far)).await });
        Ok(Box::new(near))
    }
}

/// Containers' addresses and whose they are.
#[derive(Default)]
pub struct Neighbours(pub Mutex<BTreeMap<IpAddr, ServiceKey>>);

impl Callers for Neighbours {
    fn who(&self, address: IpAddr) -> Option<ServiceKey> {
        self.0.lock().unwrap().get(&address).cloned()
    }
}

impl Pipes {
    pub fn cut(&self, node: u64) {
        self.doors.lock().unwrap().remove(&NodeId(node));
    }
}

/// Nodes 1 to N, each with a door; tests mostly stand before node 1's.
pub struct World {
    pub nodes: Vec<Node>,
    pub starter: Arc<FakeStarter>,
    pub pipes: Arc<Pipes>,
    pub neighbours: Arc<Neighbours>,
    pub deployed: Deployed,
    pub vault: Vault,
}

pub struct Node {
    pub id: NodeId,
    pub local: Arc<Local>,
    pub routes: Arc<ArcSwap<Routes>>,
    pub fleet: watch::Sender<Arc<Fleet>>,
    pub registry: watch::Sender<Arc<State>>,
    pub shelf: Arc<Shelf>,
    door: OnceLock<Ingress>,
}

impl Node {
    pub fn ingress(&self) -> &Ingress {
        self.door.get().unwrap()
    }
}

impl World {
    pub async fn one(deployed: Deployed) -> Self {
        Self::new(1, deployed, |_| {}).await
    }

    pub async fn new(count: u64, deployed: Deployed, adjust: fn(&mut IngressConfig)) -> Self {
        Self::with(count, deployed, adjust, Arc::default()).await
    }

    /// One node, with sockets of a daemon before it.
    pub async fn after(sockets: Sockets, deployed: Deployed) -> Self {
        Self::with(1, deployed, |_| {}, Arc::new(sockets)).await
    }

    #[allow(clippy::unused_async)] // The doors run on the runtime of who waits for this.
    async fn with(
        count: u64,
        deployed: Deployed,
        adjust: fn(&mut IngressConfig),
        sockets: Arc<Sockets>,
    ) -> Self {
        let nodes: Vec<Node> = (1..=count)
            .map(|id| Node {
                id: NodeId(id),
                local: Local::new(),
                routes: Arc::default(),
                fleet: watch::Sender::new(Arc::default()),
                registry: watch::Sender::new(Arc::new(deployed.state())),
                shelf: Arc::default(),
                door: OnceLock::new(),
            })
            .collect();
        let starter = Arc::new(FakeStarter {
            how: Mutex::default(),
            asked: Mutex::default(),
            unplaced: Mutex::default(),
            apps: Mutex::default(),
            locals: Mutex::new(nodes.iter().map(|n| (n.id, n.local.clone())).collect()),
            deployed: deployed.clone(),
            next: AtomicU32::new(0),
        });
        let pipes = Arc::new(Pipes::default());
        let world = Self {
            nodes,
            starter,
            pipes,
            neighbours: Arc::default(),
            deployed,
            vault: Vault::create().unwrap(),
        };
        for node in &world.nodes {
            world.open_door(node, adjust, &sockets);
        }
        world.publish(&BTreeMap::new());
        world
    }

    fn open_door(&self, node: &Node, adjust: fn(&mut IngressConfig), sockets: &Arc<Sockets>) {
        let mut config = IngressConfig {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            listen_tls: vec!["127.0.0.1:0".parse().unwrap()],
            ..IngressConfig::default()
        };
        adjust(&mut config);
        let deps = IngressDeps {
            routes: node.routes.clone(),
            local: node.local.clone(),
            fleet: node.fleet.subscribe(),
            registry: node.registry.subscribe(),
            link: self.pipes.clone(),
            starter: self.starter.clone(),
            callers: self.neighbours.clone(),
            shelf: node.shelf.clone(),
            tickets: Some(Tickets::new(self.vault.clone())),
            sockets: Arc::clone(sockets),
        };
        let start = || Ingress::start(config.clone(), deps.clone());
        // A port that is free for TCP may be somebody's for UDP.
        let ingress = (0..10).find_map(|_| start().ok()).unwrap();
        let door = ingress.peer_door();
        self.pipes.doors.lock().unwrap().insert(node.id, door);
        let _ = node.door.set(ingress);
    }

    /// Has every node see these instances, and rebuilds routes.
    pub fn publish(&self, instances: &BTreeMap<u64, Vec<InstanceId>>) {
        let none = Vec::new();
        let ids = || self.nodes.iter().map(|n| n.id.0);
        let members: BTreeMap<NodeId, Member> = ids()
            .map(|id| {
                let instances = instances.get(&id).unwrap_or(&none);
                (NodeId(id), member(id, self.region(id), instances))
            })
            .collect();
        for node in &self.nodes {
            let mut fleet = Fleet {
                me: node.id,
                members: members.clone(),
                ..Fleet::default()
            };
            fleet.members.get_mut(&node.id).unwrap().rtt_micros = Some(0);
            let state = node.registry.borrow().clone();
            node.routes
                .store(Arc::new(Routes::build(&state, &fleet, ORIGIN)));
            node.fleet.send_replace(Arc::new(fleet));
        }
    }

    fn region(&self, node: u64) -> &'static str {
        let at = usize::try_from(node).unwrap() - 1;
        self.deployed.regions.get(at).unwrap_or(&"here")
    }

    pub fn door(&self) -> SocketAddr {
        self.nodes[0].ingress().addrs()[0]
    }

    pub fn ingress(&self) -> &Ingress {
        self.nodes[0].ingress()
    }

    pub fn local(&self) -> &Arc<Local> {
        &self.nodes[0].local
    }

    /// An application open at node number `node`.
    pub async fn run(&self, node: usize, instance: &str) -> App {
        let app = App::start(instance).await;
        self.open(node, instance, app.addr);
        app
    }

    pub fn open(&self, node: usize, instance: &str, addr: SocketAddr) {
        let Deployed {
            protocol,
            hard,
            introduced,
            ..
        } = self.deployed;
        let id = InstanceId(instance.to_owned());
        let key = revision_of(&id);
        self.nodes[node - 1]
            .local
            .open(id, key, addr, protocol, hard, introduced);
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}
