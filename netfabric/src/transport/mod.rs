//! QUIC between nodes: one UDP port, one connection per peer for everything (and one for each thread that has much
//! to ask of it: `branch`), a typed stream per exchange, mutual TLS from the cluster's CA, a deadline on every
//! wait. It knows node numbers and addresses; it does not know what the streams carry.

mod accept;
mod apart;
mod beside;
mod branch;
mod calls;
mod endpoint;
mod error;
mod handler;
pub mod join;
mod liveness;
mod pool;
mod socket;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use scheduler::model::NodeId;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::identity::{Identity, MESH_NAME, Peer};
use apart::Apart;
use beside::Beside;
use join::JoinHandler;
use pool::{Link, Pool};

pub use branch::Branch;
pub(crate) use endpoint::{bound as udp_socket, endpoint_config};
pub use error::TransportError;
pub use handler::{Admit, Handler, Kind};
pub use stream::MeshStream;

/// Keeps NAT bindings and proves a peer alive when nothing else is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Three keep-alives lost: the connection is dead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A dial that takes longer than this fails; two retransmissions of the first packet fit in.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);
/// For a handshake that someone else began.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// For the first byte of a stream, and for the whole request of a call.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stream waits for whoever is to serve it, while this node begins.
const BEGINNING: Duration = Duration::from_secs(10);
/// Streams one peer may have open on one connection at once.
const STREAMS_MAX: u32 = 1024;
/// Handshakes in progress; more are refused.
const HALF_OPEN_MAX: usize = 256;
/// With more handshakes than this in progress, newcomers must first prove their address.
const RETRY_ABOVE: usize = 32;
/// Silences that whoever listens may be late for.
const SILENCES_KEPT: usize = 256;
/// How long `close` waits for its goodbyes to leave.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// First byte a server sends on a connection that it admits; dialling waits for it, so that a
/// refusal is seen by the one who dials and not by the first request.
const WELCOME: u8 = 1;

/// Application close and reset codes.
mod code {
    use quinn::VarInt;

    pub const CLOSING: VarInt = VarInt::from_u32(0);
    /// The certificate is missing, of no node, or revoked.
    pub const NOT_ADMITTED: VarInt = VarInt::from_u32(1);
    /// The peer has newer connections.
    pub const SUPERSEDED: VarInt = VarInt::from_u32(2);
    /// Nobody here serves streams of this kind.
    pub const UNSERVED: VarInt = VarInt::from_u32(3);
    /// The request was no request of this kind, or too large.
    pub const MALFORMED: VarInt = VarInt::from_u32(4);
    /// The one who wrote gave up half-way.
    pub const ABORTED: VarInt = VarInt::from_u32(5);
    /// Too much at once.
    pub const BUSY: VarInt = VarInt::from_u32(6);
    /// The peer did not answer for too long.
    pub const SILENT: VarInt = VarInt::from_u32(7);
    /// The node left when nothing was under way: what came then was begun by nobody.
    pub const LEFT: VarInt = VarInt::from_u32(8);
}

/// How far a peer is, by the traffic of a live connection with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    pub node: NodeId,
    /// Smoothed.
    pub rtt: Duration,
    /// Datagrams that came: while it stays, nothing new was measured.
    pub received: u64,
}

/// This node's end of the mesh. Cheap to clone; lives until [`Mesh::close`].
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    /// What drives the connections.
    runtime: Handle,
    _apart: Option<Apart>,
    /// Where streams are served that are not served beside their connection.
    home: Handle,
    beside: Arc<Beside>,
    local: SocketAddr,
    identity: Arc<Identity>,
    admit: Arc<dyn Admit>,
    pool: Mutex<Pool>,
    branches: Mutex<Vec<Weak<Branch>>>,
    handlers: watch::Sender<Handlers>,
    join: Mutex<Option<Arc<dyn JoinHandler>>>,
    silences: broadcast::Sender<NodeId>,
    half_open: Arc<Semaphore>,
    join_connections: Arc<Semaphore>,
    joins: Arc<Semaphore>,
}

/// Who stands behind the kinds of streams.
#[derive(Default)]
struct Handlers {
    known: BTreeMap<Kind, Arc<dyn Handler>>,
    /// More will be: streams that nobody serves yet wait.
    more: bool,
}

/// A poisoned lock only means that a thread died while it held plain maps: they are still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An IPv4 address in its own dress, also when a dual-stack socket showed it as IPv6.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

impl Mesh {
    /// Opens the port and begins to accept. `[::]` serves IPv4 too; without IPv6 on the machine it
    /// becomes `0.0.0.0`. Must be called inside a tokio runtime.
    pub fn bind(
        listen: SocketAddr,
        identity: Arc<Identity>,
        admit: Arc<dyn Admit>,
    ) -> Result<Self, TransportError> {
        Self::bind_on(Handle::current(), None, (listen, identity, admit))
    }

    /// The same with a thread of its own that drives the connections and serves peers' requests, so that one changes
    /// threads no more often than it has to. The runtime this is called in has the rest.
    pub fn bind_apart(
        listen: SocketAddr,
        identity: Arc<Identity>,
        admit: Arc<dyn Admit>,
    ) -> Result<Self, TransportError> {
        let apart = Apart::start().map_err(|source| TransportError::Bind {
            addr: listen,
            source: Arc::new(source),
        })?;
        Self::bind_on(apart.handle(), Some(apart), (listen, identity, admit))
    }

    fn bind_on(
        runtime: Handle,
        apart: Option<Apart>,
        (listen, identity, admit): (SocketAddr, Arc<Identity>, Arc<dyn Admit>),
    ) -> Result<Self, TransportError> {
        let (endpoint, client) = endpoint::open(listen, &identity, runtime.clone())?;
        let local = endpoint
            .local_addr()
            .map_err(|source| TransportError::Bind {
                addr: listen,
                source: Arc::new(source),
            })?;
        let inner = Arc::new(Inner {
            endpoint,
            client,
            runtime,
            _apart: apart,
            home: Handle::current(),
            beside: Arc::default(),
            local: canonical(local),
            identity,
            admit,
            pool: Mutex::default(),
            branches: Mutex::default(),
            handlers: watch::Sender::default(),
            join: Mutex::default(),
            silences: broadcast::Sender::new(SILENCES_KEPT),
            half_open: Arc::new(Semaphore::new(HALF_OPEN_MAX)),
            join_connections: Arc::new(Semaphore::new(join::CONNECTIONS_MAX)),
            joins: Arc::new(Semaphore::new(join::JOINS_MAX)),
        });
        inner.runtime.spawn(accept::run(inner.clone()));
        Ok(Self { inner })
    }

    /// Hands every incoming stream of `kind` to `handler` from now on.
    pub fn serve(&self, kind: Kind, handler: Arc<dyn Handler>) {
        self.inner.handlers.send_modify(|handlers| {
            handlers.known.insert(kind, handler);
        });
    }

    /// While a node begins, streams of kinds that nobody serves yet wait instead of being refused.
    pub fn begins(&self, more: bool) {
        self.inner
            .handlers
            .send_modify(|handlers| handlers.more = more);
    }

    /// Answers joiners through `handler` from now on; before, they are told to try another node.
    pub fn serve_join(&self, handler: Arc<dyn JoinHandler>) {
        *lock(&self.inner.join) = Some(handler);
    }

    /// Opens a stream to a node over its connection, which is made when there is none.
    pub async fn open(
        &self,
        to: NodeId,
        kind: Kind,
        deadline: Duration,
    ) -> Result<MeshStream, TransportError> {
        let until = Instant::now() + deadline;
        let link = || self.inner.link_to(to, until);
        self.inner.open_on(link, kind, until).await
    }

    /// A stream to a node, when there is a connection that has one to give at once.
    pub fn open_now(&self, to: NodeId, kind: Kind) -> Option<MeshStream> {
        let link = lock(&self.inner.pool).link(to)?;
        let opened = MeshStream::open(link, kind).now_or_never()?;
        opened.ok()
    }

    /// Opens a stream to whichever node of this cluster is at `addr`.
    pub async fn open_addr(
        &self,
        addr: SocketAddr,
        kind: Kind,
        deadline: Duration,
    ) -> Result<MeshStream, TransportError> {
        let until = Instant::now() + deadline;
        let addr = canonical(addr);
        let link = || self.inner.link_at(addr, until);
        self.inner.open_on(link, kind, until).await
    }

    /// Where to dial a node from now on. A live connection to it stays in use.
    pub fn set_addr(&self, node: NodeId, addr: SocketAddr) {
        lock(&self.inner.pool).set_addr(node, canonical(addr));
    }

    pub fn addr(&self, node: NodeId) -> Option<SocketAddr> {
        lock(&self.inner.pool).addr(node)
    }

    /// Closes every connection with a node, as after its revocation; [`Admit`] keeps it out.
    pub fn disconnect(&self, node: NodeId) {
        for link in lock(&self.inner.pool).drop_node(node) {
            link.conn.close(code::NOT_ADMITTED, b"not admitted");
        }
        for branch in self.branches() {
            branch.disconnect(node);
        }
    }

    /// Connections of its own for the thread that calls this, in its runtime.
    pub fn branch(&self) -> Result<Arc<Branch>, TransportError> {
        let branch = Arc::new(Branch::open(self.clone())?);
        let mut branches = lock(&self.inner.branches);
        branches.retain(|other| other.strong_count() > 0);
        branches.push(Arc::downgrade(&branch));
        Ok(branch)
    }

    fn branches(&self) -> Vec<Arc<Branch>> {
        let branches = lock(&self.inner.branches);
        branches.iter().filter_map(Weak::upgrade).collect()
    }

    /// The smoothed round trip to a node, while there is a live connection to it.
    pub fn rtt(&self, node: NodeId) -> Option<Duration> {
        lock(&self.inner.pool)
            .link(node)
            .map(|link| link.conn.rtt())
    }

    /// The smoothed round trips of all live connections, as their own traffic measures them.
    pub fn round_trips(&self) -> Vec<RoundTrip> {
        let links = lock(&self.inner.pool).links();
        let trip = |link: &Arc<Link>| RoundTrip {
            node: link.peer.node,
            rtt: link.conn.rtt(),
            received: link.received(),
        };
        links.iter().map(trip).collect()
    }

    /// The nodes there is a live connection with.
    pub fn connected(&self) -> Vec<NodeId> {
        lock(&self.inner.pool).connected()
    }

    /// The address the port is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.inner.identity
    }

    /// Says goodbye to every peer and stops accepting. Streams still open end with an error, which says
    /// that nobody began with what they asked. The port is free once the last clone and the last stream
    /// are dropped.
    pub async fn close(&self) {
        self.end(code::LEFT).await;
    }

    /// The same where something that was begun was cut off.
    pub async fn break_off(&self) {
        self.end(code::CLOSING).await;
    }

    async fn end(&self, code: quinn::VarInt) {
        self.inner.endpoint.close(code, b"closing");
        for branch in self.branches() {
            branch.end(code);
        }
        self.inner.handlers.send_replace(Handlers::default());
        *lock(&self.inner.join) = None;
        let _ = timeout(CLOSE_WAIT, self.inner.endpoint.wait_idle()).await;
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh")
            .field("node", &self.inner.identity.node())
            .field("local", &self.inner.local)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// A stream on the link that `find` gives; once more when that link died under our hands.
    async fn open_on<F, L>(
        &self,
        find: F,
        kind: Kind,
        until: Instant,
    ) -> Result<MeshStream, TransportError>
    where
        F: Fn() -> L,
        L: Future<Output = Result<Arc<Link>, TransportError>>,
    {
        let mut again = true;
        loop {
            let link = find().await?;
            let error = match timeout_at(until, MeshStream::open(link.clone(), kind)).await {
                Err(_) => return Err(TransportError::Deadline("opening a stream")),
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
            };
            lock(&self.pool).remove(&link);
            if !again {
                return Err(error);
            }
            again = false;
        }
    }

    async fn link_to(
        self: &Arc<Self>,
        node: NodeId,
        until: Instant,
    ) -> Result<Arc<Link>, TransportError> {
        let addr = {
            let mut pool = lock(&self.pool);
            if let Some(link) = pool.link(node) {
                return Ok(link);
            }
            pool.addr(node)
                .ok_or(TransportError::UnknownAddress(node))?
        };
        let link = self.dial(addr, until).await?;
        let found = link.peer.node;
        if found == node {
            Ok(link)
        } else {
            Err(TransportError::WrongPeer {
                addr,
                wanted: node,
                found,
            })
        }
    }

    async fn link_at(
        self: &Arc<Self>,
        addr: SocketAddr,
        until: Instant,
    ) -> Result<Arc<Link>, TransportError> {
        let known = lock(&self.pool).link_at(addr);
        match known {
            Some(link) => Ok(link),
            None => self.dial(addr, until).await,
        }
    }

    /// Waits for the one dial to `addr` that is under way, or begins it. The dial itself does not
    /// depend on the patience of those who wait for it.
    async fn dial(
        self: &Arc<Self>,
        addr: SocketAddr,
        until: Instant,
    ) -> Result<Arc<Link>, TransportError> {
        let (mut result, begun) = lock(&self.pool).dial(addr)?;
        if let Some(report) = begun {
            let inner = self.clone();
            tokio::spawn(async move {
                let result = inner.connect(addr).await;
                lock(&inner.pool).dialled(addr, &result);
                let _ = report.send(Some(result));
            });
        }
        match timeout_at(until, result.wait_for(Option::is_some)).await {
            Err(_) => Err(TransportError::Deadline("connecting")),
            Ok(Ok(result)) => result.clone().unwrap_or(Err(TransportError::Closed)),
            Ok(Err(_)) => Err(TransportError::Closed),
        }
    }

    async fn connect(self: &Arc<Self>, addr: SocketAddr) -> Result<Arc<Link>, TransportError> {
        let (conn, peer) = self.greet((&self.endpoint, &self.client), addr).await?;
        Ok(accept::keep(self, conn, peer, Some(addr)))
    }

    /// A connection with whoever is at `addr`, once both sides have admitted each other.
    async fn greet(
        &self,
        (endpoint, client): (&quinn::Endpoint, &quinn::ClientConfig),
        addr: SocketAddr,
    ) -> Result<(quinn::Connection, Peer), TransportError> {
        let dial = async {
            let conn = endpoint
                .connect_with(client.clone(), addr, MESH_NAME)
                .map_err(|source| TransportError::Dial { addr, source })?
                .await
                .map_err(|source| TransportError::connect(addr, source))?;
            let peer = accept::peer_of(&self.identity, &conn);
            let peer = peer.ok_or(TransportError::NotAdmitted { addr })?;
            if !self.admit.admits(peer.node) {
                conn.close(code::NOT_ADMITTED, b"not admitted");
                return Err(TransportError::NotAdmitted { addr });
            }
            welcomed(&conn)
                .await
                .map_err(|source| TransportError::connect(addr, source))?;
            Ok((conn, peer))
        };
        timeout(DIAL_DEADLINE, dial)
            .await
            .unwrap_or(Err(TransportError::Unreachable { addr }))
    }

    /// Closes a connection whose node was revoked after it was admitted and before the connection was where
    /// [`Mesh::disconnect`] looks.
    fn ask_again(&self, link: &Link) {
        if !self.admit.admits(link.peer.node) {
            link.conn.close(code::NOT_ADMITTED, b"not admitted");
        }
    }
}

/// Waits for the server's word that it admits us.
async fn welcomed(conn: &quinn::Connection) -> Result<(), quinn::ConnectionError> {
    let mut stream = conn.accept_uni().await?;
    let mut byte = [0];
    match stream.read_exact(&mut byte).await {
        Ok(()) if byte == [WELCOME] => Ok(()),
        Err(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => {
            Err(error)
        }
        _ => {
            conn.close(code::MALFORMED, b"no welcome");
            Err(quinn::ConnectionError::LocallyClosed)
        }
    }
}
