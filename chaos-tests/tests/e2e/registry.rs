//! The registry keeps its word: clients at every node, the leader dying among them, and checkers
//! that read what they were told.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::linear::{self, Verdict};
use chaos_tests::checkers::oracle::Restart;
use chaos_tests::checkers::{deploys, oracle, watch};
use chaos_tests::workload::api::Door;
use chaos_tests::workload::deployer;
use chaos_tests::workload::history;
use chaos_tests::workload::registry::{self, Plan, Run};
use chaos_tests::world::World;

use crate::THREE;

const SEARCH: Duration = Duration::from_mins(1);

/// The leader dies and comes back under writes, reads, compare-and-sets, deletes and watches at
/// all three nodes; every answer fits one registry.
#[test]
fn the_registry_is_linearizable_while_its_leader_dies() -> Result<()> {
    let world = World::of(&THREE)?;
    let doors = stock(&world)?;
    let load = registry::start(plan(&world, "clients", 6, 4, 100), doors.clone());
    let deployers = deployer::start(plan(&world, "deployers", 2, 2, 500), doors);
    std::thread::sleep(Duration::from_secs(4)); // Load before the kill.
    let leader = world.leader()?;
    leader.kill()?;
    let restart = Restart {
        node: leader.name.clone(),
        at: history::now(),
    };
    std::thread::sleep(Duration::from_secs(5)); // Load without it: an election, and after.
    leader.start()?;
    let run = load.finish()?;
    judge(&run, &[restart]).context("the clients")?;
    let deployed = deployers.finish()?;
    let lost = deploys::check(&deployed.history, &deployed.last);
    ensure!(lost.is_empty(), "the deployers: {lost:#?}");
    let acked = deployed
        .history
        .operations
        .iter()
        .filter(|o| o.wrote_at().is_some());
    ensure!(acked.count() > 15, "{:?}", deployed.history.counts());
    Ok(())
}

/// Brings the image to every node and makes the service that the others are like.
fn stock(world: &World) -> Result<Vec<Door>> {
    let image = world.image("box");
    for node in world.nodes() {
        node.cli(&["image", "pull", &image])?.ok()?;
    }
    let small = ["--scale", "0..1", "--cpu", "0.01", "--memory", "16MiB"];
    let still = ["--pull", "never", "--no-wait"];
    world.deploy("like", &[&small[..], &still].concat())?.ok()?;
    Ok(world.nodes().iter().map(Door::of).collect())
}

fn plan(world: &World, name: &str, clients: usize, keys: usize, pace_millis: u64) -> Plan {
    Plan {
        seed: 1,
        clients,
        keys,
        watchers: 2,
        pace: Duration::from_millis(pace_millis),
        lasting: Duration::from_secs(16),
        like: "like".to_owned(),
        dir: world.dir().join(name),
    }
}

fn judge(run: &Run, restarts: &[Restart]) -> Result<()> {
    let counts = run.history.counts();
    eprintln!("{counts:?}");
    ensure!(
        counts.ok > 200 && counts.fail + counts.info > 0,
        "{counts:?}"
    );
    let found = oracle::check(&run.history, &run.last, restarts);
    ensure!(found.is_empty(), "{found:#?}");
    let verdict = linear::check(&run.history, SEARCH);
    ensure!(verdict == Verdict::Linearizable, "{verdict:#?}");
    for notes in &run.watches {
        let found = watch::check(notes, &run.history, &run.last);
        ensure!(found.is_empty(), "{found:#?}");
    }
    let lost = deploys::check(&run.history, &run.last);
    ensure!(lost.is_empty(), "{lost:#?}");
    Ok(())
}
