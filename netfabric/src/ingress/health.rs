//! Passive health: an endpoint that broke a request off before it answered is left alone for a
//! while. Slow answers and the application's own errors are no fault of the endpoint.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use scheduler::model::NodeId;

use super::Shared;
use super::door::Phase;
use super::local::{Guard, lock};
use super::upstream::Trip;

/// A first ejection is at most so long; each one in a row doubles it up to the cap. It is longer than two
/// silent peers one after the other take to be noticed: a request that both failed must not be handed to
/// the first again while it waits for a start elsewhere. A node that is gone is lost to
/// gossip by then (`gossip::doubt`), or dead within the second ejection.
const EJECT_FIRST: Duration = Duration::from_secs(5);
/// Who fails at once can be tried again soon: a daemon that is replaced is back within a second, and an
/// instance may be the only one there is.
const EJECT_LEAST: Duration = Duration::from_millis(200);
const EJECT_CAP: Duration = Duration::from_secs(30);

/// One endpoint's recent record: an instance here, or another node's door.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Cheap answer for the usual case: nothing is wrong.
    troubled: AtomicBool,
    ejection: Mutex<Option<Ejection>>,
}

#[derive(Debug, Clone, Copy)]
struct Ejection {
    until: Instant,
    length: Duration,
}

impl Health {
    pub(super) fn is_ejected(&self) -> bool {
        if !self.troubled.load(Ordering::Relaxed) {
            return false;
        }
        let ejection = *lock(&self.ejection);
        ejection.is_some_and(|e| e.until > Instant::now())
    }

    /// It answered: whatever was held against it is forgotten.
    pub(super) fn answered(&self) {
        if self.troubled.swap(false, Ordering::Relaxed) {
            *lock(&self.ejection) = None;
        }
    }

    /// It refused or broke the connection before it answered, and is left alone for longer than it took to
    /// find out: for how long, unless it is already.
    pub(super) fn broke_after(&self, took: Duration) -> Option<Duration> {
        let first = (took * 5 / 2).clamp(EJECT_LEAST, EJECT_FIRST);
        let mut ejection = lock(&self.ejection);
        let now = Instant::now();
        // Requests that were under way together fail together: they count once.
        if ejection.is_some_and(|e| e.until > now) {
            return None;
        }
        let length = ejection.map_or(first, |e| (e.length * 2).clamp(first, EJECT_CAP));
        *ejection = Some(Ejection {
            until: now + length,
            length,
        });
        self.troubled.store(true, Ordering::Relaxed);
        Some(length)
    }
}

impl Guard {
    /// A try at the instance gave no answer: it is left alone for a while when the fault is its own.
    pub(super) fn blame(&self, trip: &Trip) {
        let took = match trip {
            // How long it worked on what it broke off is no measure of how long it will be gone.
            Trip::Broken(_) => Duration::ZERO,
            Trip::Connect(_) => self.held_for(),
            // It serves others; or it serves requests and not that port.
            Trip::Crowded(_) | Trip::Port(_) | Trip::Refused { .. } | Trip::BrokenThere(_) => {
                return;
            }
        };
        if let Some(length) = self.slot.health.broke_after(took) {
            tracing::warn!(instance = %self.slot.id, %trip, ?length, "left alone for a while");
        }
    }
}

/// The health of other nodes' doors.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: RwLock<HashMap<NodeId, Arc<Health>>>,
}

impl Nodes {
    pub(super) fn is_ejected(&self, node: NodeId) -> bool {
        let known = self
            .known
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known.get(&node).is_some_and(|h| h.is_ejected())
    }

    pub(super) fn of(&self, node: NodeId) -> Arc<Health> {
        let known = self
            .known
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(health) = known.get(&node) {
            return Arc::clone(health);
        }
        drop(known);
        let mut known = self
            .known
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(known.entry(node).or_default())
    }

    /// The node's door gave no answer within `took`: it is left alone for a while.
    pub(super) fn blame(&self, node: NodeId, took: Duration, why: &dyn Display) {
        if let Some(length) = self.of(node).broke_after(took) {
            tracing::warn!(%node, %why, ?length, "left alone for a while");
        }
    }
}

/// Forgives nodes that began anew, until the door is closed: a daemon that was replaced is no longer the
/// one that broke requests off.
pub(super) async fn follow(shared: Arc<Shared>) {
    let (mut fleet, mut phase) = (shared.fleet.clone(), shared.phase.subscribe());
    let mut lives = HashMap::new();
    loop {
        let now = fleet.borrow_and_update().clone();
        for (node, member) in &now.members {
            let life = member.record.incarnation;
            let before = lives.insert(*node, life);
            if before.is_some_and(|before| before != life) {
                shared.nodes.of(*node).answered();
                for bench in shared.local.benches().values() {
                    bench.began_anew(*node);
                }
            }
        }
        tokio::select! {
            changed = fleet.changed() => if changed.is_err() { return },
            _ = phase.wait_for(|p| *p == Phase::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_ejects_and_an_answer_redeems() {
        let health = Health::default();
        assert!(!health.is_ejected());
        health.broke_after(Duration::ZERO);
        assert!(health.is_ejected());
        health.answered();
        assert!(!health.is_ejected());
    }

    #[test]
    fn ejections_grow_but_those_at_once_count_once() {
        let health = Health::default();
        let long = Duration::from_mins(1);
        assert_eq!(health.broke_after(long), Some(EJECT_FIRST));
        assert_eq!(health.broke_after(long), None);
        let mut last = EJECT_FIRST;
        for _ in 0..4 {
            lock(&health.ejection).as_mut().unwrap().until = Instant::now();
            assert!(!health.is_ejected());
            let next = health.broke_after(Duration::ZERO).unwrap();
            assert_eq!(next, (last * 2).min(EJECT_CAP));
            last = next;
        }
    }

    #[test]
    fn who_fails_at_once_is_left_alone_for_a_moment() {
        for (took, length) in [(0, 200), (50, 200), (1_000, 2_500), (10_000, 5_000)] {
            let length = Some(Duration::from_millis(length));
            let health = Health::default();
            assert_eq!(health.broke_after(Duration::from_millis(took)), length);
        }
    }
}
