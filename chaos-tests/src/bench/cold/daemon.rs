//! A whole daemon as a starter: services at zero behind a real front door. What it keeps ready is
//! what its configuration says.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Case, NODE, Starter, ask};
use crate::bench::board::{CONTAINER, Reading};
use crate::bench::client::First;
use crate::bench::group::{self, Group};
use crate::world::{Node, ORIGIN, World};

/// So many that those of a round have gone back to zero when their turn comes again.
const SERVICES: usize = 12;

/// Services at zero behind a real front door.
pub(super) struct Daemon<'a> {
    world: &'a World,
    node: &'a Node,
    groups: [Group; 2],
    /// The next service's number.
    next: usize,
    /// What the front door calls the requests of the last start.
    requests: Vec<String>,
}

impl<'a> Daemon<'a> {
    pub(super) fn new(world: &'a World) -> Result<Self> {
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

impl Starter for Daemon<'_> {
    fn ready(&mut self, _: &Case, count: usize) -> Result<()> {
        self.requests.clear();
        for number in self.next..self.next + count {
            self.world.rest(&service(number))?;
        }
        Ok(())
    }

    fn one(&mut self, _: usize) -> Result<Duration> {
        Ok(self.together(1)?[0])
    }

    fn together(&mut self, count: usize) -> Result<Vec<Duration>> {
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
        self.requests.extend(firsts.iter().filter_map(id));
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
