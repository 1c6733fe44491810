//! Containers that call services by their names: from zero, on other nodes, and only where they may.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Outcome, PATIENCE, World, until};

fn deploy(world: &World, manifest: &str) -> Result<Outcome> {
    let image = world.image("box");
    let text = format!(
        "image = \"{image}\"\nport = 8080\nwindow = \"6s\"\nresources = {{ cpu = 0.1 }}\n{manifest}"
    );
    let file = world.dir().join("inward.toml");
    std::fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    let node = world.first();
    node.cli(&["deploy", "-f", &file, "--wait-timeout", "60s"])
}

#[test]
fn a_container_calls_another_by_name_where_it_may() -> Result<()> {
    let world = World::of(&["par-1", "lis-1"])?;
    for name in ["caller", "stranger"] {
        let manifest =
            format!("name = \"{name}\"\nscale = \"1..1\"\nplace = {{ regions = [\"par\"] }}\n");
        deploy(&world, &manifest)?.ok()?;
    }
    let callee = |name: &str, callers: &str| {
        format!(
            "name = \"{name}\"\nscale = \"0..1\"\nplace = {{ regions = [\"lis\"] }}\n\
             network = {{ callers = [{callers}] }}\n[[listen]]\nport = 9000\nprivate = true\n"
        )
    };
    deploy(&world, &callee("callee", "\"default/caller\""))?.ok()?;
    let shop = format!("namespace = \"shop\"\n{}", callee("far", "\"default/*\""));
    deploy(&world, &shop)?.ok()?;
    world.rest("callee")?;
    let node = &world["par-1"];
    let says = |service: &str, url: &str| {
        let script = format!("wget -T 20 -O - http://{url}/ 2>&1 || echo FAILED");
        node.inside_container(service, &script)
    };

    let cold = says("caller", "callee")?;
    ensure!(cold.contains("box"), "by its name, from zero: {cold}");
    for url in [
        "callee.default.internal",
        "far.shop.internal",
        "far.shop",
        "callee:9000",
    ] {
        let said = says("caller", url)?;
        ensure!(said.contains("box"), "{url}: {said}");
    }
    let refused = says("stranger", "callee")?;
    ensure!(
        refused.contains("reset") && refused.contains("FAILED"),
        "{refused}"
    );
    let shut = says("caller", "callee:9001")?;
    ensure!(shut.contains("reset"), "a port it does not have: {shut}");
    let nobody = says("caller", "nobody")?;
    ensure!(
        nobody.contains("FAILED") && !nobody.contains("box"),
        "{nobody}"
    );
    // An address of nobody's is closed, as private networks are.
    let wild = says("caller", "198.18.255.254")?;
    ensure!(wild.contains("reset") || wild.contains("FAILED"), "{wild}");
    let counted = node
        .run("curl", &["-s", "http://127.0.0.1:8421/metrics"])?
        .ok()?;
    let line = counted
        .out
        .lines()
        .find(|l| l.contains("reason=\"caller-refused\""));
    let line = line.context("a count of callers that were refused")?;
    ensure!(!line.ends_with(" 0"), "{line}");

    // What the service says holds at once.
    deploy(
        &world,
        &callee("callee", "\"default/caller\", \"default/stranger\""),
    )?
    .ok()?;
    until("the stranger is let in", PATIENCE, || {
        Ok(says("stranger", "callee")?.contains("box").then_some(()))
    })?;
    Ok(())
}

/// A daemon that was replaced leads containers inward again, and knows who they are.
#[test]
fn calls_go_on_after_the_daemon_was_replaced() -> Result<()> {
    let world = World::of(&["par-1"])?;
    deploy(&world, "name = \"caller\"\nscale = \"1..1\"\n")?.ok()?;
    let callee =
        "name = \"callee\"\nscale = \"1..1\"\nnetwork = { callers = [\"default/caller\"] }\n";
    deploy(&world, callee)?.ok()?;
    let node = world.first();
    node.kill()?;
    node.start()?;
    until("the call is answered", PATIENCE, || {
        let said = node.inside_container("caller", "wget -T 5 -O - http://callee/ 2>&1")?;
        ensure!(said.contains("box"), "{said}");
        Ok(Some(()))
    })
}
