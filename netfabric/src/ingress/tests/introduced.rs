//! Instances that are told whose connection they get, by the PROXY protocol: no client's request comes
//! over another's connection, and each client's come over its own again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use scheduler::model::{InstanceId, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::app::get;
use super::world::{Deployed, World};

/// A program that says to each request who it was told of, and the connection's number.
async fn told() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        for number in 1.. {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(serve(stream, number));
        }
    });
    (address, task)
}

async fn serve(mut stream: TcpStream, number: u32) {
    let mut head = [0; 28];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(
        head[..16],
        *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        "version 2, IPv4"
    );
    let [a, b, c, d, ..] = head[16..] else {
        unreachable!("12 bytes")
    };
    assert_eq!(head[24..26], [0, 0], "no port of the client's");
    let client = Ipv4Addr::new(a, b, c, d);
    let service = service_fn(move |request: Request<Incoming>| async move {
        let said = request.headers()["x-forwarded-for"].to_str().unwrap();
        assert_eq!(said, client.to_string());
        let body = Full::new(Bytes::from(format!("{client} {number}")));
        Ok::<_, Infallible>(Response::new(body))
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
}

/// What a client at this address is told, on a connection of its own.
async fn ask(door: SocketAddr, client: &str) -> (String, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{client}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(door).await.unwrap();
    let get = b"GET / HTTP/1.1\r\nhost: web.edge.test\r\nconnection: close\r\n\r\n";
    stream.write_all(get).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let (client, number) = body.split_once(' ').unwrap_or_else(|| panic!("{answer}"));
    (client.to_owned(), number.to_owned())
}

async fn world(nodes: u64, protocol: Protocol) -> World {
    let deployed = Deployed {
        introduced: true,
        protocol,
        ..Deployed::default()
    };
    World::new(nodes, deployed, |_| {}).await
}

#[tokio::test]
async fn each_client_has_connections_of_its_own() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (address, _serving) = told().await;
        let world = world(1, protocol).await;
        world.open(1, "a", address);
        let clients = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
        let mut owners = BTreeMap::new();
        let mut asked = 0;
        for _ in 0..10 {
            for client in clients {
                let (told, number) = ask(world.door(), client).await;
                assert_eq!(told, client);
                let owner = owners.entry(number).or_insert(told.clone());
                assert_eq!(*owner, told, "one connection, one client");
                asked += 1;
            }
        }
        // The door has a thread for each core, and each has connections of its own.
        assert!(owners.len() < asked, "they are used again: {owners:?}");
    }
}

#[tokio::test]
async fn clients_at_once_are_not_mixed_up() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (address, _serving) = told().await;
        let world = world(1, protocol).await;
        world.open(1, "a", address);
        let door = world.door();
        let asking = (0..200).map(|n| async move {
            let client = format!("127.0.0.{}", 1 + n % 50);
            assert_eq!(ask(door, &client).await.0, client);
        });
        futures::future::join_all(asking).await;
    }
}

#[tokio::test]
async fn it_is_told_of_clients_of_other_nodes_too() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (address, _serving) = told().await;
        let world = world(2, protocol).await;
        world.open(2, "far", address);
        world.publish(&[(2, vec![InstanceId("far".into())])].into());
        let mut owners = BTreeMap::new();
        for _ in 0..5 {
            for client in ["127.0.0.1", "127.0.0.2"] {
                let (told, number) = ask(world.door(), client).await;
                assert_eq!(told, client);
                assert_eq!(*owners.entry(number).or_insert(told.clone()), told);
            }
        }
    }
}

#[tokio::test]
async fn who_did_not_ask_for_it_is_told_nothing() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    assert_eq!(get(world.door(), "/").await.status, 200);
}
