//! Followers: they keep up, they catch up, they boot alone.

use super::world::*;
use crate::consensus::{OpenError, Part, Tuning};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_follows_proposes_and_boots_alone() {
    let world = World::new(Tuning::default());
    let founder = world.found().await;
    propose(&founder, create_token(&token(1))).await.unwrap();
    let follower = world.follower(9, &[1]).await;
    until("the first state", || has_token(&follower, 1)).await;
    propose(&follower, create_token(&token(2))).await.unwrap();
    until("its own write", || has_token(&follower, 2)).await;
    let index = follower.read_index(DEADLINE).await.unwrap();
    assert_eq!(index, founder.view().index());
    assert_eq!(*follower.view().state(), *founder.view().state());
    until("news of the quorum", || follower.status().quorum).await;
    assert_eq!(follower.status().part, Part::Follower);
    assert_eq!(follower.status().leader, Some(founder.node()));

    world.kill(&follower).await;
    world.kill(&founder).await;
    let alone = world.follower(9, &[1]).await;
    assert!(has_token(&alone, 2));
    assert!(!alone.status().quorum);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_missed_more_than_the_ring_gets_a_snapshot() {
    let world = World::new(Tuning {
        ring: 5,
        ..Tuning::default()
    });
    let founder = world.found().await;
    let follower = world.follower(9, &[1]).await;
    until("the first state", || {
        follower.view().index() == founder.view().index()
    })
    .await;
    world.kill(&follower).await;
    for n in 0..30 {
        propose(&founder, create_token(&token(n))).await.unwrap();
    }
    let follower = world.follower(9, &[1]).await;
    until("the snapshot", || {
        follower.view().index() == founder.view().index()
    })
    .await;
    assert_eq!(*follower.view().state(), *founder.view().state());
    propose(&founder, create_token(&token(99))).await.unwrap();
    until("steps after the snapshot", || has_token(&follower, 99)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_feeds_a_follower_and_another_source_is_found() {
    let world = World::new(Tuning::default());
    let founder = world.found().await;
    let near = world.follower(8, &[1]).await;
    let far = world.follower(9, &[8, 1]).await;
    propose(&founder, create_token(&token(1))).await.unwrap();
    until("the change at second hand", || has_token(&far, 1)).await;
    world.kill(&near).await;
    propose(&founder, create_token(&token(2))).await.unwrap();
    until("the change at first hand", || has_token(&far, 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_another_cluster_is_refused() {
    let world = World::new(Tuning::default());
    let founder = world.found().await;
    let follower = world.follower(9, &[1]).await;
    until("the first state", || {
        follower.view().index() == founder.view().index()
    })
    .await;
    world.kill(&follower).await;
    let error = world.stranger(9).await.unwrap_err();
    assert!(matches!(error, OpenError::ForeignCluster { .. }), "{error}");
}
