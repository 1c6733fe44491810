//! Where a node is full, what matters less makes room for what matters more, and comes back after it.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, Outcome, PATIENCE, World, until};

/// Deploys the small server with so many thousandths of a processor for each instance.
fn deploy(world: &World, name: &str, scale: &str, millis: u64, priority: i32) -> Result<Outcome> {
    let image = world.image("box");
    let cpu = format!("{}.{:03}", millis / 1000, millis % 1000);
    let text = format!(
        "name = \"{name}\"\nimage = \"{image}\"\nport = 8080\nscale = \"{scale}\"\n\
         resources = {{ cpu = {cpu} }}\n[place]\npriority = {priority}\n"
    );
    let file = world.dir().join("ranked.toml");
    std::fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    let node = world.first();
    node.cli(&["deploy", "-f", &file, "--wait-timeout", "60s"])
}

/// Instances that serve.
fn ready(node: &Node, service: &str) -> Result<usize> {
    let instances = node.instances(service)?;
    Ok(instances
        .iter()
        .filter(|i| i["state"] == "Ready" || i["state"] == "Frozen")
        .count())
}

#[test]
fn a_full_node_makes_room_for_what_has_priority() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let par = &world["par-1"];
    let nodes = par.read(&["get", "nodes"])?;
    let free = nodes[0]["free"]["cpuMillis"]
        .as_u64()
        .with_context(|| format!("{nodes}"))?;
    // Two fill the node so that no third one fits.
    let each = free * 45 / 100;
    deploy(&world, "batch", "2..2", each, 0)?.ok()?;
    until("both serve", PATIENCE, || {
        Ok((ready(par, "batch")? == 2).then_some(()))
    })?;

    let refused = deploy(&world, "equal", "1..1", each, 0)?;
    ensure!(
        refused.code != 0,
        "no room for what matters as much: {refused:?}"
    );
    ensure!(refused.err.contains("no node can take"), "{refused:?}");
    ensure!(ready(par, "batch")? == 2, "and nobody went for it");

    deploy(&world, "urgent", "0..1", each, 10)?.ok()?;
    par.get("urgent", "/")?.ok()?;
    ensure!(ready(par, "batch")? == 1, "one made room");
    let urgent = par.instances("urgent")?;
    let id = urgent[0]["id"].as_str().context("no id")?;
    let said = par.cli(&["explain", &format!("instance/{id}")])?.ok()?;
    said.says("with priority 10 it displaces batch")?;

    par.cli(&["-y", "delete", "urgent"])?.ok()?;
    until("it is back", PATIENCE, || {
        Ok((ready(par, "batch")? == 2).then_some(()))
    })?;
    Ok(())
}
