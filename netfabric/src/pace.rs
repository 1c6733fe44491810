//! Rates, as the generic cell rate algorithm keeps them: one number for whoever is limited, the
//! moment until which its rate is used up. Pure; time is nanoseconds since any fixed moment. A number
//! that lies in the past says as much as none, so what was kept can be forgotten.

use std::time::Duration;

use scheduler::model::Rate;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// The time that one has.
    interval: u64,
    /// As much of it may be used ahead.
    ahead: u64,
}

impl Pace {
    pub(crate) fn new(interval: Duration, burst: u32) -> Self {
        let interval = nanos(interval).max(1);
        let ahead = interval.saturating_mul(u64::from(burst.max(1)));
        Self { interval, ahead }
    }

    /// One more at `now`; an error is how long it is early, and then nothing is used by it. The number is what
    /// is to be kept in either case: no more than all can be used up, whatever rate was kept before this one.
    pub(crate) fn take(self, used_until: &mut u64, now: u64) -> Result<(), u64> {
        let most = now.saturating_add(self.ahead);
        *used_until = (*used_until).clamp(now, most);
        let until = used_until.saturating_add(self.interval);
        if until > most {
            return Err(until - most);
        }
        *used_until = until;
        Ok(())
    }

    /// Until when it is used up when so many were for nothing.
    pub(crate) fn give(self, used_until: u64, count: u32) -> u64 {
        used_until.saturating_sub(self.interval.saturating_mul(u64::from(count)))
    }
}

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Self {
        Self::new(Duration::from_nanos(rate.interval_nanos()), rate.burst())
    }
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLI: u64 = 1_000_000;

    #[test]
    fn a_burst_goes_through_and_the_rate_holds_after_it() {
        let pace = Pace::new(Duration::from_millis(10), 3);
        let (mut used, now) = (0, 5_000 * MILLI);
        let used = &mut used;
        for _ in 0..3 {
            pace.take(used, now).unwrap();
        }
        assert_eq!(pace.take(used, now), Err(10 * MILLI));
        assert_eq!(pace.take(used, now + 4 * MILLI), Err(6 * MILLI));
        pace.take(used, now + 10 * MILLI).unwrap();
        assert_eq!(pace.take(used, now + 10 * MILLI), Err(10 * MILLI));
        // A slower rate that was kept before binds no longer than this one would.
        *used = now + 3_600_000 * MILLI;
        assert_eq!(pace.take(used, now), Err(10 * MILLI));
        pace.take(used, now + 10 * MILLI).unwrap();
        *used = u64::MAX;
        assert!(pace.take(used, u64::MAX).is_ok(), "no number is too large");
    }

    proptest! {
        #[test]
        fn no_span_has_more_than_its_burst_and_its_share(
            interval in 1u64..50, burst in 1u32..20, gaps in prop::collection::vec(0u64..60, 1..200),
        ) {
            let pace = Pace::new(Duration::from_nanos(interval), burst);
            let (mut used, mut now, mut granted) = (0, 0, Vec::new());
            for gap in gaps {
                now += gap;
                match pace.take(&mut used, now) {
                    Ok(()) => granted.push(now),
                    Err(early) => {
                        prop_assert!(pace.take(&mut used.clone(), now + early - 1).is_err());
                        prop_assert!(pace.take(&mut used.clone(), now + early).is_ok());
                    }
                }
            }
            for (at, first) in granted.iter().enumerate() {
                for (count, last) in (1u64..).zip(&granted[at..]) {
                    prop_assert!(count <= u64::from(burst) + (last - first) / interval);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_early(
            interval in 1u64..50, burst in 1u32..20, more in prop::collection::vec(0u64..30, 1..200),
        ) {
            let pace = Pace::new(Duration::from_nanos(interval), burst);
            let (mut used, mut now) = (0, 0);
            for gap in more {
                now += interval + gap;
                pace.take(&mut used, now).unwrap();
            }
        }
    }
}
