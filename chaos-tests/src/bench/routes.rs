//! `routes`: a service added among many, until a request to it is answered; what each of the many
//! costs; and whether the door is as fast among them. The door is in this process and learns of the
//! change as a daemon's does; nginx gets a further `server` and is told to read its configuration.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use scheduler::model::Protocol;

use super::board::{BYTES, Board, OURS, RPS, Reading, SERVES};
use super::load::{Door, Load, drive};
use super::race::{Contestant, race};
use super::stats::float;
use super::{Plan, peers};
use crate::doorway::{Doorway, ORIGIN};
use crate::world::{Request, until};

const CASES: [&str; 4] = ["10", "1000", "10000", "100000"];
/// nginx takes seconds and gigabytes for more.
const NGINX_MOST: usize = 10_000;
const CONNECTIONS: usize = 32;
const TIME: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_mins(1);
/// Fewer are lost in what else the process holds.
const WEIGHED_FROM: usize = 10_000;
/// Its name is no other's.
const FIRST: &str = "first";

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("routes");
    let backend = Backend::start(plan)?;
    let mut ways: Vec<Box<dyn Contestant>> = vec![Box::new(Ours {
        backend: backend.at,
        added: 0,
    })];
    race(&mut board, &CASES, plan.rounds, &mut ways)?;
    match peers::NGINX.fetch() {
        Ok(()) => {
            let few = CASES
                .iter()
                .filter(|c| c.parse().is_ok_and(|n: usize| n <= NGINX_MOST));
            let few: Vec<&str> = few.copied().collect();
            let nginx = Nginx {
                backend: backend.at,
            };
            race(&mut board, &few, plan.rounds, &mut [Box::new(nginx)])?;
        }
        Err(error) => board.missing("nginx", format!("{error:#}")),
    }
    Ok(board)
}

/// The floor's backend on loopback.
struct Backend {
    child: Child,
    at: SocketAddr,
}

impl Backend {
    fn start(plan: &Plan) -> Result<Self> {
        let at = free()?;
        let child = Command::new(plan.programs.join("floor"))
            .args(["serve", &at.port().to_string()])
            .spawn()
            .context("the program `floor`")?;
        let backend = Self { child, at };
        until("the backend listens", PATIENCE, || {
            Ok(TcpStream::connect(at).ok())
        })?;
        Ok(backend)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Fails when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn host(name: &str) -> String {
    format!("{name}.{ORIGIN}")
}

fn rate(door: SocketAddr) -> Result<f64> {
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host(FIRST));
    let load = Load {
        door: Door::Tcp(door),
        connections: CONNECTIONS,
        time: TIME,
        requests: &[request.into_bytes()],
    };
    Ok(drive(&load)?.rate)
}

struct Ours {
    backend: SocketAddr,
    added: usize,
}

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let count: usize = case.parse()?;
        let mut door = Doorway::open(|_| {})?;
        door.serve(FIRST, Protocol::Http1, self.backend)?;
        let changes: Result<Vec<_>> = (1..count)
            .map(|n| door.add(&format!("app-{n}"), Protocol::Http1))
            .collect();
        let changes = changes?;
        let before = memory()?;
        door.publish(&changes);
        let taken = memory()?.saturating_sub(before);
        // The service is in the registry; from there on the door's work begins.
        self.added += 1;
        let name = format!("new-{}", self.added);
        let change = door.add(&name, Protocol::Http1)?;
        door.run(&name, self.backend)?;
        let began = Instant::now();
        door.publish(&[change]);
        let answer = Request::get(&host(&name), "/").send(door.address())?;
        let took = began.elapsed();
        ensure!(answer.status == 200, "{answer:?}");
        let mut readings = vec![
            SERVES.of(took.as_secs_f64() * 1e3),
            RPS.of(rate(door.address())?),
        ];
        if count >= WEIGHED_FROM {
            readings.push(BYTES.of(float(taken) / float(u64::try_from(count)?)));
        }
        door.close();
        Ok(readings)
    }
}

/// What this process holds in memory, in bytes.
fn memory() -> Result<u64> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    let pages = pages.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok());
    Ok(pages.context("no resident set")? * 4096)
}

struct Nginx {
    backend: SocketAddr,
}

impl Contestant for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let home = tempfile::tempdir()?;
        let (at, file) = (free()?, home.path().join("nginx.conf"));
        let names = (1..case.parse()?).map(|n| format!("app-{n}"));
        let mut names: Vec<String> = names.chain([FIRST.to_owned()]).collect();
        let dir = home.path().display().to_string();
        fs::write(&file, config(&dir, at, self.backend, &names))?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(home.path())
            .arg("-c")
            .arg(&file)
            .spawn();
        let master = Master(child.context("nginx")?);
        let ask = |name: &str| Request::get(&host(name), "/").send(at);
        until("nginx answers", PATIENCE, || {
            Ok((ask(FIRST)?.status == 200).then_some(()))
        })?;
        let rate = rate(at)?;
        names.push("new".to_owned());
        fs::write(&file, config(&dir, at, self.backend, &names))?;
        let began = Instant::now();
        master.signal("HUP")?;
        // An unknown name is refused, by the first server there is.
        while ask("new")?.status != 200 {
            ensure!(began.elapsed() < PATIENCE, "nginx never knew the new name");
        }
        Ok(vec![
            SERVES.of(began.elapsed().as_secs_f64() * 1e3),
            RPS.of(rate),
        ])
    }
}

struct Master(Child);

impl Master {
    fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.0.id().to_string();
        crate::world::run("kill", [&format!("-{signal}"), &pid])?.ok()?;
        Ok(())
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // Ends its workers with it; a kill would not. It may have ended already.
        self.signal("TERM").ok();
        self.0.wait().ok();
    }
}

fn config(home: &str, at: SocketAddr, backend: SocketAddr, names: &[String]) -> String {
    let mut servers = String::new();
    for name in names {
        // Writing to a string does not fail.
        let _ = writeln!(
            servers,
            "server {{ listen {at}; server_name {}; location / {{ proxy_pass http://backend; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}",
            host(name)
        );
    }
    format!(
        "daemon off; worker_processes auto; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; server_names_hash_max_size 262144; server_names_hash_bucket_size 128;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi; keepalive_requests 1000000000;
    upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
    server {{ listen {at} default_server reuseport; return 404; }}
{servers}}}
"
    )
}
