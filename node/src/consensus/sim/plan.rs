//! What a seed means, spelled out: the sizes, the network and the list of faults with their times.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::world::End;
use crate::consensus::Tuning;

/// Faults happen during this time, then all is healed.
const TROUBLE: Duration = Duration::from_secs(30);
/// The registry's own number of voters; one follower more.
pub(super) const VOTERS: u64 = 3;

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub seed: u64,
    pub tuning: Tuning,
    pub delay: Duration,
    /// Between two requests of one client, at most.
    pub pause: Duration,
    pub faults: Vec<(Duration, Fault)>,
}

/// Hosts are named by their place among those there are, so that a plan outlives a change of
/// members; `Voter(n)` is the n-th of the voters.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    End(usize, End),
    /// The power of all goes at once.
    EndAll(End),
    /// The power goes in the middle of a transaction: so many operations of the disk from now.
    PowerCutAfter(usize, u32),
    CutOff(usize),
    /// It is heard and hears nobody.
    Deafen(usize),
    /// It hears and is not heard.
    Silence(usize),
    /// From one to another.
    CutWay(usize, usize),
    Mend,
    Noise {
        loss: u32,
        twice: u32,
    },
    SyncFails(usize, u32),
    WriteFails(usize, u32),
    ReadFails(usize, u32),
    Full(usize),
    Slow(usize, Duration),
    DisksWork,
    Rot(usize, usize, End),
    LoseDisk(usize),
    /// One voter leaves, and another one is enrolled.
    Replace(usize),
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let tuning = Tuning {
            snapshot_every: rng.random_range(5..80),
            log_kept: rng.random_range(1..20),
            ring: rng.random_range(8..200),
        };
        let delay = Duration::from_micros(rng.random_range(200..20_000));
        let pause = Duration::from_millis(rng.random_range(50..600));
        let mut faults = Vec::new();
        let mut at = Duration::ZERO;
        let gap = rng.random_range(300..3000);
        while at < TROUBLE {
            at += Duration::from_millis(rng.random_range(50..gap));
            faults.push((at, fault(&mut rng)));
        }
        Self {
            seed,
            tuning,
            delay,
            pause,
            faults,
        }
    }
}

fn fault(rng: &mut StdRng) -> Fault {
    let voters = usize::try_from(VOTERS).unwrap_or(3);
    let voter = rng.random_range(0..voters);
    let any = rng.random_range(0..=voters);
    let soon = rng.random_range(0..120);
    let end = if rng.random() {
        End::PowerCut
    } else {
        End::Kill
    };
    match rng.random_range(0..100) {
        0..8 => Fault::End(any, end),
        8..20 => Fault::PowerCutAfter(voter, soon),
        20..23 => Fault::EndAll(end),
        23..31 => Fault::CutOff(any),
        31..36 => Fault::Deafen(any),
        36..41 => Fault::Silence(any),
        41..46 => Fault::CutWay(voter, rng.random_range(0..=voters)),
        46..61 => Fault::Mend,
        61..66 => Fault::Noise {
            loss: rng.random_range(0..200),
            twice: rng.random_range(0..200),
        },
        66..71 => Fault::SyncFails(voter, soon / 20),
        71..74 => Fault::WriteFails(voter, soon),
        74..77 => Fault::ReadFails(voter, soon),
        77..80 => Fault::Full(voter),
        80..84 => Fault::Slow(voter, Duration::from_millis(rng.random_range(100..4000))),
        84..92 => Fault::DisksWork,
        92..95 => Fault::Rot(voter, 1 << rng.random_range(0..8), end),
        95..97 => Fault::LoseDisk(voter),
        _ => Fault::Replace(voter),
    }
}
