//! Faults of the disks that nodes work on. A world has to be made on media that can have them.

use std::fs;

use anyhow::{Result, bail};

use super::{Undo, process, undo};
use crate::disk::{Disk, Effect, Op, Rule, Small};
use crate::world::World;

/// A full disk gives back at least so much.
const FREED: u64 = 1 << 20;

pub(super) fn full(world: &World, node: &str) -> Result<Undo> {
    small(world, node, |disk| {
        disk.fill(0)?;
        disk.check(0)
    })
}

pub(super) fn no_inodes(world: &World, node: &str) -> Result<Undo> {
    small(world, node, |disk| {
        disk.fill_inodes(0)?;
        disk.check(0)
    })
}

fn small(world: &World, node: &str, fill: impl Fn(&Small) -> Result<()>) -> Result<Undo> {
    match &*world.disk(node)? {
        Disk::Small(disk) => fill(disk)?,
        other => bail!("{node} works on {other:?}"),
    }
    let node = node.to_owned();
    Ok(undo(move |world| {
        if let Disk::Small(disk) = &*world.disk(&node)? {
            disk.free()?;
            disk.check_free(FREED)?;
        }
        process::start(&world[&node])
    }))
}

/// The next call of this kind fails. Whether one came is looked at when it is over: only a change
/// makes the registry write.
pub(super) fn failing(world: &World, node: &str, op: Op, effect: Effect) -> Result<Undo> {
    match &*world.disk(node)? {
        Disk::Faulty(disk) => disk.inject(&[Rule::new(op, effect).times(1)])?,
        other => bail!("{node} works on {other:?}"),
    }
    let node = node.to_owned();
    Ok(undo(move |world| {
        if let Disk::Faulty(disk) = &*world.disk(&node)? {
            let met = disk.check();
            disk.heal()?;
            met?;
        }
        process::start(&world[&node])
    }))
}

pub(super) fn power_cut(world: &World, nodes: &[String]) -> Result<Undo> {
    // All disks first: no node may write what another one's end makes it write.
    for node in nodes {
        match &*world.disk(node)? {
            Disk::Powered(disk) => {
                disk.power_cut()?;
                disk.check_cut()?;
            }
            other => bail!("{node} works on {other:?}"),
        }
    }
    for node in nodes {
        world.power_off(&world[node])?;
    }
    let nodes = nodes.to_vec();
    Ok(undo(move |world| {
        nodes.iter().try_for_each(|node| world.boot(&world[node]))
    }))
}

pub(super) fn device_fails(world: &World, node: &str) -> Result<Undo> {
    match &*world.disk(node)? {
        Disk::Failing(disk) => disk.fail()?,
        other => bail!("{node} works on {other:?}"),
    }
    let node = node.to_owned();
    // A machine is switched off for another device.
    Ok(undo(move |world| {
        world.power_off(&world[&node])?;
        world.boot(&world[&node])
    }))
}

pub(super) fn lost(world: &World, node: &str) -> Result<Undo> {
    world[node].kill()?;
    fs::remove_dir_all(world[node].dir().join("registry"))?;
    let node = node.to_owned();
    Ok(undo(move |world| process::start(&world[&node])))
}
