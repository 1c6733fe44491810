//! `relay`: requests at a node whose instances run on another one, over the mesh; beside nginx on the
//! first host that keeps TLS connections to nginx on the second, which asks the same instance. `stream`
//! is one long answer through the same, beside one stream of QUIC with nothing around it. The hosts are
//! joined by a cable of the kernel's, not by the test's own switch, which would be what is measured. CPU
//! time is of all that serves, on both hosts.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, CPU, Metric, OURS, RPS, Reading};
use super::group::{self, Group};
use super::load::{Door, Load, drive};
use super::proxy::{connections, pair, readings};
use super::race::{Contestant, race};
use super::stats::float;
use super::yard::{self, Running};
use super::{Plan, peers};
use crate::world::{self, Node, ORIGIN, PATIENCE, World, run_with, until};

const NEAR: &str = "par-1";
const FAR: &str = "fra-1";
const SERVICE: &str = "afar";
/// Requests at once, as cases.
const CASES: [&str; 3] = ["c1", "c32", "c256"];
const STREAM: &str = "stream";
const LENGTH: usize = 128 << 20;
const TIME: Duration = Duration::from_secs(2);
const NGINX_PORT: u16 = 8099;
const BETWEEN_PORT: u16 = 8449;
const QUIC_PORT: u16 = 8777;
const RATE: Metric = Metric::new("mb_per_s", "MB/s");
/// What the backend answers to a request without wishes is short.
const SHORT: &str = "/do";

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("relay");
    let world = World::of(&[NEAR, FAR])?;
    let (near, far) = (&world[NEAR], &world[FAR]);
    yard::cable(near, far)?;
    let more = ["--scale", "1..1", "--target", "1000", "--region", "fra"];
    world.deploy(SERVICE, &more)?.ok()?;
    until("the instance is ready", PATIENCE, || {
        near.get(SERVICE, SHORT)?.ok().map(Some)
    })?;
    let backend = yard::container(far)?;
    let containers = Group::of(&world, FAR)?;
    let daemons = Group::of(&world, "bench-selvedge")?;
    for node in [near, far] {
        daemons.add(node.daemon().context("no daemon")?)?;
    }
    let way = |system, door, groups| Way {
        system,
        node: near,
        door,
        groups,
    };
    let mut ways: Vec<Box<dyn Contestant + '_>> = vec![Box::new(way(
        OURS,
        near.door(),
        vec![daemons, containers.clone()],
    ))];
    let nginx = match peers::NGINX.fetch() {
        Ok(()) => Some(Pair::start(&world, near, far, backend)?),
        Err(error) => {
            board.missing("nginx", format!("{error:#}"));
            None
        }
    };
    if let Some(nginx) = &nginx {
        let at = (near.address, NGINX_PORT).into();
        let groups = vec![nginx.group.clone(), containers];
        ways.push(Box::new(way("nginx", at, groups)));
    }
    race(&mut board, &plan.chosen(&CASES), plan.rounds, &mut ways)?;
    ways.push(Box::new(Alone::start(&world, plan, near, far)?));
    race(&mut board, &plan.chosen(&[STREAM]), plan.rounds, &mut ways)?;
    Ok(board)
}

/// One way to the backend on the other host.
struct Way<'a> {
    system: &'static str,
    node: &'a Node,
    door: SocketAddr,
    /// Of all that serves.
    groups: Vec<Group>,
}

impl Way<'_> {
    fn load(&self, case: &str) -> Result<Vec<Reading>> {
        let load = Load {
            door: Door::Tcp(self.door),
            connections: connections(case)?,
            time: TIME,
            requests: &[get(SHORT)],
        };
        let before = group::used(&self.groups)?;
        let measured = yard::on_host(&self.node.netns, || drive(&load))?;
        let used = group::used(&self.groups)?.saturating_sub(before);
        Ok(readings(RPS, &measured, used))
    }

    fn stream(&self) -> Result<Vec<Reading>> {
        let request = get(&format!("/do?bytes={LENGTH}"));
        let before = group::used(&self.groups)?;
        let took = yard::on_host(&self.node.netns, || {
            let began = Instant::now();
            let mut stream = TcpStream::connect(self.door)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&request)?;
            let (mut piece, mut bytes) = (vec![0; 256 << 10], 0);
            while bytes < LENGTH {
                let count = stream.read(&mut piece)?;
                ensure!(count > 0, "the answer ended after {bytes} bytes");
                bytes += count;
            }
            Ok(began.elapsed())
        })?;
        let used = group::used(&self.groups)?.saturating_sub(before);
        Ok(streamed(took, used))
    }
}

impl Contestant for Way<'_> {
    fn name(&self) -> &'static str {
        self.system
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        // An instance that nobody asks through the front door is frozen after a while.
        self.node.get(SERVICE, SHORT)?.ok()?;
        match case {
            STREAM => self.stream(),
            _ => self.load(case),
        }
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {SERVICE}.{ORIGIN}\r\n\r\n").into_bytes()
}

/// What a whole answer says: its rate, and CPU time for each megabyte.
fn streamed(took: Duration, used: Duration) -> Vec<Reading> {
    let megabytes = float(LENGTH as u64) / 1e6;
    vec![
        RATE.of(megabytes / took.as_secs_f64()),
        CPU.of(used.as_secs_f64() * 1e6 / megabytes),
    ]
}

/// nginx on both hosts, as long as the handles are kept.
struct Pair {
    group: Group,
    _running: [Running; 2],
}

impl Pair {
    fn start(world: &World, near: &Node, far: &Node, backend: SocketAddr) -> Result<Self> {
        let group = Group::of(world, "bench-nginx")?;
        let tls = pair(&format!("{SERVICE}.{ORIGIN}"), &world.dir())?;
        let door = format!(
            "upstream other {{ server {}:{BETWEEN_PORT}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {NGINX_PORT} reuseport;
        location / {{ {KEPT} proxy_pass https://other; proxy_ssl_session_reuse on; }}
    }}",
            far.address
        );
        let pair = tls.display();
        let beside = format!(
            "upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {BETWEEN_PORT} reuseport ssl;
        ssl_certificate {pair}; ssl_certificate_key {pair};
        location / {{ {KEPT} proxy_pass http://backend; }}
    }}"
        );
        let second = nginx(world, far, &group, "nginx-far", &beside)?;
        let first = nginx(world, near, &group, "nginx-near", &door)?;
        let door = (near.address, NGINX_PORT).into();
        until("nginx answers", PATIENCE, || {
            world::Request::get(SERVICE, SHORT)
                .send(door)?
                .ok()
                .map(Some)
        })?;
        Ok(Self {
            group,
            _running: [first, second],
        })
    }
}

const KEPT: &str = "proxy_http_version 1.1; proxy_set_header Connection \"\";";

fn nginx(world: &World, node: &Node, group: &Group, name: &str, serving: &str) -> Result<Running> {
    let home = world.dir().join(name);
    fs::create_dir_all(&home)?;
    let (config, at) = (home.join("nginx.conf"), home.display());
    let text = format!(
        "daemon off; worker_processes auto; pid {at}/pid; error_log {at}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
    keepalive_requests 1000000000;
    {serving}
}}
"
    );
    fs::write(&config, text)?;
    let (home_arg, config) = (home.to_string_lossy(), config.to_string_lossy());
    let words = ["nginx", "-p", &home_arg, "-c", &config];
    yard::waiting(&node.netns, group, &home.join("log"), &words)?.begin()
}

/// One stream of QUIC from the one host to the other.
struct Alone {
    program: PathBuf,
    netns: String,
    server: SocketAddr,
    certificate: PathBuf,
    groups: [Group; 2],
    _running: Running,
}

impl Alone {
    fn start(world: &World, plan: &Plan, near: &Node, far: &Node) -> Result<Self> {
        let program = plan.programs.join("floor");
        let certificate = world.dir().join("quic.der");
        let groups = [
            Group::of(world, "bench-quic")?,
            Group::of(world, "bench-quic-near")?,
        ];
        let words = [
            &program.to_string_lossy(),
            "quic-send",
            &QUIC_PORT.to_string(),
            &LENGTH.to_string(),
            &certificate.to_string_lossy(),
        ];
        let log = world.dir().join("quic.log");
        let running = yard::waiting(&far.netns, &groups[0], &log, &words)?.begin()?;
        until("QUIC is served", PATIENCE, || {
            Ok(certificate.exists().then_some(()))
        })?;
        Ok(Self {
            program,
            netns: near.netns.clone(),
            server: (IpAddr::from(far.address), QUIC_PORT).into(),
            certificate,
            groups,
            _running: running,
        })
    }
}

impl Contestant for Alone {
    fn name(&self) -> &'static str {
        "quinn"
    }

    fn take(&mut self, _: &str) -> Result<Vec<Reading>> {
        let before = group::used(&self.groups)?;
        // Its own processor time is that of a system's door, not of a client.
        let joins = "echo $$ >\"$1\"; shift; exec \"$@\"";
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns));
        command.args(["--", "sh", "-c", joins, "sh"]);
        command.arg(self.groups[1].members()).arg(&self.program);
        command.args(["quic-take", &self.server.to_string()]);
        command.arg(&self.certificate);
        let said = run_with(&mut command, "")?.ok()?;
        let nanos = said.out.trim().parse().context("no time")?;
        let used = group::used(&self.groups)?.saturating_sub(before);
        Ok(streamed(Duration::from_nanos(nanos), used))
    }
}
