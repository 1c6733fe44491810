//! Clients and services that have had their rate, on each of a request's ways.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::{Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use scheduler::model::{InstanceId, RequestId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::app::{Reply, get, raw, read, request, send};
use super::world::{Deployed, World, service};

/// The first two at once, and the next in an hour.
const TWO: &str = "1/h burst 2";

async fn limited() -> World {
    let two = |config: &mut super::super::IngressConfig| {
        config.client_rate = Some(TWO.parse().unwrap());
    };
    World::new(1, Deployed::default(), two).await
}

fn served(rate: &'static str) -> Deployed {
    Deployed {
        rate: Some(rate),
        ..Deployed::default()
    }
}

fn said(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.header("x-selvedge-error"))
}

/// A body that only the general way passes on.
async fn chunked(door: SocketAddr) -> Reply {
    let data = http_body::Frame::data(Bytes::from_static(b"x"));
    let frames = futures::stream::iter([Ok::<_, std::convert::Infallible>(data)]);
    let body = StreamBody::new(frames);
    send(door, request("/echo").method("POST").body(body).unwrap()).await
}

async fn h2(door: SocketAddr) -> Reply {
    let stream = TcpStream::connect(door).await.unwrap();
    let io = TokioIo::new(stream);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    let uri = "http://web.edge.test/";
    let request = http::Request::builder()
        .uri(uri)
        .body(Empty::<Bytes>::new());
    read(sender.send_request(request.unwrap()).await.unwrap()).await
}

/// What a client at another address is told.
async fn from(address: &str, door: SocketAddr) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address.parse().unwrap()).unwrap();
    let mut stream = socket.connect(door).await.unwrap();
    let get = b"GET / HTTP/1.1\r\nhost: web.edge.test\r\nconnection: close\r\n\r\n";
    stream.write_all(get).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn problems(world: &World, code: &str) -> u64 {
    let problems = world.ingress().counts().problems;
    problems.iter().find(|(word, _)| word == code).unwrap().1
}

#[tokio::test]
async fn a_client_has_its_rate_on_all_ways_together() {
    let world = limited().await;
    let app = world.run(1, "a").await;
    let door = world.door();
    assert_eq!(chunked(door).await.status, 200);
    assert_eq!(get(door, "/").await.status, 200);
    let replies = [get(door, "/").await, chunked(door).await, h2(door).await];
    for reply in &replies {
        assert_eq!(said(reply), (429, "client-rate"), "{}", reply.body);
        let wait: u64 = reply.header("retry-after").parse().unwrap();
        assert!((3590..=3600).contains(&wait), "{wait}");
        assert!(
            reply.body.contains("127.0.0.1 has had its 1/h burst 2"),
            "{}",
            reply.body
        );
        let id = RequestId(reply.header("x-request-id").to_owned());
        let bill = world.ingress().explain(&id).expect("it is in the ledger");
        assert_eq!((bill.service, bill.status), (service(), 429));
        assert_eq!(
            (bill.problem.as_deref(), bill.node),
            (Some("client-rate"), None)
        );
    }
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 2);
    let counts = world.ingress().counts();
    assert_eq!(
        (counts.requests, counts.classes[3]),
        (5, 3),
        "each is counted once"
    );
    assert_eq!(problems(&world, "client-rate"), 3);
    assert!(from("127.0.0.2:0", door).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn refused_requests_leave_the_connection_to_the_next() {
    let world = limited().await;
    let _app = world.run(1, "a").await;
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let host = "host: web.edge.test\r\n";
    let get = format!("GET / HTTP/1.1\r\n{host}\r\n");
    let post = format!("POST /echo HTTP/1.1\r\n{host}content-length: 3\r\n\r\nbox");
    let last = format!("GET / HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    let all = [get.repeat(2), post, last].concat();
    stream.write_all(all.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let statuses = text.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]);
    let statuses: Vec<&str> = statuses.collect();
    assert_eq!(statuses, ["200", "200", "429", "429"], "{text}");
}

#[tokio::test]
async fn who_asks_for_nothing_there_is_has_used_the_rate_too() {
    let world = limited().await;
    let _app = world.run(1, "a").await;
    let nobody = || {
        let request = http::Request::builder()
            .uri("/")
            .header("host", "no.edge.test");
        send(world.door(), request.body(Empty::<Bytes>::new()).unwrap())
    };
    assert_eq!(nobody().await.status, 404);
    assert_eq!(nobody().await.status, 404);
    let reply = nobody().await;
    assert_eq!(said(&reply), (429, "client-rate"));
    let id = RequestId(reply.header("x-request-id").to_owned());
    assert_eq!(world.ingress().explain(&id), None, "no service, no line");
}

#[tokio::test]
async fn the_balancers_clients_have_rates_and_not_the_balancer() {
    let adjust = |config: &mut super::super::IngressConfig| {
        config.proxy_protocol = true;
        config.client_rate = Some("1/h".parse().unwrap());
    };
    let world = World::new(1, Deployed::default(), adjust).await;
    let _app = world.run(1, "a").await;
    let ask = async |client: &str| {
        let mut stream = TcpStream::connect(world.door()).await.unwrap();
        let get = "GET / HTTP/1.1\r\nhost: web.edge.test\r\nconnection: close\r\n\r\n";
        let all = format!("PROXY TCP6 {client} ::1 4000 80\r\n{get}");
        stream.write_all(all.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer[9..12].to_owned()
    };
    assert_eq!(ask("2001:db8:0:1::1").await, "200");
    assert_eq!(ask("2001:db8:0:1::2").await, "429", "of the same network");
    assert_eq!(ask("2001:db8:0:2::1").await, "200");
}

#[tokio::test]
async fn a_service_has_its_rate_whoever_asks() {
    let world = World::one(served(TWO)).await;
    let _app = world.run(1, "a").await;
    let door = world.door();
    assert_eq!(h2(door).await.status, 200);
    assert!(from("127.0.0.2:0", door).await.starts_with("HTTP/1.1 200"));
    for reply in [get(door, "/").await, chunked(door).await, h2(door).await] {
        assert_eq!(said(&reply), (429, "service-rate"));
        assert!(
            reply.body.contains("default/web has had its 1/h burst 2"),
            "{}",
            reply.body
        );
        let id = RequestId(reply.header("x-request-id").to_owned());
        let bill = world.ingress().explain(&id).expect("it is in the ledger");
        assert_eq!(bill.problem.as_deref(), Some("service-rate"));
    }
    assert!(
        from("127.0.0.3:0", door)
            .await
            .contains("x-selvedge-error: service-rate")
    );
    assert_eq!(problems(&world, "service-rate"), 4);
}

#[tokio::test]
async fn a_request_that_is_handed_over_counts_once() {
    let world = World::one(Deployed {
        protocol: scheduler::model::Protocol::H2c,
        ..served("1/h burst 3")
    })
    .await;
    let _app = world.run(1, "a").await;
    for _ in 0..3 {
        assert_eq!(get(world.door(), "/").await.status, 200);
    }
    assert_eq!(get(world.door(), "/").await.status, 429);
}

#[tokio::test]
async fn what_a_node_passes_on_is_counted_at_its_own_door() {
    let limit = |config: &mut super::super::IngressConfig| {
        config.client_rate = Some(TWO.parse().unwrap());
    };
    let world = World::new(2, served("1/h burst 3"), limit).await;
    let _app = world.run(2, "far").await;
    world.publish(&[(2, vec![InstanceId("far".into())])].into());
    let second = world.nodes[1].ingress().addrs()[0];
    assert_eq!(get(world.door(), "/").await.body, "far");
    assert_eq!(get(world.door(), "/").await.body, "far");
    // The other door has counted nothing of these.
    assert_eq!(get(second, "/").await.status, 200);
    assert_eq!(get(second, "/").await.status, 200);
    assert_eq!(said(&get(second, "/").await), (429, "client-rate"));
    assert!(
        from("127.0.0.2:0", second)
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(from("127.0.0.3:0", second).await.contains("service-rate"));
}

#[tokio::test]
async fn a_large_body_that_is_refused_is_not_read_into_the_next_request() {
    let world = World::one(served("1/h")).await;
    let _app = world.run(1, "a").await;
    assert_eq!(get(world.door(), "/").await.status, 200);
    // The rest is never sent: a client that is told so while it writes may not hear it.
    let head = "POST /echo HTTP/1.1\r\nhost: web.edge.test\r\ncontent-length: 3000000\r\n\r\n";
    let begun = format!("{head}GET / HTTP/1.1\r\nhost: web.edge.test\r\n\r\n");
    let told = raw(world.door(), begun.as_bytes()).await;
    assert!(
        told.starts_with("HTTP/1.1 429 ") && told.contains("service-rate"),
        "{told}"
    );
    assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{told}");
}
