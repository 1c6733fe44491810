//! What pulls took and what they moved since the daemon began, for whoever asks. Counts only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::ImageError;
use super::store::Store;

/// Where the classes of pulls by their time end, in microseconds: from an image of a few files on a
/// fast network to one of gigabytes behind a thin link.
pub const PULL_BOUNDS: [u64; 14] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
];

/// Pulls of one outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulls {
    /// By class of [`PULL_BOUNDS`], each for itself; the last one is beyond them.
    pub classes: [u64; PULL_BOUNDS.len() + 1],
    pub sum_micros: u64,
}

/// Where bytes of pulled images came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// As the registry or a mirror sent them.
    pub registry: u64,
    /// As other nodes sent them.
    pub peer: u64,
    /// Found on this disk and not fetched: chunks of other images, and what came of a layer before
    /// its pull ended early.
    pub local: u64,
}

/// What is told of the images' work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageCounts {
    pub pulled: Pulls,
    pub failed: Pulls,
    pub moved: Moved,
    /// Bytes of the layers here, each counted once.
    pub stored: u64,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pulled: Times,
    failed: Times,
    registry: AtomicU64,
    peer: AtomicU64,
    local: AtomicU64,
}

#[derive(Debug, Default)]
struct Times {
    classes: [AtomicU64; PULL_BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Tally {
    /// A pull ended. One that found its image here is none.
    pub(super) fn pull(&self, worked: bool, took: Duration) {
        let times = if worked { &self.pulled } else { &self.failed };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = PULL_BOUNDS.partition_point(|bound| *bound < micros);
        times.classes[class].fetch_add(1, Ordering::Relaxed);
        times.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn add_registry(&self, bytes: u64) {
        self.registry.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_peer(&self, bytes: usize) {
        self.peer.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_local(&self, bytes: u64) {
        self.local.fetch_add(bytes, Ordering::Relaxed);
    }

    fn moved(&self) -> Moved {
        Moved {
            registry: self.registry.load(Ordering::Relaxed),
            peer: self.peer.load(Ordering::Relaxed),
            local: self.local.load(Ordering::Relaxed),
        }
    }
}

impl Times {
    fn read(&self) -> Pulls {
        Pulls {
            classes: std::array::from_fn(|at| self.classes[at].load(Ordering::Relaxed)),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

impl Store {
    /// What pulls did since the store was opened, and what it holds now.
    pub async fn counts(&self) -> Result<ImageCounts, ImageError> {
        let counts = |inner: &super::store::Inner| {
            Ok(ImageCounts {
                pulled: inner.tally.pulled.read(),
                failed: inner.tally.failed.read(),
                moved: inner.tally.moved(),
                stored: inner.stored()?,
            })
        };
        self.blocking(counts).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_counted_in_the_class_it_ends_in() {
        let tally = Tally::default();
        for millis in [1, 50, 51, 2_000_000] {
            tally.pull(true, Duration::from_millis(millis));
        }
        tally.pull(false, Duration::from_secs(3));
        let (pulled, failed) = (tally.pulled.read(), tally.failed.read());
        let mut classes = [0; PULL_BOUNDS.len() + 1];
        (classes[0], classes[1], classes[14]) = (2, 1, 1);
        assert_eq!(pulled.classes, classes);
        assert_eq!(pulled.sum_micros, 2_000_102_000);
        assert_eq!(failed.classes.iter().sum::<u64>(), 1);
    }
}
