//! What this node knows of the registry: the newest state, the changes that led to it lately, and
//! how fresh it is. Voters fill it by applying, followers by following; everybody reads it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use scheduler::model::NodeId;
use scheduler::registry::{Change, State};
use tokio::sync::watch;
use tokio::time::Instant;

/// Changes kept for followers that were away for a moment; who missed more gets a snapshot.
pub const RING_CHANGES: usize = 1024;

/// Changes under the index they brought the state to.
pub type Step = (u64, Vec<Change>);

/// Shared by everything on a node that reads the registry.
pub struct View {
    state: watch::Sender<Arc<State>>,
    ring: Mutex<Ring>,
    contact: Mutex<Contact>,
    capacity: usize,
}

#[derive(Default)]
struct Ring {
    /// Indexes without gaps, the newest last.
    steps: VecDeque<Step>,
    /// The state's index; the last step's, or that of a snapshot.
    newest: u64,
}

/// When this node last heard, at first or second hand, that a quorum lives.
#[derive(Default)]
struct Contact {
    heard: Option<(Instant, Duration)>,
    leader: Option<NodeId>,
}

/// What a follower at some index has to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// In order; empty when it is up to date (or ahead of this node).
    Steps(Vec<Step>),
    /// The ring no longer holds what it misses.
    TooMuch,
}

impl View {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            state: watch::Sender::new(Arc::default()),
            ring: Mutex::default(),
            contact: Mutex::default(),
            capacity,
        }
    }

    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    pub fn index(&self) -> u64 {
        self.state.borrow().index
    }

    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Waits until the state has reached `index`. The caller sets the deadline.
    pub async fn reached(&self, index: u64) {
        // The sender lives in `self`, so the channel cannot be closed meanwhile.
        let _ = self.watch().wait_for(|state| state.index >= index).await;
    }

    /// The state went forward by `steps`. Only ever forward: a voter that begins anew replays its
    /// committed log, from an older snapshot perhaps, and goes through what is known here already.
    /// It is the same log, so every index stands for the same state, and the lower ones say nothing
    /// new. (The replay's batches may end elsewhere, so of its first news a part may be known.)
    pub(super) fn publish(&self, state: Arc<State>, steps: Vec<Step>) {
        let mut ring = self.ring();
        if state.index <= ring.newest {
            return;
        }
        let known = ring.newest;
        for step in steps.into_iter().filter(|step| step.0 > known) {
            if step.0 != ring.newest + 1 {
                ring.steps.clear();
            }
            ring.newest = step.0;
            ring.steps.push_back(step);
            if ring.steps.len() > self.capacity {
                ring.steps.pop_front();
            }
        }
        // Sent under the lock, so that nobody sees a state whose changes are not in the ring.
        self.state.send_replace(state);
    }

    /// The state was replaced by a snapshot; by a newer one, as above.
    pub(super) fn reset(&self, state: Arc<State>) {
        let mut ring = self.ring();
        if state.index <= ring.newest {
            return;
        }
        *ring = Ring {
            steps: VecDeque::new(),
            newest: state.index,
        };
        self.state.send_replace(state);
    }

    /// What a follower at `from` misses, at most `limit` steps of it.
    pub(crate) fn since(&self, from: u64, limit: usize) -> Missing {
        let ring = self.ring();
        if from >= ring.newest {
            return Missing::Steps(Vec::new());
        }
        match ring.steps.front() {
            Some((first, _)) if *first <= from + 1 => {
                let newer = ring.steps.iter().filter(|(index, _)| *index > from);
                Missing::Steps(newer.take(limit).cloned().collect())
            }
            _ => Missing::TooMuch,
        }
    }

    /// A quorum was alive `ago`; `leader` is who leads, as far as the teller knows.
    pub(super) fn heard(&self, leader: Option<NodeId>, ago: Option<Duration>) {
        let mut contact = self.contact();
        if let Some(ago) = ago {
            contact.heard = Some((Instant::now(), ago));
        }
        if contact.leader != leader
            && let Some(node) = leader
        {
            tracing::info!(%node, "the registry has a leader");
        }
        contact.leader = leader;
    }

    /// How long ago a quorum was known to live; nothing when it never was.
    pub(super) fn staleness(&self) -> Option<Duration> {
        self.contact().heard.map(|(at, ago)| at.elapsed() + ago)
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.contact().leader
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl View {
    /// For tests of what reads it: a view at `index`.
    pub(crate) fn starting_at(index: u64, capacity: usize) -> Self {
        let view = Self::new(capacity);
        view.jump(index);
        view
    }

    /// One step forward.
    pub(crate) fn step(&self, changes: Vec<Change>) {
        let mut state = (*self.state()).clone();
        state.follow(state.index + 1, &changes);
        let step = (state.index, changes);
        self.publish(Arc::new(state), vec![step]);
    }

    /// As if a snapshot had come.
    pub(crate) fn jump(&self, index: u64) {
        let state = State {
            index,
            ..(*self.state()).clone()
        };
        self.reset(Arc::new(state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Arc<State> {
        Arc::new(State {
            index,
            ..State::default()
        })
    }

    fn step(index: u64) -> Step {
        (
            index,
            vec![Change::TokenGone {
                hash: index.to_string(),
            }],
        )
    }

    #[test]
    fn a_follower_gets_what_it_misses_or_hears_that_it_is_too_much() {
        let view = View::new(3);
        view.reset(at(10));
        assert_eq!(view.since(9, 10), Missing::TooMuch);
        assert_eq!(view.since(10, 10), Missing::Steps(vec![]));
        assert_eq!(
            view.since(99, 10),
            Missing::Steps(vec![]),
            "it is ahead: wait"
        );
        for index in 11..=15 {
            view.publish(at(index), vec![step(index)]);
        }
        assert_eq!(view.since(11, 10), Missing::TooMuch);
        assert_eq!(
            view.since(12, 10),
            Missing::Steps(vec![step(13), step(14), step(15)])
        );
        assert_eq!(view.since(12, 1), Missing::Steps(vec![step(13)]));
        assert_eq!(view.since(14, 10), Missing::Steps(vec![step(15)]));
        assert_eq!(view.index(), 15);
    }

    #[test]
    fn it_never_goes_back() {
        let view = View::new(10);
        view.reset(at(3));
        view.publish(at(5), vec![step(4), step(5)]);
        view.reset(at(2));
        view.publish(at(4), vec![step(3), step(4)]);
        assert_eq!(view.index(), 5);
        view.publish(at(7), vec![step(5), step(6), step(7)]);
        assert_eq!(view.index(), 7);
        let steps = [4, 5, 6, 7].map(step).to_vec();
        assert_eq!(view.since(3, 10), Missing::Steps(steps), "none twice");
    }

    #[test]
    fn a_gap_empties_the_ring() {
        let view = View::new(10);
        view.publish(at(1), vec![step(1)]);
        view.publish(at(5), vec![step(5)]);
        assert_eq!(view.since(0, 10), Missing::TooMuch);
        assert_eq!(view.since(4, 10), Missing::Steps(vec![step(5)]));
    }
}
