//! Fleets of thousands of hosts: cells that gossip within themselves, as many at once as there are
//! processors, through a day of traffic with faults; and beside what they did, what a planner would have
//! done that knows all traffic before it comes.
//!
//! Nothing passes between cells: each has its own services and its own traffic from three sites 40 ms
//! apart. A day lasts as long as the run, so that each site has its morning and its night in it.
//!
//! The planner follows the same policy (aim, window, at least one where requests came within the window) but
//! without gossip, starts or doubt: its instances are there when the first request comes, in the request's
//! own region, and as many as the mean load of the window calls for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use super::oracle::Report;
use super::plan::{Fault, Plan, Site, WARM, Workload, distances};
use super::queue::Millis;
use super::trace::hex;
use super::traffic::Pattern;
use super::world::run;

const SITES: usize = 3;
const ZONES: usize = 2;
const APART_MICROS: u64 = 40_000;
/// What the way to an instance of the request's own region and back takes.
const NEAR: Millis = 1;
/// Between two faults of a cell of two hundred.
const FAULTS: std::ops::Range<Millis> = 20_000..40_000;

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Cells {
    pub cells: usize,
    /// In each cell.
    pub hosts: usize,
    pub services: usize,
    pub lasts: Millis,
    pub seed: u64,
}

/// What all cells came to.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    pub hosts: usize,
    pub services: usize,
    pub answered: u64,
    pub refused: u64,
    pub lost: u64,
    pub starts: usize,
    pub findings: Vec<String>,
    /// Until the first byte, summed up in milliseconds: of ours and of the planner.
    pub waited: u64,
    pub waited_ideally: u64,
    /// Instance-seconds.
    pub spent: u64,
    pub spent_ideally: u64,
    /// Of all cells' digests.
    pub digest: String,
}

impl Outcome {
    /// Mean times to the first byte: ours over the planner's.
    #[must_use]
    pub fn slower(&self) -> f64 {
        ratio(self.waited, self.waited_ideally)
    }

    /// Instance-seconds: ours over the planner's.
    #[must_use]
    pub fn dearer(&self) -> f64 {
        ratio(self.spent, self.spent_ideally)
    }
}

#[expect(clippy::cast_precision_loss, reason = "sums of a simulation")]
fn ratio(ours: u64, ideal: u64) -> f64 {
    ours as f64 / ideal.max(1) as f64
}

impl Cells {
    /// Plays them all.
    #[must_use]
    pub fn run(&self) -> Outcome {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<Outcome>>> = Mutex::new(vec![None; self.cells]);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads.min(self.cells) {
                scope.spawn(|| {
                    loop {
                        let cell = next.fetch_add(1, Ordering::Relaxed);
                        if cell >= self.cells {
                            return;
                        }
                        let outcome = self.play(cell);
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done[cell] = Some(outcome);
                    }
                });
            }
        });
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut all = Outcome::default();
        let mut digest = Sha256::new();
        for (cell, outcome) in done.into_iter().flatten().enumerate() {
            digest.update(outcome.digest.as_bytes());
            all.add(cell, outcome);
        }
        all.digest = hex(&digest.finalize());
        all
    }

    fn play(&self, cell: usize) -> Outcome {
        let seed = self.seed + u64::try_from(cell).unwrap_or(0);
        let plan = self.plan(seed);
        let (hosts, services) = (plan.hosts(), plan.services.clone());
        let report = run(plan);
        let mut outcome = Outcome {
            hosts,
            services: services.len(),
            answered: report.figures.answered,
            refused: report.figures.refused.values().sum(),
            lost: report.figures.lost,
            starts: report.figures.starts,
            findings: report.findings.clone(),
            digest: report.digest.clone(),
            ..Outcome::default()
        };
        compare(&mut outcome, &report, &services);
        outcome
    }

    /// A day of one cell.
    #[must_use]
    pub fn plan(&self, seed: u64) -> Plan {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xce11);
        let per_zone = (self.hosts / (SITES * ZONES)).max(1);
        let end = WARM + self.lasts;
        let sites = (0..SITES).map(|site| Site {
            name: format!("site-{site}"),
            zones: vec![per_zone; ZONES],
        });
        let services = (0..self.services).map(|number| Workload {
            concurrency: 4,
            cpu_millis: 100,
            work: 500,
            start: rng.random_range(100..800),
            pull: rng.random_range(500..2_000),
            pattern: Pattern::Diurnal {
                peak_milli: 100 + 50 * u64::try_from(number % 10).unwrap_or(0),
                period: self.lasts.max(1),
            },
            ..Workload::default()
        });
        let services = services.collect();
        let mut plan = Plan {
            seed,
            sites: sites.collect(),
            between: distances(SITES, || APART_MICROS),
            services,
            faults: Vec::new(),
            heal: None,
            end,
            bug: None,
            capacity: Vec::new(),
        };
        plan.faults = troubles(plan.hosts(), end, &mut rng);
        plan
    }
}

/// Hosts that die and come back with what they knew, slow ones, lossy and slow links, outages of the
/// registry, new versions.
fn troubles(hosts: usize, end: Millis, rng: &mut StdRng) -> Vec<(Millis, Fault)> {
    let mut faults = Vec::new();
    let mut at = WARM;
    loop {
        at += rng.random_range(FAULTS);
        let over = at + rng.random_range(10_000..30_000);
        if over >= end {
            break;
        }
        let host = rng.random_range(0..hosts);
        let (fault, end) = match rng.random_range(0..8) {
            0..4 => (Fault::Kill(vec![host]), Fault::Return(vec![host])),
            4 => (
                Fault::Slow { host, percent: 300 },
                Fault::Slow { host, percent: 100 },
            ),
            5 => (Fault::Loss(rng.random_range(10..100)), Fault::Mend),
            6 => (Fault::CutOff(vec![host]), Fault::Mend),
            _ => (Fault::Outage(over - at), Fault::Outage(0)),
        };
        faults.push((at, fault));
        faults.push((over, end));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

impl Plan {
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.sites.iter().flat_map(|site| &site.zones).sum()
    }
}

impl Outcome {
    fn add(&mut self, cell: usize, other: Self) {
        self.hosts += other.hosts;
        self.services += other.services;
        self.answered += other.answered;
        self.refused += other.refused;
        self.lost += other.lost;
        self.starts += other.starts;
        self.waited += other.waited;
        self.waited_ideally += other.waited_ideally;
        self.spent += other.spent;
        self.spent_ideally += other.spent_ideally;
        let found = other.findings.into_iter();
        self.findings
            .extend(found.map(|f| format!("cell {cell}: {f}")));
    }
}

/// What the planner would have made of the same requests.
fn compare(outcome: &mut Outcome, report: &Report, services: &[Workload]) {
    let end = report
        .figures
        .answers
        .iter()
        .map(|a| a.at)
        .max()
        .unwrap_or(0);
    let seconds = usize::try_from(end / 1_000 + 1).unwrap_or(0);
    // Milliseconds of work that begin in each second, by service and region.
    let mut load = vec![vec![0_u64; seconds]; services.len() * SITES];
    for answer in report.figures.answers.iter().filter(|a| a.ok) {
        let work = services[answer.service].work;
        outcome.waited += answer.took;
        outcome.waited_ideally += work + NEAR;
        let born = usize::try_from((answer.at - answer.took) / 1_000).unwrap_or(0);
        load[answer.service * SITES + answer.region][born.min(seconds - 1)] += work;
    }
    for (number, load) in load.iter().enumerate() {
        outcome.spent_ideally += planned(load, &services[number / SITES]);
    }
    let warm = usize::try_from(WARM / 1_000).unwrap_or(0);
    for series in &report.figures.instances {
        let live = series.iter().skip(warm).take(seconds.saturating_sub(warm));
        outcome.spent += live.flatten().map(|count| u64::from(*count)).sum::<u64>();
    }
}

/// Instance-seconds of a planner for one service in one region.
fn planned(load: &[u64], workload: &Workload) -> u64 {
    let window = usize::try_from(workload.scale.window_seconds)
        .unwrap_or(60)
        .max(1);
    let total = u64::from(workload.scale.total_concurrency(workload.concurrency));
    let target = (total * u64::from(workload.scale.utilization_percent) / 100).max(1);
    let (mut sum, mut spent) = (0, 0);
    for second in 0..load.len() {
        sum += load[second];
        if second >= window {
            sum -= load[second - window];
        }
        if sum > 0 {
            let mean_milli = sum / u64::try_from(window).unwrap_or(1);
            spent += mean_milli.div_ceil(target * 1_000).max(1);
        }
    }
    spent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planner_pays_for_the_window_and_for_the_load() {
        let workload = Workload {
            concurrency: 4,
            ..Workload::default()
        };
        let mut load = vec![0; 200];
        load[10] = 500;
        assert_eq!(planned(&load, &workload), 60, "one, for a window");
        load[10] = 0;
        load[0..120].fill(5_000);
        // Five at once of two each: three instances, once the window's mean says so.
        let spent = planned(&load, &workload);
        assert!((3 * 90..3 * 180).contains(&spent), "{spent}");
    }

    #[test]
    fn small_cells_keep_up_with_the_planner_and_are_the_same_twice() {
        let cells = Cells {
            cells: 2,
            hosts: 12,
            services: 6,
            lasts: 300_000,
            seed: 5,
        };
        let (first, second) = (cells.run(), cells.run());
        assert_eq!(first.findings, [""; 0]);
        assert_eq!(first.digest, second.digest);
        assert_eq!((first.hosts, first.services), (24, 12));
        assert!(first.answered > 500, "{first:?}");
        assert!(first.refused * 100 <= first.answered, "{first:?}");
        assert!(first.slower() < 1.5, "{} {first:?}", first.slower());
        assert!(first.dearer() < 1.6, "{} {first:?}", first.dearer());
        assert!(first.dearer() > 0.5, "{} {first:?}", first.dearer());
    }
}
