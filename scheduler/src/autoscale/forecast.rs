//! When the next request is to be expected, from a service's own history: the pauses between its spells
//! of requests. It owns the odds and at which ages of a pause an instance pays; what is started or
//! stopped for that is the steward's.
//!
//! An instance that waits costs memory for as long as it waits, and saves a start if a request comes
//! meanwhile. So it pays at those ages of a pause at which the odds of a request in the next second,
//! given that none came before, are above a price. The odds are estimated from the nearest few of the
//! remembered pauses: timers put them close together, whoever comes at random far apart.

use std::collections::VecDeque;

use crate::model::Now;

/// Shorter pauses are none: an instance waits through them in any case.
pub const PAUSE_SECONDS: u64 = 10;
/// Pauses remembered; the newest count.
const KEPT: usize = 96;
/// With fewer nothing is said.
const TRUSTED: usize = 6;
/// A pause of more than a day says nothing about the next hours.
const LONGEST_SECONDS: u64 = 26 * 3600;

/// The odds of a request in a second above which an instance waits for it, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price(pub u32);

impl Price {
    /// Where so much of the memory is free.
    #[must_use]
    pub fn of_memory(capacity: u64, free: u64) -> Self {
        let used = u128::from(capacity.saturating_sub(free));
        let full = used * 1000 / u128::from(capacity.max(1));
        Self::at(u16::try_from(full).unwrap_or(1000))
    }

    /// Of memory that is full to so many thousandths: while most of it is free, waiting costs little.
    #[must_use]
    pub fn at(fullness: u16) -> Self {
        const EMPTY: u32 = 400;
        const FULL: u32 = 10_000;
        let full = u32::from(fullness.min(1000));
        // Steep near the end: half full is not scarce.
        Self(EMPTY + (FULL - EMPTY) * (full * full / 1000) / 1000)
    }
}

/// Ages of a pause, in seconds, at which an instance pays: from and until.
type Span = (u64, u64);

/// One service's history.
#[derive(Debug, Clone, Default)]
pub struct Forecast {
    pauses: VecDeque<u64>,
    /// The last moment with requests.
    busy: Option<Now>,
    spans: Vec<Span>,
    priced: Option<(Price, u64)>,
}

/// What a history says about now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It says nothing yet.
    Unknown,
    /// A request may well come within a moment: an instance pays now and for so many seconds more.
    Likely { seconds: u64 },
    /// None is to be expected for so many seconds, or for as long as it knows.
    Unlikely { seconds: Option<u64> },
}

impl Forecast {
    /// Whether there are requests now.
    pub fn observe(&mut self, now: Now, busy: bool) {
        if !busy {
            return;
        }
        let pause = self.busy.map(|last| now.since(last) / 1000);
        self.busy = Some(now);
        if let Some(pause) = pause.filter(|p| (PAUSE_SECONDS..LONGEST_SECONDS).contains(p)) {
            if self.pauses.len() == KEPT {
                self.pauses.pop_front();
            }
            self.pauses.push_back(pause);
            self.priced = None;
        }
    }

    /// What to expect, where a start takes `lead` seconds.
    pub fn outlook(&mut self, now: Now, price: Price, lead: u64) -> Outlook {
        let Some(busy) = self.busy.filter(|_| self.pauses.len() >= TRUSTED) else {
            return Outlook::Unknown;
        };
        if self.priced != Some((price, lead)) {
            let mut pauses: Vec<u64> = self.pauses.iter().copied().collect();
            pauses.sort_unstable();
            self.spans = spans(&pauses, price, lead);
            self.priced = Some((price, lead));
        }
        let age = now.since(busy) / 1000;
        if age < PAUSE_SECONDS {
            return Outlook::Likely {
                seconds: PAUSE_SECONDS - age,
            };
        }
        let next = self.spans.iter().find(|(_, until)| age < *until);
        match next {
            Some((from, until)) if *from <= age => Outlook::Likely {
                seconds: until - age,
            },
            Some((from, _)) => Outlook::Unlikely {
                seconds: Some(from - age),
            },
            None => Outlook::Unlikely { seconds: None },
        }
    }
}

/// The ages at which an instance pays, in order and apart. `pauses` are in order.
fn spans(pauses: &[u64], price: Price, lead: u64) -> Vec<Span> {
    let few = 3 + pauses.len() / 32;
    let mut spans: Vec<Span> = Vec::new();
    let mut pay = |from: u64, until: u64| match spans.last_mut() {
        Some(last) if from <= last.1 => last.1 = last.1.max(until),
        _ => spans.push((from, until)),
    };
    for (first, window) in pauses.windows(few).enumerate() {
        let (from, until) = (window[0], window[few - 1]);
        // All those together at one age are no surer than the clocks they were read from.
        let blur = 1 + from / 100;
        let wide = (until - from).max(blur);
        // One more than were seen may outlive this age: what never came yet is not impossible.
        let survivors = (pauses.len() - first + 1) as u64;
        let odds = (few as u64) * 1_000_000 / (survivors * wide);
        if odds >= u64::from(price.0) {
            let edge = (wide / few as u64).max(blur);
            pay(from.saturating_sub(edge + lead), until + edge + 1);
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price(2_000);

    /// A history of spells that begin so many seconds apart.
    fn history(pauses: &[u64]) -> (Forecast, Now) {
        let mut forecast = Forecast::default();
        let mut now = Now(0);
        forecast.observe(now, true);
        for pause in pauses {
            now = now.plus(pause * 1000);
            forecast.observe(now, true);
        }
        (forecast, now)
    }

    #[test]
    fn what_comes_by_the_clock_is_expected_then_and_not_before() {
        let (mut forecast, now) = history(&[300, 301, 299, 300, 300, 302, 300]);
        let mut at = |seconds: u64| forecast.outlook(now.plus(seconds * 1000), PRICE, 2);
        assert!(
            matches!(at(20), Outlook::Unlikely { seconds: Some(s) } if (260..279).contains(&s))
        );
        assert!(matches!(at(296), Outlook::Likely { .. }));
        assert!(matches!(at(301), Outlook::Likely { seconds } if seconds < 15));
        assert_eq!(at(400), Outlook::Unlikely { seconds: None }, "it stopped");
    }

    #[test]
    fn a_few_say_nothing_and_neither_do_moments() {
        let (mut forecast, now) = history(&[300; 5]);
        assert_eq!(forecast.outlook(now, PRICE, 2), Outlook::Unknown);
        let (mut forecast, now) = history(&[2; 50]);
        assert_eq!(forecast.outlook(now, PRICE, 2), Outlook::Unknown);
    }

    #[test]
    fn who_comes_often_is_waited_for_and_who_comes_rarely_is_not() {
        let spread = |usual: u64| -> Vec<u64> { (1..40).map(|n| n * usual / 20).collect() };
        let (mut often, now) = history(&spread(60));
        assert!(matches!(
            often.outlook(now.plus(15_000), PRICE, 2),
            Outlook::Likely { .. }
        ));
        let (mut rarely, now) = history(&spread(20_000));
        assert!(matches!(
            rarely.outlook(now.plus(15_000), PRICE, 2),
            Outlook::Unlikely { .. }
        ));
    }

    #[test]
    fn the_price_rises_with_what_is_taken() {
        let prices: Vec<Price> = (0..=10).map(|tenth| Price::at(tenth * 100)).collect();
        assert!(prices.is_sorted() && prices[10].0 == 10_000 && prices[5].0 < 3_000);
        // What is never paid for at a full node may be at an empty one.
        let (mut forecast, now) = history(&[200, 900, 340, 600, 720, 480, 1_000]);
        let soon = now.plus(150_000);
        let dear = forecast.outlook(soon, Price::at(1000), 2);
        assert!(matches!(dear, Outlook::Unlikely { .. }), "{dear:?}");
        let cheap = forecast.outlook(soon, Price::at(0), 2);
        assert!(matches!(cheap, Outlook::Likely { .. }), "{cheap:?}");
    }
}
