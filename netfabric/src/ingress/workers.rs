//! The door's threads: one for each core, each with a runtime and listening sockets of its own. A
//! connection stays with one worker, the one that accepted it or, where that has more than another,
//! the one with the fewest; and so does all that its requests touch:
//! connections to instances and to nodes, counts, the lines of the ledger. What is not a warm request's affair
//! (lanes, starts, a first stream to another node) runs on the daemon's runtime.

use std::cell::Cell;
use std::io;
use std::net::{self, IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep;

use super::Shared;
use super::door::{self, Phase};
use crate::places::LOOK_WHO_IS_IN;
use crate::sockets::Sockets;

/// More cores than this are left to what the node is for.
const MAX_WORKERS: usize = 32;
/// Connections the kernel holds for one socket until they are accepted.
const BACKLOG: u32 = 1024;
/// Connections handed to a worker that it did not look at yet; the next ones are not handed over.
const ON_THE_WAY: usize = 256;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Which worker's thread this is: 0 for the daemon's own threads.
pub(super) fn here() -> usize {
    NUMBER.get()
}

/// Workers, and one more for everybody else: how many parts a thing has that each keeps a part of.
pub(super) fn parts() -> usize {
    count() + 1
}

fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism();
        cores.map_or(1, NonZero::get).min(MAX_WORKERS)
    })
}

/// The listening sockets of one address, one for each worker; the kernel spreads connections over
/// them.
pub(super) struct Listeners {
    pub(super) addr: SocketAddr,
    /// TLS is spoken on them.
    pub(super) secure: bool,
    sockets: Vec<net::TcpListener>,
}

impl Listeners {
    /// Those handed over, or new ones. An address that somebody else listens on is an error, also when
    /// that is another daemon: the first socket is bound before it says that it shares.
    pub(super) fn bind(addr: SocketAddr, secure: bool, kept: &Sockets) -> io::Result<Self> {
        let mut listeners = Self {
            addr,
            secure,
            sockets: kept.tcp(addr),
        };
        let shares = |socket: &net::TcpListener| SockRef::from(socket).reuse_port();
        if listeners
            .sockets
            .first()
            .is_some_and(|s| !shares(s).unwrap_or(false))
        {
            // It was a service's port: no other socket can be bound beside it, and it is let go of.
            listeners.sockets.clear();
            kept.forget(false, addr);
        }
        if listeners.sockets.is_empty() {
            let first = socket(addr)?;
            first.bind(addr)?;
            first.set_reuseport(true)?;
            listeners.addr = first.local_addr()?;
            listeners.listen(first, kept)?;
        }
        while listeners.sockets.len() < count() {
            let next = socket(addr)?;
            next.set_reuseport(true)?;
            next.bind(listeners.addr)?;
            listeners.listen(next, kept)?;
        }
        Ok(listeners)
    }

    fn listen(&mut self, socket: TcpSocket, kept: &Sockets) -> io::Result<()> {
        let socket = socket.listen(BACKLOG)?.into_std()?;
        kept.keep(false, self.addr, &socket);
        self.sockets.push(socket);
        Ok(())
    }
}

/// One socket that is nobody's of the workers.
pub(super) fn listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(addr)?;
    // Connections have it from the socket they come by: a client that vanished is noticed.
    socket.set_keepalive(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// A connection on its way to its worker.
pub(super) struct Arrived {
    pub(super) stream: net::TcpStream,
    pub(super) client: IpAddr,
    /// It begins with a TLS handshake.
    pub(super) secure: bool,
    pub(super) permit: OwnedSemaphorePermit,
}

/// How many connections each worker has, and how it is handed another. The kernel deals them out
/// by their hash: of a few that live long, one worker would get most.
pub(super) struct Crew {
    workers: Box<[Worker]>,
    /// Connections of the daemon's own threads.
    elsewhere: AtomicUsize,
}

struct Worker {
    load: AtomicUsize,
    inbox: mpsc::Sender<Arrived>,
}

/// A connection counted for its worker, if it has one.
pub(super) struct Aboard {
    shared: Arc<Shared>,
    worker: Option<usize>,
}

impl Crew {
    /// The crew, and what each worker is handed.
    pub(super) fn new() -> (Self, Vec<mpsc::Receiver<Arrived>>) {
        let (workers, inboxes): (Vec<_>, Vec<_>) = (0..count())
            .map(|_| {
                let (inbox, arrivals) = mpsc::channel(ON_THE_WAY);
                let load = AtomicUsize::new(0);
                (Worker { load, inbox }, arrivals)
            })
            .unzip();
        let workers = workers.into();
        let elsewhere = AtomicUsize::new(0);
        (Self { workers, elsewhere }, inboxes)
    }

    /// Waits until there is no connection.
    pub(super) async fn ashore(&self) {
        let has = |load: &AtomicUsize| load.load(Ordering::Relaxed) > 0;
        while has(&self.elsewhere) || self.workers.iter().any(|w| has(&w.load)) {
            sleep(LOOK_WHO_IS_IN).await;
        }
    }

    fn load(&self, worker: Option<usize>) -> &AtomicUsize {
        worker.map_or(&self.elsewhere, |at| &self.workers[at].load)
    }

    /// The worker with clearly fewer connections than this thread's.
    fn lighter(&self) -> Option<usize> {
        let load = |worker: &Worker| worker.load.load(Ordering::Relaxed);
        let mine = load(self.workers.get(here().checked_sub(1)?)?);
        let all = self.workers.iter().map(load).enumerate();
        let (worker, least) = all.min_by_key(|(_, load)| *load)?;
        (mine > least + 1).then_some(worker)
    }
}

/// Counts a connection that was just accepted here, and hands it on where that is fair. What is
/// given back is served here.
pub(super) fn settle(shared: &Arc<Shared>, arrived: Arrived) -> Option<(Arrived, Aboard)> {
    let Some(other) = shared.crew.lighter() else {
        return Some((arrived, Aboard::new(shared)));
    };
    let worker = &shared.crew.workers[other];
    // Counted at once, for the next one that is accepted.
    worker.load.fetch_add(1, Ordering::Relaxed);
    let given = worker.inbox.try_send(arrived);
    given.err().map(|refused| {
        worker.load.fetch_sub(1, Ordering::Relaxed);
        let (TrySendError::Full(arrived) | TrySendError::Closed(arrived)) = refused;
        (arrived, Aboard::new(shared))
    })
}

impl Aboard {
    /// One more for this thread's worker.
    fn new(shared: &Arc<Shared>) -> Self {
        let aboard = Self::counted(shared);
        let load = shared.crew.load(aboard.worker);
        load.fetch_add(1, Ordering::Relaxed);
        aboard
    }

    /// One that is no worker's.
    pub(super) fn elsewhere(shared: &Arc<Shared>) -> Self {
        shared.crew.elsewhere.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            worker: None,
        }
    }

    /// One that was counted when it was handed over.
    fn counted(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            worker: Some(here().saturating_sub(1)),
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Aboard {
    fn drop(&mut self) {
        let load = self.shared.crew.load(self.worker);
        load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts the workers. Each ends when the door is closed.
pub(super) fn start(
    shared: &Arc<Shared>,
    listeners: Vec<Listeners>,
    idle: Vec<net::TcpStream>,
    inboxes: Vec<mpsc::Receiver<Arrived>>,
) -> io::Result<()> {
    let mut sockets: Vec<Vec<_>> = (0..count()).map(|_| Vec::new()).collect();
    for listener in listeners {
        // A machine that lost a core has more sockets than workers: clients wait at each of them.
        for (at, socket) in listener.sockets.into_iter().enumerate() {
            sockets[at % count()].push((socket, listener.secure));
        }
    }
    // The first worker hands on what is more than its share.
    let mut idle = Some(idle);
    for (at, (sockets, inbox)) in sockets.into_iter().zip(inboxes).enumerate() {
        let idle = idle.take().unwrap_or_default();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(format!("door-{at}"));
        thread.spawn(move || {
            NUMBER.set(at + 1);
            runtime.block_on(run(shared, sockets, idle, inbox));
            runtime.shutdown_background();
        })?;
    }
    Ok(())
}

async fn run(
    shared: Arc<Shared>,
    sockets: Vec<(net::TcpListener, bool)>,
    idle: Vec<net::TcpStream>,
    mut inbox: mpsc::Receiver<Arrived>,
) {
    let mut phase = shared.phase.subscribe();
    let branch = shared.link.branch();
    if let Some(branch) = &branch {
        // Nobody else sets it: the number is this thread's.
        let _ = shared.branches[here()].set(Arc::clone(branch));
    }
    for (socket, secure) in sockets {
        match TcpListener::from_std(socket) {
            Ok(listener) => {
                tokio::spawn(door::accept(Arc::clone(&shared), listener, secure));
            }
            Err(error) => tracing::error!(%error, "a worker of the door cannot listen"),
        }
    }
    for stream in idle {
        door::welcome_back(&shared, stream);
    }
    loop {
        let arrived = tokio::select! {
            arrived = inbox.recv() => arrived,
            _ = phase.wait_for(|p| *p == Phase::Closed) => None,
        };
        let Some(arrived) = arrived else {
            break;
        };
        let aboard = Aboard::counted(&shared);
        tokio::spawn(door::greet(arrived, aboard));
    }
    if let Some(branch) = branch {
        branch.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::Handed;

    #[tokio::test]
    async fn workers_share_an_address_among_themselves_and_with_nobody_else() {
        let bind = |addr, kept| Listeners::bind(addr, false, kept);
        let none = Sockets::default();
        let ours = bind("127.0.0.1:0".parse().unwrap(), &none).unwrap();
        assert_eq!(ours.sockets.len(), count());
        let again = bind(ours.addr, &none).map(|l| l.addr);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let addr = ours.addr;
        drop(ours);
        assert_eq!(bind(addr, &none).unwrap().addr, addr);
    }

    #[tokio::test]
    async fn who_connects_between_two_daemons_is_served_by_the_next() {
        let none = Sockets::default();
        let before = Listeners::bind("127.0.0.1:0".parse().unwrap(), false, &none).unwrap();
        let addr = before.addr;
        let copies = before.sockets.iter().map(|s| s.try_clone().unwrap());
        let handed = copies.map(Handed::Tcp).collect();
        drop(before);
        let waiting: Vec<_> = (0..8)
            .map(|_| net::TcpStream::connect(addr).unwrap())
            .collect();
        let next = Listeners::bind(addr, false, &Sockets::new(handed, None)).unwrap();
        let mut served = 0;
        for socket in &next.sockets {
            while socket.accept().is_ok() {
                served += 1;
            }
        }
        assert_eq!((next.addr, served), (addr, waiting.len()));
    }
}
