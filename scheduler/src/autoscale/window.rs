//! Samples in buckets of one second, and averages over the last of them.

use std::collections::VecDeque;

use crate::model::Now;

const BUCKET_MILLIS: u64 = 1000;

/// The samples of one second.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    second: u64,
    sum: u64,
    samples: u64,
}

impl Bucket {
    fn mean(self) -> u64 {
        // Rounded up: a second in which anything ran is not a second in which nothing did.
        self.sum.div_ceil(self.samples.max(1))
    }
}

/// The last `seconds` of a series.
#[derive(Debug, Clone)]
pub(super) struct Window {
    seconds: u64,
    buckets: VecDeque<Bucket>,
    /// Of the means of all buckets.
    sum: u128,
    /// The first second since the series began or was last silent for a whole window.
    first: u64,
}

/// An average kept as a fraction: rounding it would turn a rare request into none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Average {
    pub sum: u64,
    pub seconds: u64,
}

impl Average {
    /// How many of `share` it takes, rounded up.
    pub fn in_shares_of(self, share: u64) -> u64 {
        self.sum.div_ceil(self.seconds.saturating_mul(share).max(1))
    }
}

impl Window {
    pub fn new(seconds: u32) -> Self {
        Self {
            seconds: u64::from(seconds.max(1)),
            buckets: VecDeque::new(),
            sum: 0,
            first: 0,
        }
    }

    /// Changes the length; samples that no longer fit are dropped.
    pub fn resize(&mut self, seconds: u32) {
        self.seconds = u64::from(seconds.max(1));
        if let Some(last) = self.buckets.back().map(|b| b.second) {
            self.drop_before((last + 1).saturating_sub(self.seconds));
        }
    }

    pub fn record(&mut self, now: Now, value: u64) {
        let second = now.0 / BUCKET_MILLIS;
        match self.buckets.back_mut() {
            Some(last) if last.second >= second => {
                self.sum -= u128::from(last.mean());
                last.sum = last.sum.saturating_add(value);
                last.samples += 1;
                self.sum += u128::from(last.mean());
                return;
            }
            Some(last) if second - last.second < self.seconds => {}
            _ => {
                self.buckets.clear();
                self.sum = 0;
                self.first = second;
            }
        }
        let bucket = Bucket {
            second,
            sum: value,
            samples: 1,
        };
        self.sum += u128::from(bucket.mean());
        self.buckets.push_back(bucket);
        self.drop_before((second + 1).saturating_sub(self.seconds));
    }

    fn drop_before(&mut self, second: u64) {
        while let Some(old) = self.buckets.pop_front_if(|b| b.second < second) {
            self.sum -= u128::from(old.mean());
        }
    }

    /// The average of the last `seconds` (at most the window). A young series is divided by its
    /// age, one that fell silent by the part of the window it still reaches into; gaps between
    /// samples count as nothing. `None` when there is no sample left.
    pub fn average(&self, now: Now, seconds: u32) -> Option<Average> {
        let seconds = u64::from(seconds.max(1)).min(self.seconds);
        let last = self.buckets.back()?.second;
        let silent = (now.0 / BUCKET_MILLIS).saturating_sub(last);
        if silent >= seconds {
            return None;
        }
        let reach = seconds - silent;
        let from = (last + 1).saturating_sub(reach);
        let age = last - self.first + 1;
        Some(Average {
            sum: u64::try_from(self.sum_from(from)).unwrap_or(u64::MAX),
            seconds: age.min(reach),
        })
    }

    /// Of the means since a second: as a rule of all buckets, or of the last few.
    fn sum_from(&self, second: u64) -> u128 {
        if self.buckets.front().is_some_and(|b| b.second >= second) {
            return self.sum;
        }
        let recent = self.buckets.iter().rev().take_while(|b| b.second >= second);
        recent.map(|b| u128::from(b.mean())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seconds: u32, samples: &[(u64, u64)]) -> Window {
        let mut window = Window::new(seconds);
        for (second, value) in samples {
            window.record(Now(second * 1000 + 17), *value);
        }
        window
    }

    #[test]
    fn averages_follow_the_data() {
        let at = |second: u64| Now(second * 1000 + 900);
        let average =
            |w: &Window, second, over| w.average(at(second), over).map(|a| (a.sum, a.seconds));
        let young = window(60, &[(100, 10), (101, 20)]);
        assert_eq!(
            average(&young, 101, 60),
            Some((30, 2)),
            "divided by its age"
        );
        assert_eq!(average(&young, 101, 1), Some((20, 1)));
        let gap = window(60, &[(100, 10), (104, 20)]);
        assert_eq!(
            average(&gap, 104, 60),
            Some((30, 5)),
            "a gap counts as nothing"
        );
        let full = window(3, &[(1, 7), (2, 1), (3, 2), (4, 3)]);
        assert_eq!(average(&full, 4, 3), Some((6, 3)), "the oldest is gone");
        assert_eq!(
            average(&full, 5, 3),
            Some((5, 2)),
            "silent for one of three"
        );
        assert_eq!(average(&full, 6, 3), Some((3, 1)));
        assert_eq!(average(&full, 7, 3), None, "silent for the whole window");
        let again = window(3, &[(1, 9), (2, 9), (9, 4)]);
        assert_eq!(average(&again, 9, 3), Some((4, 1)), "silence begins anew");
        assert_eq!(average(&Window::new(60), 0, 60), None);
    }

    #[test]
    fn samples_of_one_second_are_averaged() {
        let w = window(60, &[(5, 10), (5, 20)]);
        assert_eq!(w.average(Now(5_500), 60).unwrap().sum, 15);
        let faint = window(60, &[(5, 1), (5, 0), (5, 0)]);
        assert_eq!(faint.average(Now(5_500), 60).unwrap().sum, 1);
    }
}
