//! Every request is accounted for: what clients were told beside what instances served.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::accounting::{self, Rules};
use chaos_tests::server::served::{LOAD_ID, LoadId, Method};
use chaos_tests::workload::ledger::{ClientLedger, Kind, LogReader};
use chaos_tests::workload::load::{Config, Load};
use chaos_tests::world::{Node, ORIGIN, PATIENCE, World, until};

use crate::THREE;

/// Requests a second, and how many there are before and after the scale changes.
const RATE: f64 = 200.0;
const HALF: u64 = 1500;

/// A service asked through every door while its scale goes from one to three: each request is ok,
/// and was served once. A request that is then sent again is found.
#[test]
fn every_request_is_accounted_for_while_the_scale_changes() -> Result<()> {
    let world = World::of(&THREE)?;
    let scale = ["--scale", "1..3", "--cpu", "0.1", "--target", "20"];
    world.deploy("web", &scale)?.ok()?;
    let doors: Vec<_> = world.nodes().iter().map(Node::door).collect();
    let host = format!("web.{ORIGIN}");
    let config = Config::new(&host, &doors).rate(RATE).path("/do?delay=20ms");
    let load = Load::start(config.poisson(7))?;
    sent(&load, HALF)?;
    world.first().cli(&["scale", "web", "3..3"])?.ok()?;
    sent(&load, 2 * HALF)?;
    let client = load.stop()?;
    println!("{}", client.summary());

    let mut logs = LogReader::of(&world);
    let backend = logs.read_all(&client)?;
    let rules = Rules::strict("web");
    let found = accounting::check(&client, backend, &rules);
    ensure!(found.is_empty(), "{}", found.join("\n"));
    ensure!(found.is_empty(), "{}", found.join("\n"));
    let answerers = &client.answerers;
    ensure!(answerers.len() >= 3, "only {answerers:?} answered");

    let again = posted(&client).context("no POST was ok")?;
    let header = format!("{LOAD_ID}: {again}");
    let url = format!("http://{}/do", world.first().address);
    let curl = ["-sS", "-f", "-m", "20", "-X", "POST", "-H", &header];
    let host = format!("host: {host}");
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

/// Waits until the load has sent so many.
fn sent(load: &Load, count: u64) -> Result<()> {
    let patience = PATIENCE + Duration::from_secs(HALF / 100);
    until(&format!("{count} requests"), patience, || {
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
