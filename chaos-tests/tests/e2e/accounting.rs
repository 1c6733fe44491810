//! Every request is accounted for: what clients were told beside what instances served.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::accounting::{self, Rules};
use chaos_tests::server::served::{LOAD_ID, LoadId, Method};
use chaos_tests::workload::ledger::{ClientLedger, Kind, LogReader};
use chaos_tests::workload::load::{Config, Load};
use chaos_tests::world::{Node, ORIGIN, PATIENCE, World, until};
use serde_json::Value;

use crate::THREE;

/// Requests a second, and how many there are at each scale.
const RATE: f64 = 200.0;
const SOME: u64 = 1500;

/// A service asked through every door while it grows to three: each request is ok, and was served
/// once. A request that is then sent again is found.
#[test]
fn every_request_is_accounted_for_while_a_service_grows() -> Result<()> {
    let world = World::of(&THREE)?;
    let scale = ["--scale", "1..3", "--cpu", "0.1", "--target", "20"];
    world.deploy("web", &scale)?.ok()?;
    let load = load(&world)?;
    sent(&load, SOME)?;
    world.first().cli(&["scale", "web", "3..3"])?.ok()?;
    sent(&load, 2 * SOME)?;
    let mut logs = LogReader::of(&world);
    let client = all_well(load, &mut logs)?;

    let again = posted(&client).context("no POST was ok")?;
    let header = format!("{LOAD_ID}: {again}");
    let url = format!("http://{}/do", world.first().address);
    let curl = ["-sS", "-f", "-m", "20", "-X", "POST", "-H", &header];
    let host = format!("host: web.{ORIGIN}");
    let curl = [&curl[..], &["-H", &host, &url]].concat();
    world.first().run("curl", &curl)?.ok()?;
    until("the second serving is in a log", PATIENCE, || {
        let times = logs.read()?.servings(again).count();
        Ok((times > 1).then_some(()))
    })?;
    let found = accounting::check(&client, logs.read()?, &Rules::broken("web"));
    let expected = format!("1 were served more than once: POST {again} 2 times");
    ensure!(found == [expected], "{found:?}");
    Ok(())
}

/// Two of three instances drain while all are asked through every door: nobody notices.
#[test]
fn no_request_is_lost_when_instances_drain() -> Result<()> {
    let world = World::of(&THREE)?;
    // In one zone, where one steward chooses who goes.
    let scale = ["--scale", "3..3", "--cpu", "0.1", "--region", "par"];
    world.deploy("web", &scale)?.ok()?;
    let load = load(&world)?;
    sent(&load, SOME)?;
    world.first().cli(&["scale", "web", "1..1"])?.ok()?;
    until("two instances have drained", PATIENCE, || {
        let left = world.first().instances("web")?;
        ensure!(left.len() == 1, "{left:?}");
        Ok(Some(()))
    })?;
    sent(&load, load.count().sent + SOME)?;
    all_well(load, &mut LogReader::of(&world)).map(drop)
}

/// A node's instances leave it under load: others take their place, and nobody notices.
#[test]
fn no_request_is_lost_when_a_node_drains() -> Result<()> {
    let world = World::of(&THREE)?;
    world
        .deploy("web", &["--scale", "3..6", "--cpu", "0.1"])?
        .ok()?;
    let load = load(&world)?;
    sent(&load, SOME)?;
    let (operator, drained) = (&world["par-1"], &world["fra-1"]);
    let drain = ["node", "drain", "fra-1", "--deadline", "60s"];
    operator.cli(&drain)?.ok()?.says("fra-1 is drained")?;
    let serving = operator.instances("web")?;
    let here = |i: &&Value| i["nodeName"] == "fra-1" && i["state"] != "Stopped";
    ensure!(!serving.iter().any(|i| here(&i)), "{serving:?}");
    sent(&load, load.count().sent + SOME)?;
    all_well(load, &mut LogReader::of(&world))?;
    drained.get("web", "/")?.ok()?.says("box")?;
    operator.cli(&["node", "uncordon", "fra-1"])?.ok().map(drop)
}

/// GETs and POSTs that overlap, through the doors of all nodes.
fn load(world: &World) -> Result<Load> {
    let doors: Vec<_> = world.nodes().iter().map(Node::door).collect();
    let config = Config::new(&format!("web.{ORIGIN}"), &doors).rate(RATE);
    Load::start(config.path("/do?delay=20ms").poisson(7))
}

/// Ends a load of which every request was to be ok, served once, by one of three instances.
fn all_well(load: Load, logs: &mut LogReader) -> Result<ClientLedger> {
    let client = load.stop()?;
    println!("{}", client.summary());
    let backend = logs.read_all(&client)?;
    let found = accounting::check(&client, backend, &Rules::strict("web"));
    ensure!(found.is_empty(), "{}", found.join("\n"));
    let answerers = &client.answerers;
    ensure!(answerers.len() >= 3, "only {answerers:?} answered");
    Ok(client)
}

/// Waits until the load has sent so many.
fn sent(load: &Load, count: u64) -> Result<()> {
    until(&format!("{count} requests"), PATIENCE, || {
        Ok((load.count().sent >= count).then_some(()))
    })
}

/// A POST that ended ok.
fn posted(client: &ClientLedger) -> Option<LoadId> {
    let mut ok = client
        .entries()
        .filter(|(_, entry)| entry.method() == Method::Post && matches!(entry.kind(), Kind::Ok(_)));
    ok.next().map(|(id, _)| id)
}
