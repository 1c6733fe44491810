//! Disks that fail under a node: what was acknowledged stays, what cannot be kept is refused.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use chaos_tests::checkers::images;
use chaos_tests::disk::rot::{self, Flipped};
use chaos_tests::disk::{Disk, Effect, Faulty, Op, Rule, Small};
use chaos_tests::faults::Fault;
use chaos_tests::world::{Launch, Media, Node, PATIENCE, World, noise, until};

use crate::{SMALL, THREE};

/// More changes than any of these disks takes before it fails.
const MANY: usize = 50;
/// A voter is back by then once its disk works.
const BACK: Duration = Duration::from_secs(10);
/// How long a node's log is watched, and how many lines are too many in that time.
const WATCH: Duration = Duration::from_secs(10);
const LINES: usize = 20;

fn faulty<T>(world: &World, act: impl FnOnce(&Faulty) -> Result<T>) -> Result<T> {
    match &*world.disk("par-1")? {
        Disk::Faulty(disk) => act(disk),
        other => bail!("{other:?}"),
    }
}

fn small<T>(world: &World, act: impl FnOnce(&Small) -> Result<T>) -> Result<T> {
    match &*world.disk("par-1")? {
        Disk::Small(disk) => act(disk),
        other => bail!("{other:?}"),
    }
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
    bail!("{MANY} services were acknowledged")
}

/// Hands in services until one is acknowledged, as it must be soon once the disk works; its name.
fn until_taken(world: &World) -> Result<String> {
    let mut number = 0;
    let began = Instant::now();
    let taken = until("the voter to take changes again", BACK, || {
        number += 1;
        let name = format!("taken-{number}");
        Ok(acknowledged(world, &name)?.then_some(name))
    })?;
    eprintln!(
        "a change was taken {:?} after the disk worked again",
        began.elapsed()
    );
    Ok(taken)
}

/// Lines in a node's log.
fn lines(world: &World, node: &Node) -> Result<usize> {
    let log = world.dir().join(&node.name).join("log/selvedged.log");
    Ok(std::fs::read_to_string(log)?.lines().count())
}

fn all_known(node: &Node, names: &[String]) -> Result<()> {
    for name in names {
        let said = node.cli(&["get", "services", name])?;
        said.ok().context("an acknowledged service is lost")?;
    }
    Ok(())
}

fn restart(world: &World, node: &Node) -> Result<()> {
    node.kill()?;
    node.start()?;
    world.settle()
}

/// The machine loses its power right after each acknowledgement.
#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() -> Result<()> {
    let world = World::on(&["par-1"], Media::Powered)?;
    let node = world.first();
    let mut kept = Vec::new();
    for number in 1..=3 {
        let name = format!("kept-{number}");
        ensure!(acknowledged(&world, &name)?);
        kept.push(name);
        world.power_off(node)?;
        world.boot(node)?;
        world.settle()?;
        all_known(node, &kept)?;
    }
    for name in &kept {
        until(&format!("{name} serves"), PATIENCE, || {
            node.get(name, "/")?.ok()?.says("box").map(Some)
        })?;
    }
    Ok(())
}

/// A voter whose disk once failed to sync acknowledges nothing that it could not keep: it begins
/// anew on what the disk holds. It goes on serving, without a new start.
#[test]
fn a_failed_sync_is_not_acknowledged_and_the_vote_returns() -> Result<()> {
    let world = World::on(&["par-1"], Media::Faulty)?;
    let node = world.first();
    world.deploy("warm", &["--scale", "1..1"])?.ok()?;
    let rule = Rule::new(Op::Fsync, Effect::Eio).after(2).times(1);
    faulty(&world, |disk| disk.inject(&[rule]))?;
    let mut kept = until_refused(&world)?;
    faulty(&world, |disk| {
        disk.check()?;
        disk.heal()
    })?;
    kept.push(until_taken(&world)?);
    all_known(node, &kept)?;
    node.get("warm", "/")?.ok()?.says("box")?;

    restart(&world, node)?;
    all_known(node, &kept)?;
    ensure!(acknowledged(&world, "later")?);
    node.get("warm", "/")?.ok()?.says("box")?;
    // The reaper's order: processes first, the one behind the disk among them, then mounts.
    let home = world.dir();
    drop(world);
    ensure!(!home.exists(), "{} is left", home.display());
    Ok(())
}

/// A disk that goes on failing is said at every try to come back, and no more than that: an outage
/// is no reason to fill the log too. Asked for changes meanwhile, the node says why not.
#[test]
fn a_disk_that_goes_on_failing_does_not_fill_the_log() -> Result<()> {
    let world = World::on(&["par-1"], Media::Faulty)?;
    let node = world.first();
    world.deploy("warm", &["--scale", "1..1"])?.ok()?;
    let rule = Rule::new(Op::Fsync, Effect::Eio);
    faulty(&world, |disk| disk.inject(&[rule]))?;
    let mut kept = until_refused(&world)?;
    let (before, began) = (lines(&world, node)?, Instant::now());
    while began.elapsed() < WATCH {
        ensure!(!acknowledged(&world, "refused")?, "nothing can be kept");
    }
    let more = lines(&world, node)? - before;
    eprintln!(
        "{more} lines were logged in {:?} of outage",
        began.elapsed()
    );
    ensure!(more < LINES, "{more} lines: {}", node.log());
    let refused = world.deploy("refused", &SMALL)?.code(8)?;
    refused
        .says("registry store failed")?
        .says("Input/output error")?;
    faulty(&world, Faulty::heal)?;
    kept.push(until_taken(&world)?);
    all_known(node, &kept)?;
    node.get("warm", "/")?.ok()?.says("box").map(drop)
}

/// The device below a voter's disk fails: it acknowledges nothing that it could not keep, the others
/// go on, and with another device, which holds what was synced, it is one of them again.
#[test]
fn a_failed_device_loses_nothing_and_holds_up_nobody() -> Result<()> {
    let mut world = World::empty()?;
    for (name, media) in [
        ("fra-1", Media::Plain),
        ("lis-1", Media::Plain),
        ("par-1", Media::Failing),
    ] {
        world.add_on(name, media)?;
    }
    world.settle()?;
    let deploy = ["--scale", "1..1", "--region", "par", "--cpu", "0.1"];
    world.deploy("warm", &deploy)?.ok()?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    par.get("warm", "/")?.ok()?.says("box")?;
    let node = par.name.clone();
    let failed = Fault::DeviceFails { node }.inject(&world)?;
    let mut kept = vec!["warm".to_owned()];
    for number in 1..=3 {
        let name = format!("kept-{number}");
        world
            .deploy_at(fra, &name, &[&SMALL[..], &["--no-wait"]].concat())?
            .ok()?;
        kept.push(name);
    }
    fra.get("warm", "/")?.ok()?.says("box")?;
    failed.heal(&world)?;
    world.settle()?;
    for node in world.nodes() {
        until("all is known", PATIENCE, || {
            all_known(node, &kept).map(Some)
        })?;
    }
    until("it serves again", PATIENCE, || {
        par.get("warm", "/")?.ok()?.says("box").map(Some)
    })
    .map(drop)
}

/// An image that does not fit is refused with the figures, whether its packed size says so or the disk
/// fills while it is unpacked. Nothing is left of it, what runs goes on, and with room it comes.
#[test]
fn an_image_that_does_not_fit_is_refused_and_leaves_nothing() -> Result<()> {
    const PACKED: u64 = 8 << 20;
    const BLANK: u64 = 64 << 20;
    let media = Media::Small {
        bytes: 400 << 20,
        inodes: 16384,
    };
    let world = World::on(&["par-1"], media)?;
    let node = world.first();
    world
        .deploy("warm", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    let root = world.dir().join("large");
    std::fs::create_dir(&root)?;
    noise(&root.join("noise"), PACKED, 1)?;
    std::fs::File::create(root.join("zeros"))?.set_len(BLANK)?;
    world.push("large", &[world.pack(&root, "large")?])?;
    let (image, store) = (world.image("large"), node.dir().join("images"));
    let before = images::content(&store)?;
    for leaving in [PACKED / 2, PACKED + BLANK / 2] {
        small(&world, |disk| disk.fill(leaving))?;
        let said = node.cli(&["image", "pull", &image])?;
        ensure!(said.code != 0, "with {leaving} bytes: {said}");
        let words = ["no room for", "large:1", "bytes are free"];
        words
            .iter()
            .try_fold(said, |said, words| said.says(words))?;
        images::whole(&store)?;
        images::nothing_partial(&store)?;
        images::equal(&images::content(&store)?, &before)?;
        node.get("warm", "/")?.ok()?.says("box")?;
    }
    small(&world, Small::free)?;
    let once = ["--scale", "1..1", "--cpu", "0.1"];
    node.deploy("large", &image, &once)?.ok()?;
    images::whole(&store)?;
    images::nothing_partial(&store)?;
    node.get("large", "/")?.ok()?.says("box").map(drop)
}

/// Turns over a byte of each place where the file has these bytes.
fn rot(path: &Path, bytes: &[u8]) -> Result<Vec<Flipped>> {
    let content = std::fs::read(path).with_context(|| path.display().to_string())?;
    let places = content.windows(bytes.len()).enumerate();
    let places = places.filter(|(_, here)| *here == bytes).map(|(at, _)| at);
    let flipped: Result<Vec<_>> = places
        .map(|at| rot::flip(path, u64::try_from(at)?))
        .collect();
    let flipped = flipped?;
    ensure!(!flipped.is_empty(), "{} has no such bytes", path.display());
    Ok(flipped)
}

/// Bits flip while a voter is away: it does not take part with what it cannot vouch for, says what
/// is wrong, and is missed by nobody. With its bytes as they were it is back.
#[test]
fn a_voter_with_flipped_bits_stays_out_and_says_so() -> Result<()> {
    let world = World::of(&THREE)?;
    world.deploy("kept", &SMALL)?.ok()?;
    let (par, lis) = (&world["par-1"], &world["lis-1"]);
    lis.stop()?;
    let flipped = rot(&lis.dir().join("registry/registry.redb"), b"kept")?;
    lis.launch(&Launch::default())?;
    until("it says what is wrong", PATIENCE, || {
        let log = lis.log();
        ensure!(log.contains("damaged") || log.contains("corrupt"), "{log}");
        Ok(Some(()))
    })?;
    par.get("kept", "/")?.ok()?.says("box")?;
    par.deploy("later", &world.image("box"), &SMALL)?.ok()?;
    if lis.daemon().is_some() {
        lis.kill()?;
    }
    flipped.into_iter().try_for_each(Flipped::heal)?;
    lis.start()?;
    world.settle()?;
    until("it has caught up", PATIENCE, || {
        all_known(lis, &["kept".to_owned(), "later".to_owned()]).map(Some)
    })?;
    lis.get("kept", "/")?.ok()?.says("box").map(drop)
}

/// What a node holds besides is fetched anew when it is damaged: a follower's copy of the registry,
/// and an image whose layer cannot be vouched for. (Of the bytes of its files see `images`.)
#[test]
fn what_others_have_too_is_fetched_anew_when_it_is_damaged() -> Result<()> {
    let mut world = World::of(&THREE)?;
    let follower = world.add("osl-1")?;
    world.settle()?;
    let there = ["--region", "osl", "--scale", "0..1", "--cpu", "0.1"];
    world.deploy("kept", &there)?.ok()?;
    until("the follower has heard", PATIENCE, || {
        follower.cli(&["get", "services", "kept"])?.ok().map(Some)
    })?;
    follower.get("kept", "/")?.ok()?;
    world.rest("kept")?;
    follower.stop()?;
    rot(&follower.dir().join("registry/followed.json"), b"kept")?;
    for layer in std::fs::read_dir(follower.dir().join("images/layers"))? {
        rot::flip(&layer?.path().join("complete"), 20)?;
    }
    follower.start()?;
    world.settle()?;
    until("it serves", PATIENCE, || {
        follower.get("kept", "/")?.ok()?.says("box").map(Some)
    })?;
    let aside = follower.dir().join("registry/followed.json.damaged");
    ensure!(aside.exists(), "nobody noticed");
    Ok(())
}

/// A full disk refuses changes, says why, and loses none; what runs goes on. With space again the
/// same daemon takes changes.
#[test]
fn a_full_disk_refuses_changes_and_goes_on_serving() -> Result<()> {
    let media = Media::Small {
        bytes: 128 << 20,
        inodes: 8192,
    };
    let world = World::on(&["par-1"], media)?;
    let node = world.first();
    world.deploy("warm", &["--scale", "1..1"])?.ok()?;
    small(&world, |disk| {
        disk.fill(0)?;
        disk.check(0)
    })?;
    let mut kept = until_refused(&world)?;
    until("the node says that its store failed", PATIENCE, || {
        let status = node.status()?;
        let registry = &status["registry"];
        let says = registry["failed"].as_str().is_some();
        ensure!(!says || (registry["quorum"] == false && registry["leader"].is_null()));
        Ok(says.then_some(()))
    })?;
    let refused = world.deploy("refused", &SMALL)?;
    let words = [
        "registry store failed",
        "No space left",
        "make room",
        "again by itself",
    ];
    words
        .iter()
        .try_fold(refused.code(8)?, |said, words| said.says(words))?;
    node.cli(&["status"])?.ok()?.says("its store failed")?;
    node.get("warm", "/")?.ok()?.says("box")?;

    small(&world, Small::free)?;
    kept.push(until_taken(&world)?);
    all_known(node, &kept)?;
    node.get("warm", "/")?.ok()?.says("box")?;
    world.deploy("later", &SMALL)?.ok()?;
    restart(&world, node)?;
    all_known(node, &kept)
}
