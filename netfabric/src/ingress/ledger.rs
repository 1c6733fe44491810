//! What became of the last requests: a bill by phase for those that waited, a line for others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scheduler::model::{InstanceId, NodeId, RequestId, RevisionKey, ServiceKey, UnixMs};
use scheduler::place::Receipt;
use scheduler::route::RevisionRoute;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::local::lock;
use super::workers;

/// How many of each are kept, of lines by each worker.
const KEPT: usize = 1000;
/// Starts a lane remembers for its bills.
const STORIES: usize = 64;

/// Where a request's time went, and why its instance is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bill {
    pub request: RequestId,
    pub service: ServiceKey,
    pub revision: RevisionKey,
    pub instance: Option<InstanceId>,
    /// The node whose instance answered, or `None` when none did.
    pub node: Option<NodeId>,
    /// Microseconds by phase, in order: `queue`, `place`, `pull`, `create`, `start`, `ready`,
    /// `proxy`. A request that came when the start was under way has the part it waited for.
    pub phases: Vec<(String, u64)>,
    /// The placement that made room for it, when an instance was started.
    pub receipt: Option<Receipt>,
    pub status: u16,
    /// The code of an answer of the door's own.
    pub problem: Option<String>,
    pub at: UnixMs,
}

/// A warm request, as small as it can be kept.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) request: Ulid,
    pub(super) route: Arc<RevisionRoute>,
    pub(super) instance: Option<Arc<InstanceId>>,
    pub(super) node: Option<NodeId>,
    pub(super) status: u16,
    pub(super) problem: Option<&'static str>,
    /// Until the answer began.
    pub(super) took: Duration,
}

/// What one start did.
#[derive(Debug, Clone)]
pub(super) struct Story {
    pub(super) receipt: Option<Receipt>,
    /// From `place` to `ready`.
    pub(super) phases: Vec<(String, u64)>,
    /// The instance that came of it.
    pub(super) instance: Option<InstanceId>,
    pub(super) ended: Instant,
}

/// The last starts of a lane. Shared with its bills, because an instance may answer requests
/// before the start that made it is done telling.
#[derive(Debug, Default)]
pub(super) struct Stories {
    last: Mutex<VecDeque<Arc<Story>>>,
}

/// A request's wait for room.
#[derive(Debug, Clone)]
pub(super) struct Wait {
    pub(super) begun: Instant,
    pub(super) waited: Duration,
    pub(super) stories: Arc<Stories>,
}

/// A request that waited; its bill is made when asked for.
#[derive(Debug, Clone)]
struct Cold {
    line: Line,
    wait: Wait,
}

#[derive(Debug)]
pub(super) struct Ledger {
    colds: Mutex<VecDeque<Cold>>,
    /// By the door's workers.
    lines: Box<[Lines]>,
}

/// One worker's lines.
#[derive(Debug, Default)]
#[repr(align(128))] // Two cache lines, so that no neighbour's writes slow it down.
struct Lines(Mutex<VecDeque<Line>>);

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            colds: Mutex::default(),
            lines: (0..workers::parts()).map(|_| Lines::default()).collect(),
        }
    }

    pub(super) fn warm(&self, line: Line) {
        let here = &self.lines[workers::here() % self.lines.len()];
        push(&mut lock(&here.0), line, KEPT);
    }

    pub(super) fn cold(&self, line: Line, wait: Wait) {
        push(&mut lock(&self.colds), Cold { line, wait }, KEPT);
    }

    pub(super) fn bills(&self) -> Vec<Bill> {
        lock(&self.colds).iter().map(Cold::bill).collect()
    }

    pub(super) fn find(&self, request: &RequestId) -> Option<Bill> {
        let id = Ulid::from_string(&request.0).ok()?;
        let cold = |c: &&Cold| c.line.request == id;
        if let Some(cold) = lock(&self.colds).iter().rev().find(cold) {
            return Some(cold.bill());
        }
        self.lines.iter().find_map(|part| {
            let lines = lock(&part.0);
            lines.iter().rev().find(|l| l.request == id).map(Line::bill)
        })
    }
}

impl Stories {
    pub(super) fn add(&self, story: Story) {
        push(&mut lock(&self.last), Arc::new(story), STORIES);
    }

    /// The start of this very instance, or else the last one that ended in the wait.
    fn behind(&self, instance: Option<&InstanceId>, since: Instant) -> Option<Arc<Story>> {
        let last = lock(&self.last);
        let mut recent = last.iter().rev().filter(|s| s.ended >= since);
        let its_own = |s: &&Arc<Story>| instance.is_some() && s.instance.as_ref() == instance;
        let story = recent.clone().find(its_own).or_else(|| recent.next());
        story.cloned()
    }
}

impl Cold {
    fn bill(&self) -> Bill {
        let (line, wait) = (&self.line, &self.wait);
        let story = wait.stories.behind(line.instance.as_deref(), wait.begun);
        let started = story.as_ref().map_or(&[][..], |s| &s.phases);
        let mut bill = line.bill();
        bill.phases = overlap(micros(wait.waited), started);
        let proxy = line.took.saturating_sub(wait.waited);
        bill.phases.push(("proxy".to_owned(), micros(proxy)));
        bill.receipt = story.and_then(|s| s.receipt.clone());
        bill
    }
}

impl Line {
    fn bill(&self) -> Bill {
        let arrived = self.request.timestamp_ms();
        Bill {
            request: RequestId(self.request.to_string()),
            service: self.route.service.clone(),
            revision: self.route.key.clone(),
            instance: self.instance.as_deref().cloned(),
            node: self.node,
            phases: vec![("proxy".to_owned(), micros(self.took))],
            receipt: None,
            status: self.status,
            problem: self.problem.map(ToOwned::to_owned),
            at: UnixMs(arrived),
        }
    }
}

/// The phases of the start a request waited for, as far as they fell into its wait: counted back
/// from the moment it went on. What is left over it spent in the queue.
fn overlap(mut left: u64, started: &[(String, u64)]) -> Vec<(String, u64)> {
    let mut phases = Vec::new();
    for (name, length) in started.iter().rev() {
        let part = left.min(*length);
        left -= part;
        if part > 0 {
            phases.push((name.clone(), part));
        }
    }
    phases.push(("queue".to_owned(), left));
    phases.reverse();
    phases
}

fn push<T>(ring: &mut VecDeque<T>, item: T, most: usize) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(item);
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Vec<(String, u64)> {
        let phases = [("place", 1_000), ("create", 20_000), ("ready", 9_000)];
        phases.map(|(n, l)| (n.to_owned(), l)).to_vec()
    }

    #[test]
    fn phases_sum_to_the_wait() {
        let table: &[(u64, &[(&str, u64)])] = &[
            (
                32,
                &[
                    ("queue", 2_000),
                    ("place", 1_000),
                    ("create", 20_000),
                    ("ready", 9_000),
                ],
            ),
            (
                30,
                &[
                    ("queue", 0),
                    ("place", 1_000),
                    ("create", 20_000),
                    ("ready", 9_000),
                ],
            ),
            (14, &[("queue", 0), ("create", 5_000), ("ready", 9_000)]),
            (3, &[("queue", 0), ("ready", 3_000)]),
        ];
        for (millis, want) in table {
            let want: Vec<_> = want.iter().map(|(n, l)| ((*n).to_owned(), *l)).collect();
            assert_eq!(overlap(millis * 1_000, &started()), want, "{millis}");
        }
        assert_eq!(overlap(5_000, &[]), [("queue".to_owned(), 5_000)]);
    }

    #[test]
    fn a_bill_tells_of_its_own_instance_s_start() {
        let stories = Stories::default();
        let begun = Instant::now();
        let story = |name: &str, ended| Story {
            receipt: None,
            phases: started(),
            instance: Some(InstanceId(name.to_owned())),
            ended,
        };
        let id = |name: &str| InstanceId(name.to_owned());
        let found = |name: &str, since| {
            let story = stories.behind(Some(&id(name)), since);
            story.and_then(|s| s.instance.clone())
        };
        assert_eq!(found("a", begun), None);
        stories.add(story("a", begun + Duration::from_millis(1)));
        stories.add(story("b", begun + Duration::from_millis(2)));
        assert_eq!(found("a", begun), Some(id("a")));
        assert_eq!(found("c", begun), Some(id("b")), "whoever made room");
        assert_eq!(
            found("a", begun + Duration::from_millis(9)),
            None,
            "long before the wait"
        );
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut ring = VecDeque::new();
        for i in 0..KEPT + 5 {
            push(&mut ring, i, KEPT);
        }
        assert_eq!((ring.len(), ring.front()), (KEPT, Some(&5)));
    }
}
