//! The sockets of both servers: datagrams in and out, and framed queries over TCP within bounds. Holds
//! no policy: what is said is a [`Server`]'s. Over TCP the client is who it says it is, so only its
//! connections are bounded, not its answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::DnsError;
use crate::places::Places;
use crate::sockets::Sockets;

/// Largest query looked at; real ones are below 300 bytes.
const MAX_QUERY: usize = 4096;
/// TCP clients at once; the rest wait in the listen backlog.
const MAX_CONNECTIONS: usize = 256;
/// Queries on one connection, so that nobody keeps a place for ever.
const MAX_QUERIES_PER_CONNECTION: usize = 1000;
/// From one byte to the next of a TCP client, and from one query to the next.
const TCP_PATIENCE: Duration = Duration::from_secs(5);
/// After an error of the socket itself (out of descriptors), so that the loop does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Port 53 as a source is another server: answering it invites loops; port 0 is forged.
const REFUSED_SOURCES: [u16; 2] = [0, 53];
/// How many times a fresh port is tried until UDP and TCP agree on one (`listen` with port 0).
const PORT_TRIES: usize = 16;
/// How often, and how many times, a port is tried that was just given up.
const TAKEN_PAUSE: Duration = Duration::from_millis(50);
const TAKEN_TRIES: usize = 40;

/// Who answers.
pub(super) trait Server: Send + Sync + 'static {
    /// TCP connections of one address at once; one more is closed.
    const CONNECTIONS_OF_ONE: usize;

    /// Answers a datagram, if it is worth it. The socket is read no further meanwhile: what takes
    /// time is for a task of its own.
    fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>, query: &[u8], from: SocketAddr);

    /// What a query over TCP gets; where that is nothing, the connection ends.
    fn framed(&self, query: Vec<u8>, from: IpAddr) -> impl Future<Output = Option<Vec<u8>>> + Send;
}

/// Binds UDP and TCP on one address, or takes what the daemon before this one had there, and has `server` answer until the tasks are dropped. Says which
/// address that is.
pub(super) async fn start(
    listen: SocketAddr,
    server: Arc<impl Server>,
    kept: &Sockets,
) -> Result<(SocketAddr, JoinSet<()>), DnsError> {
    let bound = take_or_bind(listen, kept).await;
    let (local, udp, tcp) = bound.map_err(|source| DnsError::Listen { listen, source })?;
    let (udp, tcp) = (Arc::new(udp), Arc::new(tcp));
    let mut tasks = JoinSet::new();
    let other = Arc::clone(&server);
    tasks.spawn(supervise(move || {
        datagrams(Arc::clone(&udp), Arc::clone(&other))
    }));
    tasks.spawn(supervise(move || {
        connections(Arc::clone(&tcp), Arc::clone(&server))
    }));
    Ok((local, tasks))
}

async fn take_or_bind(
    listen: SocketAddr,
    kept: &Sockets,
) -> io::Result<(SocketAddr, UdpSocket, TcpListener)> {
    if let Some((udp, tcp)) = kept.pair(listen) {
        let local = udp.local_addr()?;
        return Ok((
            local,
            UdpSocket::from_std(udp)?,
            TcpListener::from_std(tcp)?,
        ));
    }
    let bound = match bind(listen).await {
        // The daemon before this one listened there too, on another address: as the configuration had it.
        Err(error) if is_taken(&error) && kept.give_up(listen.port()) => again(listen).await,
        bound => bound,
    };
    let (local, udp, tcp) = bound?;
    kept.keep(true, local, &udp);
    kept.keep(false, local, &tcp);
    Ok((local, udp, tcp))
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// As soon as the supervisor has closed its copies of what was given up.
async fn again(listen: SocketAddr) -> io::Result<(SocketAddr, UdpSocket, TcpListener)> {
    let mut tried = 0;
    loop {
        match bind(listen).await {
            Err(error) if is_taken(&error) && tried < TAKEN_TRIES => tried += 1,
            bound => return bound,
        }
        sleep(TAKEN_PAUSE).await;
    }
}

/// One port for both: with port 0 the kernel picks UDP's, which may be taken for TCP.
pub(super) async fn bind(listen: SocketAddr) -> io::Result<(SocketAddr, UdpSocket, TcpListener)> {
    let mut tried = 0;
    loop {
        let udp = UdpSocket::bind(listen).await?;
        let local = udp.local_addr()?;
        match TcpListener::bind(local).await {
            Ok(tcp) => return Ok((local, udp, tcp)),
            Err(_) if listen.port() == 0 && tried < PORT_TRIES => tried += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Runs a listener for ever. Should a query ever panic the codec, that query is lost, not DNS.
async fn supervise<F>(listener: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut attempt = JoinSet::new();
        attempt.spawn(listener());
        if let Some(Err(error)) = attempt.join_next().await {
            tracing::error!(%error, "a DNS query ended its listener; listening again");
        }
        sleep(ERROR_PAUSE).await;
    }
}

async fn datagrams(socket: Arc<UdpSocket>, server: Arc<impl Server>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((_, from)) if REFUSED_SOURCES.contains(&from.port()) => {}
            Ok((length, from)) => server.datagram(&socket, &buffer[..length], from),
            // An ICMP error of an earlier reply, or memory: nothing to do but go on.
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Sends a reply by UDP. A full socket buffer drops it, as the network would: nobody waits here.
pub(super) fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, to: SocketAddr) {
    let sent = reply.map(|bytes| socket.try_send_to(&bytes, to));
    if let Some(Err(error)) = sent {
        tracing::debug!(%error, %to, "sending a DNS reply");
    }
}

async fn connections<S: Server>(listener: Arc<TcpListener>, server: Arc<S>) {
    let places = Places::new(MAX_CONNECTIONS, S::CONNECTIONS_OF_ONE);
    // Owned here, so that connections end with the server.
    let mut connections = JoinSet::new();
    loop {
        places.free().await;
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(place) = places.enter(from.ip()) else {
                    continue;
                };
                let server = Arc::clone(&server);
                connections.spawn(async move {
                    if let Err(error) = connection(stream, from, &*server).await {
                        tracing::debug!(%error, %from, "DNS over TCP");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting DNS over TCP");
                sleep(ERROR_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    mut stream: TcpStream,
    from: SocketAddr,
    server: &impl Server,
) -> io::Result<()> {
    if REFUSED_SOURCES.contains(&from.port()) {
        return Ok(());
    }
    for _ in 0..MAX_QUERIES_PER_CONNECTION {
        let Some(query) = timeout(TCP_PATIENCE, read_frame(&mut stream, MAX_QUERY)).await?? else {
            return Ok(());
        };
        let reply = server.framed(query, from.ip()).await;
        let Some(frame) = reply.as_deref().and_then(frame) else {
            return Ok(());
        };
        timeout(TCP_PATIENCE, stream.write_all(&frame)).await??;
    }
    Ok(())
}

/// A message as TCP carries it; `None` for one that is too long.
pub(super) fn frame(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes()[..], message].concat())
}

/// One message, or `None` when the other side has hung up or claims more than it may have.
pub(super) async fn read_frame(stream: &mut TcpStream, most: usize) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > most {
        return Ok(None);
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::Handed;

    struct Echo;

    impl Server for Echo {
        const CONNECTIONS_OF_ONE: usize = 1;

        fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>, query: &[u8], from: SocketAddr) {
            send(socket, Some(query.to_vec()), from);
        }

        async fn framed(&self, query: Vec<u8>, _: IpAddr) -> Option<Vec<u8>> {
            Some(query)
        }
    }

    /// The configuration names another address: what is kept of the old one is in the way.
    #[tokio::test]
    async fn what_another_address_kept_at_the_port_is_given_up() {
        let (local, udp, tcp) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let udp = Handed::Udp(udp.into_std().unwrap());
        let handed = vec![udp, Handed::Tcp(tcp.into_std().unwrap())];
        let sockets = Sockets::new(handed, None);
        let all = SocketAddr::new([0, 0, 0, 0].into(), local.port());
        assert!(bind(all).await.is_err(), "it is in the way");
        let (bound, _tasks) = start(all, Arc::new(Echo), &sockets).await.unwrap();
        assert_eq!(bound, all);
    }

    /// As between two daemons: the sockets are kept, and nobody reads.
    #[tokio::test]
    async fn what_is_asked_while_nobody_serves_is_answered_by_the_next() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let (local, udp, tcp) = bind(listen).await.unwrap();
        let client = UdpSocket::bind(listen).await.unwrap();
        client.send_to(b"asked", local).await.unwrap();
        let mut stream = TcpStream::connect(local).await.unwrap();
        stream.write_all(&frame(b"asked").unwrap()).await.unwrap();

        let udp = Handed::Udp(udp.into_std().unwrap());
        let handed = vec![udp, Handed::Tcp(tcp.into_std().unwrap())];
        let sockets = Sockets::new(handed, None);
        let (again, _tasks) = start(listen, Arc::new(Echo), &sockets).await.unwrap();
        assert_eq!(again, local);
        let mut answer = [0; 16];
        let (length, from) = client.recv_from(&mut answer).await.unwrap();
        assert_eq!((&answer[..length], from), (&b"asked"[..], local));
        let framed = read_frame(&mut stream, MAX_QUERY).await.unwrap();
        assert_eq!(framed.as_deref(), Some(&b"asked"[..]));
    }
}
