//! The other ways to start the same server: OCI runtimes, and the floor that is none.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{AT_ONCE, Case, Starter, ask, sample};
use crate::bench::Plan;
use crate::bench::board::Reading;
use crate::bench::group::Group;
use crate::bench::peers::{CRUN, Peer, RUNC};
use crate::bench::race::Contestant;
use crate::bench::yard::{self, Running, Waiting};
use crate::world::{World, run};

pub(super) const ALL: [Peer; 2] = [CRUN, RUNC];
/// Where the server of the test image listens.
const DOOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// A program that starts one server and stays until that ends.
pub(super) struct Runtime<'a> {
    name: &'static str,
    /// One for each that starts at once.
    hosts: &'a [String],
    group: Group,
    home: PathBuf,
    /// What starts, and what ends, the server on the host of this number.
    begin: Vec<Vec<String>>,
    kill: Vec<Vec<String>>,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
}

pub(super) fn floor<'a>(world: &World, hosts: &'a [String], plan: &Plan) -> Result<Runtime<'a>> {
    let home = world.dir().join("floor");
    let floor = plan.programs.join("floor");
    let root = root(world);
    let begin = |number: usize| {
        let work = home.join(number.to_string());
        fs::create_dir_all(&work)?;
        let words = [
            &floor,
            Path::new("start"),
            &root,
            &work,
            Path::new("/bin/box"),
        ];
        Ok(words.map(|w| w.to_string_lossy().into_owned()).to_vec())
    };
    let begin: Result<Vec<_>> = (0..AT_ONCE).map(begin).collect();
    Ok(Runtime {
        name: "floor",
        hosts,
        group: Group::of(world, "bench-floor")?,
        begin: begin?,
        kill: Vec::new(),
        home,
        waiting: VecDeque::new(),
        running: Vec::new(),
    })
}

pub(super) fn peer<'a>(world: &World, hosts: &'a [String], peer: Peer) -> Result<Runtime<'a>> {
    peer.fetch()?;
    let home = world.dir().join(peer.program);
    let group = Group::of(world, &format!("bench-{}", peer.program))?;
    let state = home.join("state").to_string_lossy().into_owned();
    let (mut begin, mut kill) = (Vec::new(), Vec::new());
    for number in 0..AT_ONCE {
        let bundle = home.join(number.to_string());
        fs::create_dir_all(&bundle)?;
        write_bundle(
            peer,
            &bundle,
            &root(world),
            &format!("{}/{number}", group.path),
        )?;
        let (bundle, name) = (bundle.to_string_lossy(), format!("bench-{number}"));
        let words = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect();
        begin.push(words(&[
            peer.program,
            "--root",
            &state,
            "run",
            "--bundle",
            &bundle,
            &name,
        ]));
        kill.push(words(&[
            peer.program,
            "--root",
            &state,
            "kill",
            &name,
            "KILL",
        ]));
    }
    Ok(Runtime {
        name: peer.program,
        hosts,
        group,
        home,
        begin,
        kill,
        waiting: VecDeque::new(),
        running: Vec::new(),
    })
}

/// Files of the test image, as `World` lays them out.
pub(in crate::bench) fn root(world: &World) -> PathBuf {
    world.dir().join("root")
}

/// The runtime's own idea of a bundle, with our root and program, on the host's network.
pub(in crate::bench) fn write_bundle(
    peer: Peer,
    bundle: &Path,
    root: &Path,
    cgroup: &str,
) -> Result<()> {
    let file = bundle.join("config.json");
    if !file.exists() {
        let script = "cd \"$1\" && \"$2\" spec";
        run(
            "sh",
            ["-c", script, "sh", &bundle.to_string_lossy(), peer.program],
        )?
        .ok()?;
    }
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/box"]);
    config["root"] = json!({"path": root, "readonly": true});
    config["linux"]["cgroupsPath"] = json!(cgroup);
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|n| n["type"] != "network");
    }
    fs::write(&file, config.to_string())?;
    Ok(())
}

impl Runtime<'_> {
    /// Puts what starts the server of this number in its place.
    fn place(&self, number: usize) -> Result<Waiting> {
        let words: Vec<_> = self.begin[number].iter().map(String::as_str).collect();
        let log = self.home.join("log");
        let place = if self.kill.is_empty() {
            yard::waiting_itself
        } else {
            yard::waiting
        };
        place(&self.hosts[number], &self.group, &log, &words)
    }
}

impl Starter for Runtime<'_> {
    fn ready(&mut self, _: &Case, count: usize) -> Result<()> {
        let places: Result<_> = (0..count).map(|number| self.place(number)).collect();
        self.waiting = places?;
        Ok(())
    }

    fn one(&mut self, number: usize) -> Result<Duration> {
        let began = Instant::now();
        let place = self.waiting.pop_front().context("nothing waits")?;
        self.running.push(place.begin()?);
        let took = ask(&[(&self.hosts[number], DOOR, "box")], began)?;
        Ok(took[0].took)
    }

    fn together(&mut self, count: usize) -> Result<Vec<Duration>> {
        let began = Instant::now();
        for place in self.waiting.drain(..) {
            self.running.push(place.begin()?);
        }
        let doors = self.hosts[..count].iter();
        let doors: Vec<_> = doors.map(|host| (host.as_str(), DOOR, "box")).collect();
        Ok(ask(&doors, began)?.iter().map(|first| first.took).collect())
    }

    fn used(&self) -> Result<Duration> {
        self.group.used()
    }

    fn end(&mut self) -> Result<Vec<Reading>> {
        let count = self.running.len();
        for words in self.kill.iter().take(count) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let log = self.home.join("log");
            let mut ends = yard::waiting(&self.hosts[0], &self.group, &log, &words)?.begin()?;
            let ended = ends.wait()?;
            ensure!(ended.success(), "{words:?}: {ended}; see {}", log.display());
        }
        if self.kill.is_empty() {
            self.group.end()?;
        }
        // A runtime that runs in the foreground takes its container away when the server has ended.
        for mut child in self.running.drain(..) {
            child.wait()?;
        }
        self.group.end()?;
        Ok(Vec::new())
    }
}

impl Contestant for Runtime<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        sample(self, super::case(case)?)
    }
}
