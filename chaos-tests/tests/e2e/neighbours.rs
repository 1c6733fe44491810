//! A container that takes more than its share: it is told so, and its neighbours do not notice.

use anyhow::{Result, ensure};
use chaos_tests::world::{ORIGIN, PATIENCE, Request, Response, World, until};

/// M1, M6: one eats memory until the kernel ends it, and processor as long as it lives; the other one
/// on the same node answers all the while.
#[test]
fn a_greedy_container_harms_only_itself() -> Result<()> {
    const ASKED: usize = 100;
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("quiet", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    let small = ["--scale", "1..1", "--cpu", "0.2", "--memory", "48Mi"];
    world.deploy("greedy", &small)?.ok()?;
    let host = format!("greedy.{ORIGIN}");
    let greed = Request::get(&host, "/do?memory=256Mi&cpu=5s");
    let (eaten, failures) = std::thread::scope(|scope| {
        let eats = scope.spawn(|| greed.send(node.door()));
        let asked = (0..ASKED).map(|_| node.get("quiet", "/").and_then(Response::ok));
        let failures: Vec<_> = asked.filter_map(Result::err).collect();
        (eats.join(), failures)
    });
    ensure!(
        failures.is_empty(),
        "{} failed: {:?}",
        failures.len(),
        failures.first()
    );
    let Ok(Ok(eaten)) = eaten else {
        anyhow::bail!("no answer to the greedy request: {eaten:?}");
    };
    ensure!(matches!(eaten.status, 500..=504), "{eaten:?}");
    until("its end is told as what it was", PATIENCE, || {
        let all = node.read(&["get", "instances"])?.to_string();
        ensure!(all.contains("OOMKilled"), "{all}");
        Ok(Some(()))
    })?;
    until("it serves again", PATIENCE, || {
        node.get("greedy", "/")?.ok().map(Some)
    })?;
    Ok(())
}

/// M3: a container that starts processes without end meets its own limit; the node starts others.
#[test]
fn a_fork_bomb_meets_its_own_limit() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("bomb", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    let script = "i=0; while [ $i -lt 2000 ]; do sleep 20 & i=$((i+1)); done; echo all of them";
    let said = node.inside_container("bomb", script)?;
    ensure!(!said.contains("all of them"), "2000 processes: {said}");
    ensure!(said.contains("fork"), "{said}");
    ensure!(
        node.containers().len() < 2000,
        "{}",
        node.containers().len()
    );
    world
        .deploy("other", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    node.get("other", "/")?.ok()?;
    Ok(())
}
