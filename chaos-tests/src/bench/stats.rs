//! What is said of a handful of numbers. Pure.

/// A sample over rounds, in short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// A count as a number to divide by.
#[allow(clippy::cast_precision_loss)] // Nothing here counts to 2^52.
pub fn float(count: u64) -> f64 {
    count as f64
}

/// The middle value, or the mean of the middle two; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[middle - 1], upper))
}

/// Median, least and most; `None` of none.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let median = median(values)?;
    let min = values.iter().copied().min_by(f64::total_cmp)?;
    let max = values.iter().copied().max_by(f64::total_cmp)?;
    Some(Spread { median, min, max })
}

/// The median of `own / other` taken round by round: what a noisy round does to both drops out.
/// Rounds are matched by their number; `None` when no round has both, or when `other` is zero in
/// all of them.
pub fn paired_ratio(own: &[(usize, f64)], other: &[(usize, f64)]) -> Option<f64> {
    let ratios: Vec<_> = own
        .iter()
        .filter_map(|(round, value)| {
            let (_, against) = other.iter().find(|(r, _)| r == round)?;
            (*against > 0.0).then(|| value / against)
        })
        .collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        for (values, expected) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[4.0, 1.0], Some(2.5)),
            (&[9.0, 1.0, 5.0], Some(5.0)),
            (&[1000.0, 1.0, 2.0, 3.0], Some(2.5)),
            (&[2.0, 2.0, 2.0, 7.0, 0.0], Some(2.0)),
        ] {
            assert_eq!(median(values), expected, "{values:?}");
        }
    }

    #[test]
    fn a_spread_keeps_both_ends() {
        let expected = Spread {
            median: 5.0,
            min: -1.0,
            max: 40.0,
        };
        assert_eq!(spread(&[5.0, 40.0, -1.0]), Some(expected));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let own = [(0, 10.0), (1, 40.0), (2, 30.0)];
        for (other, expected) in [
            (&[(0, 5.0), (1, 20.0), (2, 15.0)][..], Some(2.0)),
            // Round 1 was slow for both.
            (&[(0, 10.0), (1, 40.0), (2, 60.0)], Some(1.0)),
            // A round that one of them lacks counts for nothing.
            (&[(2, 10.0), (7, 1.0)], Some(3.0)),
            (&[(0, 0.0)], None),
            (&[], None),
        ] {
            assert_eq!(paired_ratio(&own, other), expected, "{other:?}");
        }
    }
}
