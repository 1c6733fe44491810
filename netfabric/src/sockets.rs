//! Sockets that outlive the daemon. Whoever supervises it keeps a copy of each and hands all of them to the
//! next daemon: clients that come in between wait in the kernel, and none is refused. Connections are kept
//! where a daemon that ends can leave them as they are: with nothing under way, or carried unread.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::time::sleep;
use ulid::Ulid;

/// What the daemon before this one listened on, and this one does not, stays open for so long.
const UNCLAIMED: Duration = Duration::from_mins(1);

/// What idle connections are kept under, all of them.
const IDLE: &str = "idle";
/// What each part of a connection that is carried unread is kept under: this, for how many seconds nothing may
/// move, which one it is, and which part.
const CARRIED: &str = "carried";
const CLIENT: &str = "client";
const SERVER: &str = "server";
/// A pipe that gives back what was read of one end and did not get to the other.
const HELD: &str = "held";
/// More than what is held both ways.
const MAX_HELD: u64 = 256 * 1024;

/// Keeps sockets for the next daemon, as systemd does.
pub trait SocketStore: Send + Sync {
    /// Keeps a copy until it is forgotten or its other end hangs up. Several may have one name.
    fn keep(&self, name: &str, socket: BorrowedFd<'_>);
    /// The same, also when its other end hangs up: there may be something to read all the same.
    fn keep_whatever_comes(&self, name: &str, socket: BorrowedFd<'_>) {
        self.keep(name, socket);
    }
    /// Closes the copies of that name.
    fn forget(&self, name: &str);
}

/// A socket of the daemon before this one.
#[derive(Debug)]
pub enum Handed {
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// A client's connection on which nothing is under way.
    Idle(TcpStream),
    /// A part of a connection that is carried unread, and what it was kept under.
    Part(String, OwnedFd),
}

/// A connection that the daemon before this one carried unread, from a client to a container.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) held: Held,
    /// Given up when nothing moves for so long.
    pub(crate) idle: Duration,
}

/// What was read of one end of a connection and did not get to the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Of the client.
    pub(crate) there: Vec<u8>,
    /// Of the server.
    pub(crate) back: Vec<u8>,
}

impl Held {
    /// Something to read it back from.
    fn pipe(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        // What has no room at once has none at all: nobody reads.
        ours.set_nonblocking(true)?;
        (&ours).write_all(&(self.there.len() as u64).to_le_bytes())?;
        (&ours).write_all(&self.there)?;
        (&ours).write_all(&self.back)?;
        Ok(theirs)
    }

    fn read(pipe: UnixStream) -> io::Result<Self> {
        pipe.set_nonblocking(true)?;
        let mut length = [0; 8];
        (&pipe).read_exact(&mut length)?;
        let mut there = Vec::new();
        pipe.take(MAX_HELD).read_to_end(&mut there)?;
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > there.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let back = there.split_off(length);
        Ok(Self { there, back })
    }
}

impl Carried {
    fn from_parts(whole: &str, mut parts: BTreeMap<String, OwnedFd>) -> Option<Self> {
        let idle = Duration::from_secs(whole.split('-').nth(1)?.parse().ok()?);
        let held = Held::read(parts.remove(HELD)?.into()).ok()?;
        let (client, server) = (parts.remove(CLIENT)?, parts.remove(SERVER)?);
        let (client, server) = (TcpStream::from(client), TcpStream::from(server));
        for socket in [&client, &server] {
            socket.set_nonblocking(true).ok()?;
            SockRef::from(socket).set_linger(None).ok()?;
        }
        Some(Self {
            client,
            server,
            held,
            idle,
        })
    }
}

impl Handed {
    /// Whether what was kept under `name` is a part of a connection that is carried unread.
    #[must_use]
    pub fn is_part(name: &str) -> bool {
        part(name).is_some()
    }

    /// As those of a runtime are; a supervisor may have changed it.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Udp(socket) => socket.set_nonblocking(true),
            Self::Idle(stream) => stream.set_nonblocking(true),
            // Once it is known which part it is.
            Self::Part(..) => Ok(()),
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
            Self::Idle(stream) => stream.local_addr(),
            Self::Part(..) => return None,
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

    /// The connections that the daemon before this one carried unread. They are this one's from now on.
    pub(crate) fn carried(&self) -> Vec<Carried> {
        let mut wholes = BTreeMap::<_, BTreeMap<_, _>>::new();
        for socket in self.take(|socket| matches!(socket, Handed::Part(..))) {
            let Handed::Part(name, fd) = socket else {
                continue;
            };
            if let Some(store) = &self.store {
                store.forget(&name);
            }
            if let Some((whole, which)) = part(&name) {
                let parts = wholes.entry(whole.to_owned()).or_default();
                parts.insert(which.to_owned(), fd);
            }
        }
        let carried = wholes.into_iter().filter_map(|(whole, parts)| {
            let carried = Carried::from_parts(&whole, parts);
            if carried.is_none() {
                tracing::warn!(
                    whole,
                    "a connection was not handed over whole: it breaks off"
                );
            }
            carried
        });
        carried.collect()
    }

    /// Leaves a connection that is carried unread to the next daemon.
    ///
    /// # Errors
    /// There will be none, or the connection broke off.
    pub(crate) fn bequeath(
        &self,
        (client, server): (BorrowedFd<'_>, BorrowedFd<'_>),
        held: &Held,
        idle: Duration,
    ) -> io::Result<()> {
        let Some(store) = &self.store else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let whole = format!("{CARRIED}-{}-{}", idle.as_secs(), Ulid::generate());
        let pipe = held.pipe()?;
        for socket in [&client, &server] {
            // Closed by whoever keeps it, it is cut short, which must not look like an end.
            SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
        for (which, part) in [(HELD, pipe.as_fd()), (CLIENT, client), (SERVER, server)] {
            store.keep_whatever_comes(&format!("{whole}-{which}"), part);
        }
        Ok(())
    }

    /// Whether the next daemon gets what is left to it.
    pub(crate) fn are_kept(&self) -> bool {
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

/// Which connection carried unread a name is of, and which part of it.
fn part(name: &str) -> Option<(&str, &str)> {
    let (whole, which) = name.rsplit_once('-')?;
    let ours = whole.starts_with(CARRIED) && [CLIENT, SERVER, HELD].contains(&which);
    ours.then_some((whole, which))
}

/// systemd's names have no colons.
fn name(udp: bool, addr: SocketAddr) -> String {
    let kind = if udp { "udp" } else { "tcp" };
    format!("{kind}-{addr}").replace(':', "_")
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Keeps copies of what it is given, as a supervisor does.
    #[derive(Clone, Default)]
    pub struct Kept(pub Arc<Mutex<Vec<(String, OwnedFd)>>>);

    impl SocketStore for Kept {
        fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
            let copy = socket.try_clone_to_owned().unwrap();
            lock(&self.0).push((name.to_owned(), copy));
        }

        fn forget(&self, name: &str) {
            lock(&self.0).retain(|(kept, _)| kept != name);
        }
    }

    impl Kept {
        /// What the next daemon gets, which leaves things here as well.
        pub fn sockets(&self) -> Sockets {
            let kept = lock(&self.0);
            let handed = kept.iter().map(|(name, socket)| {
                let copy = socket.try_clone().unwrap();
                match name.split_once('-') {
                    Some(("tcp", _)) => Handed::Tcp(copy.into()),
                    Some(("udp", _)) => Handed::Udp(copy.into()),
                    _ if Handed::is_part(name) => Handed::Part(name.clone(), copy),
                    _ => Handed::Idle(copy.into()),
                }
            });
            Sockets::new(handed.collect(), Some(Box::new(self.clone())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Kept;
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

    #[test]
    fn a_connection_carried_unread_is_left_in_parts_and_found_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = |stream: &TcpStream| stream.local_addr().unwrap().port();
        let kept = Kept::default();
        let leaving = kept.sockets();
        let (idle, held) = (Duration::from_secs(90), |there: &[u8], back: &[u8]| Held {
            there: there.to_vec(),
            back: back.to_vec(),
        });
        let left = [
            (connect(), connect(), held(b"", b"")),
            (connect(), connect(), held(&[7; 16_384], &[8; 16_384])),
        ];
        for (client, server, held) in &left {
            let ends = (client.as_fd(), server.as_fd());
            leaving.bequeath(ends, held, idle).unwrap();
        }
        let broken = format!("{CARRIED}-5-another-{SERVER}");
        kept.keep(&broken, connect().as_fd());
        // In whatever order they come.
        lock(&kept.0).reverse();

        let next = kept.sockets();
        let mut carried = next.carried();
        assert!(next.carried().is_empty() && lock(&kept.0).is_empty());
        carried.sort_by_key(|carried| port(&carried.client) != port(&left[0].0));
        assert_eq!(carried.len(), left.len());
        for (found, (client, server, held)) in carried.iter().zip(&left) {
            assert_eq!(port(&found.client), port(client));
            assert_eq!(port(&found.server), port(server));
            assert_eq!((&found.held, found.idle), (held, idle));
            let lingers = SockRef::from(&found.server).linger().unwrap();
            assert_eq!(lingers, None, "it ends in order from now on");
        }
    }
}
