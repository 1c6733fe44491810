//! Doubts: a node that leaves a word unanswered is lost long before its heartbeat is missed. Whoever meets
//! with such silence tells some others, these tell others, and each of them asks the node itself: nobody is
//! lost by hearsay, so that a hostile member's doubts cost a question and change nothing. While all nodes
//! answer, nothing is sent.
//!
//! It is SWIM's suspicion (Das, Gupta and Motivala, 2002), with the proof left to each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rand::seq::IteratorRandom as _;
use scheduler::model::NodeId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::transport::{Handler, Kind, Mesh, MeshStream};

/// A node that is doubted is lost when it gives no answer for so long, a few round trips aside. It is long
/// enough for a process that has to wait for a busy machine.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// A doubted node is asked again, and a doubt is taken up and passed on again, after so long. One that was
/// dispelled a moment ago says nothing of the next.
const AGAIN: Duration = Duration::from_secs(1);
/// To so many others at once: of some hundred nodes it misses none as a rule (each by odds of e⁻¹²).
const PASSED_ON_TO: usize = 12;
/// For a doubt to be on its way, or to arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Nodes that are looked into; gossip knows at most as many.
const CASES_MAX: usize = 2048;

/// Whom this node doubts, and whom it found lost.
pub(super) struct Doubts {
    mesh: Mesh,
    cases: Mutex<Cases>,
    /// A node was lost, or is back.
    pub changed: Notify,
}

impl Doubts {
    /// Begins to listen for doubts: to other nodes', and to the mesh's own.
    pub fn new(mesh: &Mesh) -> Arc<Self> {
        let doubts = Arc::new(Self {
            mesh: mesh.clone(),
            cases: Mutex::default(),
            changed: Notify::new(),
        });
        mesh.serve(Kind::Doubt, Arc::new(Ear(Arc::downgrade(&doubts))));
        tokio::spawn(follow(mesh.silences(), Arc::downgrade(&doubts)));
        doubts
    }

    fn cases(&self) -> MutexGuard<'_, Cases> {
        // A plain map is still good after a thread died holding it.
        self.cases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_lost(&self, node: NodeId) -> bool {
        self.cases().is_lost(node)
    }

    /// The node spoke.
    pub fn heard(&self, node: NodeId) {
        if self.cases().heard(node) {
            self.changed.notify_one();
        }
    }

    /// Forgets all but these.
    pub fn keep(&self, of: impl Fn(NodeId) -> bool) {
        self.cases().0.retain(|node, _| of(*node));
    }

    /// The node left a word unanswered.
    pub fn raise(self: &Arc<Self>, node: NodeId) {
        let unknown = self.mesh.addr(node).is_none();
        if unknown || node == self.mesh.identity().node() {
            return;
        }
        if self.cases().take_up(node, Instant::now()) {
            debug!(%node, "doubted");
            self.pass_on(node);
            tokio::spawn(Arc::clone(self).look_into(node));
        }
    }

    fn pass_on(&self, doubted: NodeId) {
        let peers = self.mesh.connected().into_iter();
        let peers = peers.filter(|peer| *peer != doubted);
        for peer in peers.sample(&mut rand::rng(), PASSED_ON_TO) {
            let Some(mut stream) = self.mesh.open_now(peer, Kind::Doubt) else {
                continue;
            };
            tokio::spawn(timeout(ON_ITS_WAY, async move {
                // Others tell as well.
                if stream.write_value(&doubted).await.is_ok() {
                    let _ = stream.finish().await;
                }
            }));
        }
    }

    /// Asks the node until it answers, is heard of, or is forgotten.
    async fn look_into(self: Arc<Self>, node: NodeId) {
        loop {
            let answers = self.mesh.answers(node, PATIENCE).await;
            if self.cases().settle(node, answers) {
                self.changed.notify_one();
            }
            if !self.is_lost(node) {
                return;
            }
            sleep(AGAIN).await;
        }
    }
}

/// What is known of nodes that were doubted.
#[derive(Debug, Default)]
struct Cases(BTreeMap<NodeId, Case>);

#[derive(Debug, Clone, Copy)]
struct Case {
    taken_up: Instant,
    /// It gave no answer when it was asked.
    lost: bool,
}

impl Cases {
    /// Whether the doubt is to be looked into and passed on.
    fn take_up(&mut self, node: NodeId, now: Instant) -> bool {
        let before = self.0.get(&node);
        let under_way = before.is_some_and(|case| case.lost || now < case.taken_up + AGAIN);
        if under_way || (before.is_none() && self.0.len() >= CASES_MAX) {
            return false;
        }
        let case = Case {
            taken_up: now,
            lost: false,
        };
        self.0.insert(node, case);
        true
    }

    /// It was asked. Says whether it is lost now and was not, or the other way round.
    fn settle(&mut self, node: NodeId, answers: bool) -> bool {
        let Some(case) = self.0.get_mut(&node) else {
            return false;
        };
        std::mem::replace(&mut case.lost, !answers) == answers
    }

    /// It spoke. Says whether it was lost.
    fn heard(&mut self, node: NodeId) -> bool {
        let case = self.0.get_mut(&node);
        case.is_some_and(|case| std::mem::take(&mut case.lost))
    }

    fn is_lost(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|case| case.lost)
    }
}

/// Takes up what the mesh itself notices.
async fn follow(mut silences: broadcast::Receiver<NodeId>, doubts: Weak<Doubts>) {
    loop {
        let silent = silences.recv().await;
        let Some(doubts) = doubts.upgrade() else {
            return;
        };
        match silent {
            Ok(node) => doubts.raise(node),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Takes other nodes' doubts in.
struct Ear(Weak<Doubts>);

#[async_trait]
impl Handler for Ear {
    async fn handle(&self, from: NodeId, mut stream: MeshStream) {
        let Some(doubts) = self.0.upgrade() else {
            return;
        };
        match timeout(ON_ITS_WAY, stream.read_value::<NodeId>()).await {
            Ok(Ok(node)) if node != from => doubts.raise(node),
            _ => debug!(node = %from, "a doubt that is none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn a_doubt_is_taken_up_once_at_a_time() {
        let (mut cases, start) = (Cases::default(), Instant::now());
        let mut take_up = |millis| cases.take_up(NODE, start + Duration::from_millis(millis));
        assert!(take_up(0));
        assert!(!take_up(999), "it is being asked");
        assert!(take_up(1_000), "it may be gone since");
        for node in 0..2 * CASES_MAX as u64 {
            cases.take_up(NodeId(100 + node), start);
        }
        assert_eq!(cases.0.len(), CASES_MAX);
    }

    #[test]
    fn who_gives_no_answer_is_lost_until_it_is_heard_or_answers() {
        let (mut cases, now) = (Cases::default(), Instant::now());
        assert!(!cases.settle(NODE, false), "nobody doubted it");
        cases.take_up(NODE, now);
        assert!(!cases.settle(NODE, true) && !cases.is_lost(NODE));
        assert!(cases.settle(NODE, false) && cases.is_lost(NODE));
        assert!(!cases.settle(NODE, false), "nothing new");
        assert!(!cases.take_up(NODE, now + AGAIN), "it is asked already");
        assert!(cases.heard(NODE) && !cases.is_lost(NODE));
        assert!(!cases.heard(NODE));
        cases.settle(NODE, false);
        assert!(cases.settle(NODE, true) && !cases.is_lost(NODE));
    }
}
