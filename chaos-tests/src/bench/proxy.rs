//! `proxy`: requests to a warm instance, through the front door, through nginx and haproxy, and
//! straight. All ask the same process, the floor's backend in a container, from the node's own host, so
//! that only what stands between differs. CPU time is of all that serves, the backend too.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, CLIENT_CPU, CPU, OURS, P50, P99, RPS, Reading};
use super::group::{self, Group};
use super::load::{Door, Load, Measured, drive};
use super::race::{Contestant, race};
use super::stats::float;
use super::yard::{self, Running};
use super::{Plan, peers};
use crate::world::{self, Node, ORIGIN, PATIENCE, World, until};

const NODE: &str = "par-1";
const SERVICE: &str = "still";
const IMAGE: &str = "floor";
const TIME: Duration = Duration::from_secs(2);
/// Requests at once, as cases.
const CASES: [&str; 3] = ["c1", "c32", "c256"];
const NGINX_PORT: u16 = 8099;
const HAPROXY_PORT: u16 = 8098;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("proxy");
    let world = World::of(&[NODE])?;
    let node = &world[NODE];
    let backend = deploy(&world, node, plan)?;
    let containers = Group::of(&world, NODE)?;
    let ours = Group::of(&world, "bench-selvedge")?;
    ours.add(node.daemon().context("no daemon")?)?;
    let host = format!("{SERVICE}.{ORIGIN}");
    let door = |system, door, groups| {
        Box::new(Way {
            system,
            netns: node.netns.clone(),
            door,
            host: host.clone(),
            ours: node.door(),
            groups,
        }) as Box<dyn Contestant>
    };
    let mut ways = vec![
        door(OURS, node.door(), vec![ours, containers.clone()]),
        door("floor", backend, vec![containers.clone()]),
    ];
    let nginx = match peers::NGINX.fetch() {
        Ok(()) => Some(start_nginx(&world, node, backend)?),
        Err(error) => {
            board.missing("nginx", format!("{error:#}"));
            None
        }
    };
    if let Some((_, group)) = &nginx {
        let at = (node.address, NGINX_PORT).into();
        ways.push(door("nginx", at, vec![group.clone(), containers.clone()]));
    }
    let haproxy = match peers::HAPROXY.fetch() {
        Ok(()) => Some(start_haproxy(&world, node, backend)?),
        Err(error) => {
            board.missing("haproxy", format!("{error:#}"));
            None
        }
    };
    if let Some((_, group)) = &haproxy {
        let at = (node.address, HAPROXY_PORT).into();
        ways.push(door("haproxy", at, vec![group.clone(), containers]));
    }
    let cases: Vec<String> = plan.bodies.iter().flat_map(|body| cases(*body)).collect();
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    race(&mut board, &cases, plan.rounds, &mut ways)?;
    Ok(board)
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
struct Way {
    system: &'static str,
    netns: String,
    door: SocketAddr,
    host: String,
    /// An instance that nobody asks through the front door is frozen after a while.
    ours: SocketAddr,
    /// Of all that serves.
    groups: Vec<Group>,
}

impl Contestant for Way {
    fn name(&self) -> &'static str {
        self.system
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        world::Request::get(&self.host, "/").send(self.ours)?.ok()?;
        let (case, path) = case.split_once('-').unwrap_or((case, ""));
        let load = Load {
            door: Door::Tcp(self.door),
            connections: connections(case)?,
            time: TIME,
            requests: &[get(&self.host, path)],
        };
        let before = group::used(&self.groups)?;
        let measured = yard::on_host(&self.netns, || drive(&load))?;
        let used = group::used(&self.groups)?.saturating_sub(before);
        Ok(readings(RPS, &measured, used))
    }
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
    address(node)
}

/// Where the node's only container listens, as its own network says.
fn address(node: &Node) -> Result<SocketAddr> {
    let containers = node.containers();
    for pid in &containers {
        let net = format!("--net=/proc/{pid}/ns/net");
        let said = world::run(
            "nsenter",
            [
                &net, "--", "ip", "-o", "-4", "address", "show", "scope", "global",
            ],
        )?;
        let found = said
            .out
            .split_whitespace()
            .skip_while(|word| *word != "inet")
            .nth(1);
        let ip = found.and_then(|cidr| cidr.split('/').next()?.parse::<IpAddr>().ok());
        if let Some(ip) = ip {
            return Ok((ip, 8080).into());
        }
    }
    anyhow::bail!("no address of a container in {containers:?}")
}

/// nginx in front of the backend, on the node's host, with a worker a core as the daemon has
/// threads, its connections to the backend kept, and no log of requests.
fn start_nginx(world: &World, node: &Node, backend: SocketAddr) -> Result<(Running, Group)> {
    let home = world.dir().join("nginx");
    fs::create_dir_all(&home)?;
    let config = home.join("nginx.conf");
    fs::write(&config, nginx_config(&home.to_string_lossy(), backend))?;
    let group = Group::of(world, "bench-nginx")?;
    let words = [
        "nginx",
        "-p",
        &home.to_string_lossy(),
        "-c",
        &config.to_string_lossy(),
    ];
    let child = yard::waiting(&node.netns, &group, &home.join("log"), &words)?.begin()?;
    let door = (node.address, NGINX_PORT).into();
    until("nginx answers", PATIENCE, || {
        world::Request::get(SERVICE, "/").send(door)?.ok().map(Some)
    })?;
    Ok((child, group))
}

fn nginx_config(home: &str, backend: SocketAddr) -> String {
    format!(
        "daemon off; worker_processes auto; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    keepalive_requests 1000000000;
    upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {NGINX_PORT} reuseport;
        location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
    }}
}}
"
    )
}

/// haproxy likewise, with a thread a core.
fn start_haproxy(world: &World, node: &Node, backend: SocketAddr) -> Result<(Running, Group)> {
    let home = world.dir().join("haproxy");
    fs::create_dir_all(&home)?;
    let config = home.join("haproxy.cfg");
    fs::write(&config, haproxy_config(backend))?;
    let group = Group::of(world, "bench-haproxy")?;
    let words = ["haproxy", "-f", &config.to_string_lossy()];
    let child = yard::waiting(&node.netns, &group, &home.join("log"), &words)?.begin()?;
    let door = (node.address, HAPROXY_PORT).into();
    until("haproxy answers", PATIENCE, || {
        world::Request::get(SERVICE, "/").send(door)?.ok().map(Some)
    })?;
    Ok((child, group))
}

fn haproxy_config(backend: SocketAddr) -> String {
    format!(
        "global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    http-reuse always
frontend door
    bind :{HAPROXY_PORT}
    default_backend backend
backend backend
    server one {backend}
"
    )
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
