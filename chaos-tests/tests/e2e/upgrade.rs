//! Daemons that are replaced under load, kept by systemd as the shipped unit says.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::accounting::{self, Rules};
use chaos_tests::workload::ledger::LogReader;
use chaos_tests::workload::load::{Config, Load};
use chaos_tests::world::{Node, ORIGIN, PATIENCE, Systemd, World, run, until};

const RATE: f64 = 200.0;
const UPGRADES: u32 = 5;
/// Requests between two upgrades.
const BETWEEN: u64 = 400;

/// Nobody else could serve: one node, one instance.
#[test]
fn no_request_is_lost_when_a_daemon_is_replaced() -> Result<()> {
    replaced_under_load(&["par-1"])
}

/// The instance is on the node whose daemon is replaced; half of the requests come by the other one.
#[test]
fn no_request_by_a_peer_is_lost_when_a_daemon_is_replaced() -> Result<()> {
    replaced_under_load(&["par-1", "fra-1"])
}

/// Has systemd keep the node's daemon, which serves when this returns.
fn supervised(node: &Node) -> Result<Systemd> {
    node.stop()?;
    let systemd = Systemd::supervise(node)?;
    until("it serves", PATIENCE, || {
        node.get("web", "/")?.ok().map(Some)
    })?;
    Ok(systemd)
}

/// The daemon of the first node, which has the only instance, is replaced again and again. Every request is
/// answered and was served once, those that are not repeated too.
fn replaced_under_load(nodes: &[&str]) -> Result<()> {
    let world = World::of(nodes)?;
    let scale = ["--scale", "1..1", "--cpu", "0.1", "--region", "par"];
    world.deploy("web", &scale)?.ok()?;
    let node = world.first();
    let systemd = supervised(node)?;
    let containers = node.containers();

    let doors: Vec<_> = world.nodes().iter().map(Node::door).collect();
    let config = Config::new(&format!("web.{ORIGIN}"), &doors).rate(RATE);
    let load = Load::start(config.path("/do?delay=20ms").poisson(7))?;
    for upgrade in 1..=UPGRADES {
        let (due, before) = (u64::from(upgrade) * BETWEEN, node.daemon());
        until("it is asked", PATIENCE, || {
            Ok((load.count().sent >= due).then_some(()))
        })?;
        systemd.restart()?;
        ensure!(node.daemon() != before, "the daemon was not replaced");
    }
    until("it is asked after the last", PATIENCE, || {
        Ok((load.count().sent > u64::from(UPGRADES + 1) * BETWEEN).then_some(()))
    })?;
    let client = load.stop()?;
    println!("{}", client.summary());
    let mut logs = LogReader::of(&world);
    let found = accounting::check(&client, logs.read_all(&client)?, &Rules::strict("web"));
    ensure!(found.is_empty(), "{}", found.join("\n"));
    ensure!(
        node.containers() == containers,
        "containers did not outlive it"
    );
    Ok(())
}

/// It cannot finish what it has: but who comes while there is none waits for the next.
#[test]
fn who_comes_while_the_daemon_is_dead_waits_for_the_next() -> Result<()> {
    const CLIENTS: usize = 20;
    let world = World::of(&["par-1"])?;
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    let node = world.first();
    let systemd = supervised(node)?;
    systemd.kill()?;
    thread::scope(|scope| {
        let asking: Vec<_> = (0..CLIENTS)
            .map(|at| {
                scope.spawn(move || {
                    // Some before the next daemon is there, some after.
                    thread::sleep(Duration::from_millis(20 * at as u64));
                    node.get("web", "/")?.ok()
                })
            })
            .collect();
        asking.into_iter().try_for_each(|asked| {
            let answer = asked
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?;
            answer?.says("box").map(drop)
        })
    })?;
    ensure!(systemd.restarts()? == 1);
    systemd.stop()?;
    ensure!(
        node.get("web", "/").is_err(),
        "stopped, it keeps no socket open"
    );
    Ok(())
}

/// Names are asked for once each, over UDP, by a container and by a client of the fleet: what comes while
/// no daemon runs waits for the next.
#[test]
fn no_question_for_a_name_is_lost_when_a_daemon_is_replaced() -> Result<()> {
    const QUESTIONS: u32 = 50;
    let world = World::of(&["par-1"])?;
    let more = ["--scale", "1..1", "--cpu", "0.1"];
    world.deploy("web", &more)?.ok()?;
    let node = world.first();
    let systemd = supervised(node)?;
    let pid = node.containers().first().copied().context("no container")?;
    let said = fs::read_to_string(format!("/proc/{pid}/root/etc/resolv.conf"))?;
    let resolver = said.split_whitespace().nth(1).context("no resolver")?;
    let inside = (
        format!("/proc/{pid}/ns/net"),
        resolver.to_owned(),
        "web.default.internal",
    );
    let public = format!("web.{ORIGIN}");
    let outside = (
        format!("/run/netns/{}", node.netns),
        node.address.to_string(),
        public.as_str(),
    );
    let asked = AtomicU32::new(0);
    thread::scope(|scope| {
        let asking = [inside, outside].map(|(netns, server, name)| {
            let asked = &asked;
            scope.spawn(move || {
                let (netns, at) = (format!("--net={netns}"), format!("@{server}"));
                let dig = [
                    "--", "dig", "+short", "+tries=1", "+time=10", &at, name, "A",
                ];
                let words = [&[netns.as_str()][..], &dig].concat();
                while asked.load(Ordering::Relaxed) < QUESTIONS * (UPGRADES + 1) {
                    let said = run("nsenter", &words)?.ok()?;
                    let answer = said.out.trim();
                    ensure!(answer.parse::<Ipv4Addr>().is_ok(), "{name}: {said}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        for upgrade in 1..=UPGRADES {
            until("names are asked for", PATIENCE, || {
                let enough = asked.load(Ordering::Relaxed) >= upgrade * QUESTIONS;
                let ended = asking.iter().any(thread::ScopedJoinHandle::is_finished);
                Ok((enough || ended).then_some(()))
            })?;
            systemd.restart()?;
        }
        asking.into_iter().try_for_each(|asked| {
            let ended = asked.join();
            ended.map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })
}
