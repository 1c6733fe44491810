//! Faults of processes: killed, standing still, exchanged.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{SEEN_WITHIN, Undo, undo};
use crate::disk::Prefix;
use crate::disk::clock::{WallClock, check_ahead, monotonic_ahead};
use crate::world::{Launch, Node, World, is_running, run, until};

pub(super) fn kill(world: &World, node: &str) -> Result<Undo> {
    world[node].kill()?;
    let node = node.to_owned();
    Ok(undo(move |world| start(&world[&node])))
}

/// A node may have been started by another heal meanwhile.
pub(super) fn start(node: &Node) -> Result<()> {
    match node.daemon() {
        Some(_) => Ok(()),
        None => node.start(),
    }
}

/// What is killed here is replaced by the node itself: nothing is left to heal.
pub(super) fn kill_shims(world: &World, node: &str) -> Result<Undo> {
    let shims = world[node].shims();
    ensure!(!shims.is_empty(), "{node} has no shim to kill");
    end_all(&shims)?;
    Ok(undo(|_| Ok(())))
}

pub(super) fn kill_containers(world: &World, node: &str) -> Result<Undo> {
    let first = world[node].containers();
    let first: Vec<_> = first.into_iter().filter(|pid| is_first(*pid)).collect();
    ensure!(!first.is_empty(), "{node} has no container to kill");
    end_all(&first)?;
    Ok(undo(|_| Ok(())))
}

/// Whether it is process 1 of its pid namespace.
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inner = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
    inner.and_then(|l| l.split_whitespace().last()) == Some("1")
}

fn end_all(pids: &[u32]) -> Result<()> {
    let words = pids.iter().map(ToString::to_string);
    run("kill", ["-9".to_owned()].into_iter().chain(words))?.ok()?;
    until("the killed are gone", SEEN_WITHIN, || {
        let left = pids.iter().find(|pid| is_running(**pid));
        Ok(left.is_none().then_some(()))
    })
}

pub(super) fn pause(world: &World, node: &str) -> Result<Undo> {
    world[node].pause()?;
    let node = node.to_owned();
    Ok(undo(move |world| match world[&node].daemon() {
        Some(_) => world[&node].resume(),
        None => Ok(()),
    }))
}

/// What is started then is another file, as after an upgrade: shims of both serve side by side.
pub(super) fn restart(world: &World, node: &str) -> Result<Undo> {
    let next = world.next_build()?;
    world[node].stop()?;
    let node = node.to_owned();
    Ok(undo(move |world| {
        let launch = Launch {
            programs: Some(next),
            ..Launch::default()
        };
        match world[&node].daemon() {
            Some(_) => Ok(()),
            None => world[&node].start_with(&launch),
        }
    }))
}

pub(super) fn no_images(world: &World) -> Result<Undo> {
    world.stop_registry()?;
    ensure!(
        !world.registry_answers(),
        "the registry of images still answers"
    );
    Ok(undo(|world| {
        world.start_registry()?;
        until(
            "the registry of images answers",
            Duration::from_secs(30),
            || Ok(world.registry_answers().then_some(())),
        )
    }))
}

/// The daemon is started again to be given a clock that lies, and once more to take it away.
fn under(world: &World, node: &str, prefix: Prefix, clock: Option<WallClock>) -> Result<Undo> {
    let launch = Launch {
        prefix,
        ..Launch::default()
    };
    world[node].stop()?;
    world[node].start_with(&launch)?;
    let node = node.to_owned();
    Ok(undo(move |world| {
        if world[&node].daemon().is_some() {
            world[&node].stop()?;
        }
        drop(clock);
        world[&node].start()
    }))
}

fn clock_of(world: &World, node: &str) -> Result<WallClock> {
    WallClock::new(&world.dir().join(format!("{node}.clock")))
}

/// Right at first: it jumps while the daemon runs.
pub(super) fn clock_jump(world: &World, node: &str, seconds: i64) -> Result<Undo> {
    let clock = clock_of(world, node)?;
    let turned = clock_of(world, node)?;
    let undo = under(world, node, clock.prefix(), Some(clock))?;
    turned.jump(seconds)?;
    turned.check(seconds)?;
    Ok(undo)
}

pub(super) fn clock_rate(world: &World, node: &str, times: f64) -> Result<Undo> {
    let clock = clock_of(world, node)?;
    clock.rate(times)?;
    under(world, node, clock.prefix_all(), Some(clock))
}

pub(super) fn clock_ahead(world: &World, node: &str, seconds: u32) -> Result<Undo> {
    check_ahead(seconds)?;
    under(world, node, monotonic_ahead(seconds), None)
}
