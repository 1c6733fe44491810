//! The express way, on one connection: what it answers itself, what it hands over, and that nothing
//! is lost or mixed up on the way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use scheduler::model::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::app::{get, post, raw};
use super::world::{Deployed, World, eventually};
use crate::tls::Table;

/// An instance that says these bytes to each request, whatever it is.
async fn says(world: &World, name: &str, answer: &'static [u8]) -> JoinHandle<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.open(1, name, listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            while stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                if stream.write_all(answer).await.is_err() {
                    break;
                }
                if !answer.windows(7).any(|w| w == b"content") {
                    break;
                }
            }
        }
    })
}

/// How many answers of 200 there are, and what was said in them.
fn answers(text: &str) -> (usize, Vec<&str>) {
    let parts = text.split("HTTP/1.1 200 OK\r\n").skip(1);
    let bodies = parts.filter_map(|p| p.split_once("\r\n\r\n").map(|(_, body)| body));
    let bodies: Vec<&str> = bodies.collect();
    (bodies.len(), bodies)
}

#[tokio::test]
async fn requests_of_all_kinds_are_answered_in_their_order() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let host = "host: web.edge.test\r\n";
    let all = [
        format!("GET / HTTP/1.1\r\n{host}\r\n"),
        format!("POST /echo HTTP/1.1\r\n{host}content-length: 3\r\n\r\none"),
        format!("HEAD / HTTP/1.1\r\n{host}\r\n"),
        format!("POST /echo HTTP/1.1\r\n{host}content-length: 0\r\n\r\n"),
        // From here on it is the general way's.
        format!(
            "POST /echo HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
        ),
        format!("POST /echo HTTP/1.1\r\n{host}content-length: 5\r\nconnection: close\r\n\r\nthree"),
    ];
    let text = raw(world.door(), all.concat().as_bytes()).await;
    let (count, bodies) = answers(&text);
    assert_eq!(count, 6, "{text}");
    for (body, want) in bodies.iter().zip(["a", "one", "", "", "two", "three"]) {
        assert!(
            body.contains(want) && body.is_empty() == want.is_empty(),
            "{text}"
        );
    }
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 6);
    assert_eq!(world.ingress().counts().requests, 6, "each is counted once");
    // Byte by byte, it is the same.
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in format!("GET / HTTP/1.1\r\n{host}connection: close\r\n\r\n").as_bytes() {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(answers(&text), (1, vec!["a"]));
}

#[tokio::test]
async fn framings_of_instances_are_understood() {
    let table: &[(&str, &[u8], u16, &str)] = &[
        ("until-the-end", b"HTTP/1.1 200 OK\r\n\r\nall of it", 200, "all of it"),
        ("old", b"HTTP/1.0 200 OK\r\n\r\nall of it", 200, "all of it"),
        (
            "interim",
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbox",
            200,
            "box",
        ),
        (
            "chunks",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nbo\r\n1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n",
            200,
            "box",
        ),
        (
            "two lengths",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nbox\n",
            502,
            "",
        ),
        (
            "codings",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            502,
            "",
        ),
        ("a switch", b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", 502, ""),
        ("garbage", b"SSH-2.0-content\r\n\r\n", 502, ""),
    ];
    for (what, answer, status, body) in table {
        let world = World::one(Deployed::default()).await;
        let serving = says(&world, "a", answer).await;
        let reply = post(world.door(), "/", "x").await;
        assert_eq!(reply.status, *status, "{what}");
        if *status == 200 {
            assert_eq!(reply.body, *body, "{what}");
        }
        serving.abort();
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_no_answer() {
    let world = World::one(Deployed::default()).await;
    let hint = b"HTTP/1.1 103 Early Hints\r\nlink: content\r\n\r\n";
    let serving = says(&world, "a", hint.repeat(10_000).leak()).await;
    let reply = post(world.door(), "/", "x").await;
    assert_eq!(reply.header("x-selvedge-error"), "upstream-reset");
    serving.abort();
}

#[tokio::test]
async fn what_follows_an_answer_is_nobodys() {
    let world = World::one(Deployed::default()).await;
    let twice = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nboxHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let serving = says(&world, "a", twice).await;
    let host = "host: web.edge.test\r\n";
    let two =
        format!("GET / HTTP/1.1\r\n{host}\r\nGET / HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    let text = raw(world.door(), two.as_bytes()).await;
    assert_eq!(answers(&text), (2, vec!["box", "box"]));
    serving.abort();
}

#[tokio::test]
async fn who_leaves_lets_the_instance_go() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let id = InstanceId("a".into());
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let ask = b"GET /slow/60000 HTTP/1.1\r\nhost: web.edge.test\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let inside = || app.seen.at_once.load(Ordering::SeqCst) == 1;
    eventually("it is inside", inside).await;
    assert_eq!(world.local().in_flight(&id), 1);
    drop(stream);
    eventually("it is let go", || world.local().in_flight(&id) == 0).await;
}

#[tokio::test]
async fn bodies_that_do_not_come_at_once_come_through() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let head = "POST /echo HTTP/1.1\r\nhost: web.edge.test\r\ncontent-length: 6\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    // Longer than the express way waits: the other one goes on.
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.write_all(b"slow").await.unwrap();
    stream.write_all(b"ly").await.unwrap();
    let next = b"GET / HTTP/1.1\r\nhost: web.edge.test\r\nconnection: close\r\n\r\n";
    stream.write_all(next).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (count, bodies) = answers(&text);
    assert_eq!(count, 2, "{text}");
    assert!(bodies[0].contains("slowly") && bodies[1] == "a", "{text}");
    for size in [1024, 64 * 1024, 64 * 1024 + 1, 1 << 20] {
        let reply = post(world.door(), "/echo", vec![b'x'; size]).await;
        assert_eq!((reply.status, reply.body.len()), (200, size));
    }
}

#[tokio::test]
async fn a_load_balancer_says_whose_the_connection_is() {
    let world = World::new(1, Deployed::default(), |c| c.proxy_protocol = true).await;
    let _app = world.run(1, "a").await;
    let ask = "GET /headers HTTP/1.1\r\nhost: web.edge.test\r\nconnection: close\r\n\r\n";
    let first = format!("PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n{ask}");
    let text = raw(world.door(), first.as_bytes()).await;
    assert!(text.contains("x-forwarded-for: 192.0.2.7\n"), "{text}");
    let second = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x08\x0a\0\0\x01\x1f\x90\0\x50",
        ask.as_bytes(),
    ];
    let text = raw(world.door(), &second.concat()).await;
    assert!(text.contains("x-forwarded-for: 192.0.2.8\n"), "{text}");
    let text = raw(world.door(), ask.as_bytes()).await;
    assert_eq!(text, "", "who is not introduced is nobody");
}

#[tokio::test]
async fn a_closing_door_says_so_and_idle_clients_are_let_go() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let mut idle = TcpStream::connect(world.door()).await.unwrap();
    let mut busy = TcpStream::connect(world.door()).await.unwrap();
    let ask = b"GET /slow/200 HTTP/1.1\r\nhost: web.edge.test\r\n\r\n";
    busy.write_all(ask).await.unwrap();
    let inside = || app.seen.at_once.load(Ordering::SeqCst) == 1;
    eventually("it is inside", inside).await;
    let stopping = world.ingress().stop(Duration::from_secs(10));
    let reading = async {
        let mut text = String::new();
        busy.read_to_string(&mut text).await.unwrap();
        let mut none = Vec::new();
        idle.read_to_end(&mut none).await.unwrap();
        (text, none)
    };
    let (in_order, (text, none)) = tokio::join!(stopping, reading);
    assert!(in_order);
    assert!(text.contains("connection: close\r\n"), "{text}");
    assert_eq!(answers(&text), (1, vec!["a"]));
    assert!(none.is_empty());
}

#[tokio::test]
async fn an_idle_instance_has_no_connections_after_a_while() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    for _ in 0..4 {
        assert_eq!(get(world.door(), "/").await.status, 200);
    }
    let opened = app.seen.connections.load(Ordering::SeqCst);
    assert!(opened <= 4);
    let open = || app.seen.open.load(Ordering::SeqCst) == 0;
    eventually("the door's connections are closed", open).await;
}

#[tokio::test]
async fn what_an_authority_checks_is_no_matter_of_other_requests() {
    let world = World::one(Deployed::default()).await;
    let answer = b"HTTP/1.1 200 OK\r\nX-Case: kept\r\ncontent-length: 2\r\n\r\nok";
    let _app = says(&world, "a", answer).await;
    let mut table = Table::default();
    table.answer("web.edge.test", "token", "token.print");
    world.nodes[0].shelf.set(table);
    let get = async |path: &str| {
        let host = "host: web.edge.test\r\nconnection: close\r\n";
        raw(
            world.door(),
            format!("GET {path} HTTP/1.1\r\n{host}\r\n").as_bytes(),
        )
        .await
    };
    // The general way writes all names in lower case.
    let text = get("/").await;
    assert!(text.contains("X-Case: kept"), "{text}");
    let text = get("/.well-known/acme-challenge/token").await;
    assert!(text.ends_with("token.print"), "{text}");
}
