//! A voter whose disk failed: it says nothing as a voter until the disk works, changes made at it go
//! on by way of the others, and then it votes again.

use std::time::Duration;

use super::plan::Plan;
use super::run::{form, propose};
use super::world::{World, until};
use crate::consensus::tests::world::{create_token, token};
use crate::consensus::{Part, ProposeError};

#[tokio::test(start_paused = true)]
async fn a_leader_whose_sync_fails_asks_the_others_and_comes_back() {
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
    // The disk works again; another one leads in time, and takes what is asked here.
    let limit = tokio::time::Instant::now() + Duration::from_secs(12);
    while propose(&leader, create_token(&token(2))).await.is_err() {
        assert!(
            tokio::time::Instant::now() < limit,
            "nobody takes the change"
        );
    }
    let back = || leader.status().failed.is_none();
    let patience = Duration::from_secs(12);
    assert!(until("the voter to be back", patience, back).await);
    assert!(propose(&leader, create_token(&token(3))).await.is_ok());
}
