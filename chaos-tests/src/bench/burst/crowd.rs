//! A crowd at a service with no instance, through a whole daemon: every request takes an instance for
//! itself and keeps it, so that as many start as ask. What waits parked is what a crowd as large left
//! behind, within the daemon's bounds.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::readings;
use crate::bench::board::Reading;
use crate::bench::group::{self, Group};
use crate::bench::yard;
use crate::world::{Node, ORIGIN, World, until};

pub(super) const NODE: &str = "par-1";
const SERVICE: &str = "crowd";
/// A daemon parks at most a sixteenth of its memory's worth; this is that of a machine with 16 GiB.
const PARKED: usize = 1_000;
/// The answer begins at once and ends after the last has begun.
const ASK: &str = "/do?stream=2x10s";
const PATIENCE: Duration = Duration::from_mins(1);
/// For so long nothing more is parked.
const STILL: Duration = Duration::from_secs(3);
/// A thousand instances leave one after the other, each with its own removal, and as many are parked.
const REST: Duration = Duration::from_mins(5);

pub(super) struct Crowd<'a> {
    world: &'a World,
    node: &'a Node,
    groups: [Group; 2],
    /// The largest so far.
    largest: usize,
}

impl<'a> Crowd<'a> {
    pub(super) fn new(world: &'a World, most: usize) -> Result<Self> {
        let node = &world[NODE];
        node.configure_runtime(&format!("parked = {most}"))?;
        // As many as that are not counted with what they use, which is nothing.
        node.configure("[capacity]\ncpu = 64\nmax_instances = 1000")?;
        world.settle()?;
        let daemon = Group::of(world, "bench-crowd")?;
        daemon.add(node.daemon().context("no daemon")?)?;
        let scale = format!("0..{most}");
        let small = ["--memory-request", "4Mi"];
        let bounds = ["--scale", &scale, "--concurrency", "1", "--target", "1"];
        world
            .deploy(SERVICE, &[&bounds[..], &small].concat())?
            .ok()?;
        let mut files = getrlimit(Resource::Nofile);
        files.current = files.maximum;
        setrlimit(Resource::Nofile, files)?;
        Ok(Self {
            world,
            node,
            groups: [daemon, Group::of(world, NODE)?],
            largest: 0,
        })
    }

    pub(super) fn take(&mut self, count: usize) -> Result<Vec<Reading>> {
        if self.largest < count {
            self.ask(count)?;
            self.largest = count;
        }
        self.world.rest_within(SERVICE, REST)?;
        // A few of a crowd come before its burst or after it.
        let wanted = count.min(PARKED) * 9 / 10;
        let (mut most, mut since) = (0, Instant::now());
        until("containers are parked, and no more are made", REST, || {
            let status = self.node.status()?;
            let parked = status["instances"]["parked"].as_u64().unwrap_or_default();
            if parked > most {
                (most, since) = (parked, Instant::now());
            }
            ensure!(parked >= wanted as u64, "{parked} of {wanted}");
            Ok((since.elapsed() >= STILL).then_some(()))
        })?;
        let before = group::used(&self.groups)?;
        let took = self.ask(count)?;
        let used = group::used(&self.groups)?.saturating_sub(before);
        Ok(readings(count, took, used))
    }

    /// So many requests at once; how long until the last answer began.
    fn ask(&self, count: usize) -> Result<Duration> {
        let request = format!("GET {ASK} HTTP/1.1\r\nhost: {SERVICE}.{ORIGIN}\r\n\r\n");
        yard::on_host(&self.node.netns, || {
            let door = self.node.door();
            let connect = |_| TcpStream::connect(door).context("the front door");
            let mut streams: Vec<_> = (0..count).map(connect).collect::<Result<_>>()?;
            let began = Instant::now();
            for stream in &mut streams {
                stream.write_all(request.as_bytes())?;
            }
            for stream in &mut streams {
                let mut answer = [0; 12];
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read_exact(&mut answer)?;
                let answer = String::from_utf8_lossy(&answer);
                ensure!(answer == "HTTP/1.1 200", "{answer}");
            }
            Ok(began.elapsed())
        })
    }
}
