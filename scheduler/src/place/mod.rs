//! Which node should start an instance, and why not the others. It owns the constraints and the
//! costs; it neither asks the nodes nor knows what became of its advice.
//!
//! The cost of a node is the time until an instance there could answer the one who asks: the
//! round trip, the start, and small terms that tell equals apart. It is counted in whole
//! microseconds so that every node computes the same number.

mod ahead;
mod receipt;

#[cfg(test)]
mod tests;

pub use ahead::{LIKELY, ahead};
pub use receipt::{Candidate, Receipt, Rejection, Verdict};

use std::collections::BTreeSet;

use crate::fleet::{Fleet, Member};
use crate::model::{
    Name, NodeId, NodeRecord, ObjectKey, Resources, Revision, RevisionSpec, Spread,
};

/// The round trip to a node that was never measured: a quarter of the globe. It ranks behind
/// measured neighbours and before a node that would have to pull the image.
pub const UNMEASURED_RTT_MICROS: u64 = 150_000;
/// The round trip assumed from another asker than this node to a node of the asker's zone.
pub const ZONE_RTT_MICROS: u64 = 1_000;
/// The same to a node of the asker's region.
pub const REGION_RTT_MICROS: u64 = 5_000;
/// A start with the image unpacked: container, network, and an app of common size listening.
pub const START_MICROS: u64 = 150_000;
/// What pulling the image adds. Its size is not known here: a middling one over a middling link.
pub const PULL_MICROS: u64 = 5_000_000;
/// What a node filled to the brim adds: its processors are shared by all. It outweighs no
/// distance a user would notice.
pub const CROWDED_MICROS: u64 = 20_000;
/// What each instance of the same revision on the node adds: two on one node fall together.
pub const BESIDE_MICROS: u64 = 5_000;
/// What each instance in the same zone or region adds where the service asks to be spread. It
/// outweighs a pull: spreading is asked for to outlive the loss of a place, whatever a start costs.
pub const SPREAD_MICROS: u64 = 10_000_000;

/// The CPU reserved for a container that names none: it may use more, and mostly sleeps.
pub const DEFAULT_CPU_MILLIS: u32 = 50;
/// The memory reserved for a container that names none: that of a small web app.
pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;

/// What is asked of placement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// Where the demand is. Round trips are measured when it is this node, guessed from names
    /// when it is another.
    pub from: NodeId,
    /// Nodes that refused or failed a moment ago.
    pub avoid: BTreeSet<NodeId>,
    /// Why it is asked: `request`, `scale-up`, `initial`, `minimum`, …
    pub cause: String,
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

/// Ranks the nodes for one new instance of `revision`, best first, with a verdict on every node.
#[must_use]
pub fn place(fleet: &Fleet, revision: &Revision, ask: &Ask) -> Receipt {
    let needs = needs(&revision.spec);
    let held = Held::count(fleet, revision);
    let mut verdicts: Vec<Verdict> = fleet
        .members
        .values()
        .map(|member| Verdict {
            node: member.record.node,
            name: member.record.name.clone(),
            region: member.record.region.clone(),
            outcome: match obstacle(fleet, member, revision, &needs, ask) {
                Some(rejection) => Err(rejection),
                None => Ok(score(fleet, member, revision, &needs, ask, &held)),
            },
        })
        .collect();
    verdicts.sort_by_key(|v| {
        let cost = v.outcome.as_ref().map_or(u64::MAX, |c| c.cost_micros);
        (v.outcome.is_err(), cost, v.node)
    });
    Receipt {
        revision: revision.key.clone(),
        decided_by: fleet.me,
        cause: ask.cause.clone(),
        verdicts,
    }
}

/// The first reason why the node cannot take it.
fn obstacle(
    fleet: &Fleet,
    member: &Member,
    revision: &Revision,
    needs: &Resources,
    ask: &Ask,
) -> Option<Rejection> {
    let record = &member.record;
    if !member.alive {
        return Some(Rejection::NotAlive);
    }
    if !record.serving {
        return Some(Rejection::Leaving);
    }
    if record.cordoned {
        return Some(Rejection::Cordoned);
    }
    if ask.avoid.contains(&record.node) {
        return Some(Rejection::Avoided);
    }
    misplaced(record, revision)
        .or_else(|| elsewhere(fleet, record.node, revision))
        .or_else(|| lacking(&record.free, needs))
}

/// A local volume of the revision that another node has. One that nobody has yet is made where the
/// first instance starts.
fn elsewhere(fleet: &Fleet, node: NodeId, revision: &Revision) -> Option<Rejection> {
    let locals = revision.spec.volumes.iter().filter_map(|v| v.local());
    let held = locals.filter_map(|name| {
        let key = ObjectKey {
            namespace: revision.key.namespace.clone(),
            name: Name::new(name).ok()?,
        };
        fleet.volumes.get(&key)
    });
    let other = held.into_iter().find(|volume| volume.node != node)?;
    let holder = fleet.members.get(&other.node);
    Some(Rejection::Volume {
        volume: other.key.name.to_string(),
        on: holder.map_or_else(|| other.node.to_string(), |m| m.record.name.to_string()),
    })
}

fn misplaced(record: &NodeRecord, revision: &Revision) -> Option<Rejection> {
    let rules = &revision.spec.place;
    let allowed = |pattern: &String| match pattern.strip_suffix('*') {
        Some(prefix) => record.region.as_str().starts_with(prefix),
        None => record.region.as_str() == pattern,
    };
    if !rules.regions.is_empty() && !rules.regions.iter().any(allowed) {
        return Some(Rejection::Region {
            want: rules.regions.join(", "),
            have: record.region.to_string(),
        });
    }
    let differs = |(label, want): &(&String, &String)| record.labels.get(*label) != Some(*want);
    rules
        .require
        .iter()
        .find(differs)
        .map(|(label, want)| Rejection::Label {
            label: label.clone(),
            want: want.clone(),
            have: record
                .labels
                .get(label)
                .map_or("unset", String::as_str)
                .to_owned(),
        })
}

/// Why `free` does not hold `needs`; the node that is asked judges by the same rule.
#[must_use]
pub fn lacking(free: &Resources, needs: &Resources) -> Option<Rejection> {
    if free.instances < needs.instances {
        return Some(Rejection::Instances);
    }
    if free.cpu_millis < needs.cpu_millis {
        return Some(Rejection::Cpu {
            want: needs.cpu_millis,
            free: free.cpu_millis,
        });
    }
    if free.memory_bytes < needs.memory_bytes {
        return Some(Rejection::Memory {
            want: needs.memory_bytes,
            free: free.memory_bytes,
        });
    }
    None
}

fn score(
    fleet: &Fleet,
    member: &Member,
    revision: &Revision,
    needs: &Resources,
    ask: &Ask,
    held: &Held<'_>,
) -> Candidate {
    let record = &member.record;
    let image_present = record.images.contains(&revision.image.digest);
    let (rtt_micros, rtt) = round_trip(fleet, member, ask.from);
    let same_revision = held.on_node(record);
    let pull = if image_present { 0 } else { PULL_MICROS };
    let spread = match revision.spec.place.spread {
        Spread::None => 0,
        Spread::Zone => held.in_zone(record),
        Spread::Region => held.in_region(record),
    };
    let cost_micros = rtt
        + START_MICROS
        + pull
        + crowding(record, needs)
        + u64::from(same_revision) * BESIDE_MICROS
        + spread * SPREAD_MICROS;
    Candidate {
        cost_micros,
        rtt_micros,
        image_present,
        same_revision,
        free_cpu_millis: record.free.cpu_millis,
        free_memory_bytes: record.free.memory_bytes,
    }
}

/// The measured round trip, when there is one, and the one to count with.
fn round_trip(fleet: &Fleet, member: &Member, from: NodeId) -> (Option<u32>, u64) {
    let record = &member.record;
    if record.node == from {
        return (Some(0), 0);
    }
    if from == fleet.me {
        let measured = member.rtt_micros;
        return (measured, measured.map_or(UNMEASURED_RTT_MICROS, u64::from));
    }
    let guess = match fleet.members.get(&from).map(|m| &m.record) {
        Some(asker) if asker.region != record.region => UNMEASURED_RTT_MICROS,
        Some(asker) if asker.zone != record.zone => REGION_RTT_MICROS,
        Some(_) => ZONE_RTT_MICROS,
        None => UNMEASURED_RTT_MICROS,
    };
    (None, guess)
}

/// How full the node would be, by the scarcer of its processors and its memory.
fn crowding(record: &NodeRecord, needs: &Resources) -> u64 {
    let share = |capacity: u64, free: u64, needed: u64| {
        let used = capacity.saturating_sub(free).saturating_add(needed);
        let permille = u128::from(used) * 1000 / u128::from(capacity.max(1));
        u64::try_from(permille).unwrap_or(u64::MAX).min(1000)
    };
    let (capacity, free) = (&record.capacity, &record.free);
    let cpu = share(
        capacity.cpu_millis.into(),
        free.cpu_millis.into(),
        needs.cpu_millis.into(),
    );
    let memory = share(capacity.memory_bytes, free.memory_bytes, needs.memory_bytes);
    cpu.max(memory) * CROWDED_MICROS / 1000
}

/// Where instances of the revision are that serve or will.
struct Held<'a>(Vec<&'a NodeRecord>);

impl<'a> Held<'a> {
    fn count(fleet: &'a Fleet, revision: &'a Revision) -> Self {
        let instances = fleet.instances(&revision.key);
        Self(
            instances
                .filter(|(_, i)| i.state.is_live())
                .map(|(m, _)| &m.record)
                .collect(),
        )
    }

    fn matching(&self, same: impl Fn(&NodeRecord) -> bool) -> u64 {
        self.0.iter().filter(|r| same(r)).count() as u64
    }

    fn on_node(&self, record: &NodeRecord) -> u32 {
        u32::try_from(self.matching(|r| r.node == record.node)).unwrap_or(u32::MAX)
    }

    fn in_zone(&self, record: &NodeRecord) -> u64 {
        self.matching(|r| r.region == record.region && r.zone == record.zone)
    }

    fn in_region(&self, record: &NodeRecord) -> u64 {
        self.matching(|r| r.region == record.region)
    }
}
