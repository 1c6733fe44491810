//! Which node should start an instance, and why not the others. It owns the constraints and the
//! costs; it neither asks the nodes nor knows what became of its advice.
//!
//! The cost of a node is the time until an instance there could answer the one who asks: the
//! round trip, the start, and small terms that tell equals apart. It is counted in whole
//! microseconds so that every node computes the same number.

mod ahead;
mod displace;
mod judge;
mod promised;
mod receipt;
mod reckon;
mod search;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_displace;
#[cfg(test)]
mod tests_large;

pub use ahead::{LIKELY, ahead};
pub use displace::{Displacement, Occupant, Victim, displace, victims};
pub use judge::{lacking, misplaced};
pub use promised::Promised;
pub use receipt::{AT_THE_DOOR, Candidate, Inputs, Parts, Passed, Receipt, Rejection, Verdict};
pub use search::{KEPT, MOST_LOOKED};

use std::collections::BTreeSet;

use crate::fleet::Fleet;
use crate::model::{Name, NodeId, Resources, Revision, RevisionKey, RevisionSpec};
use judge::{Distance, Held, Site};
use search::Search;

/// Fleets of so many nodes and fewer are looked at node by node, and every receipt names them all.
pub const SMALL_FLEET: usize = 32;
/// The round trip assumed from another asker than this node to a node of the asker's zone.
pub const ZONE_RTT_MICROS: u64 = 1_000;
/// The same to a node of the asker's region.
pub const REGION_RTT_MICROS: u64 = 5_000;
/// A start with the image unpacked: container, network, and an app of common size listening.
pub const START_MICROS: u64 = 150_000;
/// A node's own starts count for what they are as far as there are more of them than this; before, it is
/// expected to take what others take.
pub const BELIEVED_STARTS: u64 = 2;
/// What pulling the image adds where nobody tells its size: a middling one over a middling link.
pub const PULL_MICROS: u64 = 5_000_000;
/// What of an image comes in a second to a node that never pulled any, in KiB of its unpacked size.
pub const USUAL_KIB_PER_SECOND: u32 = 25 << 10;
/// A pull takes at least this, whatever its size: documents are asked for, and layers unpacked.
pub const LEAST_PULL_MICROS: u64 = 250_000;
/// And no more is counted: nobody waits for it.
pub const MOST_PULL_MICROS: u64 = 300_000_000;
/// What each round of gossip counts in which nothing was heard of a node, once they are too many: what it
/// said may not be so any more, and it may be gone.
pub const SILENT_MICROS: u64 = 100_000;
/// What a node adds on which something waits for processors, memory or disk all the time: a start there
/// takes a multiple.
pub const PRESSED_MICROS: u64 = 300_000;
/// What a node filled to the brim adds: its processors are shared by all. It outweighs no
/// distance a user would notice.
pub const CROWDED_MICROS: u64 = 20_000;
/// What each instance of the same revision on the node adds: two on one node fall together.
pub const BESIDE_MICROS: u64 = 5_000;
/// What each instance in the same zone or region adds where the service asks to be spread. It
/// outweighs a pull: spreading is asked for to outlive the loss of a place, whatever a start costs.
pub const SPREAD_MICROS: u64 = 10_000_000;

/// What a point of a preference's weight is worth: the full hundred are worth a second, more than any
/// distance and less than a pull.
pub const PREFER_MICROS: u64 = 10_000;
/// The label with a node's energy figure, up to 1000: grams of carbon a kilowatt-hour, or watts, as its
/// operator likes, the same for all nodes.
pub const ENERGY_LABEL: &str = "selvedge.dev/energy";
/// The figure of a node whose operator gives none.
pub const ENERGY_UNKNOWN: u64 = 500;
/// What a point of weight times a point of the figure is worth: at the full weight, a figure less by a
/// hundred is worth a tenth of a second.
pub const ENERGY_MICROS: u64 = 10;

/// The CPU reserved for a container that names none: it may use more, and mostly sleeps.
pub const DEFAULT_CPU_MILLIS: u32 = 50;
/// The memory reserved for a container that names none: that of a small web app.
pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;

/// What is asked of placement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// Where the demand is. Round trips are measured when it is this node; from another they are
    /// reckoned by coordinates, and guessed by names where a node tells none.
    pub from: NodeId,
    /// Nodes that refused or failed a moment ago.
    pub avoid: BTreeSet<NodeId>,
    /// The only region it is asked for, where it is asked to be near.
    pub region: Option<Name>,
    /// Why it is asked: `request`, `scale-up`, `initial`, `minimum`, …
    pub cause: String,
    /// The same in full, for whoever asks.
    pub why: String,
}

/// What one instance reserves on its node.
#[must_use]
pub fn needs(spec: &RevisionSpec) -> Resources {
    let first = |asked: [u64; 2], default| asked.into_iter().find(|n| *n > 0).unwrap_or(default);
    let (cpu, memory) = spec.main().map_or(([0; 2], [0; 2]), |c| {
        (
            [c.cpu_request_millis.into(), c.cpu_millis.into()],
            [c.memory_request_bytes, c.memory_bytes],
        )
    });
    Resources {
        cpu_millis: first(cpu, DEFAULT_CPU_MILLIS.into())
            .try_into()
            .unwrap_or(u32::MAX),
        memory_bytes: first(memory, DEFAULT_MEMORY_BYTES),
        instances: 1,
    }
}

/// What a start of the revision takes where nothing better is known, in microseconds: the mean of what
/// it took on the nodes that tell.
#[must_use]
pub fn usual_start(fleet: &Fleet, revision: &RevisionKey) -> u64 {
    reckon::Starts::of(fleet, revision).usual()
}

/// Ranks the nodes for one new instance of `revision`, best first, with a verdict on every node
/// that was looked at.
#[must_use]
pub fn place(fleet: &Fleet, revision: &Revision, ask: &Ask) -> Receipt {
    place_beside(fleet, revision, ask, &Promised::default())
}

/// The same, beside starts that were ordered and that the fleet does not show yet.
#[must_use]
pub fn place_beside(fleet: &Fleet, revision: &Revision, ask: &Ask, promised: &Promised) -> Receipt {
    let index = fleet.index.0.as_deref();
    let found = index
        .filter(|index| index.len() > SMALL_FLEET)
        .and_then(|index| Search::new(fleet, index, revision, ask, promised).run());
    let mut receipt = found.unwrap_or_else(|| judge_all(fleet, revision, ask, promised));
    receipt.why = fleet.on_island(&receipt.why);
    receipt
}

/// The verdict on one node, wherever it would come in the ranking; `None` when it is not known.
#[must_use]
pub fn judge_one(fleet: &Fleet, revision: &Revision, ask: &Ask, node: NodeId) -> Option<Verdict> {
    let promised = Promised::default();
    let mut sites = judge::sites(fleet, revision, &promised).into_iter();
    let site = sites.find(|site| site.node == node)?;
    Some(Judge::new(fleet, revision, ask, &promised).verdict(&site))
}

/// What one node after the other is judged by.
struct Judge<'a> {
    fleet: &'a Fleet,
    revision: &'a Revision,
    ask: &'a Ask,
    needs: Resources,
    held: Held<'a>,
    distance: Distance<'a>,
}

impl<'a> Judge<'a> {
    fn new(fleet: &'a Fleet, revision: &'a Revision, ask: &'a Ask, promised: &Promised) -> Self {
        Self {
            fleet,
            revision,
            ask,
            needs: needs(&revision.spec),
            held: Held::of(fleet, revision, promised),
            distance: Distance::new(fleet, ask.from),
        }
    }

    fn verdict(&self, site: &Site<'_>) -> Verdict {
        let obstacle = judge::obstacle(self.fleet, site, self.revision, &self.needs, self.ask);
        let rules = &self.revision.spec.place;
        let score = || judge::score(site, &self.needs, &self.distance, &self.held, rules);
        site.verdict(obstacle.map_or_else(|| Ok(score()), Err))
    }
}

fn judge_all(fleet: &Fleet, revision: &Revision, ask: &Ask, promised: &Promised) -> Receipt {
    let judge = Judge::new(fleet, revision, ask, promised);
    let sites = judge::sites(fleet, revision, promised);
    let mut verdicts: Vec<Verdict> = sites.iter().map(|site| judge.verdict(site)).collect();
    verdicts.sort_by_key(|v| {
        let cost = v.outcome.as_ref().map_or(u64::MAX, |c| c.cost_micros);
        (v.outcome.is_err(), cost, v.node)
    });
    Receipt {
        revision: revision.key.clone(),
        decided_by: fleet.me,
        cause: ask.cause.clone(),
        why: ask.why.clone(),
        inputs: Inputs {
            nodes: u32::try_from(verdicts.len()).unwrap_or(u32::MAX),
            fleet_version: fleet.index.0.as_ref().map_or(0, |index| index.version()),
        },
        passed: Passed::default(),
        displaces: None,
        verdicts,
    }
}
