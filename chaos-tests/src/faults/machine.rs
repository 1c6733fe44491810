//! Faults of what the machine gives a daemon: processor, disk, files.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{SEEN_WITHIN, Undo, undo};
use crate::disk::limits::{Cage, FewFiles, Limit};
use crate::disk::strace::{self, Strace};
use crate::world::{Node, World, until};

fn daemon(node: &Node) -> Result<u32> {
    let pid = node.daemon();
    pid.with_context(|| format!("{} runs no daemon", node.name))
}

/// `hundredths` of one core.
pub(super) fn starve(world: &World, node: &str, hundredths: u64) -> Result<Undo> {
    let node = &world[node];
    let cage = Cage::around(daemon(node)?, &format!("{}-starved", node.cgroup()))?;
    let limited = cage.limit(Limit::Cpu(hundredths))?;
    until("the daemon is held back", SEEN_WITHIN, || {
        Ok((cage.held_back()? > 0).then_some(()))
    })?;
    Ok(undo(move |_| {
        limited.heal()?;
        drop(cage);
        Ok(())
    }))
}

pub(super) fn slow_disk(world: &World, node: &str, delay: Duration) -> Result<Undo> {
    let node = &world[node];
    let log = world.dir().join(format!("{}.strace", node.name));
    let strace = Strace::syncs(strace::Fault::Slow(delay), &log);
    let attached = strace.attach(daemon(node)?)?;
    // A voter writes its commit mark by itself; a follower writes what it hears. Only a change makes
    // sure of it, so whether a call was slow is looked at when it is over.
    Ok(undo(move |_| {
        attached.heal()?;
        strace.check().map(drop)
    }))
}

pub(super) fn no_files(world: &World, node: &str) -> Result<Undo> {
    let node = &world[node];
    let pid = daemon(node)?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let few = FewFiles::on(pid, u64::try_from(open)?)?;
    ensure!(node.daemon() == Some(pid), "the daemon ended");
    Ok(undo(move |_| few.heal()))
}
