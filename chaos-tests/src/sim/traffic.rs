//! How many requests come, from where and when: what the generators of the scenarios are made of.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::queue::Millis;

/// The arrivals of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// The same everywhere, always.
    Steady { per_second_milli: u64 },
    /// In one region only.
    Local {
        region: usize,
        per_second_milli: u64,
    },
    /// A day of `period`, which begins later in each further region.
    Diurnal { peak_milli: u64, period: Millis },
    /// A crowd that comes and goes.
    Flash {
        base_milli: u64,
        peak_milli: u64,
        at: Millis,
        lasts: Millis,
    },
    /// So many at once, in one region, and nothing else.
    Herd {
        region: usize,
        at: Millis,
        count: u32,
    },
    /// All in one region, until all are in another.
    Moving {
        from: usize,
        to: usize,
        at: Millis,
        per_second_milli: u64,
    },
    /// What each region was recorded to have, and from some moment on a percentage of it.
    Recorded {
        rates_milli: Vec<u64>,
        at: Millis,
        percent: u64,
    },
}

/// How often arrivals are drawn.
pub(super) const TICK: Millis = 100;

impl Pattern {
    /// Requests a second in a region, times 1000.
    pub fn rate_milli(&self, region: usize, regions: usize, now: Millis) -> u64 {
        match *self {
            Self::Steady { per_second_milli } => per_second_milli,
            Self::Local {
                region: own,
                per_second_milli,
            } => own_only(region == own, per_second_milli),
            Self::Diurnal { peak_milli, period } => {
                let shift = period / u64::try_from(regions.max(1)).unwrap_or(1);
                let shifted = now + shift * u64::try_from(region).unwrap_or(0);
                day(shifted % period.max(1), period.max(1), peak_milli)
            }
            Self::Flash {
                base_milli,
                peak_milli,
                at,
                lasts,
            } => own_only((at..at + lasts).contains(&now), peak_milli).max(base_milli),
            Self::Herd { .. } => 0,
            Self::Moving {
                from,
                to,
                at,
                per_second_milli,
            } => own_only(region == if now < at { from } else { to }, per_second_milli),
            Self::Recorded {
                ref rates_milli,
                at,
                percent,
            } => {
                let rate = rates_milli.get(region).copied().unwrap_or(0);
                rate * if now < at { 100 } else { percent } / 100
            }
        }
    }

    /// Arrivals of the tick that begins now.
    pub fn draw(&self, region: usize, regions: usize, now: Millis, rng: &mut StdRng) -> u32 {
        if let Self::Herd {
            region: own,
            at,
            count,
        } = *self
        {
            let now_it_is = region == own && (now..now + TICK).contains(&at);
            return if now_it_is { count } else { 0 };
        }
        poisson(self.rate_milli(region, regions, now) * TICK / 1_000, rng)
    }
}

fn own_only(own: bool, rate: u64) -> u64 {
    if own { rate } else { 0 }
}

/// A day in straight lines: nothing at its ends, the peak at noon.
fn day(hour: Millis, period: Millis, peak: u64) -> u64 {
    let half = (period / 2).max(1);
    let up = if hour < half { hour } else { period - hour };
    peak * up.min(half) / half
}

/// Draws from a Poisson distribution of that mean, in thousandths, by counting the steps of size
/// `exp(1)` that fit into it. Whole numbers only: the same everywhere.
fn poisson(mean_milli: u64, rng: &mut StdRng) -> u32 {
    // A thousand small chances each; the binomial distribution is close enough to it.
    let (whole, rest) = (mean_milli / 1_000, mean_milli % 1_000);
    let mut count = 0;
    for mean in std::iter::repeat_n(1_000, usize::try_from(whole).unwrap_or(0)).chain([rest]) {
        // Up to four from each unit of the mean, each with a quarter of it as its chance.
        for _ in 0..4 {
            count += u32::from(rng.random_range(0..4_000) < mean);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn rates_follow_their_patterns() {
        let moving = Pattern::Moving {
            from: 0,
            to: 2,
            at: 500,
            per_second_milli: 7,
        };
        let flash = Pattern::Flash {
            base_milli: 1,
            peak_milli: 9,
            at: 100,
            lasts: 10,
        };
        let day = Pattern::Diurnal {
            peak_milli: 100,
            period: 200,
        };
        let recorded = Pattern::Recorded {
            rates_milli: vec![40, 8],
            at: 50,
            percent: 250,
        };
        let rates = |pattern: &Pattern, now| [0, 1, 2].map(|r| pattern.rate_milli(r, 4, now));
        assert_eq!(rates(&recorded, 49), [40, 8, 0]);
        assert_eq!(rates(&recorded, 50), [100, 20, 0]);
        assert_eq!(rates(&moving, 499), [7, 0, 0]);
        assert_eq!(rates(&moving, 500), [0, 0, 7]);
        assert_eq!(rates(&flash, 99), [1, 1, 1]);
        assert_eq!(rates(&flash, 109), [9, 9, 9]);
        assert_eq!(rates(&flash, 110), [1, 1, 1]);
        assert_eq!(rates(&day, 0), [0, 50, 100]);
        assert_eq!(rates(&day, 100), [100, 50, 0]);
    }

    #[test]
    fn arrivals_have_the_mean_that_was_asked_for() {
        let mut rng = StdRng::seed_from_u64(3);
        let steady = Pattern::Steady {
            per_second_milli: 23_500,
        };
        let ticks = 2_000;
        let drawn = (0..ticks).map(|tick| steady.draw(0, 1, tick * TICK, &mut rng));
        let sum: u32 = drawn.sum();
        assert!((4_500..4_900).contains(&sum), "{sum} in 200 seconds");
        let herd = Pattern::Herd {
            region: 1,
            at: 250,
            count: 40,
        };
        let drawn = |region: usize| -> u32 {
            let mut rng = StdRng::seed_from_u64(1);
            let ticks = (0..10).map(|tick| herd.draw(region, 2, tick * TICK, &mut rng));
            ticks.sum()
        };
        assert_eq!((drawn(0), drawn(1)), (0, 40));
    }
}
