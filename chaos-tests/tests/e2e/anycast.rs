//! One address for the whole fleet: what becomes of its clients when a node's announcer fails. The
//! nodes serve on all the while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::faults::Fault;
use chaos_tests::world::{ANYCAST, ORIGIN, World};

use crate::THREE;

/// How long a fault lasts once it holds.
const WHILE: Duration = Duration::from_secs(2);

/// Asks until it is over, each time on a connection of its own; how often. A connection that the
/// router sends elsewhere in its middle is broken, and is tried once more as clients do.
fn asked(world: &World, over: &AtomicBool) -> Result<u32> {
    let (url, host) = (format!("http://{ANYCAST}/"), format!("host: web.{ORIGIN}"));
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        let words = ["--silent", "--fail", "--max-time", "10", "--retry", "1"];
        let words = [&words[..], &["--retry-all-errors", "-H", &host, &url]].concat();
        world.anycast()?.client("curl", &words)?.ok()?.says("box")?;
        times += 1;
    }
    Ok(times)
}

#[test]
fn n14_announcers_fail_and_every_request_arrives() -> Result<()> {
    let mut world = World::of(&THREE)?;
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    world.announce()?;
    let world = &world;
    let [par, fra, lis] = THREE.map(str::to_owned);
    for fault in [
        Fault::BirdKilled { node: par },
        Fault::BirdHangs { node: fra },
        Fault::SessionLost { node: lis },
    ] {
        let over = AtomicBool::new(false);
        let (struck, asked) = std::thread::scope(|scope| {
            let client = scope.spawn(|| asked(world, &over));
            let struck = fault.inject(world).and_then(|active| {
                std::thread::sleep(WHILE); // The fault's own length.
                active.heal(world)
            });
            over.store(true, Ordering::Relaxed);
            (struck, client.join())
        });
        struck?;
        let asked = asked.ok().context("the client panicked")??;
        eprintln!("{fault}: {asked} requests");
        ensure!(asked > 10, "only {asked} requests while {fault}");
    }
    Ok(())
}
