//! Slow start: who became ready lately gets its share of the requests little by little, from a tenth of
//! it up to all of it at the end of the service's window.

/// What a newcomer has of its share from the first moment on, in thousandths: it never starves.
const LEAST: u64 = 100;
const WHOLE: u64 = 1000;

/// Whether an instance that has been ready for so long stands for this request. `draw` is any number,
/// `number` the instance's among those that are chosen from.
#[must_use]
pub fn stands(age_millis: u64, window_seconds: u32, draw: u64, number: usize) -> bool {
    let window = u64::from(window_seconds) * 1000;
    if age_millis >= window {
        return true;
    }
    let share = (age_millis * WHOLE / window).max(LEAST);
    // Instances stand or do not stand each by itself.
    let step = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = draw.wrapping_add(step);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let lot = ((mixed >> 32) * WHOLE) >> 32;
    lot < share
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often of a thousand draws.
    fn share(age_millis: u64, window_seconds: u32, number: usize) -> u32 {
        let draws = (0..1000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let stood = draws.filter(|draw| stands(age_millis, window_seconds, *draw, number));
        u32::try_from(stood.count()).unwrap()
    }

    #[test]
    fn a_share_grows_with_age_from_a_tenth_to_all() {
        let table = [
            (0, 100),
            (1_000, 100),
            (3_000, 100),
            (7_500, 250),
            (15_000, 500),
            (22_500, 750),
            (30_000, 1000),
            (u64::MAX, 1000),
        ];
        for (age, want) in table {
            for number in 0..3 {
                let got = share(age, 30, number);
                assert!(got.abs_diff(want) <= 45, "{age} ms: {got}, not {want}");
            }
        }
        assert_eq!(share(0, 0, 0), 1000, "without a window all stand");
    }

    proptest::proptest! {
        /// What stands for a request young stands for it old.
        #[test]
        fn nobody_loses_by_age(age: u32, more: u32, window in 0..3600u32, draw: u64, number in 0..50usize) {
            let (young, old) = (u64::from(age) % 4_000_000, u64::from(more) % 4_000_000);
            if stands(young, window, draw, number) {
                proptest::prop_assert!(stands(young + old, window, draw, number));
            }
        }
    }
}
