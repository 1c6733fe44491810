//! Requests answered by another node's instance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header;
use http_body_util::{Empty, Full};
use scheduler::model::{InstanceId, NodeId, Protocol, RequestId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::app::{App, get, post, request, send};
use super::world::{Deployed, Starts, World, eventually};

/// An instance `far` at node 2, known to all.
async fn far(world: &World) -> App {
    let app = world.run(2, "far").await;
    world.publish(&[(2, vec![InstanceId("far".into())])].into());
    app
}

#[tokio::test]
async fn the_nearest_node_with_an_instance_answers() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let world = World::new(
            2,
            Deployed {
                protocol,
                ..Deployed::default()
            },
            |_| {},
        )
        .await;
        let _app = far(&world).await;
        let reply = post(world.door(), "/echo", "x".repeat(500_000)).await;
        assert_eq!((reply.status, reply.body.len()), (200, 500_000));
        let reply = get(world.door(), "/headers").await;
        assert!(
            reply.body.contains("x-forwarded-for: 127.0.0.1"),
            "{}",
            reply.body
        );
        assert!(!reply.body.contains("x-selvedge"), "{}", reply.body);
        let id = reply.header("x-request-id").to_owned();
        assert!(
            reply.body.contains(&format!("x-request-id: {id}")),
            "{}",
            reply.body
        );
        assert_eq!(reply.header("x-selvedge-instance"), "");
        let line = world.ingress().explain(&RequestId(id)).unwrap();
        assert_eq!(
            (line.node, line.instance),
            (Some(NodeId(2)), Some(InstanceId("far".into())))
        );
        let trailers = request("/trailers").header(header::TE, "trailers");
        let reply = send(world.door(), trailers.body(Empty::<Bytes>::new()).unwrap()).await;
        assert_eq!(reply.trailers.unwrap()["x-sum"], "42");
        assert_eq!(world.starter.starts(), 0);
        assert_eq!(world.nodes[1].ingress().counts().served_for_peers, 3);
    }
}

/// What a door adds for its peer is not held against the client, nor against the instance.
#[tokio::test]
async fn as_many_headers_as_a_request_may_have_go_through_two_nodes() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    let mut many = request("/headers");
    // With `host`, and the five that say whose it is, as many as the program takes.
    for n in 1..95 {
        many = many.header(format!("x-{n}"), "1");
    }
    let reply = send(world.door(), many.body(Empty::<Bytes>::new()).unwrap()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.body.contains("x-94: 1"), "{}", reply.body);
    // A long body goes another way.
    let mut many = request("/echo").method("POST");
    for n in 1..94 {
        many = many.header(format!("x-{n}"), "1");
    }
    let long = Full::new(Bytes::from(vec![b'x'; 200_000]));
    let reply = send(world.door(), many.body(long).unwrap()).await;
    assert_eq!(
        (reply.status, reply.body.len()),
        (200, 200_000),
        "{:?}",
        reply.headers
    );
}

#[tokio::test]
async fn upgrades_go_through_two_nodes() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    let mut stream = TcpStream::connect(world.door()).await.unwrap();
    let line = b"GET /upgrade HTTP/1.1\r\nhost: web.edge.test\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(line).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    let there = || world.nodes[1].local.in_flight(&InstanceId("far".into()));
    assert_eq!(there(), 1);
    drop(stream);
    eventually("both tunnels end", || there() == 0).await;
}

#[tokio::test]
async fn a_node_that_has_none_after_all_is_passed_over() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    // Gossip says node 2 has one; it has none.
    world.publish(&[(2, vec![InstanceId("gone".into())])].into());
    let body = "y".repeat(40_000);
    let reply = post(world.door(), "/echo", body.clone()).await;
    assert_eq!(
        (reply.status, reply.body == body),
        (200, true),
        "{:?}",
        reply.headers
    );

    assert_eq!(*world.starter.asked.lock().unwrap(), [NodeId(1)]);
}

#[tokio::test]
async fn a_dead_node_is_left_alone_and_an_instance_started_here() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    assert_eq!(get(world.door(), "/").await.body, "far");
    world.pipes.cut(2);
    let reply = get(world.door(), "/").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "web-00001-0"));
    assert_eq!(get(world.door(), "/").await.body, "web-00001-0");
    assert_eq!(
        world.ingress().counts().sent_to_peers,
        2,
        "asked once in vain, then left alone"
    );
}

#[tokio::test]
async fn requests_in_a_dying_instance_far_away_are_repeated() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    let reply = get(world.door(), "/flaky").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = post(world.door(), "/reset", "x").await;
    assert_eq!(reply.header("x-selvedge-error"), "upstream-reset");
}

#[tokio::test]
async fn a_full_node_far_away_is_not_overrun() {
    let world = World::new(
        2,
        Deployed {
            hard: 2,
            max: 1,
            ..Deployed::default()
        },
        |_| {},
    )
    .await;
    let app = far(&world).await;
    let door = world.door();
    let replies = futures::future::join_all((0..12).map(|_| get(door, "/slow/10"))).await;
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    assert!(app.seen.most_at_once.load(Ordering::SeqCst) <= 2);
    assert_eq!(world.starter.starts(), 0);
}

#[tokio::test]
async fn when_nothing_can_be_started_a_doubtful_endpoint_is_better_than_none() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    // Node 1 takes node 2 for dead, and has no room itself.
    let mut fleet = (**world.nodes[0].fleet.borrow()).clone();
    fleet.members.get_mut(&NodeId(2)).unwrap().alive = false;
    let state = world.deployed.state();
    let routes = scheduler::route::Routes::build(&state, &fleet, super::world::ORIGIN);
    world.nodes[0].routes.store(routes.into());
    world.nodes[0].fleet.send_replace(fleet.into());
    let no_room = crate::wire::peer::StartRefusal::NoRoom("memory".into());
    let how = Starts::Fail(no_room);
    world.starter.how.lock().unwrap().insert(NodeId(1), how);
    let reply = get(world.door(), "/").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "far"));
}

#[tokio::test]
async fn a_slow_far_answer_ends_at_the_timeout() {
    let world = World::new(
        2,
        Deployed {
            timeout_seconds: 1,
            ..Deployed::default()
        },
        |_| {},
    )
    .await;
    let app = far(&world).await;
    let reply = get(world.door(), "/slow/20000").await;
    assert_eq!(reply.status, 504);
    let there = || world.nodes[1].local.in_flight(&InstanceId("far".into()));
    eventually("it leaves the far instance too", || there() == 0).await;
    drop(app);
}

#[tokio::test]
async fn a_herd_is_served_by_instances_started_elsewhere() {
    let world = World::new(
        2,
        Deployed {
            hard: 20,
            ..Deployed::default()
        },
        |_| {},
    )
    .await;
    let no_room = crate::wire::peer::StartRefusal::NoRoom("memory".into());
    let how = Starts::Fail(no_room);
    world.starter.how.lock().unwrap().insert(NodeId(1), how);
    let door = world.door();
    let replies = futures::future::join_all((0..60).map(|_| get(door, "/slow/10"))).await;
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let there = |n: &&NodeId| **n == NodeId(2);
    let started = world
        .starter
        .asked
        .lock()
        .unwrap()
        .iter()
        .filter(there)
        .count();
    assert!((1..=3).contains(&started), "{started} started");
    for app in world.starter.apps.lock().unwrap().iter() {
        assert!(app.seen.most_at_once.load(Ordering::SeqCst) <= 20);
    }
}

#[tokio::test]
async fn a_closing_door_still_serves_its_peers() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    let slow = tokio::spawn({
        let door = world.nodes[1].ingress().addrs()[0];
        async move { get(door, "/slow/300").await }
    });
    let far_id = InstanceId("far".into());
    eventually("it is inside", || {
        world.nodes[1].local.in_flight(&far_id) == 1
    })
    .await;
    let stopping = world.nodes[1]
        .ingress()
        .stop(std::time::Duration::from_secs(10));
    let (reply, in_order) = tokio::join!(post(world.door(), "/echo", "x"), stopping);
    assert!(in_order, "nobody was cut off");
    assert_eq!((reply.status, reply.body.as_str()), (200, "x"));
    assert_eq!(slow.await.unwrap().status, 200);
}

/// To find a node out of reach costs a request time and none of its tries: nothing was sent.
#[tokio::test]
async fn dead_nodes_do_not_use_up_a_requests_tries() {
    let world = World::new(6, Deployed::default(), |_| {}).await;
    let dead = 2..=6;
    dead.clone().for_each(|node| world.pipes.cut(node));
    let far = dead.map(|node| (node, vec![InstanceId(format!("far-{node}"))]));
    world.publish(&far.collect());
    let reply = post(world.door(), "/echo", "once".to_owned()).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "once"));
}

/// A peer that has not got its answer as the node leaves would ask another: the request would be served twice.
#[tokio::test]
async fn a_door_that_leaves_waits_until_its_answers_are_there() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = far(&world).await;
    let leaving = world.nodes[1].ingress();
    let (door, (mut near, far)) = (leaving.peer_door(), tokio::io::duplex(4_096));
    let place = door.enter().unwrap();
    let there = Arc::new(AtomicBool::new(false));
    let arrives = Arc::clone(&there);
    let delivered = async move {
        sleep(Duration::from_millis(500)).await;
        arrives.store(true, Ordering::SeqCst);
    };
    let serving = tokio::spawn(async move { door.serve(far, place, delivered).await });
    let asked = format!(
        "GET /slow/300 HTTP/1.1\r\nhost: web.edge.test\r\nx-selvedge-revision: {}\r\n\r\n",
        super::world::revision()
    );
    near.write_all(asked.as_bytes()).await.unwrap();
    let local = &world.nodes[1].local;
    let far = InstanceId("far".into());
    eventually("it is under way", || local.in_flight(&far) == 1).await;
    assert!(leaving.stop(Duration::from_secs(10)).await);
    assert!(there.load(Ordering::SeqCst), "it left before");
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serving.await.unwrap();
}
