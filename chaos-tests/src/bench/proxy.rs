//! `proxy`: requests to a warm instance, through the front door, through nginx and haproxy, and
//! straight. All ask the same process, the floor's backend in a container, from the node's own host, so
//! that only what stands between differs. CPU time is of all that serves, the backend too; over HTTP/2
//! and TLS, which the backend does not speak, the clients' handshakes too.

mod doors;
mod h2load;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rcgen::{CertificateParams, KeyPair};

use super::board::{Board, CLIENT_CPU, CPU, OURS, P50, P99, RPS, Reading};
use super::group::{self, Group};
use super::load::{Door, Load, Measured, drive};
use super::race::{Contestant, race};
use super::stats::float;
use super::{Plan, peers, yard};
use crate::world::{self, Node, ORIGIN, PATIENCE, World, until};
use h2load::Protocol;

const NODE: &str = "par-1";
const SERVICE: &str = "still";
const IMAGE: &str = "floor";
const TIME: Duration = Duration::from_secs(2);
/// Requests at once, as cases.
const CASES: [&str; 3] = ["c1", "c32", "c256"];
/// The same over HTTP/2 without TLS, and over TLS.
const H2C: [&str; 1] = ["h2c-c32"];
const SECURE: [&str; 3] = ["tls-c32", "h2-c32", "h2-c32-65536"];
/// Asked in each of those.
const REQUESTS: usize = 40_000;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("proxy");
    let world = World::of(&[NODE])?;
    let node = &world[NODE];
    let backend = deploy(&world, node, plan)?;
    let pair = pair(&format!("{SERVICE}.{ORIGIN}"), &world.dir())?;
    let containers = Group::of(&world, NODE)?;
    let daemon = Group::of(&world, "bench-selvedge")?;
    daemon.add(node.daemon().context("no daemon")?)?;
    let way = |system, doors, group: Option<Group>| {
        Box::new(Way {
            system,
            node,
            doors,
            dir: world.dir(),
            groups: group.into_iter().chain([containers.clone()]).collect(),
        }) as Box<dyn Contestant + '_>
    };
    let ours = Doors {
        plain: node.door(),
        h2c: node.door(),
        tls: (node.address, 443).into(),
    };
    let mut ways = vec![way(OURS, ours, Some(daemon))];
    let mut peers = Vec::new();
    for (peer, start) in [
        (peers::NGINX, doors::nginx as doors::Start),
        (peers::HAPROXY, doors::haproxy),
    ] {
        match peer.fetch() {
            Ok(()) => peers.push((peer.program, start(&world, node, backend, &pair)?)),
            Err(error) => board.missing(peer.program, format!("{error:#}")),
        }
    }
    for (program, peer) in &peers {
        ways.push(way(program, peer.doors, Some(peer.group.clone())));
    }
    let plain: Vec<String> = plan.bodies.iter().flat_map(|body| cases(*body)).collect();
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    let plain = plan.chosen(&plain);
    ways.push(way(
        "floor",
        Doors {
            plain: backend,
            ..ours
        },
        None,
    ));
    race(&mut board, &plain, plan.rounds, &mut ways)?;
    // It speaks nothing else.
    ways.pop();
    match h2load::H2LOAD.fetch() {
        Ok(()) => {
            race(&mut board, &plan.chosen(&H2C), plan.rounds, &mut ways)?;
            // From here on the door sends who comes without TLS there.
            serve(node, &pair)?;
            race(&mut board, &plan.chosen(&SECURE), plan.rounds, &mut ways)?;
        }
        Err(error) => board.missing("h2load", format!("{error:#}")),
    }
    Ok(board)
}

/// Has the door serve the certificate.
fn serve(node: &Node, pair: &Path) -> Result<()> {
    let file = pair.to_string_lossy();
    node.cli(&["cert", "add", SERVICE, "--cert", &file, "--key", &file])?
        .ok()?;
    until("the door has the certificate", PATIENCE, || {
        Ok(wake_secure(node).is_ok().then_some(()))
    })
}

/// A request over TLS. An instance that nobody asks through the front door is frozen after a while.
fn wake_secure(node: &Node) -> Result<()> {
    let host = format!("{SERVICE}.{ORIGIN}");
    let resolve = format!("{host}:443:{}", node.address);
    let url = format!("https://{host}/");
    let words = ["-sSk", "--fail", "--resolve", &resolve, &url];
    world::run("curl", words)?.ok().map(drop)
}

/// A host's certificate, signed by itself, and its key, in one file.
pub(super) fn pair(host: &str, dir: &Path) -> Result<PathBuf> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![host.to_owned()])?.self_signed(&key)?;
    let file = dir.join("pair.pem");
    fs::write(&file, certificate.pem() + &key.serialize_pem())?;
    Ok(file)
}

/// Where a system is asked.
#[derive(Debug, Clone, Copy)]
struct Doors {
    plain: SocketAddr,
    /// HTTP/2 known before.
    h2c: SocketAddr,
    tls: SocketAddr,
}

/// The cases with answers of that many bytes; 0 is the few that the backend says by itself.
fn cases(body: usize) -> impl Iterator<Item = String> {
    let end = if body > 0 {
        format!("-{body}")
    } else {
        String::new()
    };
    CASES.iter().map(move |case| format!("{case}{end}"))
}

/// One way to the backend.
struct Way<'a> {
    system: &'static str,
    node: &'a Node,
    doors: Doors,
    /// For logs.
    dir: PathBuf,
    /// Of all that serves.
    groups: Vec<Group>,
}

impl Way<'_> {
    fn ask(&self, protocol: Option<Protocol>, connections: usize, path: &str) -> Result<Measured> {
        let host = &format!("{SERVICE}.{ORIGIN}");
        let Some(protocol) = protocol else {
            let load = Load {
                door: Door::Tcp(self.doors.plain),
                connections,
                time: TIME,
                requests: &[get(host, path)],
            };
            return yard::on_host(&self.node.netns, || drive(&load));
        };
        let door = match protocol {
            Protocol::H2c => self.doors.h2c,
            Protocol::Tls | Protocol::H2 => self.doors.tls,
        };
        h2load::drive(&h2load::Load {
            netns: &self.node.netns,
            protocol,
            door,
            host,
            path,
            connections,
            requests: REQUESTS,
            dir: &self.dir,
        })
    }
}

impl Contestant for Way<'_> {
    fn name(&self) -> &'static str {
        self.system
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let (protocol, case) = spoken(case);
        match protocol {
            None | Some(Protocol::H2c) => drop(self.node.get(SERVICE, "/")?.ok()?),
            Some(Protocol::Tls | Protocol::H2) => wake_secure(self.node)?,
        }
        let (case, path) = case.split_once('-').unwrap_or((case, ""));
        let before = group::used(&self.groups)?;
        let measured = self.ask(protocol, connections(case)?, path)?;
        let used = group::used(&self.groups)?.saturating_sub(before);
        Ok(readings(RPS, &measured, used))
    }
}

/// What a case is spoken in, when it is not plain HTTP/1.1, and the rest of it.
fn spoken(case: &str) -> (Option<Protocol>, &str) {
    let named = [
        ("h2c-", Protocol::H2c),
        ("tls-", Protocol::Tls),
        ("h2-", Protocol::H2),
    ];
    let found = named.iter().find_map(|(name, protocol)| {
        let rest = case.strip_prefix(name)?;
        Some((Some(*protocol), rest))
    });
    found.unwrap_or((None, case))
}

/// `c32` is 32 connections.
pub(super) fn connections(case: &str) -> Result<usize> {
    let number = case.strip_prefix('c').and_then(|n| n.parse().ok());
    number.with_context(|| format!("{case} is no number of connections"))
}

/// What a load says of who was asked.
pub(super) fn readings(
    rate: super::board::Metric,
    measured: &Measured,
    used: Duration,
) -> Vec<Reading> {
    let quantile = |q| float(measured.latency.value_at_quantile(q));
    vec![
        rate.of(measured.rate),
        P50.of(quantile(0.5)),
        P99.of(quantile(0.99)),
        CPU.of(group::each(used, measured.answered)),
        CLIENT_CPU.of(group::each(measured.cpu, measured.answered)),
    ]
}

fn get(host: &str, path: &str) -> Vec<u8> {
    format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes()
}

/// The floor's backend as a service with one instance; returns where that listens.
fn deploy(world: &World, node: &Node, plan: &Plan) -> Result<SocketAddr> {
    let layer = world.dir().join("floor-layer");
    fs::create_dir_all(layer.join("bin"))?;
    // The image's entrypoint is `/bin/box`; the libraries below it serve both.
    fs::copy(plan.programs.join("floor"), layer.join("bin/box")).context("the program `floor`")?;
    let tar = world.dir().join("floor.tar");
    world::run(
        "tar",
        [
            "-cf",
            &tar.to_string_lossy(),
            "-C",
            &layer.to_string_lossy(),
            ".",
        ],
    )?
    .ok()?;
    world.push(IMAGE, &[tar])?;
    node.deploy(
        SERVICE,
        &world.image(IMAGE),
        &["--scale", "1..1", "--target", "1000"],
    )?
    .ok()?;
    until("the instance is ready", PATIENCE, || {
        node.get(SERVICE, "/")?.ok().map(Some)
    })?;
    let instances = node.instances(SERVICE)?;
    ensure!(instances.len() == 1, "one instance, not {instances:?}");
    yard::container(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_says_how_many_ask() {
        assert_eq!(connections("c256").unwrap(), 256);
        for wrong in ["256", "c", "cold"] {
            assert!(connections(wrong).is_err(), "{wrong}");
        }
    }
}
