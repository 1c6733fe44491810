//! Average of a level over the last second, how often it rose in it, and its sum over all time.

const BUCKETS: usize = 10;
const BUCKET_MICROS: u64 = 100_000;

/// Integrates a level (requests in flight) over time, in buckets that are forgotten after a
/// second. Time is microseconds of any clock that does not run backwards.
#[derive(Debug)]
pub(super) struct Meter {
    /// Level times microseconds, by bucket number modulo their count.
    area: [u64; BUCKETS],
    /// How often the level rose, likewise.
    rises: [u32; BUCKETS],
    /// Level times microseconds since its birth.
    total: u64,
    level: u64,
    born: u64,
    at: u64,
}

impl Meter {
    pub(super) fn new(now: u64) -> Self {
        Self {
            area: [0; BUCKETS],
            rises: [0; BUCKETS],
            total: 0,
            level: 0,
            born: now,
            at: now,
        }
    }

    pub(super) fn enter(&mut self, now: u64) {
        self.advance(now);
        self.level += 1;
        self.rises[Self::slot(self.at / BUCKET_MICROS)] += 1;
    }

    pub(super) fn leave(&mut self, now: u64) {
        self.advance(now);
        self.level = self.level.saturating_sub(1);
    }

    /// The average times 1000 over the last second, or over its life when younger.
    pub(super) fn average_milli(&mut self, now: u64) -> u32 {
        self.advance(now);
        let span = self.span();
        if span == 0 {
            return u32::try_from(self.level * 1000).unwrap_or(u32::MAX);
        }
        let sum: u64 = self.area.iter().sum();
        u32::try_from(sum.saturating_mul(1000) / span).unwrap_or(u32::MAX)
    }

    /// How often the level rose in a second times 1000, over the last one, or over its life when younger.
    pub(super) fn rate_milli(&mut self, now: u64) -> u32 {
        self.advance(now);
        let rises: u64 = self.rises.iter().map(|rises| u64::from(*rises)).sum();
        // What is younger than a part of a second says nothing about a whole one.
        let span = self.span().max(BUCKET_MICROS);
        u32::try_from(rises.saturating_mul(1_000_000_000) / span).unwrap_or(u32::MAX)
    }

    /// What the buckets are of.
    fn span(&self) -> u64 {
        let whole = (BUCKETS as u64 - 1) * BUCKET_MICROS + self.at % BUCKET_MICROS;
        whole.min(self.at - self.born)
    }

    /// The level added up over its life: for requests in flight, the time spent in all of them.
    pub(super) fn total(&mut self, now: u64) -> u64 {
        self.advance(now);
        self.total
    }

    fn advance(&mut self, now: u64) {
        let passed = self.level.saturating_mul(now.saturating_sub(self.at));
        self.total = self.total.saturating_add(passed);
        // Buckets older than all that are kept need not be walked through.
        let oldest = now.saturating_sub(BUCKETS as u64 * BUCKET_MICROS);
        if self.at < oldest {
            (self.area, self.rises) = ([0; BUCKETS], [0; BUCKETS]);
            self.at = oldest;
        }
        while self.at < now {
            let bucket = self.at / BUCKET_MICROS;
            let end = now.min((bucket + 1) * BUCKET_MICROS);
            self.area[Self::slot(bucket)] += self.level * (end - self.at);
            self.at = end;
            if end.is_multiple_of(BUCKET_MICROS) {
                let next = Self::slot(bucket + 1);
                (self.area[next], self.rises[next]) = (0, 0);
            }
        }
    }

    fn slot(bucket: u64) -> usize {
        usize::try_from(bucket % BUCKETS as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Meter {
        fn set(&mut self, now: u64, level: u64) {
            while self.level < level {
                self.enter(now);
            }
            while self.level > level {
                self.leave(now);
            }
        }
    }

    #[test]
    fn averages_the_last_second() {
        let mut meter = Meter::new(50_000);
        assert_eq!(meter.average_milli(50_000), 0);
        meter.set(50_000, 2);
        assert_eq!(meter.average_milli(50_000), 2_000);
        assert_eq!(meter.average_milli(350_000), 2_000);
        meter.set(1_000_000, 4);
        // 100 ms to 1 s at level 2 is all the window holds at a bucket's start.
        assert_eq!(meter.average_milli(1_000_000), 2_000);
        assert_eq!(meter.average_milli(1_500_000), 3_111);
        assert_eq!(meter.average_milli(3_000_000), 4_000);
        meter.set(3_000_000, 0);
        assert_eq!(meter.average_milli(3_500_000), 1_777);
        assert_eq!(meter.average_milli(4_000_000), 0);
        assert_eq!(meter.average_milli(400_000_000_000), 0);
    }

    #[test]
    fn rises_of_the_last_second_are_its_rate() {
        let mut meter = Meter::new(0);
        assert_eq!(meter.rate_milli(0), 0);
        // Fifty in 100 ms, and no more.
        for at in 0..50 {
            meter.set(at * 2_000, 1);
            meter.set(at * 2_000 + 1_000, 0);
        }
        assert_eq!(meter.rate_milli(100_000), 500_000);
        assert_eq!(meter.rate_milli(500_000), 100_000);
        assert_eq!(meter.rate_milli(999_999), 50_000);
        assert_eq!(meter.rate_milli(1_000_000), 0);
        assert_eq!(meter.rate_milli(90_000_000), 0);
        // One every 10 ms, at any moment after a second.
        for at in 0..300 {
            meter.set(90_000_000 + at * 10_000, 1);
            meter.set(90_000_000 + at * 10_000, 0);
        }
        let rate = meter.rate_milli(93_000_000);
        assert!((99_000..=101_000).contains(&rate), "{rate}");
    }

    #[test]
    fn the_total_is_the_sum_of_all_durations() {
        let mut meter = Meter::new(0);
        meter.set(100, 1);
        meter.set(250, 2);
        // Both go on for longer than the window.
        assert_eq!(meter.total(5_000_250), 150 + 2 * 5_000_000);
        meter.set(5_000_250, 0);
        assert_eq!(meter.total(9_000_000), 10_000_150);
    }
}
