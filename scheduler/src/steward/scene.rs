//! One revision as the fleet shows it at a tick.

use std::collections::BTreeMap;

use super::duty::{Duties, Duty};
use super::roster::{Find, Roster, Row};
use crate::fleet::{Fleet, Member};
use crate::model::{InstanceReport, InstanceState, Name, NodeId, Revision, RevisionKey};
use crate::registry::State;

/// A zone, with its region.
pub(super) type Zone<'a> = (&'a Name, &'a Name);

/// An instance and the node that reports it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub member: &'a Member,
    pub report: &'a InstanceReport,
    /// In the looking node's own zone.
    pub here: bool,
}

impl Seen<'_> {
    pub fn ready(&self) -> bool {
        self.report.state.serves()
    }

    /// It serves or will.
    pub fn live(&self) -> bool {
        self.report.state.is_live()
    }

    /// Its programs say that they work, whoever asks them anything.
    pub fn works(&self) -> bool {
        self.report.activity.leases > 0
    }

    /// Requests in it, times 1000; never nothing while there is one.
    pub fn concurrency_milli(&self) -> u64 {
        let busy = u32::from(self.report.in_flight > 0);
        self.report.concurrency_milli.max(busy).into()
    }
}

/// A revision's instances on live nodes, in the order of their ids, and the requests held for
/// it at the zone's doors.
#[derive(Debug, Default)]
pub(super) struct Scene<'a> {
    pub instances: Vec<Seen<'a>>,
    pub queued: u32,
    /// The door with most of them.
    pub hottest: Option<(u32, NodeId)>,
    /// All doors that hold requests, by zone, and how many.
    pub waiting: Vec<(Zone<'a>, u32)>,
    /// Doors of the region that sent requests to other regions: their zones, and how many ever.
    pub away: Vec<(&'a Name, NodeId, u64)>,
}

impl<'a> Scene<'a> {
    /// Whether the fleet shows nothing of it.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.waiting.is_empty() && self.away.is_empty()
    }

    pub fn live(&self) -> impl Iterator<Item = &Seen<'a>> {
        self.instances.iter().filter(|s| s.live())
    }

    /// The zones that have requests, in instances or at doors, times 1000.
    pub fn loads(&self) -> BTreeMap<Zone<'a>, u64> {
        let mut loads: BTreeMap<Zone<'_>, u64> = BTreeMap::new();
        for (zone, queued) in &self.waiting {
            *loads.entry(*zone).or_default() += u64::from(*queued) * 1000;
        }
        for seen in self.live() {
            let record = &seen.member.record;
            let milli = seen.concurrency_milli();
            if milli > 0 {
                *loads.entry((&record.region, &record.zone)).or_default() += milli;
            }
        }
        loads
    }
}

/// A revision that is this node's to look after.
pub(super) struct Watch<'a> {
    pub key: &'a RevisionKey,
    /// As the registry has it.
    pub revision: Option<&'a Revision>,
    pub duty: Duty,
    pub scene: Scene<'a>,
}

/// What is this node's to look after, in the order of the keys, as the fleet shows it: what is there, and
/// what the registry has.
pub(super) fn watches<'a>(
    state: &'a State,
    fleet: &'a Fleet,
    roster: &Roster,
    duties: &'a Duties,
) -> Vec<Watch<'a>> {
    let mine = duties.all().map(|(key, duty)| Watch {
        key,
        revision: state.revisions.get(key),
        duty,
        scene: Scene::default(),
    });
    let mut watches: Vec<Watch<'_>> = mine.collect();
    for (row, member, find) in roster.finds(fleet) {
        note(&mut watches, row, member, find);
    }
    watches.retain(|watch| watch.revision.is_some() || !watch.scene.is_empty());
    for watch in &mut watches {
        let instances = &mut watch.scene.instances;
        instances.sort_by(|a, b| a.report.id.cmp(&b.report.id));
    }
    watches
}

/// Puts what one node tells where it belongs.
fn note<'a>(watches: &mut [Watch<'a>], row: &Row, member: &'a Member, find: &Find) {
    let (record, here) = (&member.record, row.here());
    for report in find
        .instances
        .iter()
        .filter_map(|at| record.instances.get(*at))
    {
        // What is parked is nobody's yet; once a start has it, it is as good as new.
        if report.state == InstanceState::Parked {
            continue;
        }
        if let Some(scene) = scene_of(watches, &report.revision) {
            scene.instances.push(Seen {
                member,
                report,
                here,
            });
        }
    }
    for demand in find.demand.iter().filter_map(|at| record.demand.get(*at)) {
        let Some(scene) = scene_of(watches, &demand.revision) else {
            continue;
        };
        if row.near() && demand.away > 0 {
            scene.away.push((&record.zone, record.node, demand.away));
        }
        if demand.queued == 0 {
            continue;
        }
        scene
            .waiting
            .push(((&record.region, &record.zone), demand.queued));
        if here {
            scene.queued = scene.queued.saturating_add(demand.queued);
            scene.hottest = scene.hottest.max(Some((demand.queued, record.node)));
        }
    }
}

fn scene_of<'w, 'a>(watches: &'w mut [Watch<'a>], key: &RevisionKey) -> Option<&'w mut Scene<'a>> {
    let at = watches.binary_search_by(|watch| watch.key.cmp(key)).ok()?;
    Some(&mut watches[at].scene)
}
