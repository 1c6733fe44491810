//! Where a node is on the map of round trips: a point, and a height that every way to it has on top.

use serde::{Deserialize, Serialize};

/// Regions that are all as far from each other as from all others: one more than this can be told apart.
pub const DIMENSIONS: usize = 4;
/// No coordinate is farther from the middle, and no height larger: half a round trip around the world
/// by satellite, many times.
pub const SPAN_MICROS: i32 = 10_000_000;
/// An error of this says that nothing is known yet: a distance may as well be twice as long.
pub const LOST_PERMILLE: u16 = 1_000;
/// Distances by coordinates whose errors are no larger are worth counting with.
const TRUSTED_PERMILLE: u16 = 500;
/// Distances are told in such steps: finer than anybody decides by, and coarse enough to stay.
const STEP_MICROS: u32 = 500;

/// A node's network coordinate, as it publishes it. Microseconds of round trip throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Coordinate {
    pub at: [i32; DIMENSIONS],
    /// What its own link adds to every round trip.
    pub height: u32,
    /// By how much distances from it are wrong, as it finds with its peers.
    pub error_permille: u16,
}

impl Coordinate {
    /// Whether it can be true at all. What a peer says may be anything.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        let near = |at: &i32| at.unsigned_abs() <= SPAN_MICROS.unsigned_abs();
        self.at.iter().all(near) && self.height <= SPAN_MICROS.unsigned_abs()
    }

    /// Whether distances from it are worth counting with.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.is_sane() && self.error_permille <= TRUSTED_PERMILLE
    }

    /// The round trip between two that are trusted, in microseconds and in coarse steps.
    #[must_use]
    pub fn round_trip_to(&self, other: &Self) -> Option<u32> {
        if !self.is_trusted() || !other.is_trusted() {
            return None;
        }
        let squares = self.at.iter().zip(other.at).map(|(a, b)| {
            let apart = u64::from(a.abs_diff(b));
            // Within the span both ways, four squares are far from the most a number holds.
            apart * apart
        });
        let apart = squares.sum::<u64>().isqrt() + u64::from(self.height) + u64::from(other.height);
        let steps = apart.div_ceil(STEP_MICROS.into()).max(1);
        u32::try_from(steps * u64::from(STEP_MICROS)).ok()
    }
}

/// A box around coordinates, and the least height among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    least: [i32; DIMENSIONS],
    most: [i32; DIMENSIONS],
    height: u32,
}

impl Extent {
    #[must_use]
    pub fn around(coordinate: &Coordinate) -> Self {
        Self {
            least: coordinate.at,
            most: coordinate.at,
            height: coordinate.height,
        }
    }

    /// The least that holds this one and the coordinate.
    #[must_use]
    pub fn with(mut self, coordinate: &Coordinate) -> Self {
        for (bound, at) in self.least.iter_mut().zip(coordinate.at) {
            *bound = at.min(*bound);
        }
        for (bound, at) in self.most.iter_mut().zip(coordinate.at) {
            *bound = at.max(*bound);
        }
        self.height = self.height.min(coordinate.height);
        self
    }

    /// No trusted coordinate in it is nearer.
    #[must_use]
    pub fn nearest(&self, from: &Coordinate) -> u64 {
        let bounds = self.least.iter().zip(self.most).zip(from.at);
        let squares = bounds.map(|((least, most), at)| {
            let apart = u64::from(at.clamp(*least, most).abs_diff(at));
            apart.saturating_mul(apart)
        });
        let apart = squares.fold(0_u64, u64::saturating_add).isqrt();
        apart + u64::from(self.height) + u64::from(from.height)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn coordinate() -> impl Strategy<Value = Coordinate> {
        let at = prop::array::uniform4(any::<i32>());
        let near = prop::array::uniform4(-200_000_i32..200_000);
        let at = prop_oneof![1 => at, 4 => near];
        let height = prop_oneof![1 => any::<u32>(), 4 => 0_u32..20_000];
        (at, height, 0_u16..1_500).prop_map(|(at, height, error_permille)| Coordinate {
            at,
            height,
            error_permille,
        })
    }

    proptest! {
        #[test]
        fn distances_are_alike_both_ways_and_bounded(a in coordinate(), b in coordinate()) {
            let there = a.round_trip_to(&b);
            prop_assert_eq!(there, b.round_trip_to(&a));
            if let Some(there) = there {
                prop_assert!(there <= 8 * SPAN_MICROS.unsigned_abs(), "{}", there);
                prop_assert!(a.is_sane() && b.is_sane());
            }
        }

        #[test]
        fn nothing_in_a_box_is_nearer_than_the_box(
            inside in prop::collection::vec(coordinate(), 1..8),
            from in coordinate(),
        ) {
            let first = Extent::around(&inside[0]);
            let extent = inside.iter().fold(first, Extent::with);
            for coordinate in &inside {
                if let Some(apart) = from.round_trip_to(coordinate) {
                    prop_assert!(extent.nearest(&from) <= apart.into());
                }
            }
        }
    }
}
