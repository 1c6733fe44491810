//! Requests that find nothing with room.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use scheduler::model::{InstanceId, NodeId, RequestId};

use super::app::{get, post};
use super::world::{Deployed, Starts, World, eventually, revision};
use crate::wire::peer::StartRefusal;

fn crash() -> StartRefusal {
    StartRefusal::Failed {
        code: "Exited".into(),
        message: "exit code 1".into(),
        exit: None,
    }
}

fn set(world: &World, node: u64, how: Starts) {
    world.starter.how.lock().unwrap().insert(NodeId(node), how);
}

#[tokio::test]
async fn the_first_request_starts_an_instance_and_has_a_bill() {
    let world = World::one(Deployed::default()).await;
    let reply = post(world.door(), "/echo", "hello").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello"));
    assert_eq!(world.starter.starts(), 1);
    let id = RequestId(reply.header("x-request-id").to_owned());
    let bill = world.ingress().explain(&id).unwrap();
    assert_eq!(bill.instance, Some(InstanceId("web-00001-0".into())));
    assert_eq!(bill.node, Some(NodeId(1)));
    let names: Vec<&str> = bill.phases.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["queue", "place", "ready", "proxy"]);
    assert!(bill.phases[2].1 >= 25_000, "{bill:?}");
    assert_eq!(bill.receipt.unwrap().cause, "request");
    assert_eq!(world.ingress().bills().len(), 1);
    assert_eq!(get(world.door(), "/").await.status, 200);
    assert_eq!(world.starter.starts(), 1, "the second request is warm");
    assert_eq!(world.ingress().bills().len(), 1);
}

#[tokio::test]
async fn a_herd_starts_only_what_its_size_needs() {
    let world = World::one(Deployed {
        hard: 50,
        ..Deployed::default()
    })
    .await;
    set(&world, 1, Starts::After(Duration::from_millis(100)));
    let door = world.door();
    let replies = join_all((0..200).map(|_| get(door, "/slow/20"))).await;
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let starts = world.starter.starts();
    assert!((1..=4).contains(&starts), "{starts} starts");
    for app in world.starter.apps.lock().unwrap().iter() {
        let most = app.seen.most_at_once.load(Ordering::SeqCst);
        assert!(most <= 50, "{most} at once in one instance");
    }
    assert_eq!(world.ingress().demand(), []);
    assert_eq!(world.ingress().counts().held, 0);
}

#[tokio::test]
async fn held_requests_are_demand() {
    let world = World::one(Deployed::default()).await;
    set(&world, 1, Starts::After(Duration::from_millis(300)));
    let door = world.door();
    let herd: Vec<_> = (0..5)
        .map(|_| tokio::spawn(async move { get(door, "/").await }))
        .collect();
    let shown = || {
        let demand = world.ingress().demand();
        demand.len() == 1 && demand[0].revision == revision() && demand[0].queued == 5
    };
    eventually("five are shown waiting", shown).await;
    for reply in herd {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(world.ingress().demand(), []);
}

#[tokio::test]
async fn a_failed_start_is_told_and_not_hammered() {
    let world = World::one(Deployed::default()).await;
    set(&world, 1, Starts::Fail(crash()));
    let reply = get(world.door(), "/").await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (503, "start-failed")
    );
    assert!(reply.body.contains("Exited: exit code 1"), "{}", reply.body);
    assert_eq!(reply.header("retry-after"), "1");
    let id = RequestId(reply.header("x-request-id").to_owned());
    let bill = world.ingress().explain(&id).unwrap();
    assert_eq!(bill.problem.as_deref(), Some("start-failed"));
    assert_eq!(bill.node, None);

    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(get(world.door(), "/").await.status, 503);
    }
    let rounds = begun.elapsed().as_secs() + 2;
    assert!(world.starter.starts() <= usize::try_from(rounds).unwrap());

    set(&world, 1, Starts::After(Duration::from_millis(1)));
    let until = Instant::now() + Duration::from_secs(10);
    while get(world.door(), "/").await.status != 200 {
        assert!(Instant::now() < until, "a repaired service comes back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_next_node_is_asked_when_one_refuses() {
    let world = World::new(3, Deployed::default(), |_| {}).await;
    set(
        &world,
        1,
        Starts::Fail(StartRefusal::NoRoom("memory".into())),
    );
    let reply = get(world.door(), "/").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let asked = world.starter.asked.lock().unwrap().clone();
    assert_eq!(asked[0], NodeId(1));
    assert_eq!(asked.len(), 2, "{asked:?}");
    let id = RequestId(reply.header("x-request-id").to_owned());
    let bill = world.ingress().explain(&id).unwrap();
    assert_eq!(
        bill.node,
        Some(asked[1]),
        "served there before gossip shows it"
    );
    assert_eq!(get(world.door(), "/").await.status, 200);
    assert_eq!(world.starter.starts(), 2);
}

#[tokio::test]
async fn no_room_anywhere_says_so_for_every_node() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    set(
        &world,
        1,
        Starts::Fail(StartRefusal::NoRoom("memory".into())),
    );
    set(&world, 2, Starts::Fail(StartRefusal::NotTaking));
    let reply = get(world.door(), "/").await;
    assert_eq!(
        (reply.status, reply.header("x-selvedge-error")),
        (503, "no-capacity")
    );
    assert!(reply.body.contains("n1: no room: memory"), "{}", reply.body);
    assert!(
        reply.body.contains("n2: the node is cordoned or leaving"),
        "{}",
        reply.body
    );
    assert_ne!(reply.header("retry-after"), "");
    // Whoever keeps the reasons is told once.
    let unplaced = world.starter.unplaced.lock().unwrap().clone();
    assert_eq!(unplaced.len(), 1, "{unplaced:?}");
    assert!(unplaced[0].contains("n1: no room: memory"), "{unplaced:?}");
}

#[tokio::test]
async fn an_image_nobody_gets_is_a_failed_start() {
    let world = World::one(Deployed::default()).await;
    set(
        &world,
        1,
        Starts::Fail(StartRefusal::Image("manifest unknown".into())),
    );
    let reply = get(world.door(), "/").await;
    assert_eq!(reply.header("x-selvedge-error"), "start-failed");
    assert!(
        reply.body.contains("ImagePull: manifest unknown"),
        "{}",
        reply.body
    );
}

#[tokio::test]
async fn the_queue_and_the_wait_are_bounded() {
    let world = World::new(1, Deployed::default(), |config| {
        config.activation_queue = 3;
        config.activation_timeout = Duration::from_millis(400);
    })
    .await;
    set(&world, 1, Starts::After(Duration::from_mins(1)));
    let door = world.door();
    let replies = join_all((0..10).map(|_| get(door, "/"))).await;
    let count = |code| {
        replies
            .iter()
            .filter(|r| r.header("x-selvedge-error") == code)
            .count()
    };
    assert_eq!((count("queue-full"), count("wait-timeout")), (7, 3));
    assert!(
        replies
            .iter()
            .all(|r| r.status == 503 && !r.header("retry-after").is_empty())
    );
    assert_eq!(world.starter.starts(), 1);
}

#[tokio::test]
async fn the_node_holds_only_so_many() {
    let world = World::new(1, Deployed::default(), |config| {
        config.node_queue = 2;
        config.activation_timeout = Duration::from_millis(300);
    })
    .await;
    set(&world, 1, Starts::After(Duration::from_mins(1)));
    let door = world.door();
    let replies = join_all((0..5).map(|_| get(door, "/"))).await;
    let full = replies
        .iter()
        .filter(|r| r.header("x-selvedge-error") == "queue-full");
    assert_eq!(full.count(), 3);
}

#[tokio::test]
async fn a_full_instance_makes_requests_wait_their_turn() {
    let world = World::one(Deployed {
        hard: 1,
        max: 1,
        ..Deployed::default()
    })
    .await;
    let app = world.run(1, "a").await;
    let ids = [(1, vec![InstanceId("a".into())])];
    world.publish(&ids.into());
    let door = world.door();
    let replies = join_all((0..10).map(|_| get(door, "/slow/10"))).await;
    assert!(replies.iter().all(|r| r.status == 200));
    assert_eq!(app.seen.most_at_once.load(Ordering::SeqCst), 1);
    assert_eq!(
        world.starter.starts(),
        0,
        "the service may have one instance only"
    );
}

#[tokio::test]
async fn full_instances_ask_for_more() {
    let world = World::one(Deployed {
        hard: 1,
        ..Deployed::default()
    })
    .await;
    let _app = world.run(1, "a").await;
    let door = world.door();
    let replies = join_all((0..4).map(|_| get(door, "/slow/300"))).await;
    assert!(replies.iter().all(|r| r.status == 200));
    let starts = world.starter.starts();
    assert!((1..=3).contains(&starts), "{starts}");
}

#[tokio::test]
async fn an_instance_somebody_else_opened_lets_the_held_go() {
    let world = World::one(Deployed::default()).await;
    set(&world, 1, Starts::After(Duration::from_mins(1)));
    let door = world.door();
    let held = tokio::spawn(async move { get(door, "/").await });
    eventually("it is held", || world.ingress().counts().held == 1).await;
    let _app = world.run(1, "stewards").await;
    assert_eq!(held.await.unwrap().body, "stewards");
}

#[tokio::test]
async fn a_client_that_goes_away_is_forgotten() {
    let world = World::one(Deployed::default()).await;
    set(&world, 1, Starts::After(Duration::from_mins(1)));
    let door = world.door();
    let held = tokio::spawn(async move { get(door, "/").await });
    eventually("it is held", || world.ingress().counts().held == 1).await;
    held.abort();
    eventually("it is forgotten", || world.ingress().counts().held == 0).await;
    assert_eq!(world.ingress().demand(), []);
}
