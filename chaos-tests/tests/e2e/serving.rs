//! Services at rest, from zero and warm, asked at every node.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{PATIENCE, Request, World, run, until};

use crate::{SMALL, THREE};

/// The world itself: nothing of it is left when it goes.
#[test]
fn an_empty_world_leaves_nothing() -> Result<()> {
    let world = World::empty()?;
    let (dir, image) = (world.dir(), world.image("box"));
    let tag = dir
        .file_name()
        .context("a tag")?
        .to_string_lossy()
        .into_owned();
    let (registry, _) = image.split_once('/').context("a registry")?;
    let said = Request::get(registry, "/v2/_catalog").send(registry.parse()?)?;
    said.ok()?.says("box")?;
    drop(world);
    ensure!(!dir.exists());
    let netns = run("ip", ["netns", "list"])?.ok()?.out;
    ensure!(!netns.contains(&tag), "{netns}");
    Ok(())
}

/// From zero, from every node, by name, explained and logged.
#[test]
fn a_service_is_served_from_zero_by_every_node() -> Result<()> {
    let world = World::of(&THREE)?;
    world.deploy("web", &SMALL)?.ok()?;
    world.rest("web")?;

    let cold = world["lis-1"].get("web", "/")?.ok()?.says("box")?;
    // Asked before it has heard of the instance, a node would start one of its own.
    for node in world.nodes() {
        until("the node hears of the instance", PATIENCE, || {
            let ready = node
                .instances("web")?
                .iter()
                .any(|i| i["state"] == "Ready" || i["state"] == "Frozen");
            Ok(ready.then_some(()))
        })?;
    }
    for node in world.nodes() {
        node.get("web", "/")?.ok()?.says("box")?;
        let own = node.address.to_string();
        let answer = node.dig("web", "A")?;
        ensure!(
            answer.first() == Some(&own),
            "{} says {answer:?}",
            node.name
        );
        ensure!(node.dig("nothing", "A")?.is_empty());
    }
    let instances = world.first().instances("web")?;
    ensure!(instances.len() == 1, "one serves every node: {instances:?}");
    it_is_explained(&world, cold.header("x-request-id")?, &instances[0])?;

    until("the log shows a request", PATIENCE, || {
        world["par-1"]
            .cli(&["logs", "web"])?
            .ok()?
            .says("GET / 200")
            .map(Some)
    })?;
    unknown_hosts_are_refused(&world)?;
    world.first().cli(&["-y", "delete", "web"])?.ok()?;
    until("the name is gone", PATIENCE, || {
        Ok((world["lis-1"].get("web", "/")?.status == 404).then_some(()))
    })
}

fn it_is_explained(world: &World, request: &str, instance: &serde_json::Value) -> Result<()> {
    let bill = world["lis-1"].read(&["explain", request])?;
    let phases = bill["bill"]["phases"]
        .as_array()
        .context("a bill has phases")?;
    ensure!(!phases.is_empty(), "{bill}");
    let id = instance["id"].as_str().context("an instance has an id")?;
    let why = world
        .first()
        .read(&["explain", &format!("instance/{id}")])?;
    let verdicts = why["receipt"]["verdicts"]
        .as_array()
        .context("a receipt has verdicts")?;
    ensure!(verdicts.len() == 3, "every node is judged: {why}");
    // Another node than the one that has the bill asks its peers.
    world["fra-1"].cli(&["explain", request])?.ok()?;
    Ok(())
}

fn unknown_hosts_are_refused(world: &World) -> Result<()> {
    let nobody = world.first().get("nobody", "/")?;
    ensure!(nobody.status == 404, "{nobody:?}");
    let foreign = Request::get("example.com", "/").send(world.first().door())?;
    ensure!(foreign.status == 404, "{foreign:?}");
    Ok(())
}

/// 200 requests at once for a service at zero.
#[test]
fn a_herd_starts_no_more_than_its_concurrency_asks_for() -> Result<()> {
    const HERD: usize = 200;
    let world = World::of(&THREE)?;
    world
        .deploy(
            "herd",
            &["--scale", "0..10", "--target", "100", "--cpu", "0.1"],
        )?
        .ok()?;
    world.rest("herd")?;
    let nodes = world.nodes();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let ask = |i: usize| {
            let node = &nodes[i % nodes.len()];
            scope.spawn(move || node.get("herd", "/slow")?.ok()?.says("slow"))
        };
        let requests: Vec<_> = (0..HERD).map(ask).collect();
        let results = requests.into_iter().filter_map(|r| r.join().ok());
        results
            .filter_map(|r| r.err().map(|e| format!("{e:#}")))
            .collect()
    });
    ensure!(
        failures.is_empty(),
        "{} failed, first: {}",
        failures.len(),
        failures[0]
    );
    // 200 at a target of 100, of which 70 % is aimed at, is three.
    let mut most = 0;
    for node in world.nodes() {
        let seen = until("the node hears of the instances", PATIENCE, || {
            let seen = node.instances("herd")?.len();
            Ok((seen > 0).then_some(seen))
        })?;
        most = most.max(seen);
    }
    ensure!(most <= 3, "{most} instances");
    Ok(())
}
