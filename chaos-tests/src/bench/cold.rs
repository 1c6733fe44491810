//! `cold-start`: from a request to the first byte of its answer, for a service with no instance;
//! against the OCI runtimes that start the same root and the same program, and against a container
//! without a runtime. The peers are spared what a node must also do: pull, place, make a network, a
//! log, a root of the instance's own.

mod runtimes;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::board::{Board, CONTAINER, CPU, Metric, OURS, Reading, STARTS, TTFB};
use super::client::{First, first_byte};
use super::group::{self, Group};
use super::race::{Contestant, race};
use super::stats::{float, median};
use super::{Plan, yard};
use crate::world::{Node, ORIGIN, World};

const NODE: &str = "par-1";
/// One start at a time; several at once.
const ZERO: &str = "zero";
const PARALLEL: &str = "parallel-4";
const AT_ONCE: usize = 4;
/// Starts in a round of `zero`; their median is the round's value.
const STARTS_A_ROUND: usize = 3;
/// So many that those of a round have gone back to zero when their turn comes again.
const SERVICES: usize = 12;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("cold-start");
    let world = World::of(&[NODE])?;
    let hosts: Result<Vec<_>> = (0..AT_ONCE)
        .map(|number| yard::host(&world, &format!("peer-{number}")))
        .collect();
    let hosts = hosts?;
    let ours = Ours::new(&world)?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![Box::new(ours)];
    contestants.push(Box::new(runtimes::floor(&world, &hosts, plan)?));
    for runtime in runtimes::ALL {
        match runtimes::peer(&world, &hosts, runtime) {
            Ok(peer) => contestants.push(Box::new(peer)),
            Err(error) => board.missing(runtime.program, format!("{error:#}")),
        }
    }
    race(&mut board, &[ZERO, PARALLEL], plan.rounds, &mut contestants)?;
    Ok(board)
}

/// What starts servers from nothing and takes them away again.
trait Starter {
    /// Starts `count` at once; how long each took to its first byte.
    fn start(&mut self, count: usize) -> Result<Vec<Duration>>;
    fn used(&self) -> Result<Duration>;
    /// Everything as before the start. Also what is known only afterwards.
    fn end(&mut self) -> Result<Vec<Reading>>;
}

fn sample(starter: &mut impl Starter, case: &str) -> Result<Vec<Reading>> {
    let (count, times) = match case {
        PARALLEL => (AT_ONCE, 1),
        _ => (1, STARTS_A_ROUND),
    };
    let mut by_metric: Vec<(Metric, Vec<f64>)> = Vec::new();
    for _ in 0..times {
        let before = starter.used()?;
        let took = starter.start(count)?;
        let used = starter.used()?.saturating_sub(before);
        let slowest = took.iter().max().copied().unwrap_or_default();
        let result = match case {
            PARALLEL => STARTS.of(float(count as u64) / slowest.as_secs_f64()),
            _ => TTFB.of(slowest.as_secs_f64() * 1e3),
        };
        let mut readings = vec![result, CPU.of(group::each(used, count as u64))];
        readings.extend(starter.end()?);
        for Reading { metric, value } in readings {
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

/// Services at zero behind a real front door.
struct Ours<'a> {
    world: &'a World,
    node: &'a Node,
    groups: [Group; 2],
    /// The next service's number.
    next: usize,
    /// What the front door calls the requests of the last start.
    requests: Vec<String>,
}

impl<'a> Ours<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let node = &world[NODE];
        let daemon = Group::of(world, "bench-selvedge")?;
        daemon.add(node.daemon().context("no daemon")?)?;
        for number in 0..SERVICES {
            world.deploy(&service(number), &["--scale", "0..1"])?.ok()?;
        }
        Ok(Self {
            world,
            node,
            groups: [daemon, Group::of(world, NODE)?],
            next: 0,
            requests: Vec::new(),
        })
    }
}

fn service(number: usize) -> String {
    format!("cold-{}", number % SERVICES)
}

impl Starter for Ours<'_> {
    fn start(&mut self, count: usize) -> Result<Vec<Duration>> {
        let names: Vec<_> = (self.next..self.next + count)
            .map(|number| format!("{}.{ORIGIN}", service(number)))
            .collect();
        let door = self.node.door();
        let doors: Vec<_> = names
            .iter()
            .map(|name| (self.node.netns.as_str(), door, name.as_str()))
            .collect();
        self.next += count;
        let firsts = ask(&doors, Instant::now())?;
        let id = |first: &First| first.header("x-request-id").map(str::to_owned);
        self.requests = firsts.iter().filter_map(id).collect();
        Ok(firsts.iter().map(|first| first.took).collect())
    }

    fn used(&self) -> Result<Duration> {
        group::used(&self.groups)
    }

    fn end(&mut self) -> Result<Vec<Reading>> {
        let container = |request: &String| {
            let explained = self.node.read(&["explain", request])?;
            let micros = container_micros(&explained);
            let micros = micros.with_context(|| format!("no start in {explained}"))?;
            Ok(CONTAINER.of(micros / 1e3))
        };
        self.requests.iter().map(container).collect()
    }
}

/// What the container runtime took of a request's bill.
fn container_micros(explained: &Value) -> Option<f64> {
    let phases = explained["bill"]["phases"].as_array()?;
    let ours = phases
        .iter()
        .filter(|p| p["name"] == "create" || p["name"] == "start");
    let micros: Vec<_> = ours.filter_map(|p| p["micros"].as_f64()).collect();
    (!micros.is_empty()).then(|| micros.iter().sum())
}

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let count = if case == PARALLEL {
            AT_ONCE
        } else {
            STARTS_A_ROUND
        };
        for number in self.next..self.next + count {
            self.world.rest(&service(number))?;
        }
        sample(self, case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bill_tells_what_the_container_took() {
        let bill = serde_json::json!({"bill": {"phases": [
            {"name": "place", "micros": 7}, {"name": "create", "micros": 1200},
            {"name": "start", "micros": 300}, {"name": "ready", "micros": 9},
        ]}});
        assert_eq!(container_micros(&bill), Some(1500.0));
        assert_eq!(container_micros(&serde_json::json!({"bill": null})), None);
    }
}
