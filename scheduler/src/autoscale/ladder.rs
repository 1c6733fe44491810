//! How deep an instance that nobody asks anything sleeps. Of the rungs between ready and gone a node goes
//! down three by itself: what computes although nobody asks it anything leaves its processor to those
//! who are asked (throttled), what does not is held still (frozen), and what is held still gives back the
//! memory it can read again (reclaimed), when what that saves by the odds of its next request is worth
//! more than what waking from it takes. (Stopping is the steward's, parking the pool's.)

use super::forecast::{Outlook, Price};

/// An instance that nobody asks anything for this long is frozen, unless it works.
pub const FREEZE_AFTER_MS: u64 = 10_000;
/// And one that computes is throttled after this: longer than the pauses within a spell of requests.
pub const THROTTLE_AFTER_MS: u64 = 2_000;
/// Who uses more of a processor, in thousandths of one, works: runtimes that only wait (timers, a
/// collector of garbage, a poll a hundred times a second) use up to twenty.
const WORKS_MILLIS: u32 = 50;
/// Who uses less has nothing worth taking from it.
const YIELDS_MILLIS: u32 = 10;

/// Of its memory, in thousandths, what a program needs again at once however long it slept.
const KEPT_PERMILLE: u64 = 400;
/// To read a mebibyte again, in microseconds.
const READ_MICROS: u64 = 600;

/// How far down it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    Ready,
    Throttled,
    Frozen,
}

/// An instance that runs and is asked nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idler {
    pub idle_ms: u64,
    /// What it used of processors since, on average; `None` where nobody knows.
    pub cpu_millis: Option<u32>,
    /// What it may use of them; 0 is no bound.
    pub limit_millis: u32,
    /// Whether it may be frozen, and even while it works.
    pub freezes: bool,
    pub works_unasked: bool,
}

impl Idler {
    /// How far down it should be.
    #[must_use]
    pub fn rung(&self) -> Rung {
        let used = self.cpu_millis.unwrap_or(0);
        let works = self.works_unasked && used >= self.works_from();
        if self.freezes && !works && self.idle_ms >= FREEZE_AFTER_MS {
            Rung::Frozen
        } else if self.idle_ms >= THROTTLE_AFTER_MS && used >= YIELDS_MILLIS {
            Rung::Throttled
        } else {
            Rung::Ready
        }
    }

    /// One that may use no more than a little works when it uses half of that.
    fn works_from(&self) -> u32 {
        match self.limit_millis {
            0 => WORKS_MILLIS,
            limit => limit.div_ceil(2).clamp(YIELDS_MILLIS, WORKS_MILLIS),
        }
    }
}

/// An instance that is held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleeper {
    /// For how long it will not be asked, by what is known.
    pub expected_seconds: u64,
    pub memory_bytes: u64,
    pub start_millis: u64,
}

/// For how long nobody is to be expected who was last there so long ago. Where a history says nothing,
/// who was not asked for so long is as likely not to be for as long again.
#[must_use]
pub fn expected_seconds(outlook: Outlook, idle_seconds: u64) -> u64 {
    match outlook {
        Outlook::Likely { .. } => 0,
        Outlook::Unlikely {
            seconds: Some(seconds),
        } => seconds,
        Outlook::Unlikely { seconds: None } | Outlook::Unknown => idle_seconds,
    }
}

impl Sleeper {
    /// Whether taking its memory pays, at the node's price of memory.
    #[must_use]
    pub fn pays_to_reclaim(&self, price: Price) -> bool {
        let saved = self
            .expected_seconds
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

    fn sleeper(expected_seconds: u64, memory_mib: u64) -> Sleeper {
        Sleeper {
            expected_seconds,
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

    const RESTLESS: Idler = Idler {
        idle_ms: 60_000,
        cpu_millis: Some(400),
        limit_millis: 0,
        freezes: true,
        works_unasked: true,
    };

    #[test]
    fn who_works_is_throttled_and_who_waits_is_frozen() {
        let of = |idle_ms, cpu_millis| {
            Idler {
                idle_ms,
                cpu_millis,
                ..RESTLESS
            }
            .rung()
        };
        assert_eq!(of(1_999, Some(900)), Rung::Ready);
        assert_eq!(of(2_000, Some(900)), Rung::Throttled);
        assert_eq!(of(2_000, Some(9)), Rung::Ready, "nothing to take from it");
        assert_eq!(of(9_999, Some(0)), Rung::Ready);
        assert_eq!(of(10_000, Some(20)), Rung::Frozen, "a runtime that waits");
        assert_eq!(of(10_000, Some(50)), Rung::Throttled);
        assert_eq!(of(10_000, None), Rung::Frozen);
    }

    #[test]
    fn what_an_instance_asks_for_and_may_use_counts() {
        let asked = Idler {
            works_unasked: false,
            ..RESTLESS
        };
        assert_eq!(
            asked.rung(),
            Rung::Frozen,
            "it said that only requests count"
        );
        let never = Idler {
            freezes: false,
            ..RESTLESS
        };
        assert_eq!(never.rung(), Rung::Throttled);
        let small = Idler {
            limit_millis: 40,
            cpu_millis: Some(20),
            ..RESTLESS
        };
        assert_eq!(small.rung(), Rung::Throttled, "half of all it may use");
    }

    #[test]
    fn a_history_says_for_how_long_memory_is_free() {
        let soon = Outlook::Likely { seconds: 5 };
        let late = Outlook::Unlikely {
            seconds: Some(3_000),
        };
        assert_eq!(expected_seconds(soon, 900), 0);
        assert_eq!(expected_seconds(late, 20), 3_000);
        assert_eq!(
            expected_seconds(Outlook::Unlikely { seconds: None }, 70),
            70
        );
        assert_eq!(expected_seconds(Outlook::Unknown, 70), 70);
    }

    proptest! {
        #[test]
        fn more_idle_and_less_work_never_lead_up(
            idle in 0_u64..30_000,
            more in 0_u64..30_000,
            (low, high) in (0_u32..200, 0_u32..200),
            limit_millis in 0_u32..500,
        ) {
            let of = |idle_ms, cpu| {
                Idler { idle_ms, cpu_millis: Some(cpu), limit_millis, ..RESTLESS }.rung()
            };
            prop_assert!(of(idle, low) <= of(idle + more, low));
            let frozen = |cpu| of(idle, cpu) == Rung::Frozen;
            prop_assert!(!frozen(low.max(high)) || frozen(low.min(high)));
        }

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
