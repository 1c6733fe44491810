//! Containers that call services by their names: from zero, on other nodes, and only where they may.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, Outcome, PATIENCE, Standard, World, until};

/// A service that is called.
fn deploy(world: &World, manifest: &str) -> Result<Outcome> {
    deploy_image(world, &world.image("box"), manifest)
}

/// A service with curl in it, on the first node.
fn deploy_caller(world: &World, name: &str) -> Result<()> {
    let manifest = format!(
        "name = \"{name}\"\nscale = \"1..1\"\nplace = {{ regions = [\"par\"] }}\n\
         command = [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\"]\n"
    );
    let image = world.standard(Standard::Kit)?;
    deploy_image(world, &image, &manifest)?.ok().map(drop)
}

/// What curl says in a container of the service.
fn calls(node: &Node, service: &str, url: &str) -> Result<Outcome> {
    let curl = ["curl", "-sS", "-m", "30", url];
    node.cli(&[&["exec", service, "--"], &curl[..]].concat())
}

/// curl's code.
const NO_SUCH_NAME: i32 = 6;

/// The connection was reset, and curl saw that before it spoke (7) or after (56).
fn is_reset(said: &Outcome) -> Result<()> {
    ensure!([7, 56].contains(&said.code), "{said}");
    Ok(())
}

fn deploy_image(world: &World, image: &str, manifest: &str) -> Result<Outcome> {
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
    deploy_caller(&world, "caller")?;
    deploy_caller(&world, "stranger")?;
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
    let says = |service: &str, url: &str| calls(node, service, url);

    // By its name, from zero, on another node.
    says("caller", "http://callee")?.ok()?.says("box")?;
    for url in [
        "http://callee.default.internal",
        "http://far.shop.internal",
        "http://far.shop",
        "http://callee:9000",
    ] {
        says("caller", url)?.ok()?.says("box")?;
    }
    is_reset(&says("stranger", "http://callee")?)?;
    is_reset(&says("stranger", "http://callee:9000")?)?;
    // A port it does not have, a name of nobody's.
    is_reset(&says("caller", "http://callee:9001")?)?;
    says("caller", "http://nobody")?.code(NO_SUCH_NAME)?;
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
        says("stranger", "http://callee")?
            .ok()?
            .says("box")
            .map(Some)
    })?;
    Ok(())
}

/// A daemon that was replaced leads containers inward again, and knows who they are.
#[test]
fn calls_go_on_after_the_daemon_was_replaced() -> Result<()> {
    let world = World::of(&["par-1"])?;
    deploy_caller(&world, "caller")?;
    let callee =
        "name = \"callee\"\nscale = \"1..1\"\nnetwork = { callers = [\"default/caller\"] }\n";
    deploy(&world, callee)?.ok()?;
    let node = world.first();
    node.kill()?;
    node.start()?;
    until("the call is answered", PATIENCE, || {
        let said = calls(node, "caller", "http://callee")?;
        said.ok()?.says("box").map(Some)
    })?;
    Ok(())
}
