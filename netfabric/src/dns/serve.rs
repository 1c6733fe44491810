//! The sockets: datagrams in and out, and framed queries over TCP within bounds. Holds no policy.
//! Over TCP the client is who it says it is, so only its connections are bounded, not its answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::limit::{Limit, Verdict};
use super::message::{Carrier, refer_to_tcp, reply};
use super::zone::Zone;

/// Largest query looked at; real ones are below 300 bytes.
pub(super) const MAX_QUERY: usize = 4096;
/// TCP clients at once; the rest wait in the listen backlog.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// Queries on one connection, so that nobody keeps a place for ever.
pub(super) const MAX_QUERIES_PER_CONNECTION: usize = 1000;
/// From one byte to the next of a TCP client, and from one query to the next.
pub(super) const TCP_PATIENCE: Duration = Duration::from_secs(5);
/// After an error of the socket itself (out of descriptors), so that the loop does not spin.
pub(super) const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Port 53 as a source is another server: answering it invites loops; port 0 is forged.
const REFUSED_SOURCES: [u16; 2] = [0, 53];

#[derive(Clone)]
pub(super) enum Listener {
    Udp(Arc<UdpSocket>),
    Tcp(Arc<TcpListener>),
}

/// Runs a listener for ever. Should a query ever panic the codec, that query is lost, not DNS.
pub(super) async fn supervise(listener: Listener, zone: Arc<Zone>) {
    loop {
        let mut attempt = JoinSet::new();
        let zone = zone.clone();
        match listener.clone() {
            Listener::Udp(socket) => attempt.spawn(udp(socket, zone)),
            Listener::Tcp(listener) => attempt.spawn(tcp(listener, zone)),
        };
        if let Some(Err(error)) = attempt.join_next().await {
            tracing::error!(%error, "a DNS query ended its listener; listening again");
        }
        tokio::time::sleep(ERROR_PAUSE).await;
    }
}

async fn udp(socket: Arc<UdpSocket>, zone: Arc<Zone>) {
    let mut buffer = vec![0; MAX_QUERY];
    let (mut limit, started) = (Limit::new(), Instant::now());
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an earlier reply, or memory: nothing to do but go on.
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if REFUSED_SOURCES.contains(&from.port()) {
            continue;
        }
        let query = &buffer[..length];
        if let Some(bytes) = limited(&zone, &mut limit, query, from.ip(), started.elapsed()) {
            // A full socket buffer drops the reply, as the network would: never wait here.
            if let Err(error) = socket.try_send_to(&bytes, from) {
                tracing::debug!(%error, %from, "sending a DNS reply");
            }
        }
    }
}

/// What a query by UDP gets, within its network's rates.
fn limited(
    zone: &Zone,
    limit: &mut Limit,
    query: &[u8],
    from: IpAddr,
    now: Duration,
) -> Option<Vec<u8>> {
    let answer = match limit.query(from, now) {
        Verdict::Answer => reply(zone, query, Carrier::Udp)?,
        Verdict::Refer => return refer_to_tcp(query),
        Verdict::Nothing => return None,
    };
    match limit.reply(from, &answer, now) {
        Verdict::Answer => Some(answer),
        Verdict::Refer => refer_to_tcp(query),
        Verdict::Nothing => None,
    }
}

async fn tcp(listener: Arc<TcpListener>, zone: Arc<Zone>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Owned here, so that connections end with the server.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let zone = zone.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(stream, from, &zone).await {
                        tracing::debug!(%error, %from, "DNS over TCP");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting DNS over TCP");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut stream: TcpStream, from: SocketAddr, zone: &Zone) -> io::Result<()> {
    if REFUSED_SOURCES.contains(&from.port()) {
        return Ok(());
    }
    for _ in 0..MAX_QUERIES_PER_CONNECTION {
        let Some(query) = timeout(TCP_PATIENCE, read_frame(&mut stream, MAX_QUERY)).await?? else {
            return Ok(());
        };
        let Some(bytes) = reply(zone, &query, Carrier::Tcp) else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(bytes.len()) else {
            return Ok(());
        };
        let frame = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(TCP_PATIENCE, stream.write_all(&frame)).await??;
    }
    Ok(())
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
