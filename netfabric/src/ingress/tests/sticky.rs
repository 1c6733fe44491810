//! Splits that keep their clients, by the cookie of one door shown at any.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use scheduler::model::{InstanceId, Protocol};
use tokio::net::TcpStream;

use super::app::{App, Reply, get, raw, read, request, send};
use super::world::{Deployed, World};

const FIRST: &str = "web-00001-a";
const SECOND: &str = "web-00002-b";
/// Enough for a revision with half the share to be met.
const MANY: usize = 40;

fn halves(protocol: Protocol) -> Deployed {
    Deployed {
        split: vec![50, 50],
        sticky: Some("1h"),
        protocol,
        ..Deployed::default()
    }
}

/// Node 1 has the first revision, node 2 the second, and both know it.
async fn apart(deployed: Deployed) -> (World, [App; 2]) {
    let world = World::new(2, deployed, |_| {}).await;
    let apps = [world.run(1, FIRST).await, world.run(2, SECOND).await];
    let ids = [(1, FIRST), (2, SECOND)];
    let ids = ids.map(|(node, id)| (node, vec![InstanceId(id.to_owned())]));
    world.publish(&ids.into());
    (world, apps)
}

fn doors(world: &World) -> [SocketAddr; 2] {
    [0, 1].map(|node: usize| world.nodes[node].ingress().addrs()[0])
}

async fn with_cookie(door: SocketAddr, path: &str, cookie: &str) -> Reply {
    let request = request(path).header("cookie", cookie);
    send(door, request.body(Empty::<Bytes>::new()).unwrap()).await
}

/// The cookie of a reply, as its client sends it.
fn cookie(reply: &Reply) -> Option<String> {
    let told = reply.headers.get("set-cookie")?.to_str().unwrap();
    Some(told.split(';').next().unwrap().to_owned())
}

/// A client without a cookie that met this instance.
async fn who_met(door: SocketAddr, instance: &str) -> Reply {
    for _ in 0..MANY {
        let reply = get(door, "/").await;
        if reply.body == instance {
            return reply;
        }
    }
    panic!("{instance} was never met");
}

#[tokio::test]
async fn a_client_of_a_split_stays_with_its_revision_at_every_door() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (world, _apps) = apart(halves(protocol)).await;
        let [here, there] = doors(&world);
        for met in [FIRST, SECOND] {
            let reply = who_met(here, met).await;
            let told = reply.header("set-cookie").to_owned();
            let rest = "; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax";
            assert!(
                told.starts_with("selvedge-sticky=") && told.ends_with(rest),
                "{told}"
            );
            let cookie = cookie(&reply).unwrap();
            for door in [here, there, here, there, here, there, here, there] {
                let reply = with_cookie(door, "/", &format!("a=b; {cookie}")).await;
                assert_eq!((reply.status, reply.body.as_str()), (200, met));
                assert_eq!(reply.header("set-cookie"), "", "it is told once");
            }
            // The instance sees what the client sent.
            let seen = with_cookie(here, "/headers", &cookie).await.body;
            assert!(seen.contains(&format!("cookie: {cookie}\n")), "{seen}");
        }
    }
}

#[tokio::test]
async fn a_cookie_of_nothing_in_the_split_is_chosen_anew_and_replaced() {
    let (world, _apps) = apart(halves(Protocol::Http1)).await;
    let [door, _] = doors(&world);
    let old = cookie(&who_met(door, FIRST).await).unwrap();
    // The first one's share is taken away.
    let state = Deployed {
        split: vec![0, 50, 50],
        ..halves(Protocol::Http1)
    };
    world.nodes[0].registry.send_replace(state.state().into());
    let ids = [(
        2,
        [SECOND, "web-00003-c"].map(|id| InstanceId(id.to_owned())),
    )];
    let _third = world.run(2, "web-00003-c").await;
    world.publish(&ids.map(|(node, ids)| (node, ids.to_vec())).into());
    for forged in [
        old.as_str(),
        "selvedge-sticky=web-00001",
        "selvedge-sticky=",
    ] {
        for _ in 0..4 {
            let reply = with_cookie(door, "/", forged).await;
            assert_ne!(reply.body, FIRST);
            let new = cookie(&reply).expect("a cookie in its place");
            assert_ne!(new, forged);
        }
    }
}

#[tokio::test]
async fn a_service_that_does_not_ask_for_it_sets_no_cookie() {
    let table = [
        (vec![50, 50], None),
        (vec![50, 50], Some("off")),
        (vec![100], Some("on")),
        (vec![], Some("on")),
    ];
    for (split, sticky) in table {
        let deployed = Deployed {
            split,
            sticky,
            ..Deployed::default()
        };
        let (world, _apps) = apart(deployed).await;
        for _ in 0..8 {
            let reply = get(world.door(), "/").await;
            assert_eq!((reply.status, reply.header("set-cookie")), (200, ""));
        }
    }
}

/// One connection, on which the express way hands over to the general one.
#[tokio::test]
async fn the_ways_through_the_door_agree() {
    let deployed = halves(Protocol::Http1);
    let world = World::one(deployed).await;
    let _apps = [world.run(1, FIRST).await, world.run(1, SECOND).await];
    let cookie = cookie(&who_met(world.door(), SECOND).await).unwrap();
    let host = "host: web.edge.test\r\n";
    let all = [
        format!("GET / HTTP/1.1\r\n{host}cookie: {cookie}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}te: trailers\r\ncookie: {cookie}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}cookie: {cookie}\r\nconnection: close\r\n\r\n"),
    ];
    let text = raw(world.door(), all.concat().as_bytes()).await;
    assert_eq!(text.matches(SECOND).count(), 3, "{text}");
    assert!(!text.contains("set-cookie"), "{text}");
    // By HTTP/2, which splits cookies over several headers.
    let stream = TcpStream::connect(world.door()).await.unwrap();
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = shaken.await.unwrap();
    tokio::spawn(connection);
    for _ in 0..8 {
        let request = Request::builder()
            .uri("http://web.edge.test/")
            .header("cookie", "a=b")
            .header("cookie", cookie.as_str());
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let reply = read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(reply.body, SECOND);
    }
}
