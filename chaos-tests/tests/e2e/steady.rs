//! One load over everything that operators do to a fleet, and over the loss of a node.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::accounting::{self, Rules};
use chaos_tests::workload::ledger::{Failure, LogReader};
use chaos_tests::workload::load::{Config, Load};
use chaos_tests::world::{Node, ORIGIN, PATIENCE, Systemd, World, run, until};

use crate::THREE;

/// Requests a second.
const RATE: u32 = 300;
/// So many requests in all; by hand as many as `SELVEDGE_REQUESTS` says.
const REQUESTS: u64 = 12_000;
/// What is done while they are sent, the loss of a node last.
const STEPS: u64 = 6;
/// What may be under way at a node at once with this rate.
const UNDER_WAY: u64 = 20;
/// Within it a lost node is known to be lost.
const LOSS: Duration = Duration::from_secs(5);

fn share() -> Result<u64> {
    let asked = std::env::var("SELVEDGE_REQUESTS").ok();
    let all = asked.map_or(Ok(REQUESTS), |text| {
        text.parse().context("SELVEDGE_REQUESTS")
    })?;
    Ok(all / STEPS)
}

/// GETs and POSTs through the doors of the two nodes that stay.
fn begin(nodes: [&Node; 2]) -> Result<Load> {
    let config = Config::new(&format!("web.{ORIGIN}"), &nodes.map(Node::door));
    Load::start(config.rate(RATE.into()).path("/do?delay=20ms").poisson(7))
}

fn sent(load: &Load, count: u64) -> Result<()> {
    let longest = PATIENCE + Duration::from_secs(2 * share()? / u64::from(RATE));
    until(&format!("{count} requests"), longest, || {
        Ok((load.count().sent >= count).then_some(()))
    })
}

/// Scaled up and down, rolled out, drained, its daemon replaced: every request is ok and was served once.
/// A node with instances is lost: only requests that it had may fail.
#[test]
fn nothing_that_operators_do_fails_a_request() -> Result<()> {
    let world = World::of(&THREE)?;
    let [replaced, drained, lost] = THREE.map(|name| &world[name]);
    let deploy = |more: &[&str]| {
        let scale = ["--scale", "3..6", "--cpu", "0.1", "--target", "20"];
        // Every node of them has a region of its own: none is left without an instance.
        let spread = ["--spread", "region"];
        world
            .deploy("web", &[&scale[..], &spread, more].concat())?
            .ok()
    };
    deploy(&[])?;
    replaced.stop()?;
    let systemd = Systemd::supervise(replaced)?;
    world.settle()?;
    let operate = |args: &[&str]| drained.cli(args)?.ok();

    let (share, load) = (share()?, begin([replaced, drained])?);
    operate(&["scale", "web", "6..6"])?;
    sent(&load, share)?;
    operate(&["scale", "web", "2..6"])?;
    sent(&load, 2 * share)?;
    deploy(&["--env", "VERSION=2"])?;
    sent(&load, 3 * share)?;
    operate(&["node", "drain", &drained.name, "--deadline", "60s"])?;
    operate(&["node", "uncordon", &drained.name])?;
    sent(&load, 4 * share)?;
    systemd.restart()?;
    sent(&load, 5 * share)?;
    let client = load.stop()?;
    println!("{}", client.summary());
    let mut logs = LogReader::of(&world);
    let found = accounting::check(&client, logs.read_all(&client)?, &Rules::strict("web"));
    ensure!(found.is_empty(), "{}", found.join("\n"));

    operate(&["scale", "web", "6..6"])?;
    until("the node that is lost has instances", PATIENCE, || {
        Ok((!lost.containers().is_empty()).then_some(()))
    })?;
    let load = begin([replaced, drained])?;
    sent(&load, share / 2)?;
    let at = load.elapsed();
    lost.kill()?;
    let containers: Vec<_> = lost.containers().iter().map(u32::to_string).collect();
    run("kill", ["-KILL".to_owned()].into_iter().chain(containers))?;
    sent(&load, share)?;
    let client = load.stop()?;
    println!("{}", client.summary());
    let count = client.count();
    ensure!(count.not_ok() <= UNDER_WAY, "{count:?}");
    let late = |failure: &&Failure| failure.at + failure.took < at || failure.at > at + LOSS;
    let late: Vec<_> = client.failures.iter().filter(late).collect();
    ensure!(late.is_empty(), "of no lost node: {late:?}");
    let rules = Rules {
        whole_logs: false,
        ..Rules::broken("web")
    };
    let found = accounting::check(&client, logs.read_all(&client)?, &rules);
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
