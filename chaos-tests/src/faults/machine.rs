//! Faults of what the machine gives a daemon: processor, memory, disk, files, ports.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{SEEN_WITHIN, Undo, process, undo};
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

/// A thread of the pool that serves requests.
const WORKER: &str = "tokio-rt-worker";

pub(super) fn hang_thread(world: &World, node: &str) -> Result<Undo> {
    let node = &world[node];
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon(node)?))?;
    let is_worker = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == WORKER)
    };
    let worker = tasks.flatten().map(|task| task.path()).find(is_worker);
    let worker = worker.with_context(|| format!("{} has no {WORKER}", node.name))?;
    let tid = worker
        .file_name()
        .and_then(|name| name.to_str()?.parse().ok());
    let log = world.dir().join(format!("{}.strace", node.name));
    let hung = strace::hang(tid.context("a thread has a number")?, &log)?;
    Ok(undo(move |_| hung.heal()))
}

pub(super) fn no_files(world: &World, node: &str) -> Result<Undo> {
    let node = &world[node];
    let pid = daemon(node)?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let few = FewFiles::on(pid, u64::try_from(open)?)?;
    ensure!(node.daemon() == Some(pid), "the daemon ended");
    Ok(undo(move |_| few.heal()))
}

/// What a daemon may have from now on, beside what it has: less than it needs for anything.
const NO_MEMORY: u64 = 256 << 10;

pub(super) fn out_of_memory(world: &World, node: &str) -> Result<Undo> {
    let name = node.to_owned();
    let node = &world[node];
    let cage = Cage::beside(daemon(node)?, &format!("{}-hungry", node.cgroup()))?;
    let limited = cage.limit(Limit::Memory(NO_MEMORY))?;
    cage.enter()?;
    until("the kernel ends the daemon", SEEN_WITHIN, || {
        Ok(node.daemon().is_none().then_some(()))
    })?;
    drop(limited);
    drop(cage);
    Ok(undo(move |world| process::start(&world[&name])))
}

const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The range is the network namespace's own.
pub(super) fn no_ports(world: &World, node: &str) -> Result<Undo> {
    let name = node.to_owned();
    let node = &world[node];
    let before = node.run("cat", &[PORT_RANGE])?.ok()?.out;
    set_ports(node, "60998 60999")?;
    // Three connections to the same place need three ports.
    let door = format!("/dev/tcp/{}/80", node.address);
    let three = format!("exec 3<>{door} && exec 4<>{door} && exec 5<>{door}");
    until("no port is left", SEEN_WITHIN, || {
        Ok((node.run("bash", &["-c", &three])?.code != 0).then_some(()))
    })?;
    Ok(undo(move |world| set_ports(&world[&name], before.trim())))
}

fn set_ports(node: &Node, range: &str) -> Result<()> {
    let write = format!("echo '{range}' > {PORT_RANGE}");
    node.run("sh", &["-c", &write])?.ok().map(drop)
}
