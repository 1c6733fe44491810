//! Requests of a region that are answered in another one. A few of them are cheaper to let travel than
//! to start an instance for; when they keep coming, one is started where they are.

use std::collections::BTreeMap;

use crate::model::{Name, NodeId, Now};

/// How far back is looked.
const LOOKED_SECONDS: u64 = 10;
/// In so many of these seconds there must have been some: a single request, or a burst of one page, is
/// no traffic that moved.
const ASKED_SECONDS: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Afar {
    /// What each door had sent when it was last seen.
    counts: BTreeMap<NodeId, u64>,
    /// New ones by second and zone.
    seconds: BTreeMap<(u64, Name), BTreeMap<NodeId, u64>>,
}

impl Afar {
    /// Takes in what the doors of the region have sent elsewhere, ever.
    pub fn note(&mut self, now: Now, doors: &[(&Name, NodeId, u64)]) {
        let second = now.0 / 1000;
        let old = second.saturating_sub(LOOKED_SECONDS);
        self.seconds.retain(|(at, _), _| *at > old);
        for (zone, node, count) in doors {
            let before = self.counts.insert(*node, *count);
            // What was sent before it was first looked at says nothing, and a count that fell began anew.
            let new = before.map_or(0, |before| count.saturating_sub(before));
            if new > 0 {
                let zones = self.seconds.entry((second, Name::clone(zone)));
                *zones.or_default().entry(*node).or_default() += new;
            }
        }
        self.counts
            .retain(|node, _| doors.iter().any(|(_, door, _)| door == node));
    }

    /// The door that asks most, if the region keeps asking and most of that comes from `zone`: one zone's
    /// steward acts for the region.
    pub fn asks(&self, zone: &Name) -> Option<NodeId> {
        let mut seconds: Vec<u64> = self.seconds.keys().map(|(second, _)| *second).collect();
        seconds.dedup();
        if seconds.len() < ASKED_SECONDS {
            return None;
        }
        let mut zones: BTreeMap<&Name, BTreeMap<NodeId, u64>> = BTreeMap::new();
        for ((_, zone), doors) in &self.seconds {
            let sums = zones.entry(zone).or_default();
            for (door, count) in doors {
                *sums.entry(*door).or_default() += count;
            }
        }
        let most = zones
            .iter()
            .max_by_key(|(_, doors)| doors.values().sum::<u64>())?;
        let doors = Some(most).filter(|(most, _)| **most == zone)?.1;
        let hottest = doors.iter().max_by_key(|(node, count)| (**count, **node));
        hottest.map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_that_keeps_coming_is_asked_for_by_one_zone() {
        let (a, b) = (Name::new("a").unwrap(), Name::new("b").unwrap());
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        let mut afar = Afar::default();
        let mut at = |second: u64, doors: &[(&Name, NodeId, u64)]| {
            afar.note(Now(second * 1000), doors);
            (afar.asks(&a), afar.asks(&b))
        };
        assert_eq!(at(1, &[(&a, one, 500)]), (None, None), "from before");
        assert_eq!(at(2, &[(&a, one, 540)]), (None, None), "a burst");
        assert_eq!(at(3, &[(&a, one, 541), (&b, two, 7)]), (None, None));
        let doors = [(&a, one, 542), (&b, two, 8), (&b, three, 0)];
        assert_eq!(at(4, &doors), (Some(one), None), "it keeps coming");
        let doors = [(&a, one, 542), (&b, two, 108), (&b, three, 300)];
        assert_eq!(
            at(5, &doors),
            (None, Some(three)),
            "most of it in the other zone"
        );
        assert_eq!(at(12, &doors), (None, Some(three)));
        assert_eq!(at(13, &doors), (None, None), "not any more");
        assert_eq!(at(30, &doors), (None, None), "it ended");
    }
}
