//! Clients that are slow on purpose: with heads, with bodies, with reading. Each ends, what it held in an
//! instance is free again, and others are served meanwhile.

use std::time::{Duration, Instant};

use scheduler::model::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::app::get;
use super::frames::{self, DATA, END_HEADERS, HEADERS, RST_STREAM, Raw, fields, frame};
use super::world::{Deployed, World, eventually};

const PATIENCE: Duration = Duration::from_secs(100);

async fn world(timeout_seconds: u32) -> World {
    let deployed = Deployed {
        timeout_seconds,
        ..Deployed::default()
    };
    World::one(deployed).await
}

fn inside(world: &World) -> u32 {
    world.local().in_flight(&InstanceId("a".into()))
}

/// Sends `first`, then these bytes one by one until the door has had enough; what it said.
async fn trickle(world: &World, first: &[u8], rest: &[u8], pause: Duration) -> String {
    let stream = TcpStream::connect(world.door()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut read, mut write) = stream.into_split();
    write.write_all(first).await.unwrap();
    let said = async {
        let mut said = Vec::new();
        let _reset = read.read_to_end(&mut said).await;
        String::from_utf8_lossy(&said).into_owned()
    };
    let sending = async {
        for byte in rest.iter().cycle() {
            sleep(pause).await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        tokio::select! {
            said = said => said,
            () = sending => String::new(),
        }
    };
    timeout(PATIENCE, ended).await.expect("the door ends it")
}

#[tokio::test]
async fn heads_that_trickle_end_after_their_time() {
    let world = world(60).await;
    let _app = world.run(1, "a").await;
    let pause = Duration::from_millis(300);
    let head = b"GET / HTTP/1.1\r\nhost: web.edge.test\r\nx-long: ";
    // One that the express way reads, and one that hyper does from the second request on.
    let chunked = b"POST /echo HTTP/1.1\r\nhost: web.edge.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let second = [&chunked[..], head].concat();
    let begun = Instant::now();
    let (express, general, served) = tokio::join!(
        trickle(&world, head, b"x", pause),
        trickle(&world, &second, b"x", pause),
        get(world.door(), "/"),
    );
    assert_eq!(express, "");
    assert_eq!(general.matches("HTTP/1.1 200").count(), 1, "{general}");
    assert_eq!(served.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(40));
    assert_eq!(inside(&world), 0);
}

#[tokio::test]
async fn bodies_that_trickle_are_told_so() {
    let world = world(90).await;
    let _app = world.run(1, "a").await;
    let pause = Duration::from_millis(250);
    let host = "POST /whole HTTP/1.1\r\nhost: web.edge.test\r\n";
    let whole = format!("{host}content-length: 5000\r\n\r\nx");
    let chunked = format!("{host}transfer-encoding: chunked\r\n\r\n");
    let h2 = async {
        let mut raw = Raw::connect(world.door(), &[]).await;
        raw.send(&frames::post(1, "/whole")).await;
        loop {
            raw.send(&frame(DATA, 0, 1, b"x")).await;
            let next = timeout(pause, raw.next()).await;
            if let Ok(next) = next {
                let next = next.expect("an answer and no end");
                if next.stream == 1 && next.kind == HEADERS {
                    return next.payload;
                }
            }
        }
    };
    let (h2, whole, chunked, served) = tokio::join!(
        h2,
        trickle(&world, whole.as_bytes(), b"x", pause),
        trickle(&world, chunked.as_bytes(), b"1\r\nx\r\n", pause),
        get(world.door(), "/"),
    );
    for said in [&whole, &chunked] {
        assert!(said.starts_with("HTTP/1.1 408"), "{said}");
        assert!(said.contains("x-selvedge-error: slow-body"), "{said}");
    }
    assert!(!h2.is_empty());
    assert_eq!(served.status, 200);
    eventually("nothing is held", || inside(&world) == 0).await;
    assert_eq!(
        get(world.door(), "/").await.status,
        200,
        "nor held against the instance"
    );
    let problems = world.ingress().counts().problems;
    assert!(
        problems.contains(&("slow-body".to_owned(), 3)),
        "{problems:?}"
    );
}

#[tokio::test]
async fn calls_of_grpc_may_say_little_for_long() {
    let world = world(90).await;
    let _app = world.run(1, "a").await;
    let mut raw = Raw::connect(world.door(), &[]).await;
    let kind = [&[0x0f, 0x10, 16][..], b"application/grpc"].concat();
    let head = [fields("POST", "/slow/32000"), kind].concat();
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    let answer = loop {
        raw.send(&frame(DATA, 0, 1, b"x")).await;
        let next = timeout(Duration::from_millis(500), raw.next()).await;
        if let Ok(next) = next {
            let next = next.expect("an answer and no end");
            if next.stream == 1 {
                break next;
            }
        }
    };
    // 200 is number 8 of the static table.
    assert_eq!(
        (answer.kind, answer.payload[0]),
        (HEADERS, 0x88),
        "{answer:?}"
    );
}

#[tokio::test]
async fn readers_that_do_not_read_hold_nothing_beyond_the_timeout() {
    let world = world(2).await;
    let _app = world.run(1, "a").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(world.door()).await.unwrap();
    let ask = b"GET /stream/10000 HTTP/1.1\r\nhost: web.edge.test\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    // HTTP/2 has windows: one that never opens, and one that opens by a byte at a time.
    let mut shut = Raw::connect(world.door(), &[(4, 0)]).await;
    shut.send(&frames::get(1, "/stream/10000")).await;
    let mut small = Raw::connect(world.door(), &[(4, 0)]).await;
    small.send(&frames::get(1, "/stream/10000")).await;
    eventually("all three are in", || inside(&world) == 3).await;
    assert_eq!(get(world.door(), "/").await.status, 200);
    let reset = async |raw: &mut Raw, open: bool| {
        loop {
            if open {
                raw.send(&frame(frames::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]))
                    .await;
            }
            let next = timeout(Duration::from_millis(100), raw.next()).await;
            let Ok(next) = next else {
                continue;
            };
            if next.expect("only the stream ends").kind == RST_STREAM {
                break;
            }
        }
    };
    tokio::join!(reset(&mut shut, false), reset(&mut small, true));
    eventually("nothing is held", || inside(&world) == 0).await;
    // The connections are good for more.
    for raw in [&mut shut, &mut small] {
        raw.send(&frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]))
            .await;
        raw.send(&frames::get(3, "/")).await;
        while raw.next().await.expect("an answer").stream != 3 {}
    }
    drop(stream);
}
