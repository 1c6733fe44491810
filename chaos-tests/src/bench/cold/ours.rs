//! Ours: the rooms that start containers, with as much done ahead as a case says, and the whole daemon.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::daemon::Daemon;
use super::{AT_ONCE, Ahead, Case, Starter, ask, sample};
use crate::bench::Plan;
use crate::bench::board::{OURS, Reading};
use crate::bench::group::Group;
use crate::bench::race::Contestant;
use crate::bench::rooms::Rooms;
use crate::world::World;

/// Where the server of the test image listens.
const PORT: u16 = 8080;

pub(super) struct Ours<'a> {
    daemon: Daemon<'a>,
    parts: Parts,
}

impl<'a> Ours<'a> {
    pub(super) fn new(world: &'a World, plan: &Plan) -> Result<Self> {
        let group = Group::of(world, "bench-rooms")?;
        Ok(Self {
            daemon: Daemon::new(world)?,
            parts: Parts {
                rooms: Rooms::start(world, plan, group)?,
                next: 0,
                parked: VecDeque::new(),
                started: Vec::new(),
            },
        })
    }
}

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let case = super::case(case)?;
        match case.ahead {
            Ahead::Daemon => sample(&mut self.daemon, case),
            Ahead::Container | Ahead::Network | Ahead::Nothing => sample(&mut self.parts, case),
        }
    }
}

/// Images, network and runtime without the daemon around them.
struct Parts {
    rooms: Rooms,
    /// The next container's number.
    next: usize,
    parked: VecDeque<(String, Ipv4Addr)>,
    started: Vec<String>,
}

impl Parts {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("cold-{}", self.next)
    }

    fn wait_for(&self, address: Ipv4Addr, began: Instant) -> Result<Duration> {
        let door = SocketAddr::from((address, PORT));
        let firsts = ask(&[(&self.rooms.netns, door, "box")], began)?;
        Ok(firsts[0].took)
    }
}

impl Starter for Parts {
    fn ready(&mut self, case: &Case, count: usize) -> Result<()> {
        let networks = if case.ahead == Ahead::Nothing {
            0
        } else {
            AT_ONCE
        };
        self.rooms.keep_networks(networks)?;
        if case.ahead == Ahead::Container {
            for _ in 0..count {
                let name = self.name();
                let address = self.rooms.create(&name)?;
                self.parked.push_back((name, address));
            }
            self.rooms.keep_networks(networks)?;
        }
        Ok(())
    }

    fn one(&mut self, _: usize) -> Result<Duration> {
        let began = Instant::now();
        let (name, address) = if let Some((name, address)) = self.parked.pop_front() {
            self.rooms.say(&format!("start {name}"))?;
            (name, address)
        } else {
            let name = self.name();
            let leased = self.rooms.ask(&format!("begin {name}"), "leased")?;
            (name, leased.get(1).context("no address")?.parse()?)
        };
        let took = self.wait_for(address, began)?;
        self.rooms.hear("started")?;
        self.started.push(name);
        Ok(took)
    }

    fn together(&mut self, _: usize) -> Result<Vec<Duration>> {
        bail!("the rooms start one after the other here")
    }

    fn used(&self) -> Result<Duration> {
        self.rooms.group.used()
    }

    fn end(&mut self) -> Result<Vec<Reading>> {
        for name in self.started.drain(..) {
            self.rooms.ask(&format!("delete {name}"), "deleted")?;
        }
        Ok(Vec::new())
    }
}
