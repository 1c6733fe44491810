//! What starts of a revision took, as a histogram: small enough to be told, and fine enough to count with.

use serde::{Deserialize, Serialize};

use super::RevisionKey;

/// The first bucket ends here; two more buckets are twice as long.
const FIRST_MICROS: u64 = 2_000;
/// The last begins beyond eight minutes; no start is waited for so long.
const LAST: u8 = 36;
/// Of so many starts half are forgotten: what was long ago says little.
const KEPT: u32 = 64;

/// How many starts took how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartHistogram {
    pub revision: RevisionKey,
    /// Buckets that are not empty, in order: which, and how many.
    buckets: Vec<(u8, u8)>,
}

impl StartHistogram {
    #[must_use]
    pub fn new(revision: RevisionKey) -> Self {
        Self {
            revision,
            buckets: Vec::new(),
        }
    }

    /// One more, without bringing the image.
    pub fn note(&mut self, micros: u64) {
        let bucket = (0..LAST).find(|b| micros <= end(*b)).unwrap_or(LAST);
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(known) => self.buckets[known].1 = self.buckets[known].1.saturating_add(1),
            Err(place) => self.buckets.insert(place, (bucket, 1)),
        }
        if self.count() > KEPT {
            for (_, count) in &mut self.buckets {
                *count /= 2;
            }
            self.buckets.retain(|(_, count)| *count > 0);
        }
    }

    #[must_use]
    pub fn count(&self) -> u32 {
        self.buckets
            .iter()
            .map(|(_, count)| u32::from(*count))
            .sum()
    }

    /// What they took together.
    #[must_use]
    pub fn sum_micros(&self) -> u64 {
        let all = self.buckets.iter();
        all.map(|(bucket, count)| middle(*bucket) * u64::from(*count))
            .sum()
    }

    /// So many of a thousand took no longer.
    #[must_use]
    pub fn within_micros(&self, permille: u32) -> u64 {
        let wanted = u64::from(self.count()) * u64::from(permille.min(1_000));
        let mut so_far = 0;
        for (bucket, count) in &self.buckets {
            so_far += u64::from(*count) * 1_000;
            if so_far >= wanted {
                return end(*bucket);
            }
        }
        0
    }

    /// Whether it can be: peers may say anything.
    pub(super) fn is_sane(&self) -> bool {
        let rising = self.buckets.windows(2).all(|two| two[0].0 < two[1].0);
        rising && self.buckets.iter().all(|(bucket, _)| *bucket <= LAST)
    }
}

/// Where a bucket ends: half an octave after the one before.
fn end(bucket: u8) -> u64 {
    let octave = FIRST_MICROS << (bucket / 2);
    if bucket.is_multiple_of(2) {
        octave
    } else {
        // The square root of two.
        octave * 1_448 / 1_024
    }
}

fn middle(bucket: u8) -> u64 {
    let begin = bucket.checked_sub(1).map_or(0, end);
    u64::midpoint(begin, end(bucket))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Name;
    use super::*;

    fn histogram() -> StartHistogram {
        StartHistogram::new(RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new("web-00001").unwrap(),
        })
    }

    #[test]
    fn the_slow_ones_show_beside_the_usual_ones() {
        let mut starts = histogram();
        for number in 0..40 {
            starts.note(if number % 10 == 0 { 900_000 } else { 60_000 });
        }
        assert_eq!(starts.count(), 40);
        let mean = starts.sum_micros() / 40;
        assert!((130_000..160_000).contains(&mean), "{mean}");
        assert!((60_000..65_000).contains(&starts.within_micros(500)));
        assert!((900_000..1_100_000).contains(&starts.within_micros(950)));
    }

    proptest! {
        #[test]
        fn it_stays_small_and_near_the_truth(took in prop::collection::vec(2_000_u64..60_000_000, 1..300)) {
            let mut starts = histogram();
            for micros in &took {
                starts.note(*micros);
            }
            prop_assert!(starts.is_sane());
            prop_assert!(starts.count() >= 1 && starts.count() <= KEPT);
            prop_assert!(starts.buckets.len() <= usize::from(LAST) + 1);
            if took.len() <= 64 {
                let truth = took.iter().sum::<u64>();
                let said = starts.sum_micros();
                prop_assert!(said.abs_diff(truth) * 100 <= truth * 25, "{} {}", said, truth);
            }
        }
    }
}
