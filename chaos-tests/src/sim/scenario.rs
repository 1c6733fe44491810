//! Plans with a name: each shows one thing.

use scheduler::model::Scale;

use super::plan::{CALM, Fault, Plan, SETTLE, Site, Size, WARM, Workload, distances};
use super::queue::Millis;
use super::traffic::Pattern;

const SECOND: Millis = 1_000;
/// Between the sites of the scenarios that do not draw it.
const APART_MICROS: u64 = 40_000;
/// What a service on an island may have.
pub(super) const ISLAND_MAX: u32 = 8;

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
    /// A zone has two stewards, then none, then one that comes and goes.
    Stewards,
    /// A site is cut off from the registry and from all others, and its traffic rises meanwhile.
    Island,
}

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub hosts: usize,
    pub services: usize,
    pub lasts: Millis,
}

impl Scenario {
    pub const ALL: [(&'static str, Self); 9] = [
        ("mixed", Self::Mixed),
        ("traffic-moves", Self::TrafficMoves),
        ("flash", Self::Flash),
        ("scan", Self::Scan),
        ("diurnal", Self::Diurnal),
        ("site-lost", Self::SiteLost),
        ("flapping", Self::Flapping),
        ("island", Self::Island),
        ("stewards", Self::Stewards),
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
            Self::Island => island(seed, &size, end),
            Self::Stewards => stewards(seed, &size, end),
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
                zones: vec![size.hosts; size.zones],
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
        capacity: Vec::new(),
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

/// The last site is alone for three quarters of the time, and for half of it the crowd is there. Meanwhile the
/// others deploy a new version.
fn island(seed: u64, size: &Size, end: Millis) -> Plan {
    let part = (end - WARM) / 8;
    let mut plan = plain(seed, size, end, |_| Pattern::Moving {
        from: 0,
        to: 2,
        at: WARM + 3 * part,
        per_second_milli: 60_000,
    });
    for service in &mut plan.services {
        service.work = 300;
        service.scale.window_seconds = 20;
        service.scale.max = ISLAND_MAX;
        service.calm = Pattern::Steady {
            per_second_milli: 2_000,
        };
    }
    let in_site = size.zones * size.hosts;
    plan.faults = vec![
        (
            WARM + part,
            Fault::CutOff((2 * in_site..3 * in_site).collect()),
        ),
        (WARM + 2 * part, Fault::Deploy(0)),
    ];
    plan.heal = Some(WARM + 7 * part);
    plan.end = WARM + 7 * part + SETTLE + CALM;
    plan
}

/// All traffic is at the first site; the hosts of its first zone do not see each other, then are gone, then
/// one of them flaps.
fn stewards(seed: u64, size: &Size, end: Millis) -> Plan {
    let part = (end - WARM) / 6;
    let mut plan = plain(seed, size, end, |_| Pattern::Local {
        region: 0,
        per_second_milli: 60_000,
    });
    for service in &mut plan.services {
        service.scale.window_seconds = 20;
        service.scale.max = ISLAND_MAX;
        service.work = 200;
        service.calm = service.pattern.clone();
    }
    let zone: Vec<usize> = (0..size.hosts).collect();
    let apart = zone[..size.hosts.div_ceil(2)].to_vec();
    let last = vec![size.hosts - 1];
    plan.faults = vec![
        (WARM + part, Fault::CutOff(apart)),
        (WARM + 2 * part, Fault::Mend),
        (WARM + 3 * part, Fault::Kill(zone.clone())),
        (WARM + 4 * part, Fault::Return(zone)),
    ];
    let mut at = WARM + 4 * part + SECOND;
    while at + 4 * SECOND < end {
        plan.faults.push((at, Fault::Kill(last.clone())));
        plan.faults
            .push((at + 2 * SECOND, Fault::Return(last.clone())));
        at += 4 * SECOND;
    }
    plan.heal = Some(end);
    plan.end = end + SETTLE + CALM;
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
