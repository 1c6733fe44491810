//! What a seed means, spelled out: the sites, the services and their traffic, and the faults with
//! their times.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use scheduler::model::{Resources, Scale, Spread};

use super::queue::Millis;
use super::traffic::Pattern;

/// Services are deployed before this; then the trouble begins.
pub(super) const WARM: Millis = 20_000;
/// After the trouble all is healed and traffic is steady; so long it takes until all has settled: a
/// window and a panic's end, and what was started meanwhile.
pub(super) const SETTLE: Millis = 160_000;
/// Then so long is looked at.
pub(super) const CALM: Millis = 40_000;

/// A whole simulation.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub sites: Vec<Site>,
    /// Round trips between the sites, in microseconds.
    pub between: Vec<Vec<u64>>,
    pub services: Vec<Workload>,
    pub faults: Vec<(Millis, Fault)>,
    /// All faults end here, and traffic becomes steady; `None` leaves the traffic as it is and
    /// asks for nothing that only calm shows.
    pub heal: Option<Millis>,
    pub end: Millis,
    /// Something wrong that must be found.
    pub bug: Option<Bug>,
    /// What each host has for instances; where it is missing, what all hosts of drawn plans have.
    pub capacity: Vec<Resources>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub name: String,
    /// The hosts in each of its zones.
    pub zones: Vec<usize>,
}

/// One service, its program and its traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub scale: Scale,
    pub concurrency: u32,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// What a request takes.
    pub work: Millis,
    /// From the launch until it listens.
    pub start: Millis,
    /// To bring its image to a host that does not have it.
    pub pull: Millis,
    /// The only sites it may be at; empty is all.
    pub only: Vec<usize>,
    pub spread: Spread,
    /// It has a local volume, so that all its instances are on one host.
    pub volume: bool,
    pub pattern: Pattern,
    /// Its traffic after the healing.
    pub calm: Pattern,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The power of these hosts goes.
    Kill(Vec<usize>),
    /// It comes back, with what they knew when it went.
    Return(Vec<usize>),
    /// They reach each other and nobody else.
    CutOff(Vec<usize>),
    Mend,
    /// Of a thousand gossiped records.
    Loss(u32),
    /// Added to every round trip between sites.
    Delay {
        micros: u64,
    },
    /// The registry takes no changes for so long.
    Outage(Millis),
    /// A host's clock runs so much too fast or too slow.
    Drift {
        host: usize,
        parts_per_million: i64,
    },
    /// A host takes so many times as long for everything, in percent.
    Slow {
        host: usize,
        percent: u64,
    },
    /// A new version of a service is deployed.
    Deploy(usize),
    /// A service is removed.
    Delete(usize),
}

/// What can be planted. Each is a mistake that a driver or a core could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A node takes on whatever it is asked to.
    TakesAll,
    /// Neither the door nor the node asks where a service may be.
    IgnoresResidency,
    /// Nobody asks whose a local volume is.
    SharesVolumes,
    /// A door forgets one request in fifty that it holds.
    ForgetsRequests,
    /// A stopped instance is killed with the requests in it.
    KillsBusy,
    /// A host stops following the registry.
    StopsFollowing,
    /// Nothing is ever stopped.
    NeverStops,
    /// Every start is carried out twice.
    StartsTwice,
    /// A steward remembers nothing between two ticks.
    Forgetful,
    /// A door sends requests to an instance of another service.
    Mixes,
    /// Something is drawn that does not follow from the seed.
    Unseeded,
}

impl Bug {
    pub const ALL: [Self; 11] = [
        Self::TakesAll,
        Self::IgnoresResidency,
        Self::SharesVolumes,
        Self::ForgetsRequests,
        Self::KillsBusy,
        Self::StopsFollowing,
        Self::NeverStops,
        Self::StartsTwice,
        Self::Forgetful,
        Self::Mixes,
        Self::Unseeded,
    ];
}

impl Plan {
    /// A fleet under faults, all of it drawn.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let sites = rng.random_range(1..=3);
        let zones = rng.random_range(1..=2);
        let hosts = rng.random_range(1..=2 + u64::from(sites == 1));
        let services = rng.random_range(2..=5);
        let trouble = rng.random_range(20_000..50_000);
        Self::sized(
            seed,
            &Size {
                sites,
                zones,
                hosts: usize::try_from(hosts).unwrap_or(1),
                services,
                trouble,
            },
        )
    }

    /// The same with the sizes given.
    #[must_use]
    pub fn sized(seed: u64, size: &Size) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5e1f);
        let heal = WARM + size.trouble;
        let sites: Vec<Site> = (0..size.sites)
            .map(|site| Site {
                name: format!("site-{site}"),
                zones: vec![size.hosts; size.zones],
            })
            .collect();
        let between = distances(size.sites, || rng.random_range(8_000..120_000));
        let services = (0..size.services)
            .map(|number| workload(number, size, &mut rng))
            .collect();
        let mut plan = Self {
            seed,
            sites,
            between,
            services,
            faults: Vec::new(),
            heal: Some(heal),
            end: heal + SETTLE + CALM,
            bug: None,
            capacity: Vec::new(),
        };
        plan.draw_faults(size, heal, &mut rng);
        plan
    }

    fn draw_faults(&mut self, size: &Size, heal: Millis, rng: &mut StdRng) {
        let mut at = WARM;
        let gap = rng.random_range(2_000..9_000);
        loop {
            at += rng.random_range(500..gap);
            if at >= heal {
                break;
            }
            let fault = fault(size, rng);
            if let Fault::Kill(hosts) = &fault {
                let back = at + rng.random_range(1_000..20_000);
                self.faults
                    .push((back.min(heal), Fault::Return(hosts.clone())));
            }
            self.faults.push((at, fault));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    #[must_use]
    pub fn with(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }
}

/// How large a drawn plan is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub sites: usize,
    pub zones: usize,
    /// In each zone.
    pub hosts: usize,
    pub services: usize,
    /// How long faults happen.
    pub trouble: Millis,
}

impl Size {
    fn all(&self) -> usize {
        self.sites * self.zones * self.hosts
    }
}

/// Round trips that are the same both ways.
pub(super) fn distances(sites: usize, mut draw: impl FnMut() -> u64) -> Vec<Vec<u64>> {
    let mut between: Vec<Vec<u64>> = Vec::new();
    for site in 0..sites {
        let mut row: Vec<u64> = (0..site).map(|_| draw()).collect();
        for (earlier, micros) in between.iter_mut().zip(&row) {
            earlier.push(*micros);
        }
        row.push(0);
        between.push(row);
    }
    between
}

/// A plain service: what the scenarios change a thing or two of.
impl Default for Workload {
    fn default() -> Self {
        Self {
            scale: Scale::default(),
            concurrency: 10,
            cpu_millis: 100,
            memory_bytes: 64 << 20,
            work: 50,
            start: 150,
            pull: 1_000,
            only: Vec::new(),
            spread: Spread::None,
            volume: false,
            pattern: Pattern::Steady {
                per_second_milli: 0,
            },
            calm: Pattern::Steady {
                per_second_milli: 0,
            },
        }
    }
}

fn workload(number: usize, size: &Size, rng: &mut StdRng) -> Workload {
    let rate = rng.random_range(200..12_000);
    let at = WARM + rng.random_range(0..size.trouble);
    let region = rng.random_range(0..size.sites);
    let pattern = match rng.random_range(0..6) {
        0 => Pattern::Steady {
            per_second_milli: rate,
        },
        1 => Pattern::Local {
            region,
            per_second_milli: rate,
        },
        2 => Pattern::Diurnal {
            peak_milli: rate,
            period: 40_000,
        },
        3 => Pattern::Flash {
            base_milli: 200,
            peak_milli: 40_000,
            at,
            lasts: 6_000,
        },
        4 => Pattern::Herd {
            region,
            at,
            count: rng.random_range(2..120),
        },
        _ => Pattern::Moving {
            from: region,
            to: (region + 1) % size.sites,
            at,
            per_second_milli: rate,
        },
    };
    let volume = number % 4 == 3;
    let min = u32::from(rng.random_range(0..4) == 0);
    Workload {
        scale: Scale {
            min,
            max: if volume { 1 } else { 12 },
            window_seconds: [10, 20, 40][rng.random_range(0..3_usize)],
            ..Scale::default()
        },
        concurrency: rng.random_range(2..20),
        cpu_millis: rng.random_range(50..400),
        memory_bytes: rng.random_range(32..256) << 20,
        work: rng.random_range(5..400),
        start: rng.random_range(20..3_000),
        pull: rng.random_range(200..4_000),
        only: if number % 3 == 1 {
            vec![region]
        } else {
            Vec::new()
        },
        spread: if number % 5 == 2 {
            Spread::Zone
        } else {
            Spread::None
        },
        volume,
        pattern,
        calm: Pattern::Steady {
            per_second_milli: rng.random_range(0..3) * 1_500,
        },
    }
}

fn fault(size: &Size, rng: &mut StdRng) -> Fault {
    let host = rng.random_range(0..size.all());
    let zone = rng.random_range(0..size.sites * size.zones);
    let site = rng.random_range(0..size.sites);
    let of_zone = (zone * size.hosts..(zone + 1) * size.hosts).collect();
    let in_site = size.zones * size.hosts;
    let of_site = (site * in_site..(site + 1) * in_site).collect();
    match rng.random_range(0..100) {
        0..14 => Fault::Kill(vec![host]),
        14..19 => Fault::Kill(of_zone),
        19..23 if size.sites > 1 => Fault::Kill(of_site),
        19..30 => Fault::CutOff(vec![host]),
        30..38 => Fault::CutOff(of_site),
        38..50 => Fault::Mend,
        50..58 => Fault::Loss(rng.random_range(0..400)),
        58..64 => Fault::Delay {
            micros: rng.random_range(0..200_000),
        },
        64..70 => Fault::Outage(rng.random_range(1_000..15_000)),
        70..76 => Fault::Drift {
            host,
            parts_per_million: rng.random_range(-2_000..2_000),
        },
        76..86 => Fault::Slow {
            host,
            percent: rng.random_range(100..600),
        },
        86..98 => Fault::Deploy(rng.random_range(0..size.services)),
        _ => Fault::Delete(rng.random_range(0..size.services)),
    }
}
