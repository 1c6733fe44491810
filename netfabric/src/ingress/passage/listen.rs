//! Sockets that follow the routes: a node listens on a port as long as a service has it. What cannot
//! be had (somebody else's port) is told and tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use scheduler::model::{ServiceKey, Socket};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::super::Shared;
use super::super::door::Phase;
use super::super::local::lock;
use super::super::stream::Conduit;
use super::super::workers;
use super::{Way, carry, datagrams, hello};

/// How often routes are looked at: a port opens so much later than its service is ready.
const LOOK: Duration = Duration::from_millis(250);
/// How often a port that is somebody else's is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// After a failed accept (out of files): without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens for the services of the routes until the door closes, and has flows go on until it is closed.
/// What comes to ports of the front door's own TLS is [`divert`]'s.
pub(in super::super) async fn follow(
    shared: Arc<Shared>,
    ips: BTreeSet<IpAddr>,
    own: BTreeSet<u16>,
) {
    let ips = apart(ips);
    let mut phase = shared.phase.subscribe();
    let mut open: BTreeMap<Socket, JoinSet<()>> = BTreeMap::new();
    let mut seen = shared.routes.load_full();
    let mut next = Instant::now();
    loop {
        let routes = shared.routes.load_full();
        let changed = !Arc::ptr_eq(&routes, &seen) && !routes.same_sockets(&seen);
        if changed || next <= Instant::now() {
            next = Instant::now() + AGAIN;
            let ours = |socket: &Socket| socket.udp || !own.contains(&socket.port);
            let wanted: BTreeSet<Socket> = routes.sockets().filter(ours).collect();
            // Dropping closes the socket; connections that came by it go on.
            open.retain(|socket, _| {
                let stays = wanted.contains(socket);
                if !stays {
                    forget(&shared, &ips, *socket);
                }
                stays
            });
            lock(&shared.passages.closed).retain(|socket, _| wanted.contains(socket));
            for socket in wanted {
                if !open.contains_key(&socket) {
                    try_open(&shared, &ips, socket, &mut open).await;
                }
            }
        }
        seen = routes;
        tokio::select! {
            () = sleep(LOOK) => {}
            _ = phase.wait_for(|p| *p >= Phase::Closing) => break,
        }
    }
    // Flows that are under way have no socket but this one.
    open.retain(|socket, _| socket.udp);
    let _gone = phase.wait_for(|p| *p == Phase::Closed).await;
}

async fn try_open(
    shared: &Arc<Shared>,
    ips: &BTreeSet<IpAddr>,
    socket: Socket,
    open: &mut BTreeMap<Socket, JoinSet<()>>,
) {
    let tasks = match listen_at(shared, ips, socket).await {
        Ok(tasks) => tasks,
        Err(why) => {
            let before = lock(&shared.passages.closed).insert(socket, why.clone());
            if before.as_ref() != Some(&why) {
                tracing::warn!(port = %socket, why, "a service's port stays closed on this node");
            }
            return;
        }
    };
    if lock(&shared.passages.closed).remove(&socket).is_some() {
        tracing::info!(port = %socket, "the port is open now");
    }
    open.insert(socket, tasks);
}

/// The next daemon has the port no more.
fn forget(shared: &Shared, ips: &BTreeSet<IpAddr>, socket: Socket) {
    for ip in ips {
        let addr = SocketAddr::new(*ip, socket.port);
        shared.sockets.forget(socket.udp, addr);
    }
}

/// Listens at every address, or says why not.
async fn listen_at(
    shared: &Arc<Shared>,
    ips: &BTreeSet<IpAddr>,
    socket: Socket,
) -> Result<JoinSet<()>, String> {
    if ips.is_empty() {
        return Err("the front door is off and has no address to listen at".to_owned());
    }
    let mut tasks = JoinSet::new();
    let mut bound = BTreeSet::new();
    for ip in ips {
        let addr = SocketAddr::new(*ip, socket.port);
        if let Err(error) = listen(shared, socket, addr, &mut tasks).await {
            // Not of this one: it may be the front door's own.
            forget(shared, &bound, socket);
            return Err(format!("cannot listen on {addr}: {error}"));
        }
        bound.insert(*ip);
    }
    Ok(tasks)
}

async fn listen(
    shared: &Arc<Shared>,
    socket: Socket,
    addr: SocketAddr,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    let door = Arc::clone(shared);
    if socket.udp {
        let bound = datagrams_at(shared, addr).await?;
        tasks.spawn(datagrams::serve(door, bound, socket));
    } else {
        let bound = connections_at(shared, addr)?;
        tasks.spawn(accept(door, bound, socket));
    }
    Ok(())
}

/// The socket that the daemon before this one had, or a new one that the next one gets.
async fn datagrams_at(shared: &Shared, addr: SocketAddr) -> io::Result<UdpSocket> {
    if let Some(handed) = shared.sockets.udp(addr) {
        return UdpSocket::from_std(handed);
    }
    let bound = UdpSocket::bind(addr).await?;
    shared.sockets.keep(true, addr, &bound);
    Ok(bound)
}

/// The same for connections.
fn connections_at(shared: &Shared, addr: SocketAddr) -> io::Result<TcpListener> {
    let mut handed = shared.sockets.tcp(addr);
    match (handed.pop(), handed.is_empty()) {
        (Some(socket), true) => return TcpListener::from_std(socket),
        // Several were the front door's, one for each worker: clients would wait at those not listened on.
        (Some(_), false) => shared.sockets.forget(false, addr),
        (None, _) => {}
    }
    drop(handed);
    let bound = workers::listener(addr)?;
    shared.sockets.keep(false, addr, &bound);
    Ok(bound)
}

/// Addresses that do not take a port from one another: one that stands for others takes them in.
fn apart(mut ips: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let [v4, v6] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    if ips.contains(&v6) {
        return [v6].into();
    }
    if ips.contains(&v4) {
        ips.retain(|ip| *ip == v4 || ip.is_ipv6());
    }
    ips
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, socket: Socket) {
    loop {
        // One too many waits in the kernel's backlog.
        shared.passages.outside.free().await;
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(guest(Arc::clone(&shared), stream, client, socket));
    }
}

async fn guest(shared: Arc<Shared>, mut stream: TcpStream, client: SocketAddr, socket: Socket) {
    let Some(_place) = shared.passages.outside.enter(client.ip()) else {
        return Box::new(stream).cut();
    };
    let (Ok(()), Ok(server)) = (stream.set_nodelay(true), stream.local_addr()) else {
        return;
    };
    let alone = shared
        .routes
        .load()
        .at_socket(socket)
        .map(|s| s.key.clone());
    let (seen, service) = match alone {
        Some(service) => (Vec::new(), Some(service)),
        None => match hello::of(&mut stream, Vec::new()).await {
            Ok((seen, name)) => (seen, passed_through(&shared, socket.port, name.as_deref())),
            Err(_) => return,
        },
    };
    let stream = Box::new(stream);
    let Some(service) = service else {
        return stream.cut();
    };
    let way = Way {
        service,
        socket,
        client,
        server,
        seen,
    };
    carry(Arc::clone(&shared), stream, way).await;
}

/// Carries a connection to the front door's own TLS that asks for a service whose TLS only its container
/// can read. Any other is given back, with what was read of it.
pub(in super::super) async fn divert(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    seen: Vec<u8>,
    client: IpAddr,
) -> Option<(TcpStream, Vec<u8>)> {
    let (Ok(server), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
        return None;
    };
    let socket = Socket {
        udp: false,
        port: server.port(),
    };
    if !shared.routes.load().has_socket(socket) {
        return Some((stream, seen));
    }
    let (seen, name) = hello::of(&mut stream, seen).await.ok()?;
    let Some(service) = passed_through(shared, socket.port, name.as_deref()) else {
        return Some((stream, seen));
    };
    let way = Way {
        service,
        socket,
        client: SocketAddr::new(client, peer.port()),
        server,
        seen,
    };
    // Off the worker: what a stream to another node brings up outlives this connection.
    let stream = stream.into_std().ok()?;
    let (shared, runtime) = (Arc::clone(shared), &shared.runtime);
    runtime.spawn(async move {
        let Ok(stream) = TcpStream::from_std(stream) else {
            return;
        };
        match shared.passages.outside.enter(client) {
            Some(_place) => carry(Arc::clone(&shared), Box::new(stream), way).await,
            None => Box::new(stream).cut(),
        }
    });
    None
}

/// The service whose TLS on `port` only its container can read, by the name asked for.
fn passed_through(shared: &Shared, port: u16, name: Option<&str>) -> Option<ServiceKey> {
    let routes = shared.routes.load();
    Some(routes.by_server_name(port, name?)?.key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_for_all_takes_the_others_in() {
        let table: [(&[&str], &[&str]); 5] = [
            (&[], &[]),
            (&["127.0.0.1", "192.0.2.1"], &["127.0.0.1", "192.0.2.1"]),
            (
                &["0.0.0.0", "192.0.2.1", "2001:db8::1"],
                &["0.0.0.0", "2001:db8::1"],
            ),
            (&["::", "192.0.2.1", "2001:db8::1"], &["::"]),
            (&["::", "0.0.0.0"], &["::"]),
        ];
        for (ips, want) in table {
            let read = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(apart(read(ips)), read(want), "{ips:?}");
        }
    }
}
