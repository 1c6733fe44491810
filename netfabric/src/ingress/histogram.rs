//! How long things took, counted in classes: enough for percentiles, small enough for every door.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::ledger::micros;

/// The upper ends of the classes in microseconds: from what a parked instance takes to start to
/// what a client waits at most.
pub const BOUNDS: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// By class, the last one without an end.
    classes: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

/// A histogram's counts at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    /// How many by class of [`BOUNDS`], each for itself; the last one is beyond them.
    pub classes: [u64; BOUNDS.len() + 1],
    pub sum_micros: u64,
}

impl Histogram {
    pub(super) fn note(&self, took: Duration) {
        self.note_micros(micros(took));
    }

    pub(super) fn note_micros(&self, took: u64) {
        let class = BOUNDS.partition_point(|bound| *bound < took);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(took, Ordering::Relaxed);
    }

    pub(super) fn distribution(&self) -> Distribution {
        Distribution {
            classes: std::array::from_fn(|at| self.classes[at].load(Ordering::Relaxed)),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

impl Distribution {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_class_it_ends() {
        let histogram = Histogram::default();
        for took in [0, 1_000, 1_001, 30_000_000, 30_000_001, 90_000_000] {
            histogram.note_micros(took);
        }
        histogram.note(Duration::from_micros(2_500));
        let told = histogram.distribution();
        let mut want = [0; BOUNDS.len() + 1];
        (want[0], want[1], want[13], want[14]) = (2, 2, 1, 2);
        assert_eq!(told.classes, want);
        assert_eq!(told.count(), 7);
        assert_eq!(told.sum_micros, 150_004_502);
    }
}
