//! `burst`: from no instance to hundreds, as fast as it goes; against the OCI runtimes at their best
//! parallelism and a container without a runtime. Ours have their networks ready (a pool's work) and
//! everything else to make, or are parked, as they are kept after a burst of late, or are started by a
//! whole daemon for a crowd of requests; peers and the floor do the same in all, on the host's network.

mod crowd;
pub(super) mod peers;

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Plan;
use super::board::{Board, CPU, OURS, Reading, STARTS};
use super::group::{self, Group};
use super::race::{Contestant, race};
use super::rooms::Rooms;
use super::stats::float;
use crate::world::World;

/// Before the name of a case whose containers wait, made, for their programs to start.
const PARKED: &str = "parked-";
/// Before the number of requests that a whole daemon is asked.
const CROWD: &str = "crowd-";
pub(super) const SLEEP: &[&str] = &["/bin/busybox", "sleep", "100000"];
pub(super) const SERVER: &[&str] = &["/bin/box"];
const COUNTS: [usize; 3] = [200, 500, 1000];

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("burst");
    let world = World::of(&[crowd::NODE])?;
    let host = super::yard::host(&world, "burst")?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![
        Box::new(Ours::new(&world, plan)?),
        Box::new(peers::Floor::new(&world, &host, plan)?),
    ];
    for peer in peers::ALL {
        match peers::Runtime::new(&world, &host, peer, plan) {
            Ok(peer) => contestants.push(Box::new(peer)),
            Err(error) => board.missing(peer.program, format!("{error:#}")),
        }
    }
    let mut counts = COUNTS.map(|count| count.min(plan.most)).to_vec();
    counts.dedup();
    let crowds = counts
        .clone()
        .into_iter()
        .map(|count| format!("{CROWD}{count}"));
    let cases: Vec<_> = counts
        .into_iter()
        .flat_map(|count| ["sleep", "http"].map(|what| format!("{what}-{count}")))
        .flat_map(|case| [format!("{PARKED}{case}"), case])
        .chain(crowds)
        .collect();
    let cases: Vec<_> = cases.iter().map(String::as_str).collect();
    let cases = plan.chosen(&cases);
    race(&mut board, &cases, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// A case's program and how many of it.
fn parts(case: &str) -> Result<(&'static [&'static str], usize)> {
    let case = case.strip_prefix(PARKED).unwrap_or(case);
    let (what, count) = case.split_once('-').context("a case without a count")?;
    let program = if what == "sleep" { SLEEP } else { SERVER };
    Ok((program, count.parse()?))
}

fn readings(count: usize, took: Duration, used: Duration) -> Vec<Reading> {
    let count = count as u64;
    vec![
        STARTS.of(float(count) / took.as_secs_f64()),
        CPU.of(group::each(used, count)),
    ]
}

struct Ours<'a> {
    world: &'a World,
    most: usize,
    /// From its first case on.
    crowd: Option<crowd::Crowd<'a>>,
    rooms: Rooms,
    /// Networks it has.
    leased: usize,
}

impl<'a> Ours<'a> {
    fn new(world: &'a World, plan: &Plan) -> Result<Self> {
        let group = Group::of(world, "bench-rooms")?;
        let rooms = Rooms::start(world, plan, group)?;
        Ok(Self {
            world,
            most: plan.most,
            crowd: None,
            rooms,
            leased: 0,
        })
    }

    fn crowd(&mut self, count: usize) -> Result<Vec<Reading>> {
        let crowd = match &mut self.crowd {
            Some(crowd) => crowd,
            none => none.insert(crowd::Crowd::new(self.world, self.most)?),
        };
        crowd.take(count)
    }
}

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let (program, count) = parts(case)?;
        if case.starts_with(CROWD) {
            return self.crowd(count);
        }
        if self.leased < count {
            self.rooms.ask(&format!("lease {count} burst"), "lease")?;
            self.leased = count;
        }
        let program = program.join(" ");
        self.rooms.ask(&format!("program {program}"), "program")?;
        let what = if case.starts_with(PARKED) {
            self.rooms.many("park", count, "burst")?;
            "launch"
        } else {
            "many"
        };
        let before = self.rooms.group.used()?;
        let took = self.rooms.many(what, count, "burst")?;
        let used = self.rooms.group.used()?.saturating_sub(before);
        self.rooms.clear()?;
        Ok(readings(count, took, used))
    }
}
