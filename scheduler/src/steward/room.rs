//! How many instances there may be, and how many more a zone may start: the service's bounds, its
//! scheduled minimums, and what the zones share of what the maximum leaves.

use std::collections::BTreeMap;

use super::memory::{Memory, Scheduled};
use super::scale::{Tick, count};
use super::scene::{Scene, Zone};
use crate::autoscale::Bounds;
use crate::autoscale::schedule::Timetable;
use crate::model::{RevisionKey, Service, UnixMs};
use crate::place::usual_start;

/// What a scheduled minimum is early beyond a start: steward, agent and gossip take their time too.
const EARLY_MILLIS: u64 = 2_000;

impl Tick<'_> {
    /// The bounds that hold now. A scheduled minimum begins a start early, so that it is kept when its
    /// time comes.
    pub(super) fn bounds(&self, service: &Service, memory: &mut Memory) -> Bounds {
        let bounds = Bounds::of(&service.scale);
        let schedules = &service.scale.schedules;
        if schedules.is_empty() {
            return bounds;
        }
        let early = memory.start_millis + EARLY_MILLIS;
        let soon = UnixMs(self.unix.0.saturating_add(early));
        let version = service.meta.resource_version;
        let read = memory.scheduled.take_if(|known| known.version == version);
        let mut known = read.unwrap_or_else(|| Scheduled {
            version,
            table: Timetable::of(schedules),
            second: u64::MAX,
            min: 0,
        });
        // Asked for several times in a tick.
        let second = self.unix.0 / 1000;
        if known.second != second {
            known.second = second;
            known.min = known.table.least(self.unix).max(known.table.least(soon));
        }
        let min = known.min;
        memory.scheduled = Some(known);
        Bounds {
            min: bounds.min.max(min).min(bounds.max),
            ..bounds
        }
    }

    /// How many the home steward is to start for the minimum, within the maximum.
    pub(super) fn missing(&self, bounds: Bounds, scene: &Scene<'_>, memory: &Memory) -> u32 {
        let left = bounds.max.saturating_sub(count(scene.live()));
        bounds
            .min
            .saturating_sub(self.staying(scene, memory))
            .min(left)
    }

    /// What a start of the revision takes, in milliseconds.
    pub(super) fn start_millis(&self, revision: &RevisionKey) -> u64 {
        usual_start(self.fleet, revision).div_ceil(1000)
    }

    /// How many more instances this zone, which has `mine`, may start. Where the service has a maximum of
    /// its own, that is within its share of it and its share of what it leaves, as large as they were all
    /// through the last moments: the stewards of all zones look at the same fleet, so that together they
    /// do not take more than there is, also while the requests move. What is missing of the minimum is
    /// the home steward's to start.
    pub(super) fn room(
        &self,
        service: &Service,
        bounds: Bounds,
        scene: &Scene<'_>,
        memory: &mut Memory,
        mine: u32,
    ) -> u32 {
        let live = count(scene.live());
        let missing = self.missing(bounds, scene, memory);
        let reserved = memory.missing(self.now, missing);
        let left = bounds.max.saturating_sub(live).saturating_sub(reserved);
        let entitled = if service.scale.max > 0 {
            let loads = scene.loads();
            let share = |of| share(of, &loads, self.here);
            let (all, rest) = memory.entitled(self.now, (share(bounds.max), share(left)));
            // What others took of the rest while this one started shows later than its own.
            let rest = rest.saturating_sub(memory.lately(self.now));
            all.saturating_sub(mine).min(rest)
        } else {
            left
        };
        // Of the home steward's own, what is not for the minimum is for its zone.
        let coming = memory.flights(false).saturating_sub(missing);
        entitled.saturating_sub(coming.max(memory.flights(true)))
    }
}

/// A zone's part of `left`, by its part of the requests; what does not divide goes to the busiest.
fn share(left: u32, loads: &BTreeMap<Zone<'_>, u64>, here: Zone<'_>) -> u32 {
    let all: u128 = loads.values().map(|load| u128::from(*load)).sum();
    let Some(own) = loads.get(&here).filter(|_| all > 0) else {
        return 0;
    };
    let part =
        |load: &u64| u32::try_from(u128::from(left) * u128::from(*load) / all).unwrap_or(left);
    let undivided = left.saturating_sub(loads.values().map(part).sum());
    let before = |(zone, load): &(&Zone<'_>, &u64)| (**load, here) > (*own, **zone);
    let busier = count(loads.iter().filter(before));
    part(own) + u32::from(busier < undivided)
}
