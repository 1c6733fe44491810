//! Voters whose disks fail for a while: nothing acknowledged is lost, nothing else is acknowledged,
//! and each votes again once its disk works, without a restart.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scheduler::model::NodeId;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::world::*;
use crate::consensus::store::StoreError;
use crate::consensus::wire::{self, Request, Response};
use crate::consensus::{Part, ProposeError, Registry, Tuning};

/// How soon a voter is back once its disk works.
const BACK: Duration = Duration::from_secs(10);

fn small() -> Tuning {
    Tuning {
        snapshot_every: 20,
        log_kept: 5,
        ..Tuning::default()
    }
}

/// Panics, and so ends, when a view goes back.
fn guard(registry: &Registry) -> JoinHandle<()> {
    let mut states = registry.view().watch();
    tokio::spawn(async move {
        let mut last = 0;
        while states.changed().await.is_ok() {
            let index = states.borrow_and_update().index;
            assert!(index >= last, "the view went back from {last} to {index}");
            last = index;
        }
    })
}

async fn acknowledged(at: &Registry, numbers: std::ops::Range<u64>) -> Vec<u64> {
    let mut kept = Vec::new();
    for number in numbers {
        if propose(at, create_token(&token(number))).await.is_ok() {
            kept.push(number);
        }
    }
    kept
}

fn is_out(registry: &Registry) -> bool {
    registry.status().part == Part::Out
}

fn has_all(registry: &Registry, numbers: &[u64]) -> bool {
    numbers.iter().all(|number| has_token(registry, *number))
}

#[tokio::test(start_paused = true)]
async fn alone_on_a_full_disk_it_serves_and_takes_changes_when_there_is_room() {
    let world = World::on_disks(small());
    let registry = world.found().await;
    let guard = guard(&registry);
    let mut kept = acknowledged(&registry, 0..30).await;
    assert_eq!(kept.len(), 30);
    world.disk(1).faults(|faults| faults.full = true);
    // The first was handed in when the disk refused; from then on it is known beforehand.
    let first = propose(&registry, create_token(&token(50))).await;
    assert_eq!(first, Err(ProposeError::Unknown));
    for number in 51..54 {
        let refused = propose(&registry, create_token(&token(number))).await;
        assert!(
            matches!(refused, Err(ProposeError::StoreFailed(_))),
            "{refused:?}"
        );
    }
    let status = registry.status();
    assert_eq!(
        (status.part, status.leader, status.quorum),
        (Part::Out, None, false)
    );
    assert!(
        status
            .failed
            .is_some_and(|outage| outage.why.contains("error") && !outage.for_good)
    );
    assert!(has_all(&registry, &kept), "it goes on serving");

    world.disk(1).faults(|faults| faults.full = false);
    let mended = Instant::now();
    propose_surely(&registry, create_token(&token(60))).await;
    assert!(mended.elapsed() < BACK, "{:?}", mended.elapsed());
    kept.push(60);
    assert!(has_all(&registry, &kept));
    let never = (51..54).filter(|number| has_token(&registry, *number));
    assert_eq!(never.count(), 0, "what was refused was not handed in");
    assert!(!guard.is_finished());
    // What the disk holds is what was acknowledged.
    world.kill(&registry).await;
    let again = world.voter(1).await;
    until("all of it", || has_all(&again, &kept)).await;
}

#[tokio::test(start_paused = true)]
async fn alone_after_one_failed_sync_it_is_back_by_itself() {
    let world = World::on_disks(small());
    let registry = world.found().await;
    let guard = guard(&registry);
    let mut kept = Vec::new();
    for round in 0..5 {
        kept.extend(acknowledged(&registry, 100 * round..100 * round + 7).await);
        world
            .disk(1)
            .faults(|faults| faults.sync_fails_after = Some(0));
        let failed = propose(&registry, create_token(&token(100 * round + 50))).await;
        assert!(failed.is_err(), "it acknowledged what it could not sync");
        let failed_at = Instant::now();
        propose_surely(&registry, create_token(&token(100 * round + 60))).await;
        assert!(failed_at.elapsed() < BACK, "{:?}", failed_at.elapsed());
        kept.push(100 * round + 60);
    }
    assert!(has_all(&registry, &kept));
    assert!(!guard.is_finished());
    world.disk(1).cut_power();
    let again = world.voter(1).await;
    until("all of it", || has_all(&again, &kept)).await;
}

#[tokio::test(start_paused = true)]
async fn two_of_three_go_on_and_the_third_passes_on_what_it_is_asked() {
    let world = World::on_disks(small());
    let registries = world.three().await;
    let victim = registries.iter().find(|r| r.status().part == Part::Voter);
    let victim = victim.unwrap().clone();
    let guard = guard(&victim);
    let others = |r: &&Registry| r.node() != victim.node();
    let others: Vec<_> = registries.iter().filter(others).cloned().collect();
    let mut kept = acknowledged(&victim, 0..30).await;
    world
        .disk(victim.node().0)
        .faults(|faults| faults.full = true);
    kept.extend(acknowledged(&others[0], 30..60).await);
    until("it is out", || is_out(&victim)).await;

    kept.extend(acknowledged(&victim, 60..90).await);
    assert_eq!(kept.len(), 90, "the quorum took them all");
    victim.read_index(DEADLINE).await.unwrap();
    assert!(has_all(&victim, &kept), "it follows the others");
    let status = victim.status();
    assert!(status.quorum && is_out(&victim), "{status:?}");
    assert!(status.leader.is_some_and(|leader| leader != victim.node()));
    let hello = wire::encode(&Request::Hello, &[]).unwrap();
    let answer = victim.on_message(others[0].node(), &hello).await;
    let (answer, _) = wire::decode::<Response>(&answer).unwrap();
    assert!(matches!(&answer, Response::Refused { message } if message.contains("not now")));

    world
        .disk(victim.node().0)
        .faults(|faults| faults.full = false);
    let mended = Instant::now();
    until("it votes again", || victim.status().part == Part::Voter).await;
    assert!(mended.elapsed() < BACK);
    world.kill(&others[0]).await;
    propose_surely(&others[1], create_token(&token(99))).await;
    kept.push(99);
    until("all of it", || has_all(&victim, &kept)).await;
    assert!(!guard.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_fails_hands_over_and_comes_back() {
    let world = World::on_disks(small());
    let registries = world.three().await;
    let guards: Vec<_> = registries.iter().map(guard).collect();
    let mut kept = Vec::new();
    for round in 0..4 {
        until("a leader", || leader(&registries).is_some()).await;
        let old = leader(&registries).unwrap();
        let disk = world.disk(old.node().0);
        match round % 2 {
            0 => disk.faults(|faults| faults.full = true),
            _ => disk.faults(|faults| faults.sync_fails_after = Some(0)),
        }
        kept.extend(acknowledged(&old, 100 * round..100 * round + 1).await);
        // Asked on the node that led, too: it knows where to go.
        propose_surely(&old, create_token(&token(100 * round + 50))).await;
        kept.push(100 * round + 50);
        disk.faults(|faults| faults.full = false);
        let mended = Instant::now();
        until("it is back", || old.voter().is_some()).await;
        assert!(mended.elapsed() < BACK);
        let all = || registries.iter().all(|registry| has_all(registry, &kept));
        until("every acknowledged change everywhere", all).await;
    }
    assert!(guards.iter().all(|guard| !guard.is_finished()));
}

/// A disk with bits flipped is for people to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_stays_out_and_is_served_from() {
    let world = World::new(Tuning::default());
    let registry = world.found().await;
    let kept = acknowledged(&registry, 0..3).await;
    let path = world.path(1).join("registry.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = token(1).into_bytes();
    let found: Vec<_> = (0..bytes.len())
        .filter(|at| bytes[*at..].starts_with(&needle))
        .collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    let eio = || StoreError::Io {
        path: path.clone(),
        source: io::Error::from_raw_os_error(libc::EIO),
    };
    registry.voter().unwrap().alarm.raise(&eio());
    let for_good = || {
        registry
            .status()
            .failed
            .is_some_and(|outage| outage.for_good)
    };
    until("it stays out", for_good).await;
    let refused = propose(&registry, create_token(&token(9))).await;
    assert!(
        matches!(refused, Err(ProposeError::StoreFailed(_))),
        "{refused:?}"
    );
    assert!(has_all(&registry, &kept));
    world.kill(&registry).await;
}

/// A missing file is none to begin anew with: it may come back with its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_for_a_moment_is_waited_for() {
    let world = World::new(Tuning::default());
    let registry = world.found().await;
    let kept = acknowledged(&registry, 0..3).await;
    let (path, away) = (
        world.path(1).join("registry.redb"),
        world.path(1).join("away"),
    );
    std::fs::rename(&path, &away).unwrap();
    registry.voter().unwrap().alarm.raise(&StoreError::Stopping);
    let missing = || {
        let failed = registry.status().failed;
        failed.is_some_and(|outage| outage.why.contains("No such file"))
    };
    until("it misses its file", missing).await;
    assert!(!path.exists());
    std::fs::rename(&away, &path).unwrap();
    propose_surely(&registry, create_token(&token(9))).await;
    assert!(has_all(&registry, &kept));
}

/// Counts what is written to it.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = bytes.split(|byte| *byte == b'\n').count() - 1;
        self.0.fetch_add(lines, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_said_once_and_then_at_every_try() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .finish();
    let world = World::on_disks(small());
    let registry = world.found().await;
    let _log = tracing::subscriber::set_default(log);
    world.disk(1).faults(|faults| faults.full = true);
    let began = Instant::now();
    while began.elapsed() < Duration::from_mins(1) {
        assert!(propose(&registry, create_token(&token(1))).await.is_err());
        let _ = registry.on_message(NodeId(7), b"?").await;
    }
    let said = lines.0.load(Ordering::Relaxed);
    println!("{said} lines in a minute of outage");
    assert!((1..40).contains(&said), "{said} lines in a minute");
}
