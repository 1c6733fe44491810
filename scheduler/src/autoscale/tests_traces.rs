//! The forecast against the fixed window, on made traces.
//!
//! They are made after what is published of Azure's functions (Shahrad and others, "Serverless in the
//! Wild", 2020), not taken from them: most functions are asked rarely (the half of them less than once an
//! hour), a third by timers with round periods from a minute to a day, the others by people and queues:
//! with pauses about a mean of their own that vary from as much as at random to four times as much, more
//! by day than by night, or in spells with long pauses between.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "dice are as good as their digits"
)]

use super::forecast::{Forecast, Outlook, Price};
use crate::model::Now;

const DAYS: u64 = 7;
const END: u64 = DAYS * 86_400;
const FUNCTIONS: u64 = 400;
/// What a cold start takes.
const START: u64 = 2;
/// The window that all services have who do not say otherwise.
const WINDOW: u64 = 60;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }

    /// Uniform over the unit.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// With a spread of that many natural logarithms.
    fn lognormal(&mut self, mean: f64, sigma: f64) -> u64 {
        // A sum of twelve is as good as normal here.
        let normal = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        (mean * (sigma * normal - sigma * sigma / 2.0).exp()) as u64
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-(1.0 - self.unit()).ln() * mean) as u64
    }
}

/// The seconds in which a function is asked.
fn trace(dice: &mut Dice) -> Vec<u64> {
    let mut times = Vec::new();
    match dice.below(100) {
        0..34 => {
            let periods = [60, 300, 900, 1_800, 3_600, 3_600, 21_600, 86_400];
            let period = periods[dice.below(8) as usize];
            let (mut at, jitter) = (dice.below(period), 1 + dice.below(4));
            while at < END {
                times.push(at + dice.below(jitter));
                at += period;
            }
        }
        34..70 => {
            // Between once in two minutes and once in a day, evenly over the magnitudes.
            let mean = 120.0 * (720.0_f64).powf(dice.unit());
            let sigma = 0.7 + dice.unit();
            let mut at = dice.exponential(mean);
            while at < END {
                let night = (at / 3_600) % 24 < 8;
                if !night || dice.below(3) == 0 {
                    times.push(at);
                }
                at += 1 + dice.lognormal(mean, sigma);
            }
        }
        _ => {
            let pause = 1_800.0 * (24.0_f64).powf(dice.unit());
            let mut at = dice.exponential(pause);
            while at < END {
                let inside = 2.0 + 30.0 * dice.unit();
                for _ in 0..3 + dice.below(60) {
                    times.push(at);
                    at += 1 + dice.exponential(inside);
                }
                at += 60 + dice.exponential(pause);
            }
            times.retain(|at| *at < END);
        }
    }
    times
}

#[derive(Debug, Clone, Copy, Default)]
struct Bill {
    memory: u64,
    waited: u64,
}

/// An instance that stays for a window after each request.
fn fixed(times: &[u64], window: u64) -> Bill {
    let mut bill = Bill::default();
    for pair in times.windows(2) {
        let pause = pair[1] - pair[0];
        bill.memory += pause.min(window);
        bill.waited += if pause > window { START } else { 0 };
    }
    bill
}

/// One that is there when the forecast says that it pays, as stewards do it; the window decides as long as
/// the forecast says nothing.
fn foreseen(times: &[u64], price: Price) -> Bill {
    let mut bill = Bill::default();
    let mut forecast = Forecast::default();
    let at = |second: u64| Now(second * 1000);
    for pair in times.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        forecast.observe(at(from), true);
        let (mut now, mut warm) = (from, true);
        while now < to {
            let (next, there) = match forecast.outlook(at(now), price, START) {
                Outlook::Unknown if now < from + WINDOW => (from + WINDOW, true),
                Outlook::Unknown => (to, false),
                Outlook::Likely { seconds } => (now + seconds, true),
                Outlook::Unlikely { seconds } => (seconds.map_or(to, |s| now + s), false),
            };
            let next = next.min(to);
            bill.memory += if there { next - now } else { 0 };
            // One whose start began a moment ago is not there yet.
            warm = there && (warm || next - now >= START);
            now = next;
        }
        bill.waited += if warm { 0 } else { START };
    }
    bill
}

/// The bills of the fixed window and of the forecast, on nodes that are half full.
fn bills(seed: u64) -> (Bill, Bill) {
    let mut dice = Dice(seed);
    let traces: Vec<_> = (0..FUNCTIONS).map(|_| trace(&mut dice)).collect();
    let sum = |of: &dyn Fn(&[u64]) -> Bill| {
        traces.iter().fold(Bill::default(), |sum, times| {
            let bill = of(times);
            Bill {
                memory: sum.memory + bill.memory,
                waited: sum.waited + bill.waited,
            }
        })
    };
    let price = Price::at(500);
    (sum(&|t| fixed(t, WINDOW)), sum(&|t| foreseen(t, price)))
}

#[test]
fn the_forecast_waits_far_less_for_the_same_memory() {
    let (before, now) = bills(7);
    assert!(now.memory <= before.memory, "{now:?} {before:?}");
    assert!(now.waited * 5 <= before.waited, "{now:?} {before:?}");
}

/// Other dice make other services: what is promised is not the luck of one throw, but it is less.
#[test]
fn and_on_other_traces_about_a_quarter_for_a_little_more() {
    for seed in [1, 3] {
        let (before, now) = bills(seed);
        assert!(
            now.memory * 100 <= before.memory * 115,
            "{seed}: {now:?} {before:?}"
        );
        assert!(
            now.waited * 4 <= before.waited,
            "{seed}: {now:?} {before:?}"
        );
    }
}
