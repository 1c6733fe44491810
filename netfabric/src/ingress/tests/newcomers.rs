//! Newcomers that get their share little by little, at the door of their node and at that for peers.

use std::sync::atomic::Ordering;

use scheduler::model::InstanceId;

use super::app::{App, get};
use super::world::{Deployed, World};

const MANY: u32 = 200;

/// What a newcomer gets of many requests beside one that was there before; each is sent by itself, and
/// the newcomer comes first where there is nothing else to choose by.
async fn newcomers_share(node: usize, slow_start: Option<&'static str>) -> u32 {
    let deployed = Deployed {
        slow_start,
        ..Deployed::default()
    };
    let world = World::new(2, deployed, |_| {}).await;
    let [new, old] = ["new", "old"].map(|id| InstanceId(id.to_owned()));
    let apps = [world.run(node, &new.0).await, world.run(node, &old.0).await];
    world.nodes[node - 1].local.settle(&old);
    world.publish(&[(node as u64, vec![new, old])].into());
    for _ in 0..MANY {
        assert_eq!(get(world.door(), "/").await.status, 200);
    }
    let seen = |app: &App| app.seen.requests.load(Ordering::SeqCst);
    assert_eq!(seen(&apps[0]) + seen(&apps[1]), MANY);
    seen(&apps[0])
}

#[tokio::test]
async fn a_newcomer_gets_a_little_at_first_and_never_nothing() {
    for node in [1, 2] {
        let whole = newcomers_share(node, None).await;
        assert!(whole > MANY / 2, "node {node}: {whole} of {MANY}");
        let slow = newcomers_share(node, Some("15m")).await;
        assert!(
            (1..MANY / 2).contains(&slow),
            "node {node}: {slow} of {MANY}"
        );
    }
}

/// Who is alone serves, new or not.
#[tokio::test]
async fn newcomers_serve_when_nobody_else_can() {
    let deployed = Deployed {
        slow_start: Some("15m"),
        ..Deployed::default()
    };
    let world = World::new(2, deployed, |_| {}).await;
    let ids = ["a", "b"].map(|id| InstanceId(id.to_owned()));
    let _apps = [world.run(2, "a").await, world.run(2, "b").await];
    world.publish(&[(2, ids.to_vec())].into());
    for _ in 0..20 {
        assert_eq!(get(world.door(), "/").await.status, 200);
    }
    assert_eq!(world.starter.starts(), 0);
}
