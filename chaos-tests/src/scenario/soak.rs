//! The soak: faults drawn by a seed, one to three at once, for as long as is asked. The same seed
//! means the same faults at the same times; what the cluster makes of them is its own.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::stage::{Report, Stage};
use crate::faults::Fault;

/// After so long everything is whole, and the nodes have to agree.
const GATE: Duration = Duration::from_mins(5);
const MOST_AT_ONCE: usize = 3;

/// Some faults at once, and the time after them.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    pub faults: Vec<Fault>,
    pub lasting: Duration,
    pub quiet: Duration,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
        let Self { lasting, quiet, .. } = self;
        write!(
            f,
            "{} for {lasting:.1?}, then {quiet:.1?} of quiet",
            faults.join(" with ")
        )
    }
}

/// What a seed means for these nodes.
#[must_use]
pub fn draw(seed: u64, lasting: Duration, nodes: &[&str]) -> Vec<Round> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rounds = Vec::new();
    let mut time = Duration::ZERO;
    while time < lasting {
        let round = Round {
            faults: faults(&mut rng, nodes),
            lasting: Duration::from_millis(rng.random_range(6_000..18_000)),
            quiet: Duration::from_millis(rng.random_range(4_000..12_000)),
        };
        time += round.lasting + round.quiet;
        rounds.push(round);
    }
    rounds
}

/// Different ones, one cut at the most, and of those that strike a node so many that one is left.
fn faults(rng: &mut StdRng, nodes: &[&str]) -> Vec<Fault> {
    let wanted = rng.random_range(1..=MOST_AT_ONCE);
    let mut faults: Vec<Fault> = Vec::new();
    let mut struck: Vec<String> = Vec::new();
    while faults.len() < wanted {
        let node = nodes[rng.random_range(0..nodes.len())];
        let fault = fault(rng, node, nodes);
        let again = |f: &Fault| f.row() == fault.row() || hides(f, &fault);
        let again = faults.iter().any(again);
        let target = fault.target();
        let crowded = target.is_some()
            && (struck.iter().any(|n| n == node) || struck.len() + 1 >= nodes.len());
        if again || crowded {
            continue;
        }
        struck.extend(target.map(ToOwned::to_owned));
        faults.push(fault);
    }
    faults
}

/// Of two cuts one may hide the other; and where nobody's writes arrive, a slow disk shows nothing.
fn hides(one: &Fault, other: &Fault) -> bool {
    let writes = |f: &Fault| matches!(f, Fault::SlowDisk { .. });
    let hidden = |f: &Fault| f.cuts() || writes(f);
    one.cuts() && hidden(other) || other.cuts() && writes(one)
}

fn fault(rng: &mut StdRng, node: &str, nodes: &[&str]) -> Fault {
    let node = node.to_owned();
    let other = nodes
        .iter()
        .find(|n| **n != node)
        .map_or_else(String::new, |n| (*n).to_owned());
    let share = |rng: &mut StdRng, most: u32| f64::from(rng.random_range(1..=most)) / 100.0;
    let millis = |rng: &mut StdRng, most: u64| Duration::from_millis(rng.random_range(5..=most));
    match rng.random_range(0..20) {
        0 | 1 => Fault::Partition { side: vec![node] },
        2 => Fault::Deaf { node },
        3 => Fault::Apart { one: node, other },
        4 | 5 => Fault::Loss {
            ratio: share(rng, 20),
        },
        6 => Fault::Delay {
            delay: millis(rng, 60),
            jitter: millis(rng, 100),
        },
        7 => Fault::Reorder {
            ratio: share(rng, 30),
            delay: millis(rng, 20),
        },
        8 => Fault::Duplicate {
            ratio: share(rng, 30),
        },
        9 => Fault::Corrupt {
            ratio: share(rng, 10),
        },
        10 => Fault::Narrow {
            bits_per_second: 1_000_000 * rng.random_range(1..=8),
        },
        11 => Fault::BlackHole {
            mtu: rng.random_range(1280..1400),
        },
        12 => Fault::Flap {
            node,
            period: Duration::from_secs(2),
        },
        13 | 14 => Fault::Kill { node },
        15 => Fault::Pause { node },
        16 => Fault::Starve {
            node,
            hundredths: rng.random_range(3..=8),
        },
        17 => Fault::Restart { node },
        18 => Fault::SlowDisk {
            node,
            delay: Duration::from_millis(rng.random_range(200..=1000)),
        },
        _ if rng.random_bool(0.5) => Fault::KillShims { node },
        _ => Fault::KillContainers { node },
    }
}

/// Plays the rounds on a stage that has begun.
pub fn play(stage: &mut Stage, rounds: &[Round], mut told: impl FnMut(String)) -> Result<()> {
    let mut gate = GATE;
    for (number, round) in rounds.iter().enumerate() {
        told(format!(
            "{:>6.1?} round {number}: {round}",
            stage.since_begin()
        ));
        stage
            .together(&round.faults, round.lasting)
            .with_context(|| format!("round {number}"))?;
        std::thread::sleep(round.quiet); // The round's own time.
        stage.read_logs()?;
        if stage.since_begin() >= gate {
            gate += GATE;
            let took = stage
                .caught_up()
                .with_context(|| format!("after round {number}"))?;
            told(format!(
                "{:>6.1?} the nodes caught up after {took:.1?}",
                stage.since_begin()
            ));
        }
    }
    Ok(())
}

/// A whole soak of three nodes; the report's first lines are what the seed meant.
pub fn run(seed: u64, lasting: Duration, mut told: impl FnMut(String)) -> Result<Report> {
    const NODES: [&str; 3] = ["par-1", "fra-1", "lis-1"];
    let rounds = draw(seed, lasting, &NODES);
    let mut stage = Stage::of(&NODES)?;
    stage.begin(seed)?;
    let played = play(&mut stage, &rounds, &mut told);
    let mut report = stage.end()?;
    if let Err(error) = played {
        report.findings.push(format!("soak: {error:#}"));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [&str; 3] = ["a-1", "b-1", "c-1"];

    #[test]
    fn a_seed_always_means_the_same() {
        let minute = Duration::from_mins(1);
        assert_eq!(draw(7, minute, &NODES), draw(7, minute, &NODES));
        assert_ne!(draw(7, minute, &NODES), draw(8, minute, &NODES));
    }

    #[test]
    fn a_round_leaves_a_node_alone_and_takes_no_fault_twice() {
        for round in (0..50).flat_map(|seed| draw(seed, Duration::from_mins(10), &NODES)) {
            let struck = round.faults.iter().filter(|f| f.target().is_some()).count();
            assert!(struck < NODES.len(), "{round}");
            let mut rows: Vec<_> = round.faults.iter().map(Fault::row).collect();
            rows.sort_unstable();
            rows.dedup();
            assert_eq!(rows.len(), round.faults.len(), "{round}");
            assert!((1..=MOST_AT_ONCE).contains(&rows.len()));
            let cut = round.faults.iter().any(Fault::cuts);
            let slow = |f: &Fault| matches!(f, Fault::SlowDisk { .. });
            assert!(!(cut && round.faults.iter().any(slow)), "{round}");
        }
    }

    #[test]
    fn every_kind_comes_up() {
        let rounds = (0..20).flat_map(|seed| draw(seed, Duration::from_mins(20), &NODES));
        let rows: std::collections::BTreeSet<_> =
            rounds.flat_map(|r| r.faults).map(|f| f.row()).collect();
        assert_eq!(rows.len(), 17, "{rows:?}");
    }
}
