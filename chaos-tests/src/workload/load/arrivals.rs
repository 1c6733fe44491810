//! When requests are due, through which door and of which kind: drawn from the seed alone.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::Config;
use crate::server::served::Method;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// The same time between any two.
    Even,
    /// Times between them as of many people who do not know of each other.
    Poisson,
}

/// A request before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// After the load's start.
    pub at: Duration,
    pub door: usize,
    pub method: Method,
}

/// The requests of a load, one after the other, without end.
pub(super) struct Plan {
    rng: StdRng,
    arrivals: Arrivals,
    rate: f64,
    posts: f64,
    doors: usize,
    last: f64,
}

impl Plan {
    pub fn new(config: &Config) -> Self {
        Self {
            rng: StdRng::seed_from_u64(config.seed),
            arrivals: config.arrivals,
            rate: config.rate,
            posts: config.posts,
            doors: config.doors.len(),
            last: 0.0,
        }
    }
}

impl Iterator for Plan {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        // Always as many draws, so that one seed gives the same doors at any rate.
        let (gap, door, kind) = (
            self.rng.random::<f64>(),
            self.rng.random_range(0..self.doors),
            self.rng.random::<f64>(),
        );
        self.last += match self.arrivals {
            Arrivals::Even => 1.0 / self.rate,
            Arrivals::Poisson => -(1.0 - gap).ln() / self.rate,
        };
        Some(Due {
            at: Duration::try_from_secs_f64(self.last).unwrap_or(Duration::MAX),
            door,
            method: if kind < self.posts {
                Method::Post
            } else {
                Method::Get
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 20_000;

    fn plan(config: &Config) -> Vec<Due> {
        Plan::new(config).take(MANY).collect()
    }

    fn config() -> Config {
        let doors = [11, 12, 13].map(|last| ([10, 0, 0, last], 80).into());
        Config::new("web", &doors).rate(1000.0).posts(0.25)
    }

    fn share(all: &[Due], which: impl Fn(&Due) -> bool) -> f64 {
        let count = u32::try_from(all.iter().filter(|due| which(due)).count()).unwrap();
        f64::from(count) / f64::from(u32::try_from(all.len()).unwrap())
    }

    #[test]
    fn a_seed_draws_the_same_again_and_another_seed_another() {
        let one = config().poisson(1);
        assert_eq!(plan(&one), plan(&one));
        assert_ne!(plan(&one), plan(&config().poisson(2)));
    }

    #[test]
    fn the_rate_and_the_shares_are_as_asked() {
        for config in [config(), config().poisson(7)] {
            let all = plan(&config);
            let took = all.last().unwrap().at.as_secs_f64();
            assert!((19.0..21.0).contains(&took), "{took}");
            let posts = share(&all, |due| due.method == Method::Post);
            assert!((0.23..0.27).contains(&posts), "{posts}");
            for door in 0..3 {
                let share = share(&all, |due| due.door == door);
                assert!((0.31..0.36).contains(&share), "{share}");
            }
        }
    }

    #[test]
    fn gaps_are_even_or_as_of_many_people() {
        let shorter = |all: &[Due]| {
            let gaps = all
                .windows(2)
                .map(|pair| pair[1].at.saturating_sub(pair[0].at));
            let mean = Duration::from_micros(990);
            u32::try_from(gaps.filter(|gap| *gap < mean).count()).unwrap()
        };
        assert_eq!(shorter(&plan(&config())), 0);
        // 1 - 1/e of them are shorter than the mean.
        let poisson = f64::from(shorter(&plan(&config().poisson(3)))) / 20_000.0;
        assert!((0.60..0.66).contains(&poisson), "{poisson}");
    }
}
