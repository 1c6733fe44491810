//! Plans with a name: each shows one thing.

use scheduler::model::Scale;

use super::plan::{Fault, Plan, Site, Size, WARM, Workload, distances};
use super::queue::Millis;
use super::traffic::Pattern;

const SECOND: Millis = 1_000;
/// Between the sites of the scenarios that do not draw it.
const APART_MICROS: u64 = 40_000;

/// A kind of plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Drawn faults, changes and traffic; then it heals and is looked at in calm.
    Mixed,
    /// All requests come from one site, then all from another.
    TrafficMoves,
    /// From one instance to none, to hundreds, and back.
    Flash,
    /// Every service is asked once, one after the other.
    Scan,
    /// Days that begin later in each site.
    Diurnal,
    /// A site is lost, and comes back with what it knew.
    SiteLost,
    /// A host dies and comes back every few seconds.
    Flapping,
}

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub hosts: usize,
    pub services: usize,
    pub lasts: Millis,
}

impl Scenario {
    pub const ALL: [(&'static str, Self); 7] = [
        ("mixed", Self::Mixed),
        ("traffic-moves", Self::TrafficMoves),
        ("flash", Self::Flash),
        ("scan", Self::Scan),
        ("diurnal", Self::Diurnal),
        ("site-lost", Self::SiteLost),
        ("flapping", Self::Flapping),
    ];

    #[must_use]
    pub fn plan(self, seed: u64, extent: &Extent) -> Plan {
        let size = Size {
            sites: 3,
            zones: 2,
            hosts: (extent.hosts / 6).max(1),
            services: extent.services.max(1),
            trouble: extent.lasts.max(SECOND),
        };
        let end = WARM + extent.lasts;
        match self {
            Self::Mixed => Plan::sized(seed, &size),
            Self::TrafficMoves => moves(seed, &size, end),
            Self::Flash => flash(seed, &size, end),
            Self::Scan => {
                let scanned = |service: u64| Pattern::Herd {
                    region: usize::try_from(service % 3).unwrap_or(0),
                    at: WARM + 100 * service,
                    count: 1,
                };
                plain(seed, &size, end, scanned)
            }
            Self::Diurnal => plain(seed, &size, end, |service| Pattern::Diurnal {
                peak_milli: 2_000 + 500 * (service % 20),
                period: extent.lasts.max(SECOND),
            }),
            Self::SiteLost => {
                let mut plan = plain(seed, &size, end, steady);
                let site: Vec<usize> = (0..size.zones * size.hosts).collect();
                let (lost, back) = (WARM + extent.lasts / 4, WARM + extent.lasts / 2);
                plan.faults = vec![
                    (lost, Fault::Kill(site.clone())),
                    (back, Fault::Return(site)),
                ];
                plan
            }
            Self::Flapping => {
                let mut plan = plain(seed, &size, end, steady);
                let mut at = WARM;
                while at + 10 * SECOND < end {
                    plan.faults.push((at, Fault::Kill(vec![0])));
                    plan.faults.push((at + 4 * SECOND, Fault::Return(vec![0])));
                    at += 10 * SECOND;
                }
                plan
            }
        }
    }
}

fn steady(service: u64) -> Pattern {
    Pattern::Steady {
        per_second_milli: 1_000 + 200 * (service % 10),
    }
}

/// The same service as often as asked for, with the traffic that `pattern` gives each.
fn plain(seed: u64, size: &Size, end: Millis, pattern: impl Fn(u64) -> Pattern) -> Plan {
    let services = u64::try_from(size.services).unwrap_or(0);
    Plan {
        seed,
        sites: (0..size.sites)
            .map(|site| Site {
                name: format!("site-{site}"),
                zones: size.zones,
                hosts: size.hosts,
            })
            .collect(),
        between: distances(size.sites, || APART_MICROS),
        services: (0..services)
            .map(|service| Workload {
                pattern: pattern(service),
                ..Workload::default()
            })
            .collect(),
        faults: Vec::new(),
        heal: None,
        end,
        bug: None,
    }
}

/// The crowd leaves the first site for the second one at half time.
fn moves(seed: u64, size: &Size, end: Millis) -> Plan {
    let mut plan = plain(seed, size, end, |_| Pattern::Moving {
        from: 0,
        to: 1,
        at: WARM + (end - WARM) / 2,
        per_second_milli: 40_000,
    });
    for service in &mut plan.services {
        service.work = 20;
        service.scale.window_seconds = 20;
    }
    plan
}

/// Nobody, then a crowd that takes some two hundred instances, then nobody again.
fn flash(seed: u64, size: &Size, end: Millis) -> Plan {
    let lasts = (end - WARM) / 4;
    let mut plan = plain(seed, size, end, |_| Pattern::Flash {
        base_milli: 0,
        peak_milli: 520_000,
        at: WARM + lasts,
        lasts,
    });
    for service in &mut plan.services {
        *service = Workload {
            scale: Scale {
                window_seconds: 15,
                ..Scale::default()
            },
            concurrency: 5,
            cpu_millis: 50,
            work: 500,
            pattern: service.pattern.clone(),
            ..Workload::default()
        };
    }
    plan
}
