//! Preemption: what of lower priority makes place for an instance that finds no room anywhere. It chooses;
//! the node it chooses looks at its own instances again, and whoever has to go drains.

use serde::{Deserialize, Serialize};

use super::{Ask, Candidate, Judge, Promised, Receipt, Rejection, judge, lacking, needs};
use crate::fleet::{Fleet, Member};
use crate::model::{InstanceId, InstanceState, NodeId, Resources, Revision, RevisionKey, UnixMs};

/// Nodes without room that are looked at for one decision.
const MOST_NODES: usize = 512;

/// What a node's going instances cost: their highest priority, how many, and what the place costs then.
type Rank = (i32, usize, u64, NodeId);

/// An instance on a node, as one that may have to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupant {
    pub instance: InstanceId,
    pub revision: RevisionKey,
    pub priority: i32,
    pub needs: Resources,
    pub state: InstanceState,
    /// Requests in it.
    pub in_flight: u32,
    pub since: UnixMs,
}

/// One that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Victim {
    pub instance: InstanceId,
    pub revision: RevisionKey,
    pub priority: i32,
}

/// Who goes where, for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Displacement {
    pub node: NodeId,
    /// Of what is placed; all victims' are lower.
    pub priority: i32,
    pub victims: Vec<Victim>,
}

/// Who has to go for `wanted` to have room where `free` is left: of lower priority than `priority` alone,
/// the lowest first, and none without whom there is room too. `None` where no one's going is enough. Nobody
/// goes where what is going already leaves room.
#[must_use]
pub fn victims(
    free: &Resources,
    wanted: &Resources,
    priority: i32,
    occupants: &[Occupant],
) -> Option<Vec<Victim>> {
    let mut free = *free;
    let going = |o: &&Occupant| o.state == InstanceState::Draining;
    for occupant in occupants.iter().filter(going) {
        free = with(&free, &occupant.needs);
    }
    let mut lower: Vec<&Occupant> = occupants
        .iter()
        .filter(|o| o.state.is_live() && o.priority < priority)
        .collect();
    lower.sort_by_key(|o| {
        // What nobody waits for goes first, and the youngest before the others.
        let young = std::cmp::Reverse(o.since);
        (o.priority, o.in_flight, young, &o.instance)
    });
    let mut go: Vec<&Occupant> = Vec::new();
    for occupant in lower {
        if lacking(&free, wanted).is_none() {
            break;
        }
        free = with(&free, &occupant.needs);
        go.push(occupant);
    }
    if lacking(&free, wanted).is_some() {
        return None;
    }
    // Those of the highest priority are the first to be spared.
    for at in (0..go.len()).rev() {
        let left = without(&free, &go[at].needs);
        if lacking(&left, wanted).is_none() {
            free = left;
            go.remove(at);
        }
    }
    let victim = |o: &Occupant| Victim {
        instance: o.instance.clone(),
        revision: o.revision.clone(),
        priority: o.priority,
    };
    Some(go.into_iter().map(victim).collect())
}

/// Where no node has room, finds the one where the least has to go for it: the lowest priorities, then the
/// fewest instances, then the place that costs least. The receipt then has that node alone as accepted,
/// and says who goes. Nothing changes where a node has room, nothing of lower priority is in the way, or
/// room is on its way.
#[must_use]
pub fn displace<'a>(
    receipt: Receipt,
    fleet: &Fleet,
    revision: &Revision,
    ask: &Ask,
    promised: &Promised,
    revisions: impl Fn(&RevisionKey) -> Option<&'a Revision>,
) -> Receipt {
    if receipt.ranked().next().is_some() {
        return receipt;
    }
    let priority = revision.spec.place.priority;
    let wanted = needs(&revision.spec);
    let full = |why: &Rejection| {
        matches!(
            why,
            Rejection::Cpu { .. } | Rejection::Memory { .. } | Rejection::Instances
        )
    };
    let judge = Judge::new(fleet, revision, ask, promised);
    let refused = receipt.verdicts.iter();
    let full = refused.filter(|v| v.outcome.as_ref().err().is_some_and(full));
    let full: Vec<NodeId> = full.map(|v| v.node).take(MOST_NODES).collect();
    let mut best: Option<(Rank, Vec<Victim>, Candidate)> = None;
    for node in full {
        let Some(member) = fleet.members.get(&node) else {
            continue;
        };
        let free = promised.left(node, &member.record.free);
        let occupants = occupants(member, &revisions);
        let Some(victims) = victims(&free, &wanted, priority, &occupants) else {
            continue;
        };
        let Some(highest) = victims.iter().map(|v| v.priority).max() else {
            // It is on its way there.
            return receipt;
        };
        let Some(candidate) = judge.cost_where_full(node) else {
            continue;
        };
        let rank = (highest, victims.len(), candidate.cost_micros, node);
        if best.as_ref().is_none_or(|(known, ..)| rank < *known) {
            best = Some((rank, victims, candidate));
        }
    }
    let Some(((.., node), victims, candidate)) = best else {
        return receipt;
    };
    let mut receipt = receipt;
    if let Some(at) = receipt.verdicts.iter().position(|v| v.node == node) {
        let mut chosen = receipt.verdicts.remove(at);
        chosen.outcome = Ok(candidate);
        receipt.verdicts.insert(0, chosen);
    }
    receipt.displaces = Some(Displacement {
        node,
        priority,
        victims,
    });
    receipt
}

/// The instances a node tells of. One whose revision is not known is nobody's to displace.
fn occupants<'a>(
    member: &Member,
    revisions: &impl Fn(&RevisionKey) -> Option<&'a Revision>,
) -> Vec<Occupant> {
    let reports = member.record.instances.iter();
    let occupant = reports.filter_map(|report| {
        let spec = &revisions(&report.revision)?.spec;
        Some(Occupant {
            instance: report.id.clone(),
            revision: report.revision.clone(),
            priority: spec.place.priority,
            needs: needs(spec),
            state: report.state,
            in_flight: report.in_flight,
            since: report.since,
        })
    });
    occupant.collect()
}

impl Judge<'_> {
    /// What an instance would cost on a node, whether it has room or not.
    fn cost_where_full(&self, node: NodeId) -> Option<Candidate> {
        let known = super::reckon::Known::of(self.fleet, self.revision);
        let member = self.fleet.members.get(&node)?;
        let promised = Promised::default();
        let site = judge::Site::of_member(member, self.revision, &promised, &known);
        let rules = &self.revision.spec.place;
        let (distance, held) = (&self.distance, &self.held);
        Some(judge::score(&site, &self.needs, distance, held, rules))
    }
}

fn with(free: &Resources, more: &Resources) -> Resources {
    Resources {
        cpu_millis: free.cpu_millis.saturating_add(more.cpu_millis),
        memory_bytes: free.memory_bytes.saturating_add(more.memory_bytes),
        instances: free.instances.saturating_add(more.instances),
    }
}

fn without(free: &Resources, less: &Resources) -> Resources {
    Resources {
        cpu_millis: free.cpu_millis.saturating_sub(less.cpu_millis),
        memory_bytes: free.memory_bytes.saturating_sub(less.memory_bytes),
        instances: free.instances.saturating_sub(less.instances),
    }
}
