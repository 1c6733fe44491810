//! The checkers of a whole world find what is planted in it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::checkers::convergence::converged;
use chaos_tests::checkers::leaks::{Footprint, at_rest, nothing_more};
use chaos_tests::world::{PATIENCE, World, run};

/// What is planted is found at once; to look again changes nothing.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Does `plant`, sees that the checker names it, and undoes it.
fn found(
    world: &World,
    before: &Footprint,
    name: &str,
    plant: impl Fn() -> Result<()>,
    undo: impl Fn() -> Result<()>,
) -> Result<()> {
    plant()?;
    let said = nothing_more(world, before, AT_ONCE);
    undo()?;
    let said = said.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(
        said.contains(name),
        "{name} was planted, found was `{said}`"
    );
    nothing_more(world, before, PATIENCE)
}

#[test]
fn what_is_left_in_the_system_is_found() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    let before = at_rest(&world, PATIENCE)?;
    let folder = node.dir().join("instances/ghost");
    found(
        &world,
        &before,
        "instance folders",
        || Ok(fs::create_dir(&folder)?),
        || Ok(fs::remove_dir(&folder)?),
    )?;
    let at = world.dir().join("par-1/log");
    let at = at.to_string_lossy();
    found(
        &world,
        &before,
        "mounts",
        || run("mount", ["-t", "tmpfs", "tmpfs", &*at])?.ok().map(drop),
        || run("umount", [&*at])?.ok().map(drop),
    )?;
    let cgroup = Path::new("/sys/fs/cgroup/pids").join(node.cgroup().trim_start_matches('/'));
    let cgroup = cgroup.join("ghost");
    found(
        &world,
        &before,
        "cgroups",
        || Ok(fs::create_dir_all(&cgroup)?),
        || Ok(fs::remove_dir(&cgroup)?),
    )?;
    let link = |verb| node.run("ip", &["link", verb, "ghost", "type", "bridge"]);
    found(
        &world,
        &before,
        "links",
        || link("add")?.ok().map(drop),
        || link("delete")?.ok().map(drop),
    )?;
    let table = |verb| node.run("nft", &[verb, "table", "ip", "ghost"]);
    found(
        &world,
        &before,
        "firewall",
        || table("add")?.ok().map(drop),
        || table("delete")?.ok().map(drop),
    )
}

#[test]
fn what_no_node_speaks_of_is_found() -> Result<()> {
    let world = World::of(&["par-1"])?;
    converged(&world, PATIENCE)?;
    let folder = world.first().dir().join("instances/ghost");
    fs::create_dir(&folder)?;
    let said = converged(&world, AT_ONCE);
    fs::remove_dir(&folder)?;
    let said = said.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(said.contains("ghost"), "{said}");
    converged(&world, PATIENCE).map(drop)
}
