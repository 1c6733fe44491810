//! The door's threads: one for each core, each with a runtime and listening sockets of its own. A
//! connection stays with the worker that accepted it, and so does all that its requests touch:
//! connections to instances, counts, the lines of the ledger. What is not a warm request's affair
//! (lanes, starts, streams to other nodes) runs on the daemon's runtime.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener as Unregistered};
use std::num::NonZero;
use std::sync::{Arc, OnceLock};

use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;

use super::Shared;
use super::door::{self, Phase};

/// More cores than this are left to what the node is for.
const MAX_WORKERS: usize = 32;
/// Connections the kernel holds for one worker until it accepts them.
const BACKLOG: u32 = 1024;

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
    sockets: Vec<Unregistered>,
}

impl Listeners {
    /// An address that somebody else listens on is an error, also when that is another daemon:
    /// the first socket is bound before it says that it shares.
    pub(super) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let first = socket(addr)?;
        first.bind(addr)?;
        first.set_reuseport(true)?;
        let addr = first.local_addr()?;
        let mut sockets = vec![first.listen(BACKLOG)?.into_std()?];
        while sockets.len() < count() {
            let next = socket(addr)?;
            next.set_reuseport(true)?;
            next.bind(addr)?;
            sockets.push(next.listen(BACKLOG)?.into_std()?);
        }
        Ok(Self { addr, sockets })
    }
}

fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// Starts the workers. Each ends when the door is closed.
pub(super) fn start(shared: &Arc<Shared>, listeners: Vec<Listeners>) -> io::Result<()> {
    let mut sockets: Vec<Vec<Unregistered>> = (0..count()).map(|_| Vec::new()).collect();
    for listener in listeners {
        for (mine, socket) in sockets.iter_mut().zip(listener.sockets) {
            mine.push(socket);
        }
    }
    for (at, sockets) in sockets.into_iter().enumerate() {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(format!("door-{at}"));
        thread.spawn(move || {
            NUMBER.set(at + 1);
            runtime.block_on(run(shared, sockets));
            runtime.shutdown_background();
        })?;
    }
    Ok(())
}

async fn run(shared: Arc<Shared>, sockets: Vec<Unregistered>) {
    let mut phase = shared.phase.subscribe();
    for socket in sockets {
        match TcpListener::from_std(socket) {
            Ok(listener) => drop(tokio::spawn(door::accept(Arc::clone(&shared), listener))),
            Err(error) => tracing::error!(%error, "a worker of the door cannot listen"),
        }
    }
    drop(shared);
    let _closed = phase.wait_for(|p| *p == Phase::Closed).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn workers_share_an_address_among_themselves_and_with_nobody_else() {
        let ours = Listeners::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(ours.sockets.len(), count());
        let again = Listeners::bind(ours.addr).map(|l| l.addr);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let addr = ours.addr;
        drop(ours);
        assert_eq!(Listeners::bind(addr).unwrap().addr, addr);
    }
}
