//! Voters: agreement, loss of the leader, loss of everything but the disks, loss of the majority.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use openraft::raft::VoteRequest;
use scheduler::model::NodeId;

use super::world::*;
use crate::consensus::types::Vote;
use crate::consensus::wire::{self, Request, Response};
use crate::consensus::{Part, ProposeError, ReadError, Registry, Tuning};

async fn propose_many(at: &[Registry], numbers: std::ops::Range<u64>) -> Vec<u64> {
    let tries = numbers.map(|n| {
        let registry = at[usize::try_from(n).unwrap() % at.len()].clone();
        tokio::spawn(async move {
            propose(&registry, create_token(&token(n)))
                .await
                .is_ok()
                .then_some(n)
        })
    });
    join_all(tries)
        .await
        .into_iter()
        .filter_map(Result::unwrap)
        .collect()
}

async fn all_have(registries: &[Registry], numbers: &[u64]) {
    for registry in registries {
        until("every acknowledged write", || {
            numbers.iter().all(|n| has_token(registry, *n))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_proposals_from_everywhere_are_everywhere() {
    let world = World::new(Tuning::default());
    let registries = world.three().await;
    let acknowledged = propose_many(&registries, 0..100).await;
    assert_eq!(acknowledged.len(), 100);
    all_have(&registries, &acknowledged).await;
    let index = registries[2].read_index(DEADLINE).await.unwrap();
    assert!(registries[2].view().index() >= index);
    until("equal indexes", || {
        registries
            .iter()
            .all(|registry| registry.view().index() == index)
    })
    .await;
    let states: Vec<_> = registries
        .iter()
        .map(|registry| registry.view().state())
        .collect();
    assert_eq!(states[0], states[1]);
    assert_eq!(states[0], states[2]);
    let entries = registries[0]
        .voter()
        .unwrap()
        .raft
        .metrics()
        .borrow()
        .last_log_index
        .unwrap();
    assert!(
        entries < 100,
        "proposals share entries, {entries} were written"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_dies_and_nothing_acknowledged_is_lost() {
    let world = World::new(Tuning::default());
    let mut registries = world.three().await;
    let old = leader(&registries).unwrap();
    registries.retain(|registry| registry.node() != old.node());
    let writers = tokio::spawn({
        let registries = registries.clone();
        async move { propose_many(&registries, 0..200).await }
    });
    until("some writes", || has_token(&registries[0], 0)).await;
    world.kill(&old).await;
    let killed = Instant::now();
    let mut acknowledged = writers.await.unwrap();
    propose_surely(&registries[0], create_token(&token(999))).await;
    assert!(killed.elapsed() < Duration::from_secs(20));
    acknowledged.push(999);
    all_have(&registries, &acknowledged).await;
    let id = old.node().0;
    drop(old);
    registries.push(world.voter(id).await);
    all_have(&registries, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_restart_at_once_with_snapshots_and_a_purged_log() {
    let tuning = Tuning {
        snapshot_every: 20,
        log_kept: 5,
        ..Tuning::default()
    };
    let world = World::new(tuning);
    let mut registries = world.three().await;
    let mut acknowledged = Vec::new();
    for round in 0..40 {
        acknowledged.extend(propose_many(&registries, 10 * round..10 * round + 3).await);
    }
    assert_eq!(acknowledged.len(), 120);
    let purged = || {
        registries[0]
            .voter()
            .unwrap()
            .raft
            .metrics()
            .borrow()
            .purged
    };
    until("a purged log", || purged().is_some()).await;
    let before = registries[0].view().state();
    for registry in registries.drain(..) {
        world.kill(&registry).await;
    }
    for id in 1..=3 {
        registries.push(world.voter(id).await);
    }
    // Before anyone leads: what was committed long ago is there at once.
    assert!(registries[0].view().index() > 0);
    propose_surely(&registries[1], create_token(&token(999))).await;
    acknowledged.push(999);
    all_have(&registries, &acknowledged).await;
    assert_eq!(registries[0].view().state().nodes, before.nodes);
}

/// Handed in before the leader noticed: not known. After that: a clear no.
async fn refused_in_time(at: &Registry) {
    let limit = Instant::now() + LONG;
    loop {
        let began = Instant::now();
        let error = propose(at, create_token(&token(1))).await.unwrap_err();
        assert!(began.elapsed() < DEADLINE + Duration::from_secs(1));
        match error {
            ProposeError::NoQuorum => return,
            ProposeError::Unknown => assert!(Instant::now() < limit),
            other => panic!("{other:?}"),
        }
    }
}

/// Its commit mark on disk may be older than what it acknowledged: reads would go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_has_to_be_elected_again() {
    let world = World::new(Tuning::default());
    let registries = world.three().await;
    let id = leader(&registries).unwrap().node().0;
    for registry in registries {
        world.kill(&registry).await;
    }
    let again = world.voter(id).await;
    assert_eq!(again.status().part, Part::Voter);
    assert_eq!(
        propose(&again, create_token(&token(1))).await.unwrap_err(),
        ProposeError::NoQuorum
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_changes_are_refused_in_time() {
    let world = World::new(Tuning::default());
    let registries = world.three().await;
    let left = leader(&registries).unwrap();
    for registry in &registries {
        if registry.node() != left.node() {
            world.kill(registry).await;
        }
    }
    refused_in_time(&left).await;
    let began = Instant::now();
    assert_eq!(left.read_index(DEADLINE).await, Err(ReadError::NoQuorum));
    assert!(began.elapsed() < DEADLINE + Duration::from_secs(1));
    until("an honest status", || !left.status().quorum).await;
    assert!(
        left.view().state().cluster.is_some(),
        "reads of the last state go on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_takes_nothing_in_and_rejoins() {
    let world = World::new(Tuning::default());
    let registries = world.three().await;
    let old = leader(&registries).unwrap();
    let others: Vec<_> = registries
        .iter()
        .filter(|registry| registry.node() != old.node())
        .cloned()
        .collect();
    world.cut(old.node().0);
    until("a new leader", || leader(&others).is_some()).await;
    // The others' time for an election was longer than its patience without them.
    let error = propose(&old, create_token(&token(1))).await.unwrap_err();
    assert_eq!(error, ProposeError::NoQuorum);
    propose_surely(&others[0], create_token(&token(2))).await;
    world.heal();
    until("the old leader follows", || {
        old.status().part == Part::Voter
    })
    .await;
    all_have(&registries, &[2]).await;
    assert!(!has_token(&old, 1));
    assert_eq!(propose_many(&registries, 10..20).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_alone_unseats_nobody() {
    let world = World::new(Tuning::default());
    let registries = world.three().await;
    let leader = leader(&registries).unwrap();
    let term = leader.status().term;
    let alone = registries
        .iter()
        .find(|r| r.node() != leader.node())
        .unwrap();
    // It can be heard and hears nobody: the cut that provokes elections most.
    world.deafen(alone.node().0);
    let silent = || {
        alone
            .view()
            .staleness()
            .is_some_and(|ago| ago > Duration::from_secs(6))
    };
    until("two elections' time", silent).await;
    propose(&leader, create_token(&token(1))).await.unwrap();
    world.heal();
    all_have(&registries, &[1]).await;
    assert_eq!(leader.status().part, Part::Leader);
    assert!(
        registries
            .iter()
            .all(|registry| registry.status().term == term)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_copies_before_it_votes() {
    let world = World::new(Tuning::default());
    let mut registries = world.three().await;
    let lost = registries
        .iter()
        .position(|r| r.status().part == Part::Voter)
        .unwrap();
    let lost = registries.remove(lost);
    let id = lost.node().0;
    let acknowledged = propose_many(&registries, 0..30).await;
    world.kill(&lost).await;
    drop(lost);
    std::fs::remove_dir_all(world.path(id)).unwrap();
    let empty = world.voter(id).await;
    registries.push(empty.clone());
    all_have(&registries, &acknowledged).await;
    let store = || empty.voter().unwrap().store.is_newcomer().unwrap();
    until("it counts again", || !store()).await;
    assert_eq!(propose_many(&registries, 50..60).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_voter_is_removed() {
    let world = World::new(Tuning::default());
    let registries = world.three().await;
    let node = registries[2].node();
    propose(
        &registries[0],
        scheduler::registry::Action::RemoveNode { node },
    )
    .await
    .unwrap();
    until("two voters", || registries[0].status().voters.len() == 2).await;
    world.kill(&registries[2]).await;
    assert_eq!(propose_many(&registries[..2], 0..10).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_outside_is_checked() {
    let world = World::new(Tuning::default());
    let registry = world.found().await;
    let before = registry.status();
    let vote = VoteRequest::new(Vote::new(9, 7), None);
    let spoofed = VoteRequest::new(Vote::new(9, 1), None);
    let nonsense = vec!["{\"at\":0,\"action\":\"Explode\"}".to_owned()];
    let huge = vec!["x".repeat((1 << 20) + 1)];
    let many = vec!["{}".to_owned(); 300];
    let propose = |commands| Request::Propose {
        commands,
        patience_millis: u64::MAX,
    };
    let requests = [
        Request::Vote(vote),
        Request::Vote(spoofed),
        propose(nonsense),
        propose(huge),
        propose(many),
    ];
    for request in requests {
        let bytes = wire::encode(&request, &[]).unwrap();
        let answer = registry.on_message(NodeId(7), &bytes).await;
        let (answer, _) = wire::decode::<Response>(&answer).unwrap();
        assert!(matches!(answer, Response::Refused { .. }), "{answer:?}");
    }
    let answer = registry
        .on_message(NodeId(7), b"\x01\xff\xff\xff\xff{")
        .await;
    assert!(matches!(
        wire::decode::<Response>(&answer),
        Ok((Response::Refused { .. }, _))
    ));
    assert_eq!(registry.status().term, before.term);
    assert_eq!(propose_many(&[registry], 0..3).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_restarts_twice() {
    let world = World::new(Tuning::default());
    let registry = world.found().await;
    world.kill(&registry).await;
    drop(registry);
    let again = world.voter(1).await;
    world.kill(&again).await;
    drop(again);
    let registry = world.voter(1).await;
    until("it leads", || registry.status().part == Part::Leader).await;
    assert_eq!(propose_many(&[registry], 0..3).await.len(), 3);
}
