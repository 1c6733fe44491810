//! `wake-herd`: a thousand requests at once at a service that has no instance, a third of them at each
//! of three nodes, beside one request alone. Nobody is refused; instances are started for what asks and
//! not for each who asks; and the last of the thousand should wait little longer than the one.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::Timespec;

use super::answer;
use super::board::{Board, FAILED, Metric, OURS, P50, P99, Reading};
use super::race::{Contestant, race};
use super::stats::float;
use super::{Plan, yard};
use crate::world::{Node, ORIGIN, PATIENCE, World};

const NODES: [&str; 3] = ["par-1", "fra-1", "lis-1"];
const SERVICE: &str = "herd";
/// How many ask at once.
const CASES: [&str; 3] = ["1", "100", "1000"];
/// Each takes a while, so that nobody is served by an instance that another has left already.
const ASK: &str = "/do?delay=100ms";
const STARTED: Metric = Metric::new("instances", "");
const BUFFER: usize = 16 << 10;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("wake-herd");
    let world = World::of(&NODES)?;
    let bounds = ["--scale", "0..50", "--memory-request", "4Mi"];
    world.deploy(SERVICE, &bounds)?.ok()?;
    // Every node has the image when it counts.
    for node in world.nodes() {
        node.cli(&["image", "pull", &world.image("box")])?.ok()?;
    }
    let mut ways: Vec<Box<dyn Contestant + '_>> = vec![Box::new(Herd { world: &world })];
    race(&mut board, &plan.chosen(&CASES), plan.rounds, &mut ways)?;
    Ok(board)
}

struct Herd<'a> {
    world: &'a World,
}

impl Contestant for Herd<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let count: usize = case.parse()?;
        self.world.rest(SERVICE)?;
        let nodes = self.world.nodes();
        let shares =
            (0..nodes.len()).map(|at| count / nodes.len() + usize::from(at < count % nodes.len()));
        let said: Result<Vec<Heard>> = std::thread::scope(|scope| {
            let asking: Vec<_> = nodes
                .iter()
                .zip(shares)
                .map(|(node, share)| scope.spawn(move || ask(node, share)))
                .collect();
            let ended = asking.into_iter().map(|thread| {
                let ended = thread.join();
                ended.unwrap_or_else(|_| anyhow::bail!("a thread that asks panicked"))
            });
            ended.collect()
        });
        let mut all = Heard::new()?;
        for heard in said? {
            all.latency.add(&heard.latency)?;
            all.failed += heard.failed;
        }
        let started = self.world.first().instances(SERVICE)?.len();
        let quantile = |q| float(all.latency.value_at_quantile(q));
        Ok(vec![
            P50.of(quantile(0.5)),
            P99.of(quantile(0.99)),
            FAILED.of(float(all.failed)),
            STARTED.of(float(started as u64)),
        ])
    }
}

struct Heard {
    /// Of all answers, in microseconds.
    latency: Histogram<u64>,
    /// Answers other than 200.
    failed: u64,
}

impl Heard {
    fn new() -> Result<Self> {
        let latency = Histogram::new(3)?;
        Ok(Self { latency, failed: 0 })
    }
}

/// So many requests at once at this node's door, from its own host.
fn ask(node: &Node, count: usize) -> Result<Heard> {
    yard::on_host(&node.netns, || at_once(node.door(), count))
}

fn at_once(door: SocketAddr, count: usize) -> Result<Heard> {
    let request = format!("GET {ASK} HTTP/1.1\r\nhost: {SERVICE}.{ORIGIN}\r\n\r\n");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for number in 0..count {
        let stream = TcpStream::connect(door).context("the front door")?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)?;
        clients.push((stream, Vec::new()));
    }
    let mut heard = Heard::new()?;
    let began = Instant::now();
    for (stream, _) in &clients {
        let written = rustix::io::write(stream, request.as_bytes())?;
        ensure!(
            written == request.len(),
            "a request that does not fit its socket"
        );
    }
    let tick = Timespec::try_from(std::time::Duration::from_millis(100))?;
    let mut events = Vec::with_capacity(count.max(1));
    let mut open = count;
    while open > 0 {
        ensure!(began.elapsed() < PATIENCE, "{open} answers are missing");
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&tick))?;
        for event in events.drain(..) {
            let (stream, read) = &mut clients[usize::try_from(event.data.u64())?];
            read.reserve(BUFFER);
            let got = rustix::io::read(&*stream, spare_capacity(read))?;
            let answered = match got {
                0 => Some(false),
                _ => answer::first(read)?.map(|answer| answer.status == 200),
            };
            let Some(good) = answered else { continue };
            epoll::delete(&epoll, &*stream)?;
            open -= 1;
            if good {
                heard
                    .latency
                    .record(u64::try_from(began.elapsed().as_micros())?.max(1))?;
            } else {
                heard.failed += 1;
            }
        }
    }
    Ok(heard)
}
