//! Faults of the network between the nodes, set at the wire and seen from the hosts. The clients of a
//! test and the registry of images keep their good links.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Fault, SEEN_WITHIN, Undo, undo};
use crate::wire::{Counts, Link};
use crate::world::{Node, World, until};

/// A narrow link's queue may hold up what comes for so many milliseconds, as buffers of routers do.
const QUEUE_MILLIS: u64 = 400;

fn names(world: &World) -> Vec<&str> {
    world.nodes().iter().map(|n| n.name.as_str()).collect()
}

fn others<'a>(world: &'a World, side: &[&str]) -> Result<Vec<&'a str>> {
    let all = names(world);
    let others: Vec<_> = all.into_iter().filter(|n| !side.contains(n)).collect();
    ensure!(
        !others.is_empty(),
        "nobody is on the other side of {side:?}"
    );
    Ok(others)
}

pub(super) fn partition(world: &World, side: &[String]) -> Result<Undo> {
    let side: Vec<_> = side.iter().map(String::as_str).collect();
    let others = others(world, &side)?;
    cut(world, &side, &others)
}

pub(super) fn apart(world: &World, one: &str, other: &str) -> Result<Undo> {
    let undo = cut(world, &[one], &[other])?;
    for third in others(world, &[one, other])? {
        until("the third node is in reach", SEEN_WITHIN, || {
            pings(&world[one], &world[third]).map(Some)
        })?;
    }
    Ok(undo)
}

fn cut(world: &World, these: &[&str], those: &[&str]) -> Result<Undo> {
    world.wire().cut(these, those)?;
    for (from, to) in [(these[0], those[0]), (those[0], these[0])] {
        until(&format!("{from} does not reach {to}"), SEEN_WITHIN, || {
            let (answered, passed) = ping_once(world, from, to)?;
            ensure!(!answered && passed.dropped.down > 0, "{passed:?}");
            Ok(Some(()))
        })?;
    }
    let (these, those) = (owned(these), owned(those));
    Ok(undo(move |world| {
        world.wire().heal(&borrowed(&these), &borrowed(&those))
    }))
}

pub(super) fn deaf(world: &World, node: &str) -> Result<Undo> {
    let others = others(world, &[node])?;
    world.wire().cut_one_way(&others, &[node])?;
    let other = others[0];
    until(&format!("{node} hears nobody"), SEEN_WITHIN, || {
        let (answered, out) = ping_once(world, node, other)?;
        let back = world.wire().stats()?.of(other, node)?;
        ensure!(!answered && back.dropped.down > 0, "{back:?}");
        ensure!(out.delivered > 0, "{node} is not heard either: {out:?}");
        Ok(Some(()))
    })?;
    let (node, others) = (node.to_owned(), owned(&others));
    Ok(undo(move |world| {
        world.wire().heal_one_way(&borrowed(&others), &[&node])
    }))
}

/// One echo request; whether it was answered, and what the link saw of it.
fn ping_once(world: &World, from: &str, to: &str) -> Result<(bool, Counts)> {
    let before = world.wire().stats()?.of(from, to)?;
    let answered = pings(&world[from], &world[to]).is_ok();
    let after = world.wire().stats()?.of(from, to)?;
    Ok((answered, less(after, before)))
}

fn less(after: Counts, before: Counts) -> Counts {
    let mut counts = after;
    counts.delivered -= before.delivered;
    counts.duplicated -= before.duplicated;
    counts.corrupted -= before.corrupted;
    counts.reordered -= before.reordered;
    counts.dropped.down -= before.dropped.down;
    counts.dropped.loss -= before.dropped.loss;
    counts.dropped.mtu -= before.dropped.mtu;
    counts
}

fn pings(from: &Node, to: &Node) -> Result<()> {
    let to = to.address.to_string();
    let said = from.run("ping", &["-n", "-q", "-c", "1", "-W", "1", &to])?;
    said.ok().map(drop)
}

/// Two nodes that no other fault keeps apart: their link stands for all.
fn connected(world: &World) -> Result<Option<(&Node, &Node)>> {
    for from in world.nodes() {
        for to in world.nodes().iter().filter(|to| to.name != from.name) {
            let there = world.wire().get(&from.name, &to.name)?;
            let back = world.wire().get(&to.name, &from.name)?;
            if there.up && back.up {
                return Ok(Some((from, to)));
            }
        }
    }
    Ok(None)
}

pub(super) fn worsen(world: &World, fault: &Fault) -> Result<Undo> {
    change(world, fault, false)?;
    let (from, to) = connected(world)?.context("no two nodes are connected")?;
    until("the link is worse", SEEN_WITHIN, || {
        let before = world.wire().stats()?.of(&from.name, &to.name)?;
        let rtt = flood(from, to, fault)?;
        let after = world.wire().stats()?.of(&from.name, &to.name)?;
        let seen = seen(fault, less(after, before), rtt);
        ensure!(seen, "{rtt:?}, {after:?}");
        Ok(Some(()))
    })?;
    let fault = fault.clone();
    Ok(undo(move |world| change(world, &fault, true)))
}

/// Changes every link between nodes.
fn change(world: &World, fault: &Fault, heal: bool) -> Result<()> {
    let (all, wire) = (names(world), world.wire());
    for from in &all {
        for to in all.iter().filter(|to| *to != from) {
            let good = heal.then(|| wire.preset().link(from, to));
            let link = wire.get(from, to)?;
            wire.set(from, to, changed(link, fault, good))?;
        }
    }
    Ok(())
}

/// The link with this fault, or with what the good link has in its place. Only what this fault is
/// about: others may hold at the same time.
fn changed(mut link: Link, fault: &Fault, good: Option<Link>) -> Link {
    match *fault {
        Fault::Loss { ratio } => link.loss = good.map_or(ratio, |g| g.loss),
        Fault::Delay { delay, jitter } => {
            link.delay = good.map_or(link.delay + millis(delay), |g| g.delay);
            link.jitter = good.map_or(link.jitter + millis(jitter), |g| g.jitter);
        }
        Fault::Reorder { ratio, delay } => {
            link.reorder = good.map_or(ratio, |g| g.reorder);
            link.delay = good.map_or(link.delay + millis(delay), |g| g.delay);
        }
        Fault::Duplicate { ratio } => link.duplicate = good.map_or(ratio, |g| g.duplicate),
        Fault::Corrupt { ratio } => link.corrupt = good.map_or(ratio, |g| g.corrupt),
        Fault::Narrow { bits_per_second } => {
            link.rate = good.map_or(Some(bits_per_second), |g| g.rate);
            link.queue = good.map_or(queue(bits_per_second), |g| g.queue);
        }
        Fault::BlackHole { mtu } => link.mtu = good.map_or(Some(mtu), |g| g.mtu),
        _ => {}
    }
    link
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn queue(bits_per_second: u64) -> u32 {
    let bits = bits_per_second * QUEUE_MILLIS / 1000;
    u32::try_from(bits / 8).unwrap_or(u32::MAX)
}

/// Bytes of an echo request, without its headers. Larger ones are what a black hole is for.
fn size(fault: &Fault) -> u32 {
    match fault {
        Fault::BlackHole { mtu } => *mtu,
        _ => 1000,
    }
}

const FLOOD: u32 = 60;

/// Many echo requests at once; the longest round trip, if any came back.
fn flood(from: &Node, to: &Node, fault: &Fault) -> Result<Option<Duration>> {
    let (count, size, to) = (
        FLOOD.to_string(),
        size(fault).to_string(),
        to.address.to_string(),
    );
    let args = [
        "-n", "-q", "-c", &count, "-l", &count, "-i", "0.01", "-W", "1", "-s", &size, &to,
    ];
    let said = from.run("ping", &args)?.out;
    // `rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms`
    let times = said.lines().find_map(|line| line.strip_prefix("rtt "));
    let longest = times.and_then(|l| l.split(" = ").nth(1)?.split('/').nth(2)?.parse().ok());
    Ok(longest.map(|ms: f64| Duration::from_secs_f64(ms / 1000.0)))
}

fn seen(fault: &Fault, counts: Counts, longest: Option<Duration>) -> bool {
    match *fault {
        Fault::Loss { .. } => counts.dropped.loss > 0,
        Fault::Delay { delay, .. } => longest.is_some_and(|rtt| rtt >= delay),
        Fault::Reorder { .. } => counts.reordered > 0,
        Fault::Duplicate { .. } => counts.duplicated > 0,
        Fault::Corrupt { .. } => counts.corrupted > 0,
        Fault::BlackHole { .. } => counts.dropped.mtu > 0,
        Fault::Narrow { bits_per_second } => {
            // The last of them waited for all before it to leave.
            let held = u64::from(queue(bits_per_second).min(FLOOD * 1000));
            let last = Duration::from_millis(held * 8 * 1000 / bits_per_second);
            longest.is_some_and(|rtt| rtt >= last / 2)
        }
        _ => true,
    }
}

pub(super) fn flap(world: &World, node: &str, period: Duration) -> Result<Undo> {
    let others = owned(&others(world, &[node])?);
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, wire) = (stop.clone(), world.wire().clone());
    let (flapping, those) = (node.to_owned(), others.clone());
    let flaps: JoinHandle<Result<()>> = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            wire.cut(&[&flapping], &borrowed(&those))?;
            pause(period / 2, &stopped);
            wire.heal(&[&flapping], &borrowed(&those))?;
            pause(period / 2, &stopped);
        }
        Ok(())
    });
    let from = &world[node];
    let to = &world[others[0].as_str()];
    let mut was = (false, false);
    let seen = until("the link goes and comes", SEEN_WITHIN, || {
        match pings(from, to) {
            Ok(()) => was.0 = true,
            Err(_) => was.1 = true,
        }
        Ok((was == (true, true)).then_some(()))
    });
    let end = undo(move |_| {
        stop.store(true, Ordering::Relaxed);
        flaps.join().map_err(|_| anyhow!("the flapping panicked"))?
    });
    match seen {
        Ok(()) => Ok(end),
        Err(error) => end(world).and(Err(error)),
    }
}

/// Where the mesh listens.
const MESH: &str = "8422";

pub(super) fn rebind(world: &World, node: &str) -> Result<Undo> {
    let name = node.to_owned();
    let node = &world[node];
    let rules = format!(
        "table ip rebind {{ chain out {{ type nat hook postrouting priority srcnat; \
         oifname \"eth0\" udp sport {MESH} snat to {}:20000-29999 random; }}; }}",
        node.address
    );
    node.run("nft", &[&rules])?.ok()?;
    forget_flows(node)?;
    until("the mesh speaks from another port", SEEN_WITHIN, || {
        let flows = ["-L", "-p", "udp", "--orig-port-src", MESH];
        let flows = node.run("conntrack", &flows)?.out;
        // The peer's way back is told second: to the port that it sees.
        if flows.contains(" dport=2") {
            return Ok(Some(()));
        }
        // A peer's packet that came first made the flow its own, which no rule of ours changes.
        forget_flows(node)?;
        Ok(None)
    })?;
    Ok(undo(move |world| {
        let node = &world[&name];
        node.run("nft", &["delete", "table", "ip", "rebind"])?
            .ok()?;
        forget_flows(node)
    }))
}

/// Or those that were there would go on as they began.
fn forget_flows(node: &Node) -> Result<()> {
    node.run("conntrack", &["-F"])?.ok().map(drop)
}

fn pause(duration: Duration, stop: &AtomicBool) {
    let end = Instant::now() + duration;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20)); // The flapping's own pace.
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn borrowed(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
