//! Clients of HTTP/2 that cost more than they ask for: each is told to be calm, and nobody else notices.

use std::sync::atomic::Ordering;
use std::time::Duration;

use scheduler::model::InstanceId;

use super::app::{self, App};
use super::frames::{
    CALM, CONTINUATION, DATA, END_HEADERS, Frame, GOAWAY, HEADERS, PING, PRIORITY, REFUSED_STREAM,
    RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, fields, frame, get, post, reset,
};
use super::world::{Deployed, World, eventually};
use crate::ingress::workers;

/// Rounds that no client may finish.
const ROUNDS: usize = 100_000;

async fn world() -> (World, App) {
    let deployed = Deployed {
        timeout_seconds: 60,
        ..Deployed::default()
    };
    let world = World::one(deployed).await;
    let app = world.run(1, "a").await;
    (world, app)
}

/// The code of what the door said last of all.
fn farewell(said: &[Frame]) -> Option<u32> {
    let mut farewells = said.iter().rev().filter(|f| f.kind == GOAWAY);
    farewells.next().map(Frame::code)
}

fn stream(round: usize) -> u32 {
    u32::try_from(2 * round + 1).unwrap()
}

/// Nothing of it is left, and others are served.
async fn as_before(world: &World, what: &str) {
    assert_eq!(app::get(world.door(), "/").await.status, 200, "{what}");
    // Each worker has a place at hand for the next client, at each of two addresses.
    let rest = 2 * (workers::parts() as u64 - 1);
    let gone = || world.ingress().counts().open_connections == rest;
    eventually(what, gone).await;
    let inside = || world.local().in_flight(&InstanceId("a".into()));
    eventually(what, || inside() == 0).await;
}

#[tokio::test]
async fn frames_that_carry_nothing_end_the_connection() {
    type Round = fn() -> Vec<u8>;
    let table: [(&str, Round); 8] = [
        ("settings", || frame(SETTINGS, 0, 0, &[])),
        ("settings that change", || {
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0])
        }),
        ("pings", || frame(PING, 0, 0, b"12345678")),
        ("answers to no ping", || frame(PING, 1, 0, b"12345678")),
        ("windows", || frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("priorities", || frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 7])),
        ("frames of no kind", || frame(0x42, 0, 0, b"anything")),
        ("data of no bytes", || frame(DATA, 0, 1, &[])),
    ];
    let (world, _app) = world().await;
    for (what, round) in table {
        let mut raw = Raw::connect(world.door(), &[]).await;
        raw.send(&post(1, "/slow/50000")).await;
        let said = raw.flood(ROUNDS, |_| round()).await;
        assert_eq!(farewell(&said), Some(CALM), "{what}");
        as_before(&world, what).await;
    }
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_end_the_connection() {
    let (world, _app) = world().await;
    let said = Raw::connect(world.door(), &[])
        .await
        .flood(ROUNDS, |round| {
            [get(stream(round), "/slow/50000"), reset(stream(round))].concat()
        });
    assert_eq!(farewell(&said.await), Some(CALM));
    as_before(&world, "at once").await;
    // A few at a time, so that each was taken in before it is reset.
    let mut raw = Raw::connect(world.door(), &[]).await;
    let mut opened = 0;
    loop {
        let some = opened..opened + 20;
        opened += 20;
        let opens: Vec<u8> = some
            .clone()
            .flat_map(|n| get(stream(n), "/slow/50000"))
            .collect();
        raw.send(&opens).await;
        if !raw.heard().await {
            break;
        }
        let resets: Vec<u8> = some.flat_map(|n| reset(stream(n))).collect();
        raw.send(&resets).await;
        assert!(opened < 2_000, "it goes on");
        if !raw.heard().await {
            break;
        }
    }
    assert!(opened > 100, "what browsers do is borne: {opened}");
    drop(raw);
    as_before(&world, "slowly").await;
}

#[tokio::test]
async fn streams_that_the_door_is_made_to_reset_end_the_connection() {
    let (world, _app) = world().await;
    // A window that grows beyond what there is makes a fault of that stream's alone.
    let said = Raw::connect(world.door(), &[])
        .await
        .flood(ROUNDS, |round| {
            let all = frame(WINDOW_UPDATE, 0, stream(round), &[0x7f, 255, 255, 255]);
            [get(stream(round), "/slow/50000"), all].concat()
        });
    assert_eq!(farewell(&said.await), Some(CALM));
    as_before(&world, "made to reset").await;
}

#[tokio::test]
async fn continuations_without_end_end_the_connection() {
    let (world, app) = world().await;
    for part in [&[][..], &[0x40, 1, b'x', 1, b'y']] {
        let mut raw = Raw::connect(world.door(), &[]).await;
        raw.send(&frame(HEADERS, 0, 1, &fields("GET", "/"))).await;
        let said = raw.flood(ROUNDS, |_| frame(CONTINUATION, 0, 1, part)).await;
        assert_eq!(farewell(&said), Some(CALM), "{part:?}");
        as_before(&world, "continuations").await;
    }
    assert_eq!(
        app.seen.requests.load(Ordering::SeqCst),
        2,
        "but the others'"
    );
}

#[tokio::test]
async fn more_streams_than_are_allowed_are_refused_and_then_the_client_is() {
    let (world, app) = world().await;
    let mut raw = Raw::connect(world.door(), &[]).await;
    assert!(raw.heard().await);
    let opens: Vec<u8> = (0..150)
        .flat_map(|n| get(stream(n), "/slow/50000"))
        .collect();
    raw.send(&opens).await;
    let mut refused = 0;
    while refused < 50 {
        let frame = raw.next().await.expect("it is only refused");
        if frame.kind == RST_STREAM {
            assert_eq!((frame.code(), frame.stream > 199), (REFUSED_STREAM, true));
            refused += 1;
        }
    }
    eventually("the allowed are served", || {
        app.seen.at_once.load(Ordering::SeqCst) == 100
    })
    .await;
    let said = raw
        .flood(ROUNDS, |n| get(stream(150 + n), "/slow/50000"))
        .await;
    assert_eq!(farewell(&said), Some(CALM));
    as_before(&world, "too many").await;
}

/// Header lists larger than is allowed: sent as they are, and blown up from a few bytes.
#[tokio::test]
async fn header_lists_that_are_too_large_reach_nobody() {
    let (world, app) = world().await;
    let value = vec![b'v'; 3_900];
    // A field of 3900 bytes, remembered in the table (HPACK, 6.2.1), and one byte that means it again.
    let large = [&[0x40, 1, b'x', 0x7f, 0xbd, 0x1d][..], &value].concat();
    let again = |times: usize| [fields("GET", "/"), large.clone(), vec![0xbe; times]].concat();
    let mut raw = Raw::connect(world.door(), &[]).await;
    assert!(raw.heard().await);
    raw.send(&frame(HEADERS, END_HEADERS | 1, 1, &again(20)))
        .await;
    let answer = loop {
        let frame = raw.next().await.expect("an answer");
        if frame.stream == 1 {
            break frame;
        }
    };
    assert_eq!(answer.kind, HEADERS);
    let status = answer.payload.windows(3).any(|w| w == b"431");
    assert!(status || answer.payload.contains(&0x48), "431: {answer:?}");
    // What would be 16 MB is not even looked at to its end.
    let said = raw
        .flood(1, |_| frame(HEADERS, END_HEADERS | 1, 3, &again(4_000)))
        .await;
    assert_eq!(farewell(&said), Some(CALM));
    as_before(&world, "large headers").await;
    assert_eq!(
        app.seen.requests.load(Ordering::SeqCst),
        1,
        "but the other one's"
    );
}

fn memory() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test]
async fn floods_take_little_memory() {
    let (world, _app) = world().await;
    as_before(&world, "warm").await;
    let before = memory();
    for _ in 0..3 {
        let floods = (0..20).map(|n| {
            let door = world.door();
            async move {
                let raw = Raw::connect(door, &[]).await;
                raw.flood(ROUNDS, |round| match n % 4 {
                    0 => [get(stream(round), "/slow/50000"), reset(stream(round))].concat(),
                    1 => frame(PING, 0, 0, b"12345678"),
                    2 => frame(SETTINGS, 0, 0, &[]),
                    _ => get(stream(round), "/slow/50000"),
                })
                .await
            }
        });
        for said in futures::future::join_all(floods).await {
            assert_eq!(farewell(&said), Some(CALM));
        }
    }
    as_before(&world, "sixty floods").await;
    let grown = memory().saturating_sub(before);
    assert!(grown < 50 << 20, "{grown} bytes");
}

#[tokio::test]
async fn a_client_that_takes_much_in_may_say_much() {
    let (world, _app) = world().await;
    let mut raw = Raw::connect(world.door(), &[]).await;
    // 100 MB, for which two windows are enlarged, and a ping is sent, with each frame.
    raw.send(&get(1, "/stream/1600")).await;
    let (mut bytes, mut said) = (0, 0);
    loop {
        let next = raw.next().await.expect("no end before the last byte");
        assert!(next.kind != GOAWAY, "after {said} frames");
        if next.kind != DATA {
            continue;
        }
        bytes += next.payload.len();
        if next.flags == 1 {
            break;
        }
        let more = u32::try_from(next.payload.len())
            .unwrap()
            .max(1)
            .to_be_bytes();
        let updates = [
            frame(WINDOW_UPDATE, 0, 0, &more),
            frame(WINDOW_UPDATE, 0, 1, &more),
            frame(PING, 0, 0, b"estimate"),
        ];
        raw.send(&updates.concat()).await;
        said += 3;
    }
    assert_eq!(bytes, 1600 * 64 * 1024);
    assert!(said > 3_000, "{said}");
    // Half of its streams given up, for as long as it likes.
    for n in 1..400 {
        let (whole, given_up) = (stream(2 * n), stream(2 * n + 1));
        raw.send(&get(whole, "/")).await;
        loop {
            let next = raw.next().await.expect("an answer");
            assert!(next.kind != GOAWAY, "after {n}");
            if next.stream == whole && next.flags & 1 == 1 && next.kind <= HEADERS {
                break;
            }
        }
        raw.send(&[get(given_up, "/slow/50000"), reset(given_up)].concat())
            .await;
    }
    assert!(raw.heard().await);
    tokio::time::timeout(Duration::from_secs(10), async { drop(raw) })
        .await
        .unwrap();
}
