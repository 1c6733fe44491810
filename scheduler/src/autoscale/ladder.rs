//! How deep an instance that nobody asks anything sleeps. Of the rungs between ready and gone a node goes
//! down one by itself: what is held still for long gives back the memory it can read again, when what
//! that saves is worth more than what waking from it takes. (Holding still is `converge`'s after its time,
//! stopping the steward's, parking the pool's.)

use super::forecast::Price;

/// Of its memory, in thousandths, what a program needs again at once however long it slept.
const KEPT_PERMILLE: u64 = 400;
/// To read a mebibyte again, in microseconds.
const READ_MICROS: u64 = 600;

/// An instance that is held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleeper {
    pub idle_seconds: u64,
    pub memory_bytes: u64,
    pub start_millis: u64,
}

impl Sleeper {
    /// Whether taking its memory pays, at the node's price of memory. Who was not asked for so long is as
    /// likely not to be for as long again.
    #[must_use]
    pub fn pays_to_reclaim(&self, price: Price) -> bool {
        let saved = self
            .idle_seconds
            .saturating_mul(u64::from(price.0))
            .saturating_mul(1_000 - KEPT_PERMILLE)
            / 1_000;
        let read = (self.memory_bytes >> 20) * (1_000 - KEPT_PERMILLE) * READ_MICROS / 1_000;
        // Both in millionths of a start of it.
        let start = self.start_millis.max(1) * 1_000;
        saved > read.saturating_mul(1_000_000) / start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sleeper(idle_seconds: u64, memory_mib: u64) -> Sleeper {
        Sleeper {
            idle_seconds,
            memory_bytes: memory_mib << 20,
            start_millis: 400,
        }
    }

    #[test]
    fn a_full_node_takes_what_an_empty_one_leaves() {
        let (empty, full) = (Price::at(0), Price::at(1000));
        assert!(!sleeper(120, 64).pays_to_reclaim(empty));
        assert!(sleeper(120, 64).pays_to_reclaim(full));
        assert!(
            !sleeper(3_000, 4 << 10).pays_to_reclaim(empty),
            "much to read"
        );
        assert!(!sleeper(0, 64).pays_to_reclaim(full));
    }

    proptest! {
        #[test]
        fn dearer_memory_and_longer_pauses_never_give_back(
            idle in 0_u64..100_000,
            more in 0_u64..100_000,
            (low, high) in (0_u16..=1000, 0_u16..=1000),
            memory in 1_u64..8192,
        ) {
            let (low, high) = (Price::at(low.min(high)), Price::at(low.max(high)));
            let (short, long) = (sleeper(idle, memory), sleeper(idle + more, memory));
            prop_assert!(!short.pays_to_reclaim(low) || short.pays_to_reclaim(high));
            prop_assert!(!short.pays_to_reclaim(low) || long.pays_to_reclaim(low));
        }
    }
}
