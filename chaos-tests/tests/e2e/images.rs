//! Images: of real programs, and from a file, where no registry is asked.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use chaos_tests::world::{Node, PATIENCE, Standard, World, until};
use serde_json::Value;

use crate::{SMALL, THREE};

/// One instance for each node, and no room for two.
const ONE_EACH: [&str; 4] = ["--scale", "3..3", "--cpu", "1.2"];
/// What a daemon logs of a layer that no registry gave.
const FROM_PEERS: &str = "a layer came from peers";

/// Waits until every node has an instance of its own that answers.
pub(crate) fn on_every_node(world: &World, service: &str) -> Result<()> {
    until("every node has an instance", PATIENCE, || {
        let all = world.first().instances(service)?;
        let serves = |i: &&Value| i["state"] == "Ready" || i["state"] == "Frozen";
        let ready = all.iter().filter(serves);
        let on: BTreeSet<_> = ready.filter_map(|i| i["nodeName"].as_str()).collect();
        ensure!(
            on.len() == world.nodes().len(),
            "on {on:?}, of {all:?}\n{}",
            world.first().cli(&["explain", service])?.out
        );
        Ok(Some(()))
    })?;
    for node in world.nodes() {
        node.get(service, "/")?.ok()?.says("box")?;
    }
    Ok(())
}

/// One node was given it; the others, in other regions, get it from there.
#[test]
fn an_image_of_one_node_runs_on_all_without_a_registry() -> Result<()> {
    let world = World::of(&THREE)?;
    let archive = world.archive("oci-archive", "")?;
    world.stop_registry()?;
    let (archive, name) = (archive.to_string_lossy(), "imports.test/oci:1");
    let first = world.first();
    let import = ["image", "import", &archive, "--as", name];
    first.cli(&import)?.ok()?;
    let deploy = [&ONE_EACH[..], &["--pull", "never"]].concat();
    first.deploy("oci", name, &deploy)?.ok()?;
    on_every_node(&world, "oci")?;
    for node in &world.nodes()[1..] {
        ensure!(node.log().contains(FROM_PEERS), "{}", node.name);
    }
    Ok(())
}

/// Pushed to one node as a registry is pushed to, with the operator's token; again it moves nothing.
#[test]
fn a_pushed_image_runs_on_all_without_a_registry() -> Result<()> {
    const NAME: &str = "127.0.0.1:5000/app:1";
    let world = World::of(&THREE)?;
    let archive = world.archive("oci-archive", "")?;
    world.stop_registry()?;
    let first = world.first();
    first.configure("[images]\nlisten = \"127.0.0.1:5000\"\n")?;
    world.settle()?;
    let (from, to) = (
        format!("oci-archive:{}", archive.display()),
        format!("docker://{NAME}"),
    );
    let push = |creds: &str| {
        let words = [
            "--debug",
            "copy",
            "--dest-tls-verify=false",
            "--dest-creds",
            creds,
        ];
        first.run("skopeo", &[&words[..], &[&from, &to]].concat())
    };
    push("me:wrong")?.code(1)?.says("unauthorized")?;
    let creds = format!("me:{}", first.token()?);
    push(&creds)?.ok()?;
    push(&creds)?.ok()?.says("(already present)")?;
    first.deploy("app", NAME, &ONE_EACH)?.ok()?;
    on_every_node(&world, "app")
}

/// Nodes of one region are behind one uplink: one of them asks the registry for all.
#[test]
fn a_site_asks_the_registry_once() -> Result<()> {
    let world = World::of(&["par-1", "par-2", "par-3"])?;
    world.deploy("web", &ONE_EACH)?.ok()?;
    on_every_node(&world, "web")?;
    let helped = |node: &&Node| node.log().contains(FROM_PEERS);
    let helped = world.nodes().iter().filter(helped).count();
    ensure!(helped == 2, "{helped} nodes got it from a peer");
    Ok(())
}

/// Both kinds of archives, with the registry gone: imported on one node, deployed, and served from
/// zero there and through another node.
#[test]
fn an_imported_image_is_served_without_a_registry() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let nameless = world.archive("oci-archive", "")?;
    let named = world.archive("docker-archive", "imports.test/docker:1")?;
    world.stop_registry()?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    ensure!(par.cli(&["image", "pull", &world.image("box")])?.code != 0);
    par.deploy(
        "early",
        "imports.test/oci:1",
        &[&SMALL[..], &["--pull", "never"]].concat(),
    )?
    .code(1)?
    .says("imports.test/oci:1")?;

    let (nameless, named) = (nameless.to_string_lossy(), named.to_string_lossy());
    let import = |more: &[&str]| par.cli(&[&["image", "import"], more].concat())?.ok();
    import(&[&nameless, "--as", "imports.test/oci:1"])?.says("imports.test/oci:1")?;
    import(&[&named])?.says("imports.test/docker:1")?;

    for service in ["oci", "docker"] {
        let image = format!("imports.test/{service}:1");
        par.deploy(
            service,
            &image,
            &[&SMALL[..], &["--pull", "never"]].concat(),
        )?
        .ok()?;
        world.rest(service)?;
        par.get(service, "/")?.ok()?.says("box")?;
        world.rest(service)?;
        until("the other node hears of the service", PATIENCE, || {
            let services = fra.read(&["get", "services"])?;
            Ok(services.to_string().contains(service).then_some(()))
        })?;
        fra.get(service, "/")?.ok()?.says("box")?;
    }
    Ok(())
}

/// Programs of somebody else's, as Debian ships them: served from zero by both nodes, logged, and
/// ended when they are asked to.
#[test]
fn real_programs_serve_from_zero() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    for (service, program, says) in [
        ("nginx", Standard::Nginx, "Welcome to nginx!"),
        ("python", Standard::Python, "hello from python"),
    ] {
        let image = world.standard(program)?;
        world.first().deploy(service, &image, &SMALL)?.ok()?;
        world.rest(service)?;
        for node in world.nodes() {
            node.get(service, "/")?.ok()?.says(says)?;
        }
        until("its log shows a request", PATIENCE, || {
            let logs = world.first().cli(&["logs", service])?.ok()?;
            logs.says("GET / HTTP/1.1").map(Some)
        })?;
        world.rest(service)?;
        let ended = world.first().read(&["get", "instances"])?.to_string();
        ensure!(!ended.contains("\"Failed\""), "{service}: {ended}");
    }
    Ok(())
}
