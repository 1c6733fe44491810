//! Services at zero, woken in numbers and at the worst moment.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::checkers::accounting::{self, Rules};
use chaos_tests::workload::ledger::LogReader;
use chaos_tests::workload::load::{Config, Load};
use chaos_tests::world::{Node, ORIGIN, Response, World, until};

use crate::THREE;

const PATIENCE: Duration = Duration::from_secs(90);

fn services(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("svc-{n}")).collect()
}

/// As many services at zero, all having been up once.
fn at_rest(world: &World, services: &[String]) -> Result<()> {
    for service in services {
        world
            .deploy(service, &["--scale", "0..2", "--cpu", "0.05"])?
            .ok()?;
    }
    services.iter().try_for_each(|service| world.rest(service))
}

/// C6: each of them is asked once, at the same moment, through all doors.
#[test]
fn many_services_are_woken_at_once() -> Result<()> {
    let world = World::of(&THREE)?;
    let services = services(16);
    at_rest(&world, &services)?;
    let nodes = world.nodes();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let ask = |(i, service): (usize, &String)| {
            let node = &nodes[i % nodes.len()];
            let service = service.clone();
            scope.spawn(move || node.get(&service, "/").and_then(Response::ok))
        };
        let asked: Vec<_> = services.iter().enumerate().map(ask).collect();
        let answers = asked.into_iter().filter_map(|a| a.join().ok());
        answers
            .filter_map(|a| a.err().map(|e| format!("{e:#}")))
            .collect()
    });
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}

/// C8: requests so far apart that each may meet its service on the way to zero.
#[test]
fn a_request_meets_a_service_on_its_way_to_zero() -> Result<()> {
    /// The window of the services, six seconds, and a little: what is idle for it is stopped.
    const APART: f64 = 1.0 / 6.3;
    const MEETINGS: u64 = 60;
    let world = World::of(&THREE)?;
    let services = services(8);
    at_rest(&world, &services)?;
    let doors: Vec<_> = world.nodes().iter().map(Node::door).collect();
    let loads = services.iter().zip(1..).map(|(service, seed)| {
        let host = format!("{service}.{ORIGIN}");
        let config = Config::new(&host, &doors).rate(APART).posts(0.5);
        Load::start(Config { seed, ..config })
    });
    let loads = loads.collect::<Result<Vec<_>>>()?;
    until("the requests are sent", PATIENCE, || {
        let sent: u64 = loads.iter().map(|load| load.count().sent).sum();
        Ok((sent >= MEETINGS).then_some(()))
    })?;
    let mut logs = LogReader::of(&world);
    for (load, service) in loads.into_iter().zip(&services) {
        let client = load.stop()?;
        let found = accounting::check(&client, logs.read_all(&client)?, &Rules::strict(service));
        ensure!(found.is_empty(), "{service}: {}", found.join("\n"));
    }
    Ok(())
}
