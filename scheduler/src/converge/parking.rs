//! How many parked containers this node keeps of each revision: as many as were started at once of
//! late, fewer with every few minutes, none when nobody came for a while.

use std::collections::BTreeMap;

use crate::model::{Now, Resources, RevisionKey};

/// What a parked container is counted with: its shim, its first process and what the kernel keeps
/// for its namespaces. Among a thousand each takes a third of it, and is charged half (`bench density`).
const PARKED_BYTES: u64 = 1 << 20;
/// The share of the node's memory that may be parked: one part in so many.
const MEMORY_SHARE: u64 = 16;
/// Starts asked for this close together call for a container each; a later one finds the pool refilled.
const BURST_MS: u64 = 1_000;
/// Doors ask for what they wait for bit by bit: a burst goes on as long as more come than are refilled
/// meanwhile, one in so long.
const REFILL_MS: u64 = 100;
/// After this without a burst as large, half as many are kept. The instances of a burst leave about a minute
/// after its last request, and one that follows it is what they are kept for.
const HALVED_MS: u64 = 150_000;
/// After this without a start none is kept.
const KEEP_MS: u64 = 600_000;

/// Recent use of every revision that was started here.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    /// On the whole node; 0 parks none.
    most: u32,
    uses: BTreeMap<RevisionKey, Use>,
}

#[derive(Debug, Clone)]
struct Use {
    last: Now,
    /// The burst that goes on, or the last one.
    burst_from: Now,
    burst: u32,
    /// The largest of late, and when it was.
    peak: u32,
    peak_at: Now,
}

impl Pool {
    pub(super) const fn new(most: u32) -> Self {
        Self {
            most,
            uses: BTreeMap::new(),
        }
    }

    /// A start of the revision that was asked for then became ready now: how many are wanted at once
    /// is not how many this node gets ready at once.
    pub(super) fn started(&mut self, asked: Now, now: Now, revision: &RevisionKey) {
        if self.most == 0 {
            return;
        }
        let used = self.uses.entry(revision.clone()).or_insert(Use {
            last: now,
            burst_from: asked,
            burst: 0,
            peak: 0,
            peak_at: now,
        });
        if asked.since(used.burst_from) > BURST_MS + u64::from(used.burst) * REFILL_MS {
            (used.burst_from, used.burst) = (asked, 0);
        }
        (used.last, used.burst) = (now, used.burst.saturating_add(1));
        if used.burst >= used.wanted(now) {
            (used.peak, used.peak_at) = (used.burst, now);
        }
    }

    /// Nothing is parked of it until its next start.
    pub(super) fn forget(&mut self, revision: &RevisionKey) {
        self.uses.remove(revision);
    }

    /// Forgets what is not used any more, or not to be.
    pub(super) fn retain(&mut self, now: Now, serves: impl Fn(&RevisionKey) -> bool) {
        self.uses
            .retain(|key, used| now.since(used.last) < KEEP_MS && serves(key));
    }

    /// How many to keep of each revision, given what the node has `free`. What is left of the
    /// budget goes to those used last.
    pub(super) fn wanted(
        &self,
        now: Now,
        capacity: Resources,
        free: Resources,
    ) -> Vec<(RevisionKey, u32)> {
        let budget = (capacity.memory_bytes / MEMORY_SHARE).min(free.memory_bytes) / PARKED_BYTES;
        let budget = u32::try_from(budget).unwrap_or(u32::MAX);
        // Each has a place of its own on the node's bridge, as those that run have.
        let mut left = self.most.min(budget).min(free.instances);
        let mut uses: Vec<_> = self.uses.iter().collect();
        uses.sort_by_key(|(key, used)| (std::cmp::Reverse(used.last), *key));
        let share = |(key, used): (&RevisionKey, &Use)| {
            let count = used.wanted(now).min(left);
            left -= count;
            (key.clone(), count)
        };
        uses.into_iter().map(share).collect()
    }
}

impl Use {
    fn wanted(&self, now: Now) -> u32 {
        let halvings = u32::try_from(now.since(self.peak_at) / HALVED_MS).unwrap_or(u32::MAX);
        self.peak.checked_shr(halvings).unwrap_or(0).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Name, ServiceKey};

    const ALL: Resources = Resources {
        cpu_millis: 1_000,
        memory_bytes: 64 << 30,
        instances: 1_000,
    };

    /// How many are kept, with so many places free, after so many starts, one in so long.
    fn kept_in(places: u32, starts: u64, gap: u64) -> u32 {
        let service = ServiceKey {
            namespace: Name::default_namespace(),
            name: Name::new("web").unwrap(),
        };
        let key = RevisionKey::of(&service, 1).unwrap();
        let mut pool = Pool::new(1_000);
        let at = |n: u64| Now(1_000 + n * gap);
        for n in 0..starts {
            pool.started(at(n), at(n), &key);
        }
        let free = Resources {
            instances: places,
            ..ALL
        };
        pool.wanted(at(starts), ALL, free)[0].1
    }

    fn kept(starts: u64, gap: u64) -> u32 {
        kept_in(ALL.instances, starts, gap)
    }

    #[test]
    fn no_more_are_kept_than_there_are_places() {
        assert_eq!(
            [1_000, 100, 0].map(|places| kept_in(places, 900, 0)),
            [900, 100, 0]
        );
    }

    #[test]
    fn a_burst_is_as_long_as_starts_come_faster_than_is_refilled() {
        assert_eq!(kept(500, 0), 500);
        assert_eq!(
            kept(500, 20),
            500,
            "a busy node gets to the last after ten seconds"
        );
        assert_eq!(kept(500, 90), 500);
        for (gap, most) in [(200, 11), (500, 3), (1_500, 1)] {
            let kept = kept(500, gap);
            assert!((1..=most).contains(&kept), "one in {gap} ms: {kept}");
        }
    }
}
