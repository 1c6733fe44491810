//! A voter whose disk failed: it says nothing more as a voter, and changes made at it go on by
//! way of the others.

use std::time::Duration;

use super::plan::Plan;
use super::run::{form, propose};
use super::world::{World, until};
use crate::consensus::tests::world::{create_token, token};
use crate::consensus::{Part, ProposeError};

#[tokio::test(start_paused = true)]
async fn a_leader_whose_sync_fails_stops_voting_and_asks_the_others() {
    let world = World::new(Plan::of(1));
    assert!(form(&world).await);
    let leads = |id: &u64| {
        let registry = world.registry(*id).unwrap();
        registry.status().part == Part::Leader
    };
    let id = world.voters().into_iter().find(leads).unwrap();
    let leader = world.registry(id).unwrap();
    world
        .disk(id)
        .unwrap()
        .faults(|faults| faults.sync_fails_after = Some(0));
    let answer = propose(&leader, create_token(&token(1))).await;
    assert_eq!(answer, Err(ProposeError::Unknown));
    let failed = || leader.status().failed.is_some();
    assert!(
        until(
            "the voter to say that it failed",
            Duration::from_secs(1),
            failed
        )
        .await
    );
    assert!(!leader.status().quorum);
    // The disk works again; this process stays fenced, and another one leads in time.
    let limit = tokio::time::Instant::now() + Duration::from_secs(12);
    while propose(&leader, create_token(&token(2))).await.is_err() {
        assert!(
            tokio::time::Instant::now() < limit,
            "nobody takes the change"
        );
    }
    assert!(leader.status().failed.is_some());
    assert!(!leads(&id));
}
