//! Daemons that die: what they ran goes on, what was acknowledged stays.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_tests::faults::Fault;
use chaos_tests::world::{Node, PATIENCE, Response, World, until};

use crate::{SMALL, THREE};

/// The daemon dies; its containers do not notice.
#[test]
fn containers_outlive_their_daemon() -> Result<()> {
    let world = World::of(&["par-1"])?;
    world
        .deploy("web", &["--scale", "2..2", "--cpu", "0.1"])?
        .ok()?;
    let node = world.first();
    until("two instances", PATIENCE, || {
        Ok((node.instances("web")?.len() == 2).then_some(()))
    })?;
    let before = node.containers();
    ensure!(before.len() >= 2, "{before:?}");
    node.kill()?;
    ensure!(
        node.containers() == before,
        "the kill took containers along"
    );
    node.start()?;
    until("served again", PATIENCE, || {
        node.get("web", "/")?.ok().map(Some)
    })?;
    let after = node.containers();
    ensure!(after == before, "restarted: {before:?} became {after:?}");
    Ok(())
}

/// A thread of a daemon hangs: whatever that holds up there, another node serves, and the daemon
/// goes on where it was once the thread does.
#[test]
fn a_hanging_thread_holds_up_its_own_daemon_at_most() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    world
        .deploy("web", &["--scale", "2..2", "--cpu", "0.1"])?
        .ok()?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    fra.get("web", "/")?.ok()?;
    let pid = par.daemon();
    let node = par.name.clone();
    let hung = Fault::HangThread { node }.inject(&world)?;
    for _ in 0..20 {
        fra.get("web", "/")?.ok()?.says("box")?;
    }
    hung.heal(&world)?;
    world.settle()?;
    for node in world.nodes() {
        node.get("web", "/")?.ok()?.says("box")?;
    }
    ensure!(par.daemon() == pid, "it was another daemon that went on");
    Ok(())
}

/// Two of three daemons die: the third serves, starts, and refuses changes.
#[test]
fn one_of_three_serves_but_takes_no_changes() -> Result<()> {
    let world = World::of(&THREE)?;
    let survivor = &world["lis-1"];
    for service in ["warm", "cold"] {
        world
            .deploy(service, &[&SMALL[..], &["--region", "lis"]].concat())?
            .ok()?;
    }
    world.rest("cold")?;
    survivor.get("warm", "/")?.ok()?;
    world["par-1"].kill()?;
    world["fra-1"].kill()?;
    survivor.get("warm", "/")?.ok()?.says("box")?;
    survivor.get("cold", "/")?.ok()?.says("box")?;
    let refused = world
        .deploy_at(survivor, "more", &SMALL)?
        .code(8)?
        .says("quorum")?;
    ensure!(refused.took < Duration::from_secs(5), "{:?}", refused.took);
    ensure!(survivor.dig("warm", "A")?.first() == Some(&survivor.address.to_string()));

    world["par-1"].start()?;
    world["fra-1"].start()?;
    takes_changes(survivor, "warm")
}

fn takes_changes(node: &Node, service: &str) -> Result<()> {
    until("a change is taken", PATIENCE, || {
        node.cli(&["scale", service, "0..2", "--no-wait"])?
            .ok()
            .map(Some)
    })
    .map(drop)
}

/// What was acknowledged is there after everything died at once.
#[test]
fn an_acknowledged_deploy_survives_the_death_of_all() -> Result<()> {
    let world = World::of(&THREE)?;
    world
        .deploy("kept", &[&SMALL[..], &["--no-wait"]].concat())?
        .ok()?;
    world.nodes().iter().try_for_each(Node::kill)?;
    world.nodes().iter().try_for_each(Node::start)?;
    world.settle()?;
    for node in world.nodes() {
        until("it serves", PATIENCE, || {
            node.get("kept", "/")?.ok()?.says("box").map(Some)
        })?;
    }
    Ok(())
}

/// The leader dies under load at the others, and no request fails.
#[test]
fn no_request_fails_while_the_leader_dies() -> Result<()> {
    let world = World::of(&THREE)?;
    world
        .deploy("web", &["--scale", "0..6", "--cpu", "0.1"])?
        .ok()?;
    let leader = world.leader()?;
    let others: Vec<_> = world
        .nodes()
        .iter()
        .filter(|n| n.name != leader.name)
        .collect();
    others[0].get("web", "/")?.ok()?;
    let end = Instant::now() + Duration::from_secs(12);
    let failures = std::thread::scope(|scope| {
        let loads: Vec<_> = others
            .iter()
            .map(|node| scope.spawn(|| load(node, end)))
            .collect();
        std::thread::sleep(Duration::from_secs(3)); // Load before the kill.
        let killed = leader.kill();
        let failures = loads
            .into_iter()
            .filter_map(|load| load.join().ok())
            .flatten();
        let failures: Vec<_> = failures.collect();
        killed.map(|()| failures)
    })?;
    ensure!(
        failures.is_empty(),
        "{} failed, first: {}",
        failures.len(),
        failures[0]
    );
    takes_changes(others[0], "web")
}

/// About fifty requests a second until `end`; what failed, in words.
fn load(node: &Node, end: Instant) -> Vec<String> {
    let mut failures = Vec::new();
    while Instant::now() < end {
        if let Err(error) = node.get("web", "/").and_then(Response::ok) {
            failures.push(format!("{error:#}"));
        }
        std::thread::sleep(Duration::from_millis(20)); // The load's rate.
    }
    failures
}
