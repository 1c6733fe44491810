//! A machine that boots again with nobody to ask.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{PATIENCE, World, run, until};

use crate::{SMALL, THREE};

/// A follower loses its power, comes back with no quorum and no registry of images in reach: it
/// serves from its disk, and removes what its former life left.
#[test]
fn a_rebooted_follower_serves_from_its_disk_alone() -> Result<()> {
    let mut world = World::of(&THREE)?;
    let mad = world.add("mad-1")?;
    world.settle()?;
    ensure!(mad.status()?["registry"]["role"] == "follower");
    let here = ["--region", "mad"];
    world
        .deploy("cached", &[&SMALL[..], &here].concat())?
        .ok()?;
    world
        .deploy(
            "kept",
            &[&["--scale", "1..1", "--cpu", "0.1"], &here[..]].concat(),
        )?
        .ok()?;
    for service in ["cached", "kept"] {
        until("it serves", PATIENCE, || {
            mad.get(service, "/")?.ok()?.says("box").map(Some)
        })?;
    }
    // One of each is parked for the next start; then all is still.
    until("the parked are there", PATIENCE, || {
        let all = mad.read(&["get", "instances"])?;
        let all = all.as_array().context("instances are no list")?;
        let parked = all.iter().filter(|i| i["state"] == "Parked").count();
        Ok((parked == 2).then_some(()))
    })?;
    let old = mad.instance_folders()?;
    ensure!(mad.containers().len() >= 2 && old.len() >= 2, "{old:?}");
    for id in &old {
        let left = left_of(id)?;
        ensure!(
            left.iter().any(|l| l.starts_with("/sys/fs/cgroup")),
            "the means of this test work: {left:?}"
        );
    }

    until("what it follows is on its disk", PATIENCE, || {
        let followed = world.dir().join("mad-1/registry/followed.json");
        let text = std::fs::read_to_string(followed)?;
        Ok((text.contains("kept-00001") && !text.contains("\"pending\"")).then_some(()))
    })?;
    world.power_off(&mad)?;
    for voter in world.nodes().iter().filter(|n| n.name != mad.name) {
        voter.kill()?;
    }
    world.stop_registry()?;
    ensure!(mad.instance_folders()? == old, "the disk stays");
    world.boot(&mad)?;
    mad.get("cached", "/")?.ok()?.says("box")?;
    mad.get("kept", "/")?.ok()?.says("box")?;
    until("the former life is gone", PATIENCE, || {
        let now = mad.instance_folders()?;
        let stay: Vec<_> = now.iter().filter(|id| old.contains(id)).collect();
        ensure!(stay.is_empty(), "folders: {stay:?}");
        for id in &old {
            let left = left_of(id)?;
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(Some(()))
    })?;
    let refused = world.deploy_at(&mad, "more", &SMALL)?;
    ensure!(refused.code != 0, "{refused}");
    Ok(())
}

/// Mounts and cgroups that carry an instance's id.
fn left_of(id: &str) -> Result<Vec<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = mounts.lines().filter(|line| line.contains(id));
    let name = format!("*{id}*");
    let cgroups = Path::new("/sys/fs/cgroup").display().to_string();
    let find = [&cgroups, "-type", "d", "-name", &name];
    // Other tests' cgroups may go while they are looked through: the exit code says nothing.
    let found = run("find", find)?.out;
    let all = mounts.chain(found.lines());
    Ok(all.map(ToOwned::to_owned).collect())
}
