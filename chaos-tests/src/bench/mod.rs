//! Selvedge beside its peer and the floor, measured in one run. The systems take turns, round by
//! round, so that what else the machine does falls on all of them; what counts is the ratio within
//! a round and the CPU time an operation costs. Owns the benchmarks, their peers and the tables;
//! the worlds they run in are `world`'s.

mod answer;
pub mod board;
mod burst;
mod client;
mod cold;
mod converge;
mod density;
mod fleet;
mod group;
mod herd;
mod lazy;
mod load;
mod peers;
mod place;
mod proxy;
mod pull;
mod race;
mod registry;
mod relay;
mod rooms;
mod routes;
mod sim;
pub mod stats;
mod sync;
mod tick;
mod update;
mod yard;

use std::path::PathBuf;

use anyhow::Result;

pub use board::Board;

/// How a run is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    pub rounds: usize,
    /// Where `floor`, the program of the floors, is.
    pub programs: PathBuf,
    /// The most instances at once.
    pub most: usize,
    /// Lengths of answers in `proxy`.
    pub bodies: Vec<usize>,
    /// Only cases whose names begin so.
    pub case: Option<String>,
}

impl Plan {
    /// Those of the cases that are wanted.
    fn chosen<'a>(&self, cases: &[&'a str]) -> Vec<&'a str> {
        let wanted = self.case.as_deref().unwrap_or_default();
        let fits = |case: &&&str| case.starts_with(wanted);
        cases.iter().filter(fits).copied().collect()
    }

    /// Says on stderr what is about to be measured.
    pub fn announce(&self) {
        let dir = self.programs.display();
        let rounds = self.rounds;
        // Cargo names the folder after the profile, except for this one.
        let warning = if self.programs.ends_with("debug") {
            "; a DEBUG build, its figures mean nothing"
        } else {
            ""
        };
        eprintln!("{rounds} rounds, programs of {dir}{warning}");
    }
}

/// One benchmark.
pub struct Bench {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&Plan) -> Result<Board>,
}

/// All there are, in the order in which `bench all` runs them.
pub const ALL: [Bench; 16] = [
    Bench {
        name: "cold-start",
        about: "a request to a service at zero, until its first byte; against crun and runc",
        run: cold::run,
    },
    Bench {
        name: "burst",
        about: "from none to hundreds of instances, starts a second; against crun and runc",
        run: burst::run,
    },
    Bench {
        name: "density",
        about: "memory of a parked, a running, a frozen instance, and what a start costs among many",
        run: density::run,
    },
    Bench {
        name: "lazy",
        about: "a request to a node without the image, until its first byte; against an eager start",
        run: lazy::run,
    },
    Bench {
        name: "proxy",
        about: "requests through the front door to a warm instance; against nginx and haproxy",
        run: proxy::run,
    },
    Bench {
        name: "relay",
        about: "requests at a node to an instance on another one; against nginx to nginx over TLS",
        run: relay::run,
    },
    Bench {
        name: "wake-herd",
        about: "a thousand requests at once at a service at zero, at three nodes; beside one alone",
        run: herd::run,
    },
    Bench {
        name: "routes",
        about: "a service added among up to 100,000, until it is answered for; against nginx",
        run: routes::run,
    },
    Bench {
        name: "registry",
        about: "durable writes to a registry of three nodes; against etcd",
        run: registry::run,
    },
    Bench {
        name: "pull",
        about: "an image from a registry to unpacked files; against skopeo with umoci and podman",
        run: pull::run,
    },
    Bench {
        name: "pull-update",
        about: "the next version of an image held here, from another node; against skopeo",
        run: update::run,
    },
    Bench {
        name: "pull-fleet",
        about: "an image to twenty nodes behind one thin link to the registry; against skopeo",
        run: fleet::run,
    },
    Bench {
        name: "place",
        about: "placement decisions among 10 to 10,000 nodes; against looking at every node",
        run: place::run,
    },
    Bench {
        name: "steward-tick",
        about: "one look of a node's steward at up to 10,000 services on 200 nodes",
        run: tick::run,
    },
    Bench {
        name: "sim",
        about: "ten thousand simulated nodes through an hour of traffic and faults; against an all-knowing planner",
        run: sim::run,
    },
    Bench {
        name: "converge",
        about: "from a change or a lost node to the last routes: thirty nodes here, ten thousand modelled",
        run: converge::run,
    },
];
