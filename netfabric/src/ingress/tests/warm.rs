//! Requests that find an instance here.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Version, header};
use http_body_util::{Empty, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use scheduler::model::{InstanceId, Protocol, RequestId, RevisionState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::app::{get, post, raw, read, request, send};
use super::world::{Deployed, World, eventually};

#[tokio::test]
async fn a_request_passes_through_clean() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let dirty = request("/headers?x=1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-selvedge-revision", "other/thing")
        .header("x-request-id", "mine")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("traceparent", "00-1-2-01");
    let reply = send(world.door(), dirty.body(Empty::<Bytes>::new()).unwrap()).await;
    assert_eq!(reply.status, 200);
    let id = reply.header("x-request-id").to_owned();
    assert_eq!(id.len(), 26);
    let lines: Vec<&str> = reply.body.lines().collect();
    assert_eq!(lines[0], "HTTP/1.1 /headers?x=1");
    let mut lines = lines[1..].to_vec();
    lines.sort_unstable();
    let want = [
        "forwarded: for=127.0.0.1;host=\"web.edge.test\";proto=http".to_owned(),
        "host: web.edge.test".to_owned(),
        "traceparent: 00-1-2-01".to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-host: web.edge.test".to_owned(),
        "x-forwarded-proto: http".to_owned(),
        format!("x-request-id: {id}"),
    ];
    assert_eq!(lines, want);
    assert_eq!(
        reply.header("x-selvedge-refused"),
        "",
        "ours are taken out of answers"
    );
    assert_eq!(reply.header("keep-alive"), "");

    let line = world.ingress().explain(&RequestId(id)).unwrap();
    assert_eq!(line.instance, Some(InstanceId("a".into())));
    assert_eq!(line.status, 200);
    assert!(
        world.ingress().bills().is_empty(),
        "warm requests have no bill"
    );
}

#[tokio::test]
async fn who_cannot_be_routed_is_told_why() {
    let world = World::one(Deployed::default()).await;
    let other = Request::builder()
        .uri("/")
        .header(header::HOST, "nope.edge.test");
    let other = other.header(header::ACCEPT, "application/json");
    let reply = send(world.door(), other.body(Empty::<Bytes>::new()).unwrap()).await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (404, "no-such-host")
    );
    let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(body["request"], reply.header("x-request-id"));

    let failed = RevisionState::Failed {
        reason: "Exited".into(),
        message: "exit code 1".into(),
    };
    let state = Deployed {
        state: failed,
        ..Deployed::default()
    };
    let reply = get(World::one(state).await.door(), "/").await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (503, "revision-not-ready")
    );
    assert!(reply.body.contains("Exited: exit code 1"), "{}", reply.body);
}

#[tokio::test]
async fn a_request_at_the_heels_of_a_deploy_waits_for_the_revision() {
    let state = Deployed {
        state: RevisionState::Pending,
        ..Deployed::default()
    };
    let world = World::one(state).await;
    let _app = world.run(1, "a").await;
    let door = world.door();
    let reply = tokio::spawn(async move { get(door, "/").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!reply.is_finished());
    let ready = Deployed::default().state();
    world.nodes[0].registry.send_replace(ready.into());
    world.publish(&std::collections::BTreeMap::new());
    assert_eq!(reply.await.unwrap().status, 200);
}

#[tokio::test]
async fn bodies_and_trailers_stream_both_ways() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let big = "x".repeat(3_000_000);
    let reply = post(world.door(), "/echo", big.clone()).await;
    assert!(
        reply.body == big,
        "{} of {} bytes",
        reply.body.len(),
        big.len()
    );

    let chunks = (0..20)
        .map(|i| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(format!("{i},")))));
    let chunked = StreamBody::new(futures::stream::iter(chunks.collect::<Vec<_>>()));
    let chunked = request("/echo").method("POST").body(chunked).unwrap();
    let reply = send(world.door(), chunked).await;
    assert!(reply.body.ends_with("18,19,"), "{}", reply.body);

    let with_te = request("/trailers").header(header::TE, "trailers");
    let reply = send(world.door(), with_te.body(Empty::<Bytes>::new()).unwrap()).await;
    assert_eq!(reply.trailers.unwrap()["x-sum"], "42");

    let head = request("/")
        .method("HEAD")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let reply = send(world.door(), head).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, "1"));
}

#[tokio::test]
async fn an_answer_is_not_held_back_or_read_ahead() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    // 100 MiB nobody reads: were it buffered, it would show; the slot stays taken meanwhile.
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let line = b"GET /stream/1600 HTTP/1.1\r\nhost: web.edge.test\r\n\r\n";
    stream.write_all(line).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    assert_eq!(world.local().in_flight(&InstanceId("a".into())), 1);
    drop(stream);
    let free = || world.local().in_flight(&InstanceId("a".into())) == 0;
    eventually("the slot is free once the client is gone", free).await;
}

#[tokio::test]
async fn connections_are_reused_and_stale_ones_are_not_believed() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    for _ in 0..20 {
        assert_eq!(get(world.door(), "/").await.status, 200);
    }
    let connections = app.seen.connections.load(Ordering::SeqCst);
    assert!(
        connections <= 3,
        "{connections} connections for 20 requests in a row"
    );
}

#[tokio::test]
async fn upgrades_go_through_and_count_as_in_flight() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let line = b"GET /upgrade HTTP/1.1\r\nhost: web.edge.test\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(line).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("upgrade: echo"), "{head}");
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, word.as_bytes());
    }
    let id = InstanceId("a".into());
    assert_eq!(world.local().in_flight(&id), 1);
    drop(stream);
    eventually("the tunnel ends", || world.local().in_flight(&id) == 0).await;
}

#[tokio::test]
async fn h2_with_prior_knowledge_in_and_out() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let world = World::one(Deployed {
            protocol,
            ..Deployed::default()
        })
        .await;
        let _app = world.run(1, "a").await;
        let stream = TcpStream::connect(world.door()).await.unwrap();
        let io = TokioIo::new(stream);
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        let ask = |path: &str| {
            let uri = format!("http://web.edge.test{path}");
            let request = Request::builder().uri(uri).header("te", "trailers");
            let request = request.body(Full::new(Bytes::from("hi"))).unwrap();
            let mut sender = sender.clone();
            async move { read(sender.send_request(request).await.unwrap()).await }
        };
        let reply = ask("/headers").await;
        let first = reply.body.lines().next().unwrap();
        let want = match protocol {
            Protocol::Http1 => "HTTP/1.1 /headers",
            Protocol::H2c => "HTTP/2.0 http://web.edge.test/headers",
        };
        assert_eq!(first, want);
        assert_eq!(
            reply.body.contains("\nhost: web"),
            protocol == Protocol::Http1
        );
        assert_eq!(ask("/trailers").await.trailers.unwrap()["x-sum"], "42");
        assert_eq!(ask("/echo").await.body, "hi");
        let many = join_all((0..50).map(|_| ask("/slow/20"))).await;
        assert!(many.iter().all(|r| r.status == 200));
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere() {
    let world = World::one(Deployed::default()).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = gone.local_addr().unwrap();
    drop(gone);
    world.open(1, "dead", addr);
    let _app = world.run(1, "alive").await;
    for _ in 0..10 {
        let reply = post(world.door(), "/echo", "body").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "body"));
    }
}

#[tokio::test]
async fn only_harmless_requests_are_repeated() {
    let world = World::one(Deployed::default()).await;
    let _one = world.run(1, "one").await;
    let _two = world.run(1, "two").await;
    let reply = get(world.door(), "/breaks/one").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "two"));
    let retries = world.ingress().counts().retries;
    assert_eq!(retries, 1, "of two idle ones the first is asked first");
    let reply = post(world.door(), "/reset", "x").await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (502, "upstream-reset")
    );
    assert_eq!(world.ingress().counts().retries, retries);
}

#[tokio::test]
async fn a_small_answer_that_breaks_off_is_no_answer() {
    let world = World::one(Deployed::default()).await;
    let torn = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.open(1, "torn", torn.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = torn.accept().await {
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let part = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntor";
            stream.write_all(part).await.unwrap();
        }
    });
    let reply = post(world.door(), "/", "x").await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (502, "upstream-reset")
    );
    let _whole = world.run(1, "whole").await;
    for _ in 0..3 {
        assert_eq!(get(world.door(), "/").await.body, "whole");
    }
    answering.abort();
}

#[tokio::test]
async fn a_timeout_is_told_and_a_stream_beyond_it_is_cut() {
    let world = World::one(Deployed {
        timeout_seconds: 1,
        ..Deployed::default()
    })
    .await;
    let _app = world.run(1, "a").await;
    let reply = get(world.door(), "/slow/5000").await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (504, "upstream-timeout")
    );
    let id = InstanceId("a".into());
    eventually("the slot is free", || world.local().in_flight(&id) == 0).await;
}

#[tokio::test]
async fn malformed_and_smuggled_requests_are_refused() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let table: &[(&str, &str)] = &[
        (
            "two hosts",
            "GET / HTTP/1.1\r\nhost: web.edge.test\r\nhost: b\r\nconnection: close\r\n\r\n",
        ),
        ("no host", "GET / HTTP/1.1\r\nconnection: close\r\n\r\n"),
        (
            "another target",
            "GET http://b/ HTTP/1.1\r\nhost: web.edge.test\r\nconnection: close\r\n\r\n",
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: web.edge.test\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        ),
        (
            "no number",
            "POST / HTTP/1.1\r\nhost: web.edge.test\r\ncontent-length: +1\r\n\r\n",
        ),
        (
            "coding",
            "POST / HTTP/1.1\r\nhost: web.edge.test\r\ntransfer-encoding: xchunked\r\n\r\n",
        ),
        (
            "codings",
            "POST / HTTP/1.1\r\nhost: web.edge.test\r\ntransfer-encoding: gzip, chunked\r\nconnection: close\r\n\r\n0\r\n\r\n",
        ),
        ("space", "GET / HTTP/1.1\r\nhost : web.edge.test\r\n\r\n"),
        (
            "fold",
            "GET / HTTP/1.1\r\nhost: web.edge.test\r\nx: a\r\n b\r\n\r\n",
        ),
        (
            "1.0 chunked",
            "POST / HTTP/1.0\r\nhost: web.edge.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("garbage", "\x16\x03\x01\x02\r\n\r\n"),
    ];
    for (what, bytes) in table {
        let answer = raw(world.door(), bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{what}: {answer}");
    }
    let long = format!(
        "GET / HTTP/1.1\r\nhost: web.edge.test\r\nx: {}\r\n\r\n",
        "y".repeat(70_000)
    );
    let answer = raw(world.door(), long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let connect =
        "CONNECT web.edge.test:80 HTTP/1.1\r\nhost: web.edge.test:80\r\nconnection: close\r\n\r\n";
    let answer = raw(world.door(), connect.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn closing_an_instance_under_load_loses_nothing() {
    let world = World::one(Deployed::default()).await;
    let old = world.run(1, "old").await;
    let door = world.door();
    let load: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..40 {
                    let reply = get(door, "/slow/3").await;
                    assert_eq!(reply.status, 200, "{}", reply.body);
                }
            })
        })
        .collect();
    let some = || old.seen.requests.load(Ordering::SeqCst) > 20;
    eventually("the load is on", some).await;
    let _new = world.run(1, "new").await;
    let id = InstanceId("old".into());
    world.local().close(&id);
    let drained = world.local().drained(&id);
    tokio::time::timeout(Duration::from_secs(10), drained)
        .await
        .unwrap();
    assert_eq!(old.seen.at_once.load(Ordering::SeqCst), 0);
    let served = old.seen.requests.load(Ordering::SeqCst);
    world.local().remove(&id);
    for task in load {
        task.await.unwrap();
    }
    assert_eq!(
        old.seen.requests.load(Ordering::SeqCst),
        served,
        "closed means closed"
    );
}

#[tokio::test]
async fn a_dying_instance_under_load_loses_no_repeatable_request() {
    let world = World::one(Deployed::default()).await;
    let dying = world.run(1, "dying").await;
    let _other = world.run(1, "other").await;
    let door = world.door();
    let load: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..30 {
                    let reply = get(door, "/slow/3").await;
                    assert_eq!(reply.status, 200, "{}", reply.body);
                }
            })
        })
        .collect();
    let some = || dying.seen.requests.load(Ordering::SeqCst) > 20;
    eventually("the load is on", some).await;
    drop(dying);
    for task in load {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn stopping_finishes_what_it_has() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let door = world.door();
    let slow = tokio::spawn(async move { get(door, "/slow/200").await });
    let inside = || app.seen.at_once.load(Ordering::SeqCst) == 1;
    eventually("it is inside", inside).await;
    world.ingress().stop(Duration::from_secs(10)).await;
    assert_eq!(slow.await.unwrap().status, 200);
    assert!(
        TcpStream::connect(door).await.is_err(),
        "nobody listens any more"
    );
}

/// Requests on one kept connection, one after the other, until it is not kept any more. Each has its answer.
async fn until_it_ends(door: SocketAddr, version: Version, general: bool) -> usize {
    let io = TokioIo::new(TcpStream::connect(door).await.unwrap());
    let mut answers = 0;
    macro_rules! go_on {
        ($handshake:expr, $uri:expr) => {{
            let (mut sender, connection) = $handshake.await.unwrap();
            tokio::spawn(connection);
            while sender.ready().await.is_ok() {
                let mut ask = Request::get($uri).header(header::HOST, "web.edge.test");
                if general {
                    ask = ask.header(header::TE, "trailers");
                }
                let ask = ask.body(Empty::<Bytes>::new()).unwrap();
                let reply = match sender.try_send_request(ask).await {
                    Ok(reply) => read(reply).await,
                    Err(mut error) => {
                        // The connection ended before it could be sent.
                        assert!(error.take_message().is_some(), "an answer");
                        break;
                    }
                };
                assert_eq!(reply.status, 200);
                answers += 1;
                sleep(Duration::from_millis(5)).await;
            }
        }};
    }
    if version == Version::HTTP_2 {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        go_on!(handshake, "http://web.edge.test/");
    } else {
        go_on!(hyper::client::conn::http1::handshake(io), "/");
    }
    answers
}

#[tokio::test]
async fn kept_connections_hear_that_they_end_before_they_do() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let door = world.door();
    let clients: Vec<_> = [
        (Version::HTTP_11, false),
        (Version::HTTP_11, true),
        (Version::HTTP_2, false),
    ]
    .into_iter()
    .flat_map(|client| [client; 4])
    .map(|(version, general)| tokio::spawn(until_it_ends(door, version, general)))
    .collect();
    let served = || world.ingress().counts().requests;
    let before = served();
    eventually("all of them are served", || served() > before + 100).await;
    world.ingress().stop(Duration::from_secs(10)).await;
    for client in join_all(clients).await {
        assert!(client.expect("no request was lost") > 1);
    }
}

#[tokio::test]
async fn stopping_cuts_off_what_outlasts_the_grace() {
    let world = World::one(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let line = b"GET /slow/60000 HTTP/1.1\r\nhost: web.edge.test\r\n\r\n";
    stream.write_all(line).await.unwrap();
    let inside = || app.seen.at_once.load(Ordering::SeqCst) == 1;
    eventually("it is inside", inside).await;
    world.ingress().stop(Duration::from_millis(50)).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let world = World::one(Deployed::default()).await;
    let node = &world.nodes[0];
    let config = super::super::IngressConfig {
        listen: vec![world.door()],
        ..Default::default()
    };
    let deps = super::super::IngressDeps {
        routes: node.routes.clone(),
        local: node.local.clone(),
        fleet: node.fleet.subscribe(),
        registry: node.registry.subscribe(),
        link: world.pipes.clone(),
        starter: world.starter.clone(),
        callers: world.neighbours.clone(),
        shelf: node.shelf.clone(),
        tickets: None,
        sockets: std::sync::Arc::default(),
    };
    let error = super::super::Ingress::start(config, deps).err().unwrap();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {}", world.door())
    );
}
