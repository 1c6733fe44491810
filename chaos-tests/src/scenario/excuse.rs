//! Which failures of requests a fault excuses. As few as can be: a client whose front door is down
//! goes to another one, and a request that must not be done twice may be told that its outcome is
//! not known. Whatever may be tried again has to succeed, at every other door, all the time.

use std::time::Duration;

use crate::faults::Fault;
use crate::server::served::Method;
use crate::workload::ledger::{Failure, Outcome};

/// A request that was sent so long before a fault was under way when it came.
const UNDER_WAY: Duration = Duration::from_secs(2);
/// Until a node has noticed that a peer is silent and what it asked of it has ended.
const NOTICING: Duration = Duration::from_secs(5);

/// A fault as the loads met it; times are since the load began.
#[derive(Debug, Clone, PartialEq)]
pub struct Outage {
    pub fault: Fault,
    pub from: Duration,
    pub until: Duration,
}

/// Failures beside the faults that were there.
#[derive(Debug, Clone, Default)]
pub struct Excuses {
    pub outages: Vec<Outage>,
    /// Names of the nodes behind the load's doors, in their order.
    pub doors: Vec<String>,
}

impl Excuses {
    /// Why this failure may be, if it may.
    #[must_use]
    pub fn of(&self, failure: &Failure) -> Option<&'static str> {
        let met = |outage: &&Outage| {
            let (sent, over) = (failure.at, failure.at + failure.took);
            over + UNDER_WAY >= outage.from && sent <= outage.until + NOTICING
        };
        let mut met = self.outages.iter().filter(met);
        let door = self.doors.get(failure.door).map(String::as_str);
        met.find_map(|outage| {
            if door.is_some_and(|door| shuts(&outage.fault, door)) {
                return Some("its front door was down");
            }
            let said = matches!(
                failure.outcome,
                Outcome::Declared {
                    status: 502..=504,
                    ..
                }
            );
            let once = failure.method == Method::Post;
            (once && said).then_some("it must not be done twice, and was under way")
        })
    }
}

/// Whether clients of this node's door would leave it.
fn shuts(fault: &Fault, door: &str) -> bool {
    match fault {
        Fault::PowerCut { nodes } => nodes.iter().any(|node| node == door),
        // The daemon goes on.
        Fault::KillShims { .. }
        | Fault::KillContainers { .. }
        | Fault::SlowDisk { .. }
        | Fault::NoPorts { .. } => false,
        other => other.target() == Some(door),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::served::LoadId;

    fn failure(method: Method, door: usize, at: u64, outcome: Outcome) -> Failure {
        Failure {
            id: LoadId {
                client: 1,
                sequence: 1,
            },
            method,
            door,
            at: Duration::from_secs(at),
            took: Duration::from_millis(10),
            outcome,
        }
    }

    #[test]
    fn only_what_a_fault_explains_is_excused() {
        let excuses = Excuses {
            outages: vec![Outage {
                fault: Fault::Kill {
                    node: "b".to_owned(),
                },
                from: Duration::from_secs(10),
                until: Duration::from_secs(20),
            }],
            doors: vec!["a".to_owned(), "b".to_owned()],
        };
        let declared = || Outcome::Declared {
            status: 502,
            code: String::new(),
        };
        let broken = || Outcome::Broken { how: String::new() };
        for (method, door, at, outcome, excused) in [
            (Method::Get, 1, 15, broken(), true),
            (Method::Get, 1, 40, broken(), false),
            (Method::Get, 0, 15, broken(), false),
            (Method::Get, 0, 15, declared(), false),
            (Method::Post, 0, 15, declared(), true),
            (Method::Post, 0, 15, broken(), false),
            (Method::Post, 0, 2, declared(), false),
            (Method::Post, 0, 15, Outcome::Timeout, false),
        ] {
            let failure = failure(method, door, at, outcome);
            assert_eq!(excuses.of(&failure).is_some(), excused, "{failure:?}");
        }
    }
}
