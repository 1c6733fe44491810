//! Large bodies: beyond what the door takes, and answered before they are there.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use scheduler::model::{InstanceId, RequestId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::app::{get, post, raw, request, send};
use super::frames::{
    self, ACK, DATA, END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS, fields, frame,
};
use super::world::{Deployed, World, eventually};

const MOST: usize = 100_000;

async fn bounded() -> World {
    World::new(1, Deployed::default(), |config| {
        config.max_body = MOST as u64;
    })
    .await
}

fn plain(head: &str, body: usize) -> Vec<u8> {
    let head = format!("POST /whole HTTP/1.1\r\nhost: web.edge.test\r\n{head}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; body]].concat()
}

/// A client that may send as much as the door has said that it takes.
async fn accepted(world: &World) -> Raw {
    let mut raw = Raw::connect(world.door(), &[]).await;
    raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
    assert!(raw.heard().await);
    raw
}

/// A body of this length whose head does not say so.
fn chunked(body: usize) -> Vec<u8> {
    let mut bytes = plain("transfer-encoding: chunked", 0);
    for _ in 0..body / 1_000 {
        bytes.extend_from_slice(b"3e8\r\n");
        bytes.extend_from_slice(&[b'x'; 1_000]);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn bodies_beyond_the_bound_are_refused_and_their_senders_hear_it() {
    let world = bounded().await;
    let app = world.run(1, "a").await;
    let door = world.door();
    assert_eq!(post(door, "/whole", "x".repeat(MOST)).await.status, 200);
    let served = app.seen.requests.load(std::sync::atomic::Ordering::SeqCst);
    // Each is sent to its end before anything is read.
    let large = 3_000_000;
    let said = format!("content-length: {large}");
    let refused = raw(door, &plain(&said, large)).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    assert!(
        refused.contains("x-selvedge-error: body-too-large"),
        "{refused}"
    );
    assert!(refused.contains("100000 bytes"), "{refused}");
    assert_eq!(
        app.seen.requests.load(std::sync::atomic::Ordering::SeqCst),
        served,
        "what says that it is too large reaches nobody"
    );
    let untold = raw(door, &chunked(large)).await;
    assert!(untold.starts_with("HTTP/1.1 413 "), "{untold}");
    assert_eq!(untold.matches("HTTP/1.1 ").count(), 1, "{untold}");

    let id = refused.split("x-request-id: ").nth(1).unwrap();
    let id = RequestId(id.split("\r\n").next().unwrap().to_owned());
    let bill = world.ingress().explain(&id).expect("it is remembered");
    assert_eq!(
        (bill.status, bill.problem.as_deref()),
        (413, Some("body-too-large"))
    );
    assert_eq!(
        get(door, "/").await.status,
        200,
        "nor is the instance blamed"
    );
    eventually("nothing is held", || {
        world.local().in_flight(&InstanceId("a".into())) == 0
    })
    .await;
}

#[tokio::test]
async fn a_stream_of_http2_that_is_too_large_ends_alone() {
    let world = bounded().await;
    let _app = world.run(1, "a").await;
    let mut raw = accepted(&world).await;
    raw.send(&frames::post(1, "/whole")).await;
    // Within the window that the door gives at once.
    let part = frame(DATA, 0, 1, &[b'x'; 10_000]);
    for _ in 0..11 {
        raw.send(&part).await;
    }
    raw.send(&frames::get(3, "/")).await;
    let mut answers = std::collections::BTreeMap::new();
    while answers.len() < 2 {
        let next = raw.next().await.expect("the connection stays");
        if next.kind == HEADERS {
            // 200 is number 8 of the static table.
            answers.insert(next.stream, next.payload[0] == 0x88);
        }
    }
    assert_eq!(answers, [(1, false), (3, true)].into());
    let problems = world.ingress().counts().problems;
    assert!(
        problems.contains(&("body-too-large".to_owned(), 1)),
        "{problems:?}"
    );
}

#[tokio::test]
async fn streams_of_grpc_have_no_bound() {
    let world = bounded().await;
    let _app = world.run(1, "a").await;
    let mut raw = accepted(&world).await;
    let kind = [&[0x0f, 0x10, 16][..], b"application/grpc"].concat();
    let head = [fields("POST", "/whole"), kind].concat();
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    for _ in 0..11 {
        raw.send(&frame(DATA, 0, 1, &[b'x'; 10_000])).await;
    }
    raw.send(&frame(DATA, END_STREAM, 1, &[])).await;
    loop {
        let next = raw.next().await.expect("an answer");
        if next.stream == 1 && next.kind == HEADERS {
            assert_eq!(next.payload[0], 0x88, "{next:?}");
            return;
        }
    }
}

/// Reads a request's head alone, answers 403 and closes, again and again.
async fn refuser() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _head = stream.read(&mut [0; 4_000]).await.unwrap();
            let answer =
                b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
            stream.write_all(answer).await.unwrap();
        }
    });
    (addr, task)
}

/// An instance that says no at the head and closes resets the connection that the body is still sent on.
#[tokio::test]
async fn an_answer_before_the_body_is_heard() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let (addr, task) = refuser().await;
    for node in [1, 2] {
        world.open(node, "a", addr);
        world.publish(&[(node as u64, vec![InstanceId("a".into())])].into());
        for _ in 0..20 {
            let body = Full::new(Bytes::from(vec![b'x'; 3_000_000]));
            let whole = request("/").method("POST").body(body.boxed()).unwrap();
            let reply = send(world.door(), whole).await;
            assert_eq!(
                (reply.status, reply.body.as_str()),
                (403, "no"),
                "{reply:?}"
            );
            let parts = (0..30).map(|_| Ok(http_body::Frame::data(vec![b'x'; 100_000].into())));
            let body = StreamBody::new(futures::stream::iter(parts));
            let parts = request("/")
                .method("POST")
                .body(BodyExt::boxed(body))
                .unwrap();
            let reply: super::app::Reply = send::<
                http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>,
            >(world.door(), parts)
            .await;
            assert_eq!(
                (reply.status, reply.body.as_str()),
                (403, "no"),
                "{reply:?}"
            );
        }
        world.local().close(&InstanceId("a".into()));
    }
    task.abort();
}

/// Nobody may keep a connection that is closed by sending on.
#[tokio::test]
async fn who_goes_on_sending_is_heard_out_only_so_long() {
    let world = bounded().await;
    let _app = world.run(1, "a").await;
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let said = plain("content-length: 900000000000", 0);
    stream.write_all(&said).await.unwrap();
    let begun = std::time::Instant::now();
    while stream.write_all(&[b'x'; 1_000]).await.is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(begun.elapsed().as_secs() < 15, "it is never closed");
    }
}
