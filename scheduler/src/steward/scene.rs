//! One revision as the fleet shows it at a tick.

use std::collections::BTreeMap;

use crate::fleet::{Fleet, Mark, Member, Word};
use crate::model::{InstanceReport, InstanceState, Name, NodeId, RevisionKey};

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

/// What each of the `wanted` revisions looks like from a node.
pub(super) fn scenes<'a>(
    fleet: &'a Fleet,
    me: &Word,
    mut wanted: impl FnMut(Mark, &RevisionKey) -> bool,
) -> BTreeMap<&'a RevisionKey, Scene<'a>> {
    let mut scenes: BTreeMap<&RevisionKey, Scene<'_>> = BTreeMap::new();
    for member in fleet.members.values().filter(|m| m.alive) {
        let record = &member.record;
        let here = record.beside(me);
        for (report, mark) in record.marked_instances() {
            // What is parked is nobody's yet; once a start has it, it is as good as new.
            if !wanted(mark, &report.revision) || report.state == InstanceState::Parked {
                continue;
            }
            let scene = scenes.entry(&report.revision).or_default();
            scene.instances.push(Seen {
                member,
                report,
                here,
            });
        }
        let near = record.near(me);
        for (demand, mark) in record.marked_demand() {
            let away = near && demand.away > 0;
            if !(away || demand.queued > 0) || !wanted(mark, &demand.revision) {
                continue;
            }
            let scene = scenes.entry(&demand.revision).or_default();
            if away {
                scene.away.push((&record.zone, record.node, demand.away));
            }
            if demand.queued == 0 {
                continue;
            }
            scene
                .waiting
                .push(((&record.region, &record.zone), demand.queued));
            if !here {
                continue;
            }
            scene.queued = scene.queued.saturating_add(demand.queued);
            scene.hottest = scene.hottest.max(Some((demand.queued, record.node)));
        }
    }
    for scene in scenes.values_mut() {
        scene
            .instances
            .sort_by(|a, b| a.report.id.cmp(&b.report.id));
    }
    scenes
}
