//! Instances on nodes that drain: others are started in their place, and they leave once these are ready.

use std::collections::BTreeSet;

use super::memory::Memory;
use super::scale::{Tick, count, least_loaded_first};
use super::scene::{Scene, Seen};
use crate::autoscale::Bounds;
use crate::model::InstanceId;

impl Tick<'_> {
    /// Whether its node drains.
    pub(super) fn leaves(&self, seen: &Seen<'_>) -> bool {
        let node = self.state.nodes.get(&seen.member.record.node);
        node.is_some_and(|node| node.draining)
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

    /// Stops this zone's instances on draining nodes, when those that stay are as many as the zone's load
    /// and the minimum need. Where the maximum has no room for these beside them, one goes before: its
    /// requests wait at the doors.
    pub(super) fn vacate(
        &mut self,
        mut leaving: Vec<Seen<'_>>,
        scene: &Scene<'_>,
        memory: &mut Memory,
        (lacking, room, bounds): (u32, u32, Bounds),
    ) {
        let spared = self.spared(scene, memory, bounds.min);
        leaving.retain(|s| s.here && !spared.contains(&s.report.id));
        least_loaded_first(&mut leaving);
        let full = room == 0 && count(scene.live()) >= bounds.max;
        let may = match lacking {
            0 => leaving.len(),
            _ if full => 1,
            _ => 0,
        };
        for seen in leaving.into_iter().take(may) {
            self.stop(&seen, memory, "its node drains");
        }
    }
}
