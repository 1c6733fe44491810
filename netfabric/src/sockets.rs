//! Listening sockets that outlive the daemon. Whoever supervises it keeps a copy of each and hands all
//! of them to the next daemon: clients that come in between wait in the kernel, and none is refused.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;

/// What the daemon before this one listened on, and this one does not, stays open for so long.
const UNCLAIMED: Duration = Duration::from_mins(1);

/// What connections are kept under.
const IDLE: &str = "idle";

/// Keeps sockets for the next daemon, as systemd does.
pub trait SocketStore: Send + Sync {
    /// Keeps a copy until it is forgotten. Several may have one name.
    fn keep(&self, name: &str, socket: BorrowedFd<'_>);
    /// Closes the copies of that name.
    fn forget(&self, name: &str);
}

/// A socket that the daemon before this one listened on.
#[derive(Debug)]
pub enum Handed {
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// A client's connection on which nothing is under way.
    Idle(TcpStream),
}

impl Handed {
    /// As those of a runtime are; a supervisor may have changed it.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Udp(socket) => socket.set_nonblocking(true),
            Self::Idle(stream) => stream.set_nonblocking(true),
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
            Self::Idle(stream) => stream.local_addr(),
        }
        .ok()
    }

    fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    fn is_udp(&self) -> bool {
        matches!(self, Self::Udp(_))
    }
}

/// What was handed over and nobody took yet, and who keeps what is bound anew.
#[derive(Default)]
pub struct Sockets {
    handed: Mutex<Vec<Handed>>,
    store: Option<Box<dyn SocketStore>>,
}

impl Sockets {
    pub fn new(handed: Vec<Handed>, store: Option<Box<dyn SocketStore>>) -> Self {
        Self {
            handed: Mutex::new(handed),
            store,
        }
    }

    /// The listeners of an address, as many as there were.
    pub(crate) fn tcp(&self, addr: SocketAddr) -> Vec<TcpListener> {
        self.take(|socket| socket.is_tcp() && socket.addr() == Some(addr))
            .filter_map(|socket| match socket {
                Handed::Tcp(socket) => Some(socket),
                _ => None,
            })
            .collect()
    }

    /// A listener on whatever port of an address that has but one, besides those of [`Sockets::pair`].
    pub(crate) fn tcp_on(&self, ip: IpAddr) -> Option<TcpListener> {
        self.tcp((ip, self.tcp_port(ip)?).into()).pop()
    }

    /// The port of [`Sockets::tcp_on`], while nobody took it.
    pub fn tcp_port(&self, ip: IpAddr) -> Option<u16> {
        let paired = self.ports(ip, Handed::is_udp);
        let tcp = self.ports(ip, Handed::is_tcp);
        tcp.into_iter().find(|port| !paired.contains(port))
    }

    /// The port of [`Sockets::pair`], while nobody took it.
    pub fn pair_port(&self, ip: IpAddr) -> Option<u16> {
        let tcp = self.ports(ip, Handed::is_tcp);
        let udp = self.ports(ip, Handed::is_udp);
        udp.into_iter().find(|port| tcp.contains(port))
    }

    fn ports(&self, ip: IpAddr, which: impl Fn(&Handed) -> bool) -> Vec<u16> {
        let handed = lock(&self.handed);
        let addrs = handed.iter().filter(|s| which(s)).filter_map(Handed::addr);
        addrs
            .filter(|addr| addr.ip() == ip)
            .map(|addr| addr.port())
            .collect()
    }

    /// A socket for datagrams and a listener on one port of an address, where both are there; port 0 is
    /// whatever port has both.
    pub(crate) fn pair(&self, listen: SocketAddr) -> Option<(UdpSocket, TcpListener)> {
        let port = match listen.port() {
            0 => self.pair_port(listen.ip())?,
            port => port,
        };
        let mut addr = listen;
        addr.set_port(port);
        match (self.udp(addr), self.tcp(addr).pop()) {
            (Some(udp), Some(tcp)) => return Some((udp, tcp)),
            // One alone would only be in the way of new ones.
            (Some(_), None) => self.forget(true, addr),
            (None, Some(_)) => self.forget(false, addr),
            (None, None) => {}
        }
        None
    }

    pub(crate) fn udp(&self, addr: SocketAddr) -> Option<UdpSocket> {
        self.take(|socket| socket.is_udp() && socket.addr() == Some(addr))
            .find_map(|socket| match socket {
                Handed::Udp(socket) => Some(socket),
                _ => None,
            })
    }

    /// The connections on which the daemon before this one had nothing under way. They are this one's from
    /// now on.
    pub(crate) fn idle(&self) -> Vec<TcpStream> {
        if let Some(store) = &self.store {
            store.forget(IDLE);
        }
        self.take(|socket| matches!(socket, Handed::Idle(_)))
            .filter_map(|socket| match socket {
                Handed::Idle(stream) => Some(stream),
                _ => None,
            })
            .collect()
    }

    /// Leaves a connection on which nothing is under way to the next daemon. False where nobody keeps it.
    pub(crate) fn leave(&self, connection: &impl AsFd) -> bool {
        if let Some(store) = &self.store {
            store.keep(IDLE, connection.as_fd());
        }
        self.store.is_some()
    }

    fn take(&self, which: impl Fn(&Handed) -> bool) -> impl Iterator<Item = Handed> {
        let mut handed = lock(&self.handed);
        let taken: Vec<_> = handed.extract_if(.., |socket| which(socket)).collect();
        taken.into_iter()
    }

    /// Has a socket that was bound here kept for the next daemon.
    pub(crate) fn keep(&self, udp: bool, addr: SocketAddr, socket: &impl AsFd) {
        if let Some(store) = &self.store {
            store.keep(&name(udp, addr), socket.as_fd());
        }
    }

    /// The socket is listened on no more, by the next daemon neither.
    pub(crate) fn forget(&self, udp: bool, addr: SocketAddr) {
        if let Some(store) = &self.store {
            store.forget(&name(udp, addr));
        }
    }

    /// Closes what nobody took at this port, on whatever address; says whether there was something.
    pub(crate) fn give_up(&self, port: u16) -> bool {
        let given: Vec<_> = self
            .take(|socket| socket.addr().is_some_and(|addr| addr.port() == port))
            .collect();
        for socket in &given {
            if let Some(addr) = socket.addr() {
                self.forget(socket.is_udp(), addr);
            }
        }
        !given.is_empty()
    }

    /// Closes what nobody took: what the configuration had, and has no more.
    pub(crate) fn forget_the_rest(&self) {
        for socket in self.take(|_| true) {
            if let Some(addr) = socket.addr() {
                self.forget(socket.is_udp(), addr);
            }
        }
    }
}

/// Services' ports are known once the registry is heard: what is not listened on by then is nobody's.
pub(crate) async fn forget_unclaimed(sockets: Arc<Sockets>) {
    sleep(UNCLAIMED).await;
    sockets.forget_the_rest();
}

/// A poisoned lock only means that a thread died while it held a plain list: it is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// systemd's names have no colons.
fn name(udp: bool, addr: SocketAddr) -> String {
    let kind = if udp { "udp" } else { "tcp" };
    format!("{kind}-{addr}").replace(':', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Book(Mutex<Vec<String>>);

    impl SocketStore for Arc<Book> {
        fn keep(&self, name: &str, _: BorrowedFd<'_>) {
            lock(&self.0).push(format!("keep {name}"));
        }

        fn forget(&self, name: &str) {
            lock(&self.0).push(format!("forget {name}"));
        }
    }

    #[test]
    fn what_was_handed_over_is_taken_once_and_the_rest_forgotten() {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, other, inner) = (bind(), bind(), TcpListener::bind("127.0.0.2:0").unwrap());
        let names = TcpListener::bind("127.0.0.2:0").unwrap();
        let (names_at, inner_at) = (names.local_addr().unwrap(), inner.local_addr().unwrap());
        let udp = [one.local_addr().unwrap(), names_at];
        let udp = udp.map(|at| Handed::Udp(UdpSocket::bind(at).unwrap()));
        let (at, left) = (one.local_addr().unwrap(), other.local_addr().unwrap());
        let again = one.try_clone().unwrap();
        let tcp = [names, one, again, other, inner].map(Handed::Tcp);
        let handed = tcp.into_iter().chain(udp).collect();
        let book = Arc::<Book>::default();
        let sockets = Sockets::new(handed, Some(Box::new(book.clone())));

        assert_eq!(sockets.tcp(at).len(), 2);
        assert!(sockets.tcp(at).is_empty());
        let alone = sockets.tcp_on("127.0.0.2".parse().unwrap());
        assert_eq!(
            alone.unwrap().local_addr().unwrap(),
            inner_at,
            "not half of a pair"
        );
        let any: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let (udp, tcp) = sockets.pair(any).unwrap();
        assert_eq!(udp.local_addr().unwrap(), names_at);
        assert_eq!(tcp.local_addr().unwrap(), names_at);
        assert!(sockets.pair(any).is_none());
        assert!(sockets.udp(at).is_some() && sockets.udp(at).is_none());
        assert!(sockets.give_up(left.port()) && !sockets.give_up(left.port()));
        sockets.keep(true, "[::1]:53".parse().unwrap(), &bind());
        sockets.forget_the_rest();
        let told = [
            format!("forget tcp-127.0.0.1_{}", left.port()),
            "keep udp-[__1]_53".to_owned(),
        ];
        assert_eq!(*lock(&book.0), told);
    }
}
