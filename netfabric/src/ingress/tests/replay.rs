//! Requests that an instance sends on in the place of answering them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use scheduler::model::{InstanceId, NodeId, Protocol, RequestId};

use super::super::body::{KEEP_BYTES, REPLAY_BYTES};
use super::app::{App, Reply, request, send};
use super::world::{Deployed, World};

const HERE: &str = "web-00001-here";
const NEAR: &str = "web-00001-near";
const FAR: &str = "web-00001-far";

fn deployed() -> Deployed {
    Deployed {
        regions: vec!["par", "par", "lis"],
        ..Deployed::default()
    }
}

/// Three nodes in two regions, an instance on each, and all know of all.
async fn three(deployed: Deployed) -> (World, [App; 3]) {
    let world = World::new(3, deployed, |_| {}).await;
    let apps = [
        world.run(1, HERE).await,
        world.run(2, NEAR).await,
        world.run(3, FAR).await,
    ];
    let ids = [(1, HERE), (2, NEAR), (3, FAR)];
    let known = ids.map(|(node, id)| (node, vec![InstanceId(id.to_owned())]));
    world.publish(&known.into());
    (world, apps)
}

/// A request that the instance which gets it first has sent on by this order.
async fn ordered(door: SocketAddr, path: &str, order: &str, more: &[(&str, &str)]) -> Reply {
    let mut request = request(path).method("POST").header("x-order", order);
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    send(door, request.body(Full::new(Bytes::from("body"))).unwrap()).await
}

fn line<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    let mut lines = reply.body.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn a_request_goes_where_its_instance_sends_it() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (world, _apps) = three(Deployed {
            protocol,
            ..deployed()
        })
        .await;
        let table = [
            ("region=lis", FAR),
            ("region=\"nowhere, lis\"", FAR),
            ("region=l*", FAR),
            ("region=par;elsewhere=true", NEAR),
            ("elsewhere=true", NEAR),
            ("instance=web-00001-far", FAR),
            ("instance=web-00001-here", HERE),
            ("prefer_instance=web-00001-gone;region=any", HERE),
        ];
        for (order, want) in table {
            // By the express way and, for its `te`, by the general one.
            for more in [&[][..], &[("te", "trailers")]] {
                let reply = ordered(world.door(), "/", order, more).await;
                assert_eq!((reply.status, reply.body.as_str()), (200, want), "{order}");
                assert_eq!(reply.header("selvedge-replay"), "");
                let id = reply.header("x-request-id").to_owned();
                let line = world.ingress().explain(&RequestId(id)).unwrap();
                assert_eq!(line.instance, Some(InstanceId(want.to_owned())));
            }
        }
        let replays = world.ingress().counts().replays;
        assert_eq!(replays, 2 * table.len() as u64);
        assert_eq!(world.starter.starts(), 0);
    }
}

#[tokio::test]
async fn the_next_instance_is_told_whence_it_comes() {
    let (world, _apps) = three(deployed()).await;
    for (by, told, other) in [
        ("selvedge-replay", "selvedge-replay-src", "fly-replay-src"),
        ("Fly-Replay", "fly-replay-src", "selvedge-replay-src"),
    ] {
        let forged = [("x-by", by), (told, "forged"), (other, "forged")];
        let order = "region=lis;state=a=b c";
        let reply = ordered(world.door(), "/headers", order, &forged).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let source = line(&reply, told).unwrap();
        let fields: BTreeMap<_, _> = source
            .split(';')
            .filter_map(|f| f.split_once('='))
            .collect();
        assert_eq!(
            (fields["instance"], fields["region"]),
            (HERE, "par"),
            "{source}"
        );
        assert_eq!(fields["state"], "a=b c");
        assert!(fields["t"].parse::<u64>().unwrap() > 1_600_000_000_000_000);
        assert_eq!(
            line(&reply, other),
            None,
            "what a client says of it does not count"
        );
        assert_eq!(
            line(&reply, "x-request-id"),
            Some(reply.header("x-request-id"))
        );
        assert!(!reply.body.contains("x-selvedge"), "{}", reply.body);
    }
}

#[tokio::test]
async fn bodies_are_sent_on_whole_up_to_their_bound() {
    let (world, _apps) = three(deployed()).await;
    // Before it was read and after, by one way and the other.
    for (path, size) in [
        ("/echo", 0),
        ("/echo", 100),
        ("/whole", KEEP_BYTES),
        ("/whole", KEEP_BYTES + 1),
        ("/whole", REPLAY_BYTES),
    ] {
        let body: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
        let request = request(path).method("POST").header("x-order", "region=lis");
        let request = request.body(Full::new(Bytes::from(body.clone()))).unwrap();
        let reply = send(world.door(), request).await;
        assert_eq!(reply.status, 200, "{path} {size}: {}", reply.body);
        assert!(reply.body.as_bytes() == body, "{path} {size}");
    }
    let body = Bytes::from(vec![b'x'; REPLAY_BYTES + 1]);
    let large = request("/whole")
        .method("POST")
        .header("x-order", "region=lis");
    let reply = send(world.door(), large.body(Full::new(body)).unwrap()).await;
    let told = (reply.status, reply.header("x-selvedge-error"));
    assert_eq!(told, (413, "replay-too-large"));
    // One that does not say how long it is.
    let frame = |_| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(vec![b'x'; 1000])));
    let frames: Vec<_> = (0..2000).map(frame).collect();
    let body = StreamBody::new(futures::stream::iter(frames));
    let request = request("/whole")
        .method("POST")
        .header("x-order", "region=lis");
    let reply = send(world.door(), request.body(body).unwrap()).await;
    assert_eq!(reply.header("x-selvedge-error"), "replay-too-large");
}

#[tokio::test]
async fn orders_that_cannot_be_followed_are_told_by_a_code() {
    let (world, apps) = three(Deployed {
        beside: vec![("shop", "cart", vec![])],
        ..deployed()
    })
    .await;
    let table = [
        ("region=fra", 503, "replay-nowhere"),
        ("instance=web-00001-gone", 503, "replay-nowhere"),
        ("region=lis;region=par", 502, "replay-refused"),
        ("colour=red", 502, "replay-refused"),
        ("state=x", 502, "replay-refused"),
        ("app=cart", 502, "replay-refused"),
        ("app=shop/cart", 502, "replay-refused"),
    ];
    for (order, status, code) in table {
        for more in [&[][..], &[("te", "trailers")]] {
            let reply = ordered(world.door(), "/", order, more).await;
            let told = (reply.status, reply.header("x-selvedge-error"));
            assert_eq!(told, (status, code), "{order}");
            assert_eq!(reply.header("selvedge-replay"), "");
            assert!(!reply.body.contains("not for clients"));
        }
    }
    assert_eq!(apps[2].seen.requests.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_circle_ends() {
    let (world, apps) = three(deployed()).await;
    let reply = ordered(world.door(), "/loop", "elsewhere=true", &[]).await;
    let told = (reply.status, reply.header("x-selvedge-error"));
    assert_eq!(told, (502, "replay-refused"), "{}", reply.body);
    assert!(reply.body.contains("replayed 5 times"), "{}", reply.body);
    let seen = |app: &App| app.seen.requests.load(Ordering::SeqCst);
    assert_eq!(apps.iter().map(seen).sum::<u32>(), 6);
}

#[tokio::test]
async fn another_service_is_woken_and_knows_who_called() {
    let (world, _apps) = three(Deployed {
        beside: vec![("default", "api", vec![])],
        ..deployed()
    })
    .await;
    let reply = ordered(world.door(), "/headers", "app=api;state=x", &[]).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(line(&reply, "host"), Some("web.edge.test"));
    assert_eq!(line(&reply, "x-forwarded-host"), Some("web.edge.test"));
    assert_eq!(world.starter.starts(), 1);
    let id = RequestId(reply.header("x-request-id").to_owned());
    let told = world.ingress().explain(&id).unwrap();
    assert_eq!(told.revision.name.as_str(), "api-00001");
}

/// What cannot be reached goes back where that was asked for, and is answered there or not at all.
#[tokio::test]
async fn a_replay_that_fails_falls_back_to_its_sender() {
    let (world, apps) = three(deployed()).await;
    let orders = [
        "region=fra;fallback=force_self",
        "instance=web-00001-gone;fallback=prefer_self",
    ];
    for order in orders {
        let reply = ordered(world.door(), "/headers", order, &[]).await;
        assert_eq!(reply.status, 200, "{order}: {}", reply.body);
        let failed = line(&reply, "selvedge-replay-failed").unwrap();
        let want = format!("instance={HERE};region=par;reason=replay-nowhere");
        assert_eq!(failed, want);
    }
    // Known to all, and not there.
    world.pipes.cut(3);
    let order = "region=lis;fallback=force_self;state=x";
    let reply = ordered(world.door(), "/headers", order, &[]).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let failed = line(&reply, "selvedge-replay-failed").unwrap();
    assert!(
        failed.ends_with("reason=upstream-connect") || failed.ends_with("replay-nowhere"),
        "{failed}"
    );
    // Who has it back may not send it on again.
    let before = apps[0].seen.requests.load(Ordering::SeqCst);
    let order = "region=fra;fallback=force_self";
    let reply = ordered(world.door(), "/loop", order, &[]).await;
    assert_eq!(reply.header("x-selvedge-error"), "replay-refused");
    assert_eq!(apps[0].seen.requests.load(Ordering::SeqCst), before + 2);
    // Without a way back its client is told.
    let reply = ordered(world.door(), "/", "region=lis", &[]).await;
    assert_eq!(reply.status / 100, 5, "{reply:?}");
}

/// A node with two instances lets the meant one answer.
#[tokio::test]
async fn the_other_nodes_door_knows_which_instance_is_meant() {
    let world = World::new(2, deployed(), |_| {}).await;
    let names = ["web-00001-a", "web-00001-b"];
    let _apps = [world.run(2, names[0]).await, world.run(2, names[1]).await];
    let ids = names.map(|name| InstanceId(name.to_owned()));
    world.publish(&[(2, ids.to_vec())].into());
    for _ in 0..4 {
        for name in names {
            let order = format!("instance={name}");
            let reply = ordered(world.door(), "/", &order, &[]).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, name));
        }
        let reply = ordered(world.door(), "/headers", "elsewhere=true", &[]).await;
        let source = line(&reply, "selvedge-replay-src").unwrap();
        let sender = names.iter().find(|name| source.contains(**name)).unwrap();
        let id = RequestId(reply.header("x-request-id").to_owned());
        let told = world.ingress().explain(&id).unwrap();
        assert_eq!(told.node, Some(NodeId(2)));
        assert_ne!(told.instance, Some(InstanceId((*sender).to_owned())));
    }
}

/// Room is waited for where the request is meant to go, and nowhere else.
#[tokio::test]
async fn a_full_target_is_waited_for() {
    let (world, apps) = three(Deployed {
        hard: 1,
        ..deployed()
    })
    .await;
    let door = world.door();
    let slow = |_| ordered(door, "/slow/20", "instance=web-00001-far", &[]);
    // Sent to the one at the far node straight away, they meet at its one place.
    let far = world.nodes[2].ingress().addrs()[0];
    let direct = ordered(far, "/slow/200", "region=lis", &[("selvedge", "x")]);
    let replies = futures::future::join_all((0..3).map(slow));
    let (_, replies) = tokio::join!(direct, replies);
    for reply in replies {
        assert_eq!((reply.status, reply.body.as_str()), (200, FAR), "{reply:?}");
    }
    assert!(apps[2].seen.most_at_once.load(Ordering::SeqCst) <= 1);
}

/// Nothing is ready in the region: one start serves all that are meant for it.
#[tokio::test]
async fn a_region_is_woken_once_for_all() {
    let world = World::new(3, deployed(), |_| {}).await;
    let _app = world.run(1, HERE).await;
    world.publish(&[(1, vec![InstanceId(HERE.to_owned())])].into());
    let door = world.door();
    let ask = |_| ordered(door, "/headers", "region=lis", &[]);
    let replies = futures::future::join_all((0..20).map(ask)).await;
    for reply in &replies {
        assert_eq!(reply.status, 200, "{reply:?}");
        let id = RequestId(reply.header("x-request-id").to_owned());
        assert_eq!(world.ingress().explain(&id).unwrap().node, Some(NodeId(3)));
    }
    assert_eq!(*world.starter.asked.lock().unwrap(), [NodeId(3)]);
    // Where none may be, its client is told.
    let world = World::new(
        3,
        Deployed {
            max: 1,
            ..deployed()
        },
        |_| {},
    )
    .await;
    let _app = world.run(1, HERE).await;
    world.publish(&[(1, vec![InstanceId(HERE.to_owned())])].into());
    for order in ["region=lis", "elsewhere=true"] {
        let reply = ordered(world.door(), "/", order, &[]).await;
        let told = (reply.status, reply.header("x-selvedge-error"));
        assert_eq!(told, (503, "replay-nowhere"), "{order}");
    }
    assert_eq!(world.starter.starts(), 0);
}
