//! The public door of a node: HTTP in, to an instance here or at the nearest node that has one,
//! and when there is none, held until one was started.
//!
//! A request's way: `workers` (threads) -> `door` (connection) -> `express` (the plain and warm, in
//! one task) or `dispatch` (route, endpoint) and `errand` (tries, replays) -> `offer` (room
//! now) or `lane` (wait; `start` finds a node) -> `upstream` (one try) -> `body` (the answer
//! passing through). Requests from other nodes come in by `peer_door`, those of containers here by
//! `inward`. HTTP/3 comes in by `http3`, and what is no HTTP goes by `passage`.
//!
//! It decides nothing: routing, picking, holding and placing are `scheduler`'s. It knows neither
//! containers nor consensus: instances come and go in [`Local`], starts are a [`Starter`]'s.

mod afar;
mod attentive;
mod bench;
mod body;
mod calm;
mod chunks;
mod counters;
mod dispatch;
mod door;
mod errand;
mod express;
mod frames;
mod frost;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod gate;
mod headers;
mod health;
mod histogram;
mod http3;
mod introduced;
mod inward;
mod lane;
mod ledger;
mod local;
mod meter;
mod offer;
mod passage;
mod peer_door;
mod pool;
mod problem;
mod rates;
mod recent;
mod replay;
mod secure;
mod start;
mod sticky;
mod stream;
mod streams;
mod strict;
mod tunnel;
mod upstream;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::future::join_all;
use scheduler::fleet::Fleet;
use scheduler::model::{Demand, NodeId, Rate, RequestId, RevisionKey, ServiceKey, Socket};
use scheduler::place::Receipt;
use scheduler::registry::State;
use scheduler::route::Routes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::places::all_back;
use crate::sockets::{self, Sockets};
use crate::tls::{Shelf, Tickets, quic_config};
use crate::wire::peer::{StartRefusal, StartRequest, Started};

pub use counters::{Counts, PHASES};
pub use frost::{Awake, Freezer};
pub use histogram::{BOUNDS, Distribution};
pub use http3::Http3;
pub use introduced::OWN as OWN_CONNECTION;
pub use ledger::Bill;
pub use local::{Guard, Local, Served};
pub use peer_door::{PeerDoor, Place};
pub use problem::{CODES, Code};
pub use stream::{Conduit, PeerStream, Stream};

use door::Phase;
use workers::Listeners;

/// What a request's body may have, unless the operator says otherwise.
const MAX_BODY: u64 = 100 << 20;
/// Switched connections at once; more wait for one to end.
const MAX_TUNNELS: usize = 10_000;
/// Flows of datagrams do not end by themselves: as the door closes, what is under way gets so long.
const FLOWS_GRACE: Duration = Duration::from_secs(1);
/// Requests at once that wait for a service's first ready revision.
const MAX_FIRST_READY: usize = 1_000;
/// Requests at once that wait for room at an instance, or in a region, that they were sent on to.
const MAX_AIMED: usize = 1_000;
/// For clients to use their kept connections once more, and to hear that these end.
const LEAVE: Duration = Duration::from_secs(1);

/// Streams to other nodes' doors.
#[async_trait]
pub trait PeerLink: Send + Sync {
    /// A stream to the node's [`PeerDoor`], when one is to be had without waiting.
    fn open_now(&self, node: NodeId) -> Option<Box<dyn PeerStream>>;

    /// A link of its own for a worker of the door, which the runtime that this is called in drives. `None` where all
    /// share this one.
    fn branch(&self) -> Option<Arc<dyn PeerLink>> {
        None
    }

    /// Ends what a branch has brought up, when its runtime is about to end.
    async fn close(&self) {}

    /// Opens a stream to the node's [`PeerDoor`], within `deadline`.
    async fn open(&self, node: NodeId, deadline: Duration) -> io::Result<Box<dyn PeerStream>>;

    /// Opens a stream that is served by [`PeerDoor::pass`] there.
    async fn open_passage(&self, node: NodeId, deadline: Duration) -> io::Result<Box<dyn Conduit>>;
}

/// Has a node start an instance: this one or another.
#[async_trait]
pub trait Starter: Send + Sync {
    /// Returns when the instance is ready. One started on this node must be open in [`Local`]
    /// by then.
    async fn start(&self, node: NodeId, request: StartRequest) -> Result<Started, StartRefusal>;

    /// Requests of the service are refused, because no node took an instance. It may not wait.
    fn unplaced(&self, _service: &ServiceKey, _receipt: &Receipt, _why: &str) {}
}

/// Knows whose container has which address. It is asked once for a connection.
pub trait Callers: Send + Sync {
    fn who(&self, address: IpAddr) -> Option<ServiceKey>;
}

#[derive(Debug, Clone)]
pub struct IngressConfig {
    pub listen: Vec<SocketAddr>,
    /// Where connections of containers to services' own addresses are led to.
    pub inner: Option<SocketAddr>,
    /// Where TLS is spoken. Services' own ports are listened on at all of these addresses.
    pub listen_tls: Vec<SocketAddr>,
    /// HTTP/3, over UDP at the same addresses as TLS.
    pub http3: Option<Http3>,
    /// Requests that may wait for one revision, and for all together.
    pub activation_queue: usize,
    pub node_queue: usize,
    /// How long a request may wait for room.
    pub activation_timeout: Duration,
    /// Every connection comes through a load balancer that says whose it is, in the PROXY protocol;
    /// one that does not is closed.
    pub proxy_protocol: bool,
    /// Bytes of a request's body, as long as no answer to it has begun. Containers' calls and gRPC's have no bound.
    pub max_body: u64,
    /// How many requests one client's address may send, IPv6's by its network of 64 bits.
    pub client_rate: Option<Rate>,
}

impl Default for IngressConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 80))],
            inner: None,
            listen_tls: Vec::new(),
            http3: None,
            activation_queue: 1_000,
            node_queue: 5_000,
            activation_timeout: Duration::from_secs(30),
            proxy_protocol: false,
            max_body: MAX_BODY,
            client_rate: None,
        }
    }
}

/// What the door reads and whom it asks.
#[derive(Clone)]
pub struct IngressDeps {
    pub routes: Arc<ArcSwap<Routes>>,
    pub local: Arc<Local>,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub registry: watch::Receiver<Arc<State>>,
    pub link: Arc<dyn PeerLink>,
    pub starter: Arc<dyn Starter>,
    pub callers: Arc<dyn Callers>,
    pub shelf: Arc<Shelf>,
    /// Without them a TLS session is not resumed.
    pub tickets: Option<Tickets>,
    pub sockets: Arc<Sockets>,
}

#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    #[error("cannot listen on {addr}")]
    Bind {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {addr} over UDP, for HTTP/3")]
    BindUdp {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// The running door. `stop` closes it; dropping it cuts off whoever is in.
pub struct Ingress {
    shared: Arc<Shared>,
    addrs: Vec<SocketAddr>,
    inner: Option<SocketAddr>,
    tls_addrs: Vec<SocketAddr>,
    http3: Vec<quinn::Endpoint>,
}

/// What every request's way touches.
struct Shared {
    routes: Arc<ArcSwap<Routes>>,
    local: Arc<Local>,
    fleet: watch::Receiver<Arc<Fleet>>,
    registry: watch::Receiver<Arc<State>>,
    link: Arc<dyn PeerLink>,
    /// Workers' own, by their numbers.
    branches: Box<[OnceLock<Arc<dyn PeerLink>>]>,
    starter: Arc<dyn Starter>,
    callers: Arc<dyn Callers>,
    /// The daemon's own, for what is not the workers'.
    runtime: Handle,
    crew: workers::Crew,
    secure: secure::Secure,
    limits: Limits,
    rates: rates::Rates,
    epoch: Instant,
    phase: watch::Sender<Phase>,
    connections: Arc<Semaphore>,
    tunnels: Semaphore,
    first_ready: Semaphore,
    /// Requests that wait for room where they were sent on to.
    aimed: Semaphore,
    afar: afar::Afar,
    /// What may be kept of requests' bodies beyond a little of each.
    purse: Arc<body::Purse>,
    tickets: AtomicU64,
    retries: dispatch::Retries,
    nodes: health::Nodes,
    lanes: lane::Lanes,
    ledger: ledger::Ledger,
    counters: counters::Counters,
    passages: passage::Passages,
    sockets: Arc<Sockets>,
}

struct Limits {
    queue: usize,
    node_queue: usize,
    wait: Duration,
    body: u64,
    proxy_protocol: bool,
}

impl Shared {
    fn me(&self) -> NodeId {
        self.routes.load().me
    }

    /// What leads from this thread to other nodes.
    fn link(&self) -> &Arc<dyn PeerLink> {
        let own = self.branches.get(workers::here());
        own.and_then(OnceLock::get).unwrap_or(&self.link)
    }
}

impl Ingress {
    /// Listens, and answers from then on. Call it on the daemon's runtime.
    pub fn start(config: IngressConfig, deps: IngressDeps) -> Result<Self, IngressError> {
        let mut listeners = Vec::new();
        let kept = deps.sockets.as_ref();
        // Before new sockets are to be kept: a store has so many places.
        let (idle, carried) = (kept.idle(), kept.carried());
        let inner = config
            .inner
            .map(|addr| inward::bind(addr, kept))
            .transpose();
        let inner = inner.map_err(|(addr, source)| IngressError::Bind { addr, source })?;
        let plain = config.listen.into_iter().map(|addr| (addr, false));
        let secure = config.listen_tls.into_iter().map(|addr| (addr, true));
        for (addr, secure) in plain.chain(secure) {
            let bound = Listeners::bind(addr, secure, kept);
            listeners.push(bound.map_err(|source| IngressError::Bind { addr, source })?);
        }
        let addrs = |secure: bool| {
            let ours = listeners.iter().filter(|l| l.secure == secure);
            ours.map(|l| l.addr).collect::<Vec<_>>()
        };
        let (addrs, tls_addrs) = (addrs(false), addrs(true));
        let port = tls_addrs.first().map(SocketAddr::port);
        let http3 = config.http3.as_ref();
        let http3 = http3.map_or(Ok(Vec::new()), |http3| open_http3(http3, &tls_addrs, &deps))?;
        let secure = secure::Secure::new(deps.shelf, deps.tickets, port, !http3.is_empty());
        let (crew, inboxes) = workers::Crew::new();
        let shared = Arc::new(Shared {
            crew,
            secure: secure.map_err(IngressError::Tls)?,
            routes: deps.routes,
            local: deps.local,
            fleet: deps.fleet,
            registry: deps.registry,
            link: deps.link,
            branches: (0..workers::parts()).map(|_| OnceLock::new()).collect(),
            starter: deps.starter,
            callers: deps.callers,
            runtime: Handle::current(),
            limits: Limits {
                queue: config.activation_queue,
                node_queue: config.node_queue,
                wait: config.activation_timeout,
                body: config.max_body,
                proxy_protocol: config.proxy_protocol,
            },
            rates: rates::Rates::new(config.client_rate),
            epoch: Instant::now(),
            phase: watch::Sender::new(Phase::Open),
            connections: Arc::new(Semaphore::new(door::MAX_CONNECTIONS)),
            tunnels: Semaphore::new(MAX_TUNNELS),
            first_ready: Semaphore::new(MAX_FIRST_READY),
            aimed: Semaphore::new(MAX_AIMED),
            afar: afar::Afar::default(),
            purse: Arc::default(),
            tickets: AtomicU64::new(0),
            retries: dispatch::Retries::default(),
            nodes: health::Nodes::default(),
            lanes: lane::Lanes::default(),
            ledger: ledger::Ledger::new(),
            counters: counters::Counters::new(),
            passages: passage::Passages::default(),
            sockets: deps.sockets,
        });
        workers::start(&shared, listeners, idle, inboxes).map_err(IngressError::Worker)?;
        let ips = addrs.iter().chain(&tls_addrs).map(SocketAddr::ip).collect();
        let own = tls_addrs.iter().map(SocketAddr::port).collect();
        for connection in carried {
            passage::go_on(&shared, connection);
        }
        tokio::spawn(passage::follow(Arc::clone(&shared), ips, own));
        tokio::spawn(health::follow(Arc::clone(&shared)));
        for endpoint in &http3 {
            tokio::spawn(http3::accept(Arc::clone(&shared), endpoint.clone()));
        }
        tokio::spawn(sockets::forget_unclaimed(Arc::clone(&shared.sockets)));
        let inner = inner.map(|(listener, addr)| {
            tokio::spawn(inward::accept(Arc::clone(&shared), listener));
            addr
        });
        Ok(Self {
            shared,
            addrs,
            inner,
            tls_addrs,
            http3,
        })
    }

    /// Where it listens, with the ports the kernel chose.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// The same of TLS.
    pub fn tls_addrs(&self) -> &[SocketAddr] {
        &self.tls_addrs
    }

    /// Where containers' connections to services are led to.
    pub fn inner(&self) -> Option<SocketAddr> {
        self.inner
    }

    /// Services' ports that this node cannot listen on, and why.
    pub fn closed_ports(&self) -> BTreeMap<Socket, String> {
        self.shared.passages.closed()
    }

    /// The door for other nodes' requests.
    pub fn peer_door(&self) -> PeerDoor {
        PeerDoor {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Requests waiting here or sent to other regions, by revision: part of this node's record.
    pub fn demand(&self) -> Vec<Demand> {
        let state = self.shared.registry.borrow().clone();
        let region = |node: NodeId| state.nodes.get(&node).map(|n| &n.region);
        let own = region(self.shared.me());
        let far = |node: NodeId| region(node).is_some_and(|there| Some(there) != own);
        let (now, waiting) = (Instant::now().into_std(), self.shared.lanes.demand());
        let mut demand: BTreeMap<RevisionKey, Demand> = waiting
            .into_iter()
            .map(|d| (d.revision.clone(), d))
            .collect();
        for (revision, bench) in self.shared.local.benches().iter() {
            let away = bench.sent_away(now, far);
            if away > 0 {
                let nothing = || Demand {
                    revision: revision.clone(),
                    queued: 0,
                    away: 0,
                };
                demand.entry(revision.clone()).or_insert_with(nothing).away = away;
            }
        }
        demand.into_values().collect()
    }

    /// The bills of the last requests that waited, oldest first.
    pub fn bills(&self) -> Vec<Bill> {
        self.shared.ledger.bills()
    }

    /// What became of a request that came in here, as long as it is remembered.
    pub fn explain(&self, request: &RequestId) -> Option<Bill> {
        self.shared.ledger.find(request)
    }

    pub fn counts(&self) -> Counts {
        let used = |all: usize, left: usize| all.saturating_sub(left) as u64;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (shared, passages) = (&self.shared, &self.shared.passages);
        Counts {
            open_connections: used(
                door::MAX_CONNECTIONS,
                shared.connections.available_permits(),
            ),
            open_tunnels: used(MAX_TUNNELS, shared.tunnels.available_permits()),
            held: shared.lanes.held() as u64,
            open_passages: passages.taken() as u64,
            passages: read(&passages.opened),
            passage_bytes: [read(&passages.sent), read(&passages.received)],
            datagrams_dropped: read(&passages.dropped),
            ..shared.counters.counts()
        }
    }

    /// Says on every connection that it ends, and gives what passes unread, which hears of nothing, `grace` to
    /// end, unless the next daemon can go on with it; all are still let in meanwhile. Then accepts nobody new,
    /// lets requests finish for `grace` once more, other nodes' last, leaves what can be left to the next
    /// daemon, and cuts off the rest. Says whether no request was.
    pub async fn stop(&self, grace: Duration) -> bool {
        let (shared, passages) = (&self.shared, &self.shared.passages);
        shared.phase.send_replace(Phase::Leaving);
        // A client that sends on a kept connection as it is closed cannot know what became of its request.
        let told = timeout(LEAVE, shared.crew.ashore());
        let unread = async {
            passages.rest_is_heritable().await;
            all_back(&shared.tunnels, MAX_TUNNELS).await;
        };
        let flows = timeout(FLOWS_GRACE, passages.flows.empty());
        let _ = tokio::join!(told, flows, timeout(grace, unread));
        shared.phase.send_replace(Phase::Closing);
        let requests = async {
            shared.crew.ashore().await;
            passages.calls.empty().await;
            shared.phase.send_replace(Phase::Parting);
            all_back(&shared.connections, door::MAX_CONNECTIONS).await;
        };
        let in_order = timeout(grace, requests).await.is_ok();
        if !in_order {
            tracing::info!(counts = ?self.counts(), "cutting off requests that outlast the grace");
        }
        shared.phase.send_replace(Phase::Parting);
        if timeout(LEAVE, passages.inherited()).await.is_err() {
            tracing::info!("cutting off connections that were not left in time");
        }
        shared.phase.send_replace(Phase::Closed);
        let last_words = join_all(self.http3.iter().map(quinn::Endpoint::wait_idle));
        let _late = timeout(http3::LAST_WORDS, last_words).await;
        in_order
    }
}

/// The sockets of HTTP/3, one for each address of TLS.
fn open_http3(
    http3: &Http3,
    addrs: &[SocketAddr],
    deps: &IngressDeps,
) -> Result<Vec<quinn::Endpoint>, IngressError> {
    let open = |addr: &SocketAddr| {
        let tls = quic_config(Arc::clone(&deps.shelf), deps.tickets.clone());
        let opened = http3::open(*addr, tls.map_err(IngressError::Tls)?, http3, &deps.sockets);
        opened.map_err(|source| IngressError::BindUdp {
            addr: *addr,
            source,
        })
    };
    addrs.iter().map(open).collect()
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Closed);
    }
}

#[cfg(test)]
mod tests;
