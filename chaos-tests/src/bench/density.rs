//! `density`: what an instance that does nothing costs in memory, its shim included, and what a start
//! costs when there are many; beside a container without a runtime, which is the kernel's own cost
//! and the program's. All run a sleeping busybox.
//!
//! Three figures, since none tells all: `pss_mb` is pages alone, `charged_mb` is pages and the
//! kernel's objects as far as the memory cgroup is charged for them, `taken_mb` is what the machine
//! has less of, and wrong by all that others on it do meanwhile.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::Plan;
use super::board::{Board, CHARGED, OURS, PSS, Reading, START, TAKEN};
use super::burst::SLEEP;
use super::burst::peers::Floor;
use super::group::Group;
use super::race::{Contestant, race};
use super::rooms::Rooms;
use super::stats::{float, median};
use crate::world::World;

const PARKED: &str = "parked";
const RUNNING: &str = "running";
const FROZEN: &str = "frozen";
/// Starts one after the other, with nothing else there and among all others.
const FIRST: &str = "first";
const LAST: &str = "last";
const STARTS: usize = 10;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("density");
    let world = World::empty()?;
    let host = super::yard::host(&world, "density")?;
    let floor = Bare {
        floor: Floor::new(&world, &host, plan)?,
        count: plan.most,
    };
    let mut contestants: Vec<Box<dyn Contestant + '_>> =
        vec![Box::new(Ours::new(&world, plan)?), Box::new(floor)];
    let cases = [FIRST, LAST, PARKED, RUNNING, FROZEN];
    race(&mut board, &cases, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// Memory in use now, in bytes.
struct Level {
    pss: f64,
    charged: f64,
    taken: f64,
}

impl Level {
    fn now(group: &Group, pids: &[i32]) -> Result<Self> {
        let memory = group.memory()?;
        let v1 = fs::read_to_string(memory.join("memory.usage_in_bytes"));
        let charged = v1.or_else(|_| fs::read_to_string(memory.join("memory.current")))?;
        let pss: Result<f64> = pids.iter().map(|pid| pss(*pid)).sum();
        let available = kilobytes(Path::new("/proc/meminfo"), "MemAvailable:")?;
        Ok(Self {
            pss: pss?,
            charged: charged.trim().parse()?,
            taken: -available,
        })
    }

    fn above(&self, before: &Self, count: usize) -> Vec<Reading> {
        let each = |now: f64, then: f64| (now - then) / 1e6 / float(count as u64);
        vec![
            PSS.of(each(self.pss, before.pss)),
            CHARGED.of(each(self.charged, before.charged)),
            TAKEN.of(each(self.taken, before.taken)),
        ]
    }
}

fn pss(pid: i32) -> Result<f64> {
    kilobytes(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

/// A line of a file of the kernel's, in bytes.
fn kilobytes(file: &Path, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number: f64 = number.with_context(|| format!("no {name}"))?.parse()?;
    Ok(number * 1024.0)
}

struct Ours {
    rooms: Rooms,
    count: usize,
}

impl Ours {
    fn new(world: &World, plan: &Plan) -> Result<Self> {
        let group = Group::of(world, "bench-rooms")?;
        let memory = group.memory()?;
        let mut rooms = Rooms::start(world, plan, group)?;
        fs::write(memory.join("cgroup.procs"), rooms.pid().to_string())?;
        let count = plan.most;
        rooms.ask(&format!("program {}", SLEEP.join(" ")), "program")?;
        rooms.ask(&format!("lease {count} many"), "lease")?;
        rooms.ask(&format!("lease {STARTS} one"), "lease")?;
        // The nursery and what the first start leaves for all others are no instance's.
        rooms.create("one-0")?;
        rooms.clear()?;
        Ok(Self { rooms, count })
    }

    /// One after the other, each made and started.
    fn starts(&mut self) -> Result<Vec<Reading>> {
        let mut took = Vec::new();
        for number in 0..STARTS {
            let began = Instant::now();
            self.rooms.say(&format!("begin one-{number}"))?;
            self.rooms.hear("leased")?;
            self.rooms.hear("started")?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(&took).map(|ms| START.of(ms)).into_iter().collect())
    }

    fn weigh(&mut self, case: &str) -> Result<Vec<Reading>> {
        let before = Level::now(&self.rooms.group, &[])?;
        let what = if case == PARKED { "park" } else { "many" };
        self.rooms.many(what, self.count, "many")?;
        let names: Vec<_> = (0..self.count).map(|n| format!("many-{n}")).collect();
        if case == FROZEN {
            for name in &names {
                self.rooms.ask(&format!("freeze {name}"), "frozen")?;
            }
        }
        let pids: Result<Vec<_>> = names.iter().map(|n| self.rooms.processes(n)).collect();
        let now = Level::now(&self.rooms.group, &pids?.concat())?;
        Ok(now.above(&before, self.count))
    }
}

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let readings = match case {
            FIRST => self.starts()?,
            LAST => {
                self.rooms.many("many", self.count - STARTS, "many")?;
                self.starts()?
            }
            _ => self.weigh(case)?,
        };
        self.rooms.clear()?;
        Ok(readings)
    }
}

/// The floor has one state: running.
struct Bare<'a> {
    floor: Floor<'a>,
    count: usize,
}

impl Contestant for Bare<'_> {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let group = self.floor.group();
        let before = Level::now(group, &[])?;
        match case {
            FIRST | LAST => {
                let count = if case == FIRST { STARTS } else { self.count };
                let (took, ()) = self.floor.run((SLEEP, count), || Ok(()))?;
                Ok(vec![
                    START.of(took.as_secs_f64() * 1e3 / float(count as u64)),
                ])
            }
            RUNNING => {
                let weigh = || Level::now(group, &group.pids()?);
                let (_, now) = self.floor.run((SLEEP, self.count), weigh)?;
                Ok(now.above(&before, self.count))
            }
            _ => Ok(Vec::new()),
        }
    }
}
