//! Instances on nodes that drain: others are started in their place, and they leave once these are ready.

use std::collections::BTreeSet;

use super::memory::Memory;
use super::scale::{Tick, count, least_loaded_first};
use super::scene::{Scene, Seen};
use crate::model::{InstanceId, Revision};
use crate::place::{Ask, place_beside};

/// How long it takes to see what came of an instance that went: room for another, and that.
const PAUSE_MILLIS: u64 = 10_000;

/// What a zone needs, and what it has without those that leave.
pub(super) struct Need {
    pub wanted: u32,
    pub ready: u32,
    pub coming: u32,
    /// How many more it may start.
    pub room: u32,
    /// The service's minimum, and how many of all zones stay.
    pub min: u32,
    pub staying: u32,
}

impl Tick<'_> {
    /// Whether its node drains. Who may not know the newest of the registry takes none for that.
    pub(super) fn leaves(&self, seen: &Seen<'_>) -> bool {
        let node = self.state.nodes.get(&seen.member.record.node);
        !self.doubts && node.is_some_and(|node| node.draining)
    }

    /// How many instances stay where they are.
    pub(super) fn staying(&self, scene: &Scene<'_>, memory: &Memory) -> u32 {
        let stays = |s: &&Seen<'_>| !memory.is_stopping(&s.report.id) && !self.leaves(s);
        count(scene.live().filter(stays))
    }

    /// The instances that make up the service's minimum: the oldest, those on draining nodes last. All
    /// zones' stewards spare the same ones, so they do not shrink below it together.
    pub(super) fn spared(
        &self,
        scene: &Scene<'_>,
        memory: &Memory,
        min: u32,
    ) -> BTreeSet<InstanceId> {
        let staying = |s: &&Seen<'_>| s.ready() && !memory.is_stopping(&s.report.id);
        let mut ready: Vec<_> = scene.live().filter(staying).collect();
        ready.sort_by_key(|s| (self.leaves(s), s.report.since, &s.report.id));
        let min = usize::try_from(min).unwrap_or(usize::MAX);
        ready
            .into_iter()
            .take(min)
            .map(|s| s.report.id.clone())
            .collect()
    }

    /// Stops as many of this zone's instances on draining nodes as the zone's load and the minimum do
    /// without. Where the maximum leaves no room for others beside them, one goes before another begins,
    /// if a node can take that: requests wait at the doors meanwhile.
    pub(super) fn vacate(
        &mut self,
        revision: &Revision,
        mut leaving: Vec<Seen<'_>>,
        scene: &Scene<'_>,
        memory: &mut Memory,
        need: &Need,
    ) {
        leaving.retain(|s| s.here);
        if leaving.is_empty() {
            return;
        }
        least_loaded_first(&mut leaving);
        let serving = need.ready + count(leaving.iter().filter(|s| s.ready()));
        let surplus = serving.saturating_sub(need.wanted);
        let spared = self.spared(scene, memory, need.min);
        let spare = leaving.iter().filter(|s| !spared.contains(&s.report.id));
        let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
        let free: Vec<Seen<'_>> = spare.take(surplus).copied().collect();
        for seen in &free {
            self.stop(seen, memory, "its node drains");
            memory.vacated = Some(self.now);
        }
        let lacks = need.wanted > need.ready || need.min > need.staying;
        let stuck = free.is_empty() && lacks && need.room == 0 && need.coming == 0;
        let on_its_way = scene.live().any(|s| memory.is_stopping(&s.report.id));
        if !stuck || on_its_way || !memory.may_vacate(self.now, PAUSE_MILLIS) {
            return;
        }
        let ask = Ask {
            from: self.fleet.me,
            ..Ask::default()
        };
        let placed = place_beside(self.fleet, revision, &ask, &self.promised);
        if placed.ranked().next().is_some() {
            memory.vacated = Some(self.now);
            self.stop(
                &leaving[0],
                memory,
                "its node drains, and the maximum leaves no room beside it",
            );
        }
    }
}
