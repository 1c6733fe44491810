//! What became of the last requests: a bill by phase for those that waited, a line for others.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scheduler::model::{InstanceId, NodeId, RequestId, RevisionKey, ServiceKey, UnixMs};
use scheduler::place::Receipt;
use scheduler::route::RevisionRoute;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::local::lock;

/// How many of each are kept.
const KEPT: usize = 1000;

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

/// What a start did that released requests, or failed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Story {
    pub(super) receipt: Option<Receipt>,
    /// From `place` to `ready`.
    pub(super) phases: Vec<(String, u64)>,
}

/// A request's wait for room.
#[derive(Debug, Clone, Default)]
pub(super) struct Wait {
    pub(super) waited: Duration,
    pub(super) story: Option<Arc<Story>>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    bills: Mutex<VecDeque<Bill>>,
    lines: Mutex<VecDeque<Line>>,
}

impl Ledger {
    pub(super) fn warm(&self, line: Line) {
        push(&mut lock(&self.lines), line);
    }

    pub(super) fn cold(&self, line: &Line, wait: &Wait) {
        let proxy = line.took.saturating_sub(wait.waited);
        let mut phases = overlap(wait);
        phases.push(("proxy".to_owned(), micros(proxy)));
        let mut bill = line.bill();
        bill.phases = phases;
        bill.receipt = wait.story.as_ref().and_then(|s| s.receipt.clone());
        push(&mut lock(&self.bills), bill);
    }

    pub(super) fn bills(&self) -> Vec<Bill> {
        lock(&self.bills).iter().cloned().collect()
    }

    pub(super) fn find(&self, request: &RequestId) -> Option<Bill> {
        let cold = |b: &&Bill| b.request == *request;
        if let Some(bill) = lock(&self.bills).iter().rev().find(cold) {
            return Some(bill.clone());
        }
        let id = Ulid::from_string(&request.0).ok()?;
        let lines = lock(&self.lines);
        lines.iter().rev().find(|l| l.request == id).map(Line::bill)
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
fn overlap(wait: &Wait) -> Vec<(String, u64)> {
    let mut left = micros(wait.waited);
    let mut phases = Vec::new();
    let started = wait.story.iter().flat_map(|s| s.phases.iter().rev());
    for (name, length) in started {
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

fn push<T>(ring: &mut VecDeque<T>, item: T) {
    if ring.len() >= KEPT {
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

    fn wait(millis: u64) -> Wait {
        let phases = [("place", 1_000), ("create", 20_000), ("ready", 9_000)];
        let story = Story {
            receipt: None,
            phases: phases.map(|(n, l)| (n.to_owned(), l)).to_vec(),
        };
        Wait {
            waited: Duration::from_millis(millis),
            story: Some(Arc::new(story)),
        }
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
            assert_eq!(overlap(&wait(*millis)), want, "{millis}");
        }
        let plain = Wait {
            waited: Duration::from_millis(5),
            story: None,
        };
        assert_eq!(overlap(&plain), [("queue".to_owned(), 5_000)]);
    }

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut ring = VecDeque::new();
        for i in 0..KEPT + 5 {
            push(&mut ring, i);
        }
        assert_eq!((ring.len(), ring.front()), (KEPT, Some(&5)));
    }
}
