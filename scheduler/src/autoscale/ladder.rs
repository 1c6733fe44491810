//! How deep an instance that nobody asks anything sleeps: the rungs between ready and no more than its
//! image, what each still costs and what it takes to wake from it, and which is cheapest for a pause of
//! the length that is to be expected. It decides for one instance and does nothing.

use std::fmt;

use super::forecast::{Outlook, Price};
use crate::converge::PARKED_BYTES;

/// What an idle instance may become, each deeper than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    Ready,
    /// Its program's own work in between gets little of a processor.
    Throttled,
    /// Held still.
    Frozen,
    /// And the pages that can be read again are taken from it.
    Reclaimed,
    /// Gone, with a container prepared for the next.
    Parked,
    /// Gone.
    Stopped,
    /// Gone, and what was unpacked of its image too.
    ImageOnly,
}

impl Rung {
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Throttled,
        Self::Frozen,
        Self::Reclaimed,
        Self::Parked,
        Self::Stopped,
        Self::ImageOnly,
    ];
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Throttled => "throttled",
            Self::Frozen => "frozen",
            Self::Reclaimed => "frozen and reclaimed",
            Self::Parked => "parked",
            Self::Stopped => "stopped",
            Self::ImageOnly => "image only",
        })
    }
}

/// Of its memory, in thousandths, what a program needs again at once however long it slept.
const KEPT_PERMILLE: u64 = 400;
/// Of a start, in thousandths, what is left to do with a container prepared.
const PARKED_PERMILLE: u64 = 600;
/// To thaw one, and to give one its processors back, in microseconds.
const THAW_MICROS: u64 = 1_000;
const UNTHROTTLE_MICROS: u64 = 200;
/// To read a mebibyte again, in microseconds.
const READ_MICROS: u64 = 600;
/// To unpack a mebibyte of an image, in microseconds.
const UNPACK_MICROS: u64 = 10_000;
/// What idling costs, as a share of the memory's price in thousandths: timers and polling.
const STIRRING_PERMILLE: u64 = 100;
const STIRRING_THROTTLED_PERMILLE: u64 = 10;

/// An instance that nobody asks anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idler {
    pub idle_seconds: u64,
    /// What its service's history says.
    pub outlook: Outlook,
    pub memory_bytes: u64,
    pub image_bytes: u64,
    pub start_millis: u64,
    /// Its program works between requests, or a lease of it says so: it is not to be held still.
    pub works: bool,
}

impl Idler {
    /// The seconds until the next request. Where nothing is known, who was not asked for so long is as
    /// likely not to be for as long again.
    #[must_use]
    pub fn quiet_seconds(&self) -> u64 {
        match self.outlook {
            Outlook::Likely { .. } => 0,
            Outlook::Unlikely { seconds: Some(s) } => s,
            Outlook::Unlikely { seconds: None } | Outlook::Unknown => self.idle_seconds,
        }
    }

    /// What a rung costs for that long, waking included, in millionths of a start of it.
    fn cost(&self, rung: Rung, price: Price, quiet: u64) -> u64 {
        let start = self.start_millis.max(1) * 1_000;
        let mib = self.memory_bytes >> 20;
        let (held, wake) = match rung {
            Rung::Ready => (1_000 + STIRRING_PERMILLE, 0),
            Rung::Throttled => (1_000 + STIRRING_THROTTLED_PERMILLE, UNTHROTTLE_MICROS),
            Rung::Frozen => (1_000, THAW_MICROS),
            Rung::Reclaimed => {
                let read = mib * (1_000 - KEPT_PERMILLE) * READ_MICROS / 1_000;
                (KEPT_PERMILLE, THAW_MICROS + read)
            }
            Rung::Parked => {
                let share = PARKED_BYTES * 1_000 / self.memory_bytes.max(PARKED_BYTES);
                (share, start * PARKED_PERMILLE / 1_000)
            }
            Rung::Stopped => (0, start),
            Rung::ImageOnly => (0, start + (self.image_bytes >> 20) * UNPACK_MICROS),
        };
        let held = quiet
            .saturating_mul(u64::from(price.0))
            .saturating_mul(held)
            / 1_000;
        held.saturating_add(wake.saturating_mul(1_000_000) / start)
    }
}

/// The cheapest rung for the pause that is to be expected, at the node's price of memory. The last one is
/// for whoever needs the disk, not for memory's sake: it saves none.
#[must_use]
pub fn rung(idler: &Idler, price: Price) -> Rung {
    let quiet = idler.quiet_seconds();
    let may = |rung: &Rung| match rung {
        Rung::Throttled => idler.works,
        Rung::Frozen | Rung::Reclaimed => !idler.works,
        _ => true,
    };
    let cheapest = Rung::ALL.into_iter().filter(may);
    let cheapest = cheapest.min_by_key(|rung| (idler.cost(*rung, price, quiet), *rung));
    cheapest.unwrap_or(Rung::Ready)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idler(idle_seconds: u64) -> Idler {
        Idler {
            idle_seconds,
            outlook: Outlook::Unknown,
            memory_bytes: 64 << 20,
            image_bytes: 50 << 20,
            start_millis: 400,
            works: false,
        }
    }

    #[test]
    fn the_longer_the_pause_the_deeper_the_sleep() {
        let price = Price::at(800);
        let rungs: Vec<Rung> = (0..4_000).map(|s| rung(&idler(s), price)).collect();
        assert!(rungs.is_sorted());
        let mut seen = rungs.clone();
        seen.dedup();
        let expected = [
            Rung::Ready,
            Rung::Frozen,
            Rung::Reclaimed,
            Rung::Parked,
            Rung::Stopped,
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_full_node_puts_to_sleep_what_an_empty_one_keeps() {
        let one = idler(120);
        let (empty, full) = (rung(&one, Price::at(0)), rung(&one, Price::at(1000)));
        assert_eq!((empty, full), (Rung::Frozen, Rung::Reclaimed));
    }

    #[test]
    fn what_is_expected_soon_stays_and_what_works_is_not_held_still() {
        let price = Price::at(1000);
        let soon = Idler {
            outlook: Outlook::Likely { seconds: 30 },
            ..idler(3_000)
        };
        assert_eq!(rung(&soon, price), Rung::Ready);
        let late = Idler {
            outlook: Outlook::Unlikely {
                seconds: Some(80_000),
            },
            ..idler(10)
        };
        assert_eq!(rung(&late, price), Rung::Stopped);
        let works = Idler {
            works: true,
            ..idler(20)
        };
        assert_eq!(rung(&works, Price::at(500)), Rung::Throttled);
    }

    proptest! {
        #[test]
        fn dearer_memory_and_longer_pauses_never_wake(
            idle in 0_u64..100_000,
            more in 0_u64..100_000,
            (low, high) in (0_u16..=1000, 0_u16..=1000),
            memory in 1_u64..8192,
            start in 0_u64..60_000,
            works in any::<bool>(),
        ) {
            let one = Idler {
                memory_bytes: memory << 20,
                start_millis: start,
                works,
                ..idler(idle)
            };
            let (low, high) = (Price::at(low.min(high)), Price::at(low.max(high)));
            let held = |rung| one.cost(rung, Price(1_000), 1_000) - one.cost(rung, Price(1_000), 0);
            prop_assert!(held(rung(&one, high)) <= held(rung(&one, low)));
            let longer = Idler { idle_seconds: idle + more, ..one };
            prop_assert!(held(rung(&longer, low)) <= held(rung(&one, low)));
            prop_assert!(rung(&one, high) != Rung::ImageOnly);
        }
    }
}
