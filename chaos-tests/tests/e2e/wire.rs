//! The wire itself, under hosts that only ping: every fault takes hold, in its direction, and
//! nothing is left behind. And one cluster whose regions are far apart.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::wire::{Link, Preset};
use chaos_tests::world::{Node, OUTSIDE, PATIENCE, REGISTRY, World, run, until};

const A: &str = "par-1";
const B: &str = "fra-1";

/// Two hosts without a daemon.
fn hosts(network: Preset) -> Result<(World, Node, Node)> {
    let mut world = World::empty_with(network)?;
    let (a, b) = (world.bare(A)?, world.bare(B)?);
    Ok((world, a, b))
}

struct Pings {
    sent: u64,
    received: u64,
    /// Shortest round trip in milliseconds, when there was one.
    min: Option<f64>,
    shown: String,
}

impl Pings {
    fn all_answered(&self) -> Result<()> {
        ensure!(self.received == self.sent, "{}", self.shown);
        Ok(())
    }

    fn none_answered(&self) -> Result<()> {
        ensure!(self.received == 0, "{}", self.shown);
        Ok(())
    }

    fn min(&self) -> Result<f64> {
        self.min.with_context(|| self.shown.clone())
    }
}

fn ping(from: &Node, to: &str, count: u64, more: &[&str]) -> Result<Pings> {
    let count = count.to_string();
    let usual = ["-n", "-c", &count, "-i", "0.01", "-W", "1", to];
    let said = from.run("ping", &[more, &usual].concat())?;
    let before = |word: &str| {
        let end = said.out.find(word)?;
        said.out[..end].split_whitespace().last()?.parse().ok()
    };
    let sent = before(" packets transmitted").with_context(|| said.to_string())?;
    let received = before(" received").with_context(|| said.to_string())?;
    let min = said.out.split("mdev = ").nth(1);
    let min = min.and_then(|rest| rest.split('/').next()?.parse().ok());
    Ok(Pings {
        sent,
        received,
        min,
        shown: said.to_string(),
    })
}

fn ping_host(from: &Node, to: &Node, count: u64) -> Result<Pings> {
    ping(from, &to.address.to_string(), count, &[])
}

#[test]
fn a_delay_is_kept_each_way() -> Result<()> {
    let (world, a, b) = hosts(Preset::Regions)?;
    let far = ping_host(&a, &b, 20)?;
    far.all_answered()?;
    // 20 ms each way, of which jitter takes half of one.
    ensure!(far.min()? >= 39.0, "{}", far.shown);
    let image = world.image("box");
    let (registry, _) = image.split_once(':').context("a port")?;
    let near = ping(&a, registry, 20, &[])?;
    near.all_answered()?;
    ensure!(near.min()? * 4.0 < far.min()?, "{}", near.shown);

    world.wire().set(A, B, Link::slow(25.0))?;
    world.wire().set(B, A, Link::slow(25.0))?;
    let slow = ping_host(&a, &b, 20)?;
    slow.all_answered()?;
    ensure!(slow.min()? >= 50.0, "{}", slow.shown);

    world.wire().set_all(&[A, B], &[A, B], Link::default())?;
    let fast = ping_host(&a, &b, 20)?;
    ensure!(fast.min()? * 4.0 < slow.min()?, "{}", fast.shown);
    let changes = world.wire().log()?;
    ensure!(changes.is_sorted_by(|a, b| a.at <= b.at));
    ensure!(changes.len() == 4 + 3, "ports and settings: {changes:?}");
    Ok(())
}

#[test]
fn a_one_way_cut_lets_the_other_way_through() -> Result<()> {
    let (world, a, b) = hosts(Preset::Lan)?;
    let wire = world.wire();
    ping_host(&a, &b, 3)?.all_answered()?;
    wire.cut_one_way(&[A], &[B])?;
    let before = wire.stats()?;
    // b's questions arrive at a, whose answers do not leave.
    ping_host(&b, &a, 5)?.none_answered()?;
    let after = wire.stats()?;
    let (there, back) = (after.of(B, A)?, after.of(A, B)?);
    ensure!(
        there.delivered >= before.of(B, A)?.delivered + 5,
        "{there:?}"
    );
    ensure!(there.dropped.down == 0, "{there:?}");
    ensure!(back.delivered == before.of(A, B)?.delivered, "{back:?}");
    ensure!(back.dropped.down >= 5, "{back:?}");

    wire.cut(&[A], &[B])?;
    ping_host(&b, &a, 2)?.none_answered()?;
    ensure!(wire.stats()?.of(B, A)?.dropped.down >= 2);
    let registry = world.image("box");
    let (registry, _) = registry.split_once(':').context("a port")?;
    ping(&a, registry, 3, &[])?.all_answered()?;

    wire.heal(&[A], &[B])?;
    until("they hear each other again", PATIENCE, || {
        ping_host(&b, &a, 3)?.all_answered().map(Some)
    })
}

#[test]
fn loss_and_copies_are_what_was_asked_for() -> Result<()> {
    let (world, a, b) = hosts(Preset::Lan)?;
    let wire = world.wire();
    ping_host(&a, &b, 3)?.all_answered()?;
    let loss = Link {
        loss: 0.3,
        ..Link::default()
    };
    wire.set(A, B, loss)?;
    let before = wire.stats()?.of(A, B)?;
    let fast = ["-q", "-i", "0.002"];
    let address = b.address.to_string();
    let usual = ["-n", "-c", "1000", "-W", "1", &address];
    a.run("ping", &[&fast[..], &usual].concat())?.ok()?;
    let after = wire.stats()?.of(A, B)?;
    let (lost, frames) = (after.dropped.loss, after.frames - before.frames);
    // Four standard deviations are six in a hundred.
    ensure!(frames >= 1000, "{after:?}");
    ensure!(
        (24 * frames..36 * frames).contains(&(lost * 100)),
        "{lost} of {frames}"
    );

    let copies = Link {
        duplicate: 1.0,
        ..Link::default()
    };
    wire.set(A, B, copies)?;
    let twice = ping_host(&a, &b, 5)?;
    ensure!(twice.shown.contains("DUP!"), "{}", twice.shown);
    ensure!(wire.stats()?.of(A, B)?.duplicated >= 5);
    Ok(())
}

#[test]
fn a_small_mtu_is_a_black_hole_for_large_packets_alone() -> Result<()> {
    let (world, a, b) = hosts(Preset::Lan)?;
    let narrow = Link {
        mtu: Some(1000),
        ..Link::default()
    };
    world.wire().set(A, B, narrow)?;
    let address = b.address.to_string();
    ping(&a, &address, 3, &["-s", "900"])?.all_answered()?;
    ping(&a, &address, 3, &["-s", "1200", "-M", "do"])?.none_answered()?;
    let stats = world.wire().stats()?;
    ensure!(stats.of(A, B)?.dropped.mtu == 3, "{:?}", stats.of(A, B)?);
    ensure!(stats.of(B, A)?.dropped.mtu == 0);
    Ok(())
}

#[test]
fn corruption_delivers_no_wrong_data() -> Result<()> {
    let (world, a, b) = hosts(Preset::Lan)?;
    let wire = world.wire();
    ping_host(&a, &b, 3)?.all_answered()?;
    let half = Link {
        corrupt: 0.5,
        ..Link::default()
    };
    // One way at a time: a kernel drops a broken question, but shows a broken answer to `ping`,
    // whose socket reads packets as they come.
    for (from, to) in [(&a, &b), (&b, &a)] {
        wire.reset()?;
        wire.set(&from.name, &to.name, half)?;
        let before = wire.stats()?.of(&from.name, &to.name)?;
        let some = ping(from, &to.address.to_string(), 100, &["-s", "400"])?;
        ensure!((1..100).contains(&some.received), "{}", some.shown);
        ensure!(!some.shown.contains("wrong data"), "{}", some.shown);
        let seen = wire.stats()?.of(&from.name, &to.name)?;
        let hosts_drop = seen.dropped == before.dropped;
        ensure!(hosts_drop, "not the wire: {before:?}, {seen:?}");
        ensure!(seen.corrupted >= some.sent - some.received, "{seen:?}");
    }
    Ok(())
}

/// Nodes of three regions make a cluster, and each serves what only one of them runs.
#[test]
fn a_cluster_spans_distant_regions() -> Result<()> {
    let world = World::with(&crate::THREE, Preset::Regions)?;
    world.deploy("web", &crate::SMALL)?.ok()?;
    for node in world.nodes() {
        node.get("web", "/")?.ok()?.says("box")?;
    }
    let far = ping_host(&world["par-1"], &world["lis-1"], 5)?;
    ensure!(far.min()? >= 39.0, "{}", far.shown);
    Ok(())
}

/// Neither frames nor ends cross from one to the other; many threads may ask a wire at once.
#[test]
fn two_worlds_do_not_meet_and_leave_nothing() -> Result<()> {
    let (first, a, b) = hosts(Preset::Lan)?;
    let (second, c, d) = hosts(Preset::Lan)?;
    std::thread::scope(|scope| {
        let asks: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..20).try_for_each(|_| first.wire().stats().map(drop))))
            .collect();
        let asked = asks.into_iter().filter_map(|ask| ask.join().ok());
        asked.collect::<Result<Vec<_>>>()
    })?;
    let frames = |world: &World| Ok::<_, anyhow::Error>(world.wire().stats()?.of(A, B)?.frames);
    let before = (frames(&first)?, frames(&second)?);
    ping_host(&c, &d, 100)?.all_answered()?;
    let after = (frames(&first)?, frames(&second)?);
    ensure!(after.1 >= before.1 + 100, "{before:?}, {after:?}");
    // A kernel says a little of its own now and then.
    ensure!(after.0 < before.0 + 50, "{before:?}, {after:?}");
    ping_host(&a, &b, 3)?.all_answered()?;

    let (wire, dir) = (first.wire().pid(), first.dir());
    ensure!(!links_of(&dir)?.is_empty(), "the means of this test work");
    drop(first);
    ensure!(!runs(wire), "the wire runs on");
    ensure!(links_of(&dir)?.is_empty(), "{:?}", links_of(&dir)?);
    ping_host(&c, &d, 3)?.all_answered()?;
    let known = second.wire().get(OUTSIDE, REGISTRY)?;
    ensure!(known == Link::default(), "{known:?}");
    Ok(())
}

/// Links of this namespace with the tag of the world of this folder.
fn links_of(dir: &Path) -> Result<Vec<String>> {
    let name = dir.file_name().context("a folder")?.to_string_lossy();
    let mut numbers = name.rsplit('-');
    let number = numbers.next().context("a number")?;
    let tag = format!("sv{}n{number}-", numbers.next().context("a pid")?);
    let entries = std::fs::read_dir("/sys/class/net")?.flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with(&tag)).collect())
}

/// A process that has ended but that nobody waited for has no words.
fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

/// Names the file in which the process to be killed says what it has made.
const TO_BE_KILLED: &str = "SELVEDGE_TEST_TO_BE_KILLED";

/// The wire ends with the process that holds it, and the next world removes the rest.
#[test]
fn a_killed_test_leaves_no_wire() -> Result<()> {
    if let Some(file) = std::env::var_os(TO_BE_KILLED) {
        return be_killed(Path::new(&file));
    }
    let (wire, dir) = kill_a_test(|_| Ok(()))?;
    until("the wire has ended", PATIENCE, || {
        Ok((!runs(wire) && links_of(&dir)?.is_empty()).then_some(()))
    })?;
    ensure!(dir.exists(), "the means of this test work");
    next_world_removes(&dir)
}

/// A wire that cannot notice the end of its test is removed with its links.
#[test]
fn a_paused_wire_of_a_killed_test_is_removed() -> Result<()> {
    let pause = |wire: u32| run("kill", ["-STOP", &wire.to_string()])?.ok().map(drop);
    let (wire, dir) = kill_a_test(pause)?;
    let left = runs(wire) && !links_of(&dir)?.is_empty();
    next_world_removes(&dir)?;
    ensure!(left, "the means of this test work");
    ensure!(!runs(wire) && links_of(&dir)?.is_empty());
    Ok(())
}

/// Kills another process with a world; returns its wire's pid and its folder.
fn kill_a_test(before: impl Fn(u32) -> Result<()>) -> Result<(u32, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("made");
    let mut killed = Command::new(std::env::current_exe()?)
        .args(["--exact", "wire::a_killed_test_leaves_no_wire"])
        .env(TO_BE_KILLED, &file)
        .spawn()?;
    let made = until("the other process has a world", PATIENCE, || {
        let text = std::fs::read_to_string(&file)?;
        let (pid, left) = text.split_once('\n').context("two lines")?;
        Ok(Some((pid.parse::<u32>()?, Path::new(left).to_owned())))
    });
    let prepared = made.and_then(|made| before(made.0).map(|()| made));
    killed.kill()?;
    killed.wait()?;
    prepared
}

fn next_world_removes(left: &Path) -> Result<()> {
    let _next = World::empty()?;
    ensure!(!left.exists(), "{} is left", left.display());
    let tag = left.file_name().context("a folder")?.to_string_lossy();
    let netns = run("ip", ["netns", "list"])?.ok()?;
    ensure!(!netns.out.contains(&*tag), "{netns}");
    Ok(())
}

/// Makes a world, tells of it and waits for the kill; ends by itself when that does not come.
fn be_killed(file: &Path) -> Result<()> {
    const LONG: Duration = Duration::from_mins(2);
    let (world, ..) = hosts(Preset::Lan)?;
    let (wire, dir) = (world.wire().pid(), world.dir());
    ensure!(
        runs(wire) && !links_of(&dir)?.is_empty(),
        "the means of this test work"
    );
    let part = file.with_extension("part");
    std::fs::write(&part, format!("{wire}\n{}", dir.display()))?;
    std::fs::rename(part, file)?;
    std::thread::sleep(LONG);
    Ok(())
}
