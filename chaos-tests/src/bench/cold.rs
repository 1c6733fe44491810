//! `cold-start`: from a request to the first byte of its answer, for a service with no instance;
//! against the OCI runtimes that start the same root and the same program, and against a container
//! without a runtime. The peers are spared what a node must also do: pull, place, make a network, a
//! log, a root of the instance's own.

mod daemon;
mod ours;
mod runtimes;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::board::{Board, CPU, Metric, Reading, STARTS, TTFB};
use super::client::{First, first_byte};
use super::group;
use super::race::{Contestant, race};
use super::stats::{float, median};
use super::{Plan, yard};
use crate::world::World;

pub(in crate::bench) use runtimes::{root, write_bundle};

const NODE: &str = "par-1";
/// Servers that start at once, or in a row.
const AT_ONCE: usize = 4;
/// Isolated starts in a round; their median is the round's value.
const STARTS_A_ROUND: usize = 3;
/// Nothing happens for so long before an isolated start: the kernel is at rest too.
const QUIET: Duration = Duration::from_millis(100);

/// What is there before the request. Peers and the floor have nothing in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ahead {
    /// A daemon that keeps what its configuration says.
    Daemon,
    /// A container but for its program.
    Container,
    /// A network.
    Network,
    Nothing,
}

/// How starts follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Isolated,
    InARow,
    AtOnce,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    ahead: Ahead,
    pace: Pace,
}

const CASES: [Case; 8] = [
    Case::new("parked", Ahead::Container, Pace::Isolated),
    Case::new("parked-row", Ahead::Container, Pace::InARow),
    Case::new("prepared", Ahead::Network, Pace::Isolated),
    Case::new("prepared-row", Ahead::Network, Pace::InARow),
    Case::new("nothing", Ahead::Nothing, Pace::Isolated),
    Case::new("nothing-row", Ahead::Nothing, Pace::InARow),
    Case::new("daemon", Ahead::Daemon, Pace::Isolated),
    Case::new("daemon-4", Ahead::Daemon, Pace::AtOnce),
];

impl Case {
    const fn new(name: &'static str, ahead: Ahead, pace: Pace) -> Self {
        Self { name, ahead, pace }
    }
}

fn case(name: &str) -> Result<&'static Case> {
    let found = CASES.iter().find(|case| case.name == name);
    found.with_context(|| format!("no case {name}"))
}

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("cold-start");
    let world = World::of(&[NODE])?;
    let hosts: Result<Vec<_>> = (0..AT_ONCE)
        .map(|number| yard::host(&world, &format!("peer-{number}")))
        .collect();
    let hosts = hosts?;
    let ours = ours::Ours::new(&world, plan)?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![Box::new(ours)];
    contestants.push(Box::new(runtimes::floor(&world, &hosts, plan)?));
    for runtime in runtimes::ALL {
        match runtimes::peer(&world, &hosts, runtime) {
            Ok(peer) => contestants.push(Box::new(peer)),
            Err(error) => board.missing(runtime.program, format!("{error:#}")),
        }
    }
    let names = CASES.map(|case| case.name);
    race(&mut board, &names, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// What starts servers from nothing and takes them away again.
trait Starter {
    /// Makes ready for so many starts whatever the case allows.
    fn ready(&mut self, case: &Case, count: usize) -> Result<()>;
    /// Starts the one of this number; how long it took to its first byte.
    fn one(&mut self, number: usize) -> Result<Duration>;
    /// Starts all at once; how long each took.
    fn together(&mut self, count: usize) -> Result<Vec<Duration>>;
    fn used(&self) -> Result<Duration>;
    /// Everything as before. Also what is known only afterwards.
    fn end(&mut self) -> Result<Vec<Reading>>;
}

fn sample(starter: &mut impl Starter, case: &Case) -> Result<Vec<Reading>> {
    let times = match case.pace {
        Pace::Isolated => STARTS_A_ROUND,
        Pace::InARow | Pace::AtOnce => 1,
    };
    let mut by_metric: Vec<(Metric, Vec<f64>)> = Vec::new();
    for _ in 0..times {
        for Reading { metric, value } in turn(starter, case)? {
            match by_metric.iter_mut().find(|(m, _)| *m == metric) {
                Some((_, values)) => values.push(value),
                None => by_metric.push((metric, vec![value])),
            }
        }
    }
    let middle =
        |(metric, values): (Metric, Vec<f64>)| median(&values).map(|value| metric.of(value));
    Ok(by_metric.into_iter().filter_map(middle).collect())
}

fn turn(starter: &mut impl Starter, case: &Case) -> Result<Vec<Reading>> {
    let count = match case.pace {
        Pace::Isolated => 1,
        Pace::InARow | Pace::AtOnce => AT_ONCE,
    };
    starter.ready(case, count)?;
    std::thread::sleep(QUIET);
    let before = starter.used()?;
    let took = if case.pace == Pace::AtOnce {
        starter.together(count)?
    } else {
        (0..count).map(|n| starter.one(n)).collect::<Result<_>>()?
    };
    let used = starter.used()?.saturating_sub(before);
    let slowest = took.iter().max().copied().unwrap_or_default();
    let mean = took.iter().sum::<Duration>().as_secs_f64() / float(count as u64);
    let result = match case.pace {
        Pace::AtOnce => STARTS.of(float(count as u64) / slowest.as_secs_f64()),
        Pace::Isolated | Pace::InARow => TTFB.of(mean * 1e3),
    };
    let mut readings = vec![result, CPU.of(group::each(used, count as u64))];
    readings.extend(starter.end()?);
    Ok(readings)
}

/// Asks every door at once, each from its host.
fn ask(doors: &[(&str, SocketAddr, &str)], began: Instant) -> Result<Vec<First>> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = doors
            .iter()
            .map(|(netns, door, name)| {
                scope.spawn(move || yard::on_host(netns, || first_byte(*door, name, began)))
            })
            .collect();
        let joined = asking.into_iter().map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| anyhow::bail!("an asking thread panicked"))
        });
        joined.collect()
    })
}
