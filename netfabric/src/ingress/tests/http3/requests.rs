//! What of requests and answers goes through, and how.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use http::{HeaderMap, HeaderValue, Method, Request};
use scheduler::model::{Protocol, RequestId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::app::get;
use super::super::tls::{connect, h1, h2, made};
use super::super::world::{Deployed, World, eventually};
use super::{Client, WEB, ask, door, quic, read, world};

#[tokio::test]
async fn a_request_goes_the_way_of_all_others() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let request = ask("/headers?a=b")
        .header("traceparent", "00-1-2-01")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-selvedge-revision", "a/b")
        .body(());
    let reply = client.send(request.unwrap(), "").await;
    assert_eq!(reply.status, 200);
    for line in [
        "HTTP/1.1 /headers?a=b\n",
        "host: web.edge.test\n",
        "traceparent: 00-1-2-01\n",
        "cookie: a=1; b=2\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: https\n",
        ";proto=https\n",
    ] {
        assert!(reply.body.contains(line), "{line}{}", reply.body);
    }
    assert!(!reply.body.contains("6.6.6.6") && !reply.body.contains("a/b"));
    assert!(!reply.body.contains("transfer-encoding"), "it has no body");
    let id = reply.header("x-request-id");
    assert!(reply.body.contains(&format!("x-request-id: {id}\n")));
    let port = door(&world).port();
    assert_eq!(reply.header("alt-svc"), format!("h3=\":{port}\"; ma=3600"));
    assert_eq!(reply.header("content-length"), reply.body.len().to_string());
    assert!(reply.header("date").ends_with(" GMT"));
    assert_eq!(reply.header("x-selvedge-refused"), "", "an app's lie");
    let bill = world.ingress().explain(&RequestId(id.to_owned())).unwrap();
    assert_eq!((bill.status, bill.instance.unwrap().0.as_str()), (200, "a"));

    // Side by side on one connection.
    let begun = (0..20).map(|_| {
        let mut send = client.send.clone();
        async move {
            let mut talk = send.send_request(ask("/slow/30").body(()).unwrap()).await;
            let talk = talk.as_mut().unwrap();
            talk.finish().await.unwrap();
            read(talk).await.unwrap().status
        }
    });
    let all = futures::future::join_all(begun).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");
    assert!(app.seen.most_at_once.load(Ordering::SeqCst) > 1);
    let counts = world.ingress().counts();
    assert_eq!((counts.requests, counts.classes[1]), (21, 21));
    assert_eq!((counts.connections, counts.handshakes), (1, 1));
}

#[tokio::test]
async fn a_head_is_answered_without_a_body() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let head = |host: &str| {
        let request = Request::builder().method(Method::HEAD);
        request.uri(format!("https://{host}/")).body(()).unwrap()
    };
    let reply = client.send(head(WEB), "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(reply.header("content-length"), "1");
    let reply = client.send(head("none.edge.test"), "").await;
    assert_eq!((reply.status, reply.body.as_str()), (404, ""));
    assert!(reply.header("content-length").parse::<u32>().unwrap() > 0);
}

#[tokio::test]
async fn bodies_pass_as_they_come_both_ways() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let post = || ask("/echo").method("POST");
    let mut talk = client.begin(post().body(()).unwrap()).await.unwrap();
    for text in ["one", "two", "three"] {
        talk.send_data(Bytes::from(text)).await.unwrap();
        if text == "one" {
            assert_eq!(talk.recv_response().await.unwrap().status(), 200);
        }
        let mut came = talk.recv_data().await.unwrap().unwrap();
        assert_eq!(came.copy_to_bytes(came.remaining()), text);
    }
    talk.finish().await.unwrap();
    assert!(talk.recv_data().await.unwrap().is_none());

    for length in [1, 20_000, 1_000_000] {
        let text = "x".repeat(length);
        let request = post().header("content-length", length).body(()).unwrap();
        assert!(client.send(request, text.clone()).await.body == text);
        let request = post().body(()).unwrap();
        assert!(client.send(request, text.clone()).await.body == text);
    }
    let reply = client.get("/stream/64").await;
    assert_eq!(reply.body.len(), 64 * 64 * 1024);
}

/// An instance that does not read holds up its own client and nobody else.
#[tokio::test]
async fn who_is_not_read_waits() {
    const ALL: usize = 64 * 1024 * 1024;
    let (world, cert) = world(Deployed::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.open(1, "lazy", listener.local_addr().unwrap());
    let (go, going) = tokio::sync::oneshot::channel::<()>();
    let app = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nread";
        tokio::spawn(async move {
            loop {
                let (mut other, _) = listener.accept().await.unwrap();
                let _ = other.read(&mut [0; 4096]).await;
                other.write_all(answer).await.unwrap();
            }
        });
        going.await.unwrap();
        let (mut read, mut buffer) = (0, vec![0; 256 * 1024]);
        while read < ALL {
            read += first.read(&mut buffer).await.unwrap();
        }
        first.write_all(answer).await.unwrap();
        let _ = first.read(&mut buffer).await;
    });
    let mut client = Client::new(&world, &cert).await;
    let request = ask("/").method("POST").header("content-length", ALL);
    let mut talk = client.begin(request.body(()).unwrap()).await.unwrap();
    let sending = tokio::spawn(async move {
        let part = Bytes::from(vec![b'x'; 64 * 1024]);
        for _ in 0..ALL / part.len() {
            talk.send_data(part.clone()).await.unwrap();
        }
        talk.finish().await.unwrap();
        read(&mut talk).await.unwrap()
    });
    for _ in 0..10 {
        assert_eq!(client.get("/").await.body, "read");
    }
    assert!(!sending.is_finished(), "it cannot be with anybody");
    go.send(()).unwrap();
    assert_eq!(sending.await.unwrap().status, 200);
    drop(client);
    app.abort();
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let deployed = Deployed {
        protocol: Protocol::H2c,
        ..Deployed::default()
    };
    let (world, cert) = world(deployed).await;
    let _app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let request = ask("/trailers").header("te", "trailers").body(()).unwrap();
    let reply = client.send(request, "").await;
    assert_eq!(reply.body, "body");
    assert_eq!(reply.trailers.unwrap()["x-sum"], "42");

    let request = ask("/echo").method("POST").header("te", "trailers");
    let mut talk = client.begin(request.body(()).unwrap()).await.unwrap();
    talk.send_data(Bytes::from("ping")).await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    talk.send_trailers(trailers).await.unwrap();
    talk.finish().await.unwrap();
    let reply = read(&mut talk).await.unwrap();
    assert_eq!(reply.body, "ping");
    assert_eq!(reply.trailers.unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn answers_of_the_door_s_own_say_why() {
    let (world, cert) = world(Deployed::default()).await;
    let mut client = Client::new(&world, &cert).await;
    let request = Request::get("https://none.edge.test/").header("accept", "application/json");
    let reply = client.send(request.body(()).unwrap(), "").await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.header("x-selvedge-error"), "no-such-host");
    let said: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(said["request"], reply.header("x-request-id"));
    let connect = Request::builder().method(Method::CONNECT).uri(WEB);
    let reply = client.send(connect.body(()).unwrap(), "").await;
    assert_eq!(reply.status, 405);
    let many = (0..=100).fold(ask("/"), |r, at| r.header(format!("x-{at}"), "y"));
    let reply = client.send(many.body(()).unwrap(), "").await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.header("x-selvedge-error"), "bad-request");
}

/// The library's client keeps to what it is told is allowed: it is not told.
#[tokio::test]
async fn a_head_that_is_too_large_is_answered_with_431() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let long = ask("/").header("x", "y".repeat(70_000));
    // Small on the wire, large for who takes it in.
    let many = (0..1_500).fold(ask("/"), |r, at| r.header(format!("x{at}"), "0123456789"));
    for request in [long, many] {
        let (_endpoint, quic) = quic(door(&world), WEB, &cert).await.unwrap();
        let connection = h3_quinn::Connection::new(quic);
        let (_driver, mut send) = h3::client::new(connection).await.unwrap();
        let mut talk = send.send_request(request.body(()).unwrap()).await.unwrap();
        // Nobody reads it to its end.
        let _ = talk.finish().await;
        let reply = read(&mut talk).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (431, ""));
    }
    assert_eq!(app.seen.requests.load(Ordering::SeqCst), 0);
    assert_eq!(world.ingress().counts().classes[3], 2);
}

#[tokio::test]
async fn an_answer_that_is_cut_short_does_not_look_whole() {
    let (world, cert) = world(Deployed::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.open(1, "a", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        stream.write_all(half).await.unwrap();
    });
    let mut client = Client::new(&world, &cert).await;
    let mut talk = client.begin(ask("/").body(()).unwrap()).await.unwrap();
    talk.finish().await.unwrap();
    let cut = read(&mut talk).await.unwrap_err();
    let code = Code::H3_INTERNAL_ERROR;
    assert!(
        matches!(cut, StreamError::RemoteTerminate { code: c, .. } if c == code),
        "{cut:?}"
    );
}

/// Nobody waits for an answer that nobody wants, and the instance is not blamed.
#[tokio::test]
async fn a_client_that_breaks_off_frees_the_instance() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let inside = |count| app.seen.open.load(Ordering::SeqCst) == count;
    for upload in [false, true] {
        let request = ask(if upload { "/echo" } else { "/slow/60000" });
        let request = request.method(if upload { "POST" } else { "GET" });
        let mut talk = client.begin(request.body(()).unwrap()).await.unwrap();
        if upload {
            talk.send_data(Bytes::from("part")).await.unwrap();
        } else {
            talk.finish().await.unwrap();
        }
        eventually("it is inside", || inside(1)).await;
        if upload {
            talk.stop_stream(Code::H3_REQUEST_CANCELLED);
            assert!(read(&mut talk).await.is_err());
        } else {
            talk.stop_sending(Code::H3_REQUEST_CANCELLED);
        }
        eventually("it is out", || inside(0)).await;
    }
    assert_eq!(client.get("/").await.body, "a");
    let problems = world.ingress().counts().problems;
    assert!(
        problems.iter().all(|(_, count)| *count == 0),
        "{problems:?}"
    );
}

#[tokio::test]
async fn a_request_starts_an_instance() {
    let (world, cert) = world(Deployed::default()).await;
    let mut client = Client::new(&world, &cert).await;
    let post = ask("/echo").method("POST").body(()).unwrap();
    assert_eq!(client.send(post, "held").await.body, "held");
    assert_eq!(world.starter.starts(), 1);
    let bills = world.ingress().bills();
    assert_eq!(bills.len(), 1);
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_asked_for() {
    let world = World::new(1, Deployed::default(), super::on).await;
    let (web, api) = (made(&[WEB]), made(&["api.edge.test"]));
    let mut table = crate::tls::Table::default();
    table.put(&web.bundle);
    table.put(&api.bundle);
    world.nodes[0].shelf.set(table);
    // Each trusts its own alone.
    quic(door(&world), WEB, &web).await.unwrap();
    quic(door(&world), "api.edge.test", &api).await.unwrap();
    assert!(quic(door(&world), WEB, &api).await.is_err());
    assert!(quic(door(&world), "none.edge.test", &web).await.is_err());
    eventually("the unknown name is counted", || {
        let counts = world.ingress().counts();
        counts.unknown_names == 1 && counts.handshakes_failed == 1 && counts.handshakes == 2
    })
    .await;
}

#[tokio::test]
async fn answers_over_https_say_where_http3_is() {
    let (world, cert) = world(Deployed {
        plain_http: true,
        ..Deployed::default()
    })
    .await;
    let _app = world.run(1, "a").await;
    let want = format!("h3=\":{}\"; ma=3600", door(&world).port());
    let tls = async |alpn| {
        let client = cert.client(&[alpn]);
        connect(door(&world), WEB, &client).await.unwrap()
    };
    // The express way, the general one, and no way at all.
    for (path, host) in [("/", WEB), ("/trailers", WEB), ("/", "none.edge.test")] {
        for version in ["http/1.1", "h2"] {
            let request = Request::get(format!("https://{host}{path}"));
            let reply = if version == "h2" {
                h2(tls("h2").await, request).await
            } else {
                let request = Request::get(path).header("host", host);
                let request = if path == "/trailers" {
                    request.header("te", "trailers")
                } else {
                    request
                };
                h1(tls("http/1.1").await, request.body("".into()).unwrap()).await
            };
            assert_eq!(reply.header("alt-svc"), want, "{version} {host}{path}");
        }
    }
    assert_eq!(
        get(world.door(), "/").await.header("alt-svc"),
        "",
        "not plain"
    );
    let without = World::one(Deployed::default()).await;
    let _app = without.run(1, "a").await;
    cert.on(&without);
    let at = door(&without);
    let stream = connect(at, WEB, &cert.client(&[])).await.unwrap();
    let request = Request::get("/").header("host", WEB);
    let reply = h1(stream, request.body("".into()).unwrap()).await;
    assert_eq!((reply.status, reply.header("alt-svc")), (200, ""));
    let nobody = tokio::time::timeout(Duration::from_millis(300), quic(at, WEB, &cert)).await;
    assert!(!matches!(nobody, Ok(Ok(_))), "it is off");
}
