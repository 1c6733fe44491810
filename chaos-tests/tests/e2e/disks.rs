//! Disks that fail under a node: what was acknowledged stays, what cannot be kept is refused.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::disk::{Disk, Effect, Op, Rule};
use chaos_tests::world::{Node, PATIENCE, World, until};

use crate::SMALL;

/// More changes than any of these disks takes before it fails.
const MANY: usize = 50;

/// A world with the host of one node, and the folder that will be the node's.
fn one() -> Result<(World, Node, PathBuf)> {
    let mut world = World::empty()?;
    let node = world.bare("par-1")?;
    let dir = world.dir().join("par-1");
    Ok((world, node, dir))
}

/// Hands in a new service; whether the node acknowledged it.
fn acknowledged(world: &World, name: &str) -> Result<bool> {
    let deploy = [&SMALL[..], &["--no-wait"]].concat();
    let said = world.deploy(name, &deploy)?;
    // Not done, outcome not known, no quorum: anything else is no clean refusal.
    ensure!(matches!(said.code, 0 | 1 | 4 | 8), "{said}");
    Ok(said.code == 0)
}

/// Hands in services until one is not acknowledged; the names of those that were.
fn until_refused(world: &World) -> Result<Vec<String>> {
    let mut kept = Vec::new();
    for number in 1..=MANY {
        let name = format!("kept-{number}");
        if !acknowledged(world, &name)? {
            return Ok(kept);
        }
        kept.push(name);
    }
    anyhow::bail!("{MANY} services were acknowledged")
}

fn all_known(node: &Node, names: &[String]) -> Result<()> {
    for name in names {
        let said = node.cli(&["get", "services", name])?;
        said.ok().context("an acknowledged service is lost")?;
    }
    Ok(())
}

/// `kill -9` and a new start, once the old life's files are closed: the lock is the last of them.
fn restart(world: &World, node: &Node) -> Result<()> {
    node.kill()?;
    let lock = world.dir().join(&node.name).join("run/lock");
    until("the old daemon's lock is free", PATIENCE, || {
        Ok(File::open(&lock)?.try_lock().ok())
    })?;
    node.start()?;
    world.settle()
}

/// The machine loses its power right after each acknowledgement.
#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() -> Result<()> {
    let (world, node, dir) = one()?;
    let mut disk = Disk::powered(&dir)?;
    node.enrol(&["up"], &[])?.ok()?;
    world.settle()?;
    let mut kept = Vec::new();
    for number in 1..=3 {
        let name = format!("kept-{number}");
        ensure!(acknowledged(&world, &name)?);
        kept.push(name);
        disk.power_cut()?;
        world.power_off(&node)?;
        disk.power_on()?;
        world.boot(&node)?;
        world.settle()?;
        all_known(&node, &kept)?;
    }
    for name in &kept {
        until(&format!("{name} serves"), PATIENCE, || {
            node.get(name, "/")?.ok()?.says("box").map(Some)
        })?;
    }
    Ok(())
}

/// A voter whose disk once failed to sync acknowledges nothing more in this life: what the disk
/// holds is not known. It goes on serving, and a new life has all that was acknowledged.
#[test]
fn a_failed_sync_is_not_acknowledged_and_ends_the_vote() -> Result<()> {
    let (world, node, dir) = one()?;
    let disk = Disk::faulty(&dir.join("registry"))?;
    node.enrol(&["up"], &[])?.ok()?;
    world.settle()?;
    world.deploy("warm", &["--scale", "1..1"])?.ok()?;
    disk.inject(&[Rule::new(Op::Fsync, Effect::Eio).after(2).times(1)])?;
    let kept = until_refused(&world)?;
    disk.check()?;
    disk.heal()?;
    ensure!(
        !acknowledged(&world, "later")?,
        "it went on after a failed sync"
    );
    ensure!(node.status()?["registry"]["quorum"] == false);
    node.get("warm", "/")?.ok()?.says("box")?;

    restart(&world, &node)?;
    all_known(&node, &kept)?;
    ensure!(acknowledged(&world, "later")?);
    node.get("warm", "/")?.ok()?.says("box")?;
    // The reaper's order: processes first, the one behind the disk among them, then mounts.
    let home = world.dir();
    drop(world);
    ensure!(!home.exists(), "{} is left", home.display());
    Ok(())
}

/// A full disk refuses changes and loses none; what runs goes on. With space again, a new start takes
/// changes. (It should need no new start: a voter that met the full disk does not vote again by
/// itself, however much space there is.)
#[test]
fn a_full_disk_refuses_changes_and_goes_on_serving() -> Result<()> {
    let (world, node, dir) = one()?;
    let disk = Disk::small(&dir, 128 << 20, 8192)?;
    node.enrol(&["up"], &[])?.ok()?;
    world.settle()?;
    world.deploy("warm", &["--scale", "1..1"])?.ok()?;
    disk.fill(0)?;
    disk.check(0)?;
    let kept = until_refused(&world)?;
    node.get("warm", "/")?.ok()?.says("box")?;

    disk.free()?;
    restart(&world, &node)?;
    all_known(&node, &kept)?;
    node.get("warm", "/")?.ok()?.says("box")?;
    world.deploy("later", &SMALL)?.ok()?;
    Ok(())
}
