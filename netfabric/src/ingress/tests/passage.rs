//! What passes unread: bytes on services' own ports.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use scheduler::model::{InstanceId, Listen, ListenProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::super::IngressConfig;
use super::super::passage::hello::tests::greeting;
use super::app::{App, get};
use super::world::{Deployed, World, eventually};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A port that is free until the node listens on it. It is below those that the kernel gives to whoever asks for any:
/// one of these could be a test's beside this one by then.
async fn free_port(udp: bool) -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        // Each process begins elsewhere.
        let nth = std::process::id().wrapping_mul(61).wrapping_add(tried) % COUNT;
        let port = u16::try_from(FIRST + nth).unwrap();
        let free = if udp {
            UdpSocket::bind(("127.0.0.1", port)).await.is_ok()
        } else {
            TcpListener::bind(("127.0.0.1", port)).await.is_ok()
        };
        if free {
            return port;
        }
    }
}

pub async fn listening(protocol: ListenProtocol) -> (Deployed, SocketAddr) {
    let port = free_port(protocol == ListenProtocol::Udp).await;
    let listen = Listen {
        port,
        protocol,
        ..Listen::default()
    };
    let deployed = Deployed {
        listen: vec![listen],
        ..Deployed::default()
    };
    (deployed, SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Connects once the node listens.
pub async fn connect(door: SocketAddr) -> TcpStream {
    let connecting = async {
        loop {
            match TcpStream::connect(door).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(PATIENCE, connecting).await.expect("the port opens")
}

pub async fn ask(mut stream: TcpStream) -> String {
    let line = b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(line).await.unwrap();
    heard(stream).await
}

async fn heard(mut stream: TcpStream) -> String {
    let mut heard = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut heard)).await;
    read.expect("an end").unwrap();
    heard
}

/// Says how much it heard once it has heard all.
async fn listener() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            let answer = all.len().to_string();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn a_connection_wakes_its_service_and_counts_while_it_lasts() {
    let (deployed, door) = listening(ListenProtocol::Tcp).await;
    let world = World::one(deployed).await;
    let mut stream = connect(door).await;
    stream
        .write_all(b"GET /stream/4 HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    assert_eq!(world.starter.starts(), 1);
    let id = InstanceId("web-00001-0".into());
    assert_eq!(world.local().in_flight(&id), 1);
    assert!(
        world.local().idle_millis(&id).is_none(),
        "it is not frozen meanwhile"
    );
    let counts = world.ingress().counts();
    assert_eq!((counts.passages, counts.open_passages), (1, 1));
    let bill = world.ingress().bills().pop().unwrap();
    assert_eq!(
        (bill.status, bill.instance, bill.problem),
        (0, Some(id.clone()), None)
    );
    drop(stream);
    eventually("it left", || world.local().in_flight(&id) == 0).await;
    assert!(world.ingress().counts().passage_bytes[1] > 12);
}

#[tokio::test]
async fn half_a_connection_ends_before_the_other() {
    for node in [1, 2] {
        let (deployed, door) = listening(ListenProtocol::Tcp).await;
        let world = World::new(2, deployed, |_| {}).await;
        world.open(node, "i", listener().await);
        world.publish(&[(node as u64, vec![InstanceId("i".into())])].into());
        let mut stream = connect(door).await;
        stream.write_all(&vec![7; 300_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(heard(stream).await, "300000");
        assert_eq!(world.starter.starts(), 0);
        let id = InstanceId("i".into());
        let there = || world.nodes[node - 1].local.in_flight(&id) == 0;
        eventually("both counted it out", there).await;
    }
}

#[tokio::test]
async fn what_breaks_off_never_looks_like_an_end() {
    for node in [1, 2] {
        let (deployed, door) = listening(ListenProtocol::Tcp).await;
        let world = World::new(2, deployed, |_| {}).await;
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.open(node, "i", server.local_addr().unwrap());
        world.publish(&[(node as u64, vec![InstanceId("i".into())])].into());
        let mut stream = connect(door).await;
        let (mut inside, _) = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
        inside.write_all(b"half").await.unwrap();
        let mut half = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut half))
            .await
            .unwrap()
            .unwrap();
        socket2::SockRef::from(&inside)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(inside);
        let read = timeout(PATIENCE, stream.read(&mut half)).await.unwrap();
        assert_eq!(
            read.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
    }
}

#[tokio::test]
async fn the_hard_limit_counts_connections() {
    let (deployed, door) = listening(ListenProtocol::Tcp).await;
    let deployed = Deployed {
        hard: 1,
        max: 1,
        ..deployed
    };
    let world = World::one(deployed).await;
    let app = world.run(1, "i").await;
    let first = connect(door).await;
    eventually("it is inside", || app.seen.open.load(Ordering::SeqCst) == 1).await;
    let second = tokio::spawn(ask(connect(door).await));
    eventually("one waits", || world.ingress().counts().held == 1).await;
    assert_eq!(app.seen.connections.load(Ordering::SeqCst), 1);
    drop(first);
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_container_is_told_whose_connection_it_is() {
    let (mut deployed, door) = listening(ListenProtocol::Tcp).await;
    deployed.listen[0].proxy_protocol = true;
    let world = World::one(deployed).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.open(1, "i", server.local_addr().unwrap());
    let stream = connect(door).await;
    let (mut inside, _) = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    let mut told = [0; 28];
    timeout(PATIENCE, inside.read_exact(&mut told))
        .await
        .unwrap()
        .unwrap();
    let me = stream.local_addr().unwrap();
    assert_eq!(told.to_vec(), super::super::introduced::write(me, door));
}

#[tokio::test]
async fn nothing_moving_ends_it_and_a_port_goes_with_its_service() {
    let (mut deployed, door) = listening(ListenProtocol::Tcp).await;
    deployed.listen[0].idle_seconds = 1;
    let world = World::one(deployed).await;
    let _app = world.run(1, "i").await;
    let mut stream = connect(door).await;
    let read = timeout(PATIENCE, stream.read_u8())
        .await
        .expect("it is given up");
    assert!(read.is_err());
    let node = &world.nodes[0];
    node.registry.send_replace(std::sync::Arc::default());
    world.publish(&[].into());
    let gone = async {
        while TcpStream::connect(door).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the port closes");
}

#[tokio::test]
async fn a_port_of_somebody_else_is_told_and_had_once_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = Listen {
        port,
        ..Listen::default()
    };
    let deployed = Deployed {
        listen: vec![listen],
        ..Deployed::default()
    };
    let world = World::one(deployed).await;
    let closed = || world.ingress().closed_ports().into_values().next();
    eventually("it is told", || closed().is_some()).await;
    let why = closed().unwrap();
    assert!(
        why.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")),
        "{why}"
    );
    drop(taken);
    eventually("it is had", || closed().is_none()).await;
}

#[tokio::test]
async fn a_node_without_plain_http_has_services_ports_all_the_same() {
    let (deployed, door) = listening(ListenProtocol::Tcp).await;
    let no_http = |config: &mut IngressConfig| config.listen.clear();
    let world = World::new(1, deployed, no_http).await;
    let _app = world.run(1, "a").await;
    let answer = ask(connect(door).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_node_without_a_front_door_tells_that_it_has_no_port() {
    let (deployed, _) = listening(ListenProtocol::Tcp).await;
    let off = |config: &mut IngressConfig| {
        config.listen.clear();
        config.listen_tls.clear();
    };
    let world = World::new(1, deployed, off).await;
    let closed = || world.ingress().closed_ports().into_values().next();
    eventually("it is told", || closed().is_some()).await;
    assert!(closed().unwrap().contains("the front door is off"));
}

#[tokio::test]
async fn the_door_s_own_tls_port_passes_on_what_only_a_container_reads() {
    let secure = |config: &mut IngressConfig| {
        config.listen_tls = vec!["127.0.0.1:0".parse().unwrap()];
    };
    let world = World::new(1, Deployed::default(), secure).await;
    let door = world.ingress().tls_addrs()[0];
    let listen = Listen {
        port: door.port(),
        protocol: ListenProtocol::Tls,
        sni: vec!["db.test".into()],
        ..Listen::default()
    };
    let deployed = Deployed {
        listen: vec![listen],
        ..Deployed::default()
    };
    let state = std::sync::Arc::new(deployed.state());
    world.nodes[0].registry.send_replace(state);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.open(1, "i", server.local_addr().unwrap());
    world.publish(&[].into());

    let hello = greeting("db.test");
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let accepted = timeout(PATIENCE, server.accept()).await.unwrap();
    let (mut inside, _) = accepted.unwrap();
    let mut got = vec![0; hello.len()];
    let read = timeout(PATIENCE, inside.read_exact(&mut got)).await;
    read.unwrap().unwrap();
    assert_eq!(got, hello);
    inside.write_all(b"theirs").await.unwrap();
    drop(inside);
    assert_eq!(heard(stream).await, "theirs");

    // Nobody's: the door says so itself, without a certificate for it.
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(&greeting("other.test")).await.unwrap();
    let mut alert = [0; 7];
    let read = timeout(PATIENCE, stream.read_exact(&mut alert)).await;
    read.unwrap().unwrap();
    assert_eq!((alert[0], alert[6]), (0x15, 112));
    assert!(world.ingress().closed_ports().is_empty());
}

/// Has instance `a` serve requests and keep the port closed, and where `b` is wanted an instance that
/// does the opposite.
async fn half_deaf(node: usize, with_b: bool) -> (World, SocketAddr, (App, TcpSocket)) {
    let (mut deployed, door) = listening(ListenProtocol::Tcp).await;
    // Nobody else gets it meanwhile.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    deployed.listen[0].to = port;
    let world = World::new(2, deployed, |_| {}).await;
    let app = world.run(node, "a").await;
    let mut ids = vec![InstanceId("a".into())];
    if with_b {
        let b = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        world.open(node, "b", b.local_addr().unwrap());
        ids.push(InstanceId("b".into()));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = b.accept().await {
                let _ = stream.write_all(b"b").await;
            }
        });
    }
    world.publish(&[(node as u64, ids)].into());
    (world, door, (app, closed))
}

#[tokio::test]
async fn a_closed_port_is_no_sick_instance() {
    for node in [1, 2] {
        let (world, door, _a) = half_deaf(node, false).await;
        let mut stream = connect(door).await;
        let refused = timeout(PATIENCE, stream.read_u8()).await.expect("an end");
        assert!(refused.is_err(), "at node {node}");
        let counts = world.ingress().counts();
        let refused = ("upstream-connect".to_owned(), 1);
        assert!(counts.problems.contains(&refused), "{:?}", counts.problems);
        let local = &world.nodes[node - 1].local;
        let a = local.slot(&InstanceId("a".into())).unwrap();
        assert!(!a.health.is_ejected(), "at node {node}");
        assert_eq!(get(world.door(), "/").await.body, "a");
        assert_eq!(world.ingress().counts().cold, 0, "nobody waited");
        assert_eq!(world.starter.starts(), 0);
    }
}

#[tokio::test]
async fn a_connection_finds_the_instance_whose_port_is_open() {
    for node in [1, 2] {
        let (_world, door, _a) = half_deaf(node, true).await;
        for _ in 0..10 {
            assert_eq!(heard(connect(door).await).await, "b", "at node {node}");
        }
    }
}
