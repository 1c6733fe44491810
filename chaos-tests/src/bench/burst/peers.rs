//! The other ways to start many: OCI runtimes, several at once, and the floor that is none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{parts, readings};
use crate::bench::Plan;
use crate::bench::board::Reading;
use crate::bench::cold::{root, write_bundle};
use crate::bench::group::Group;
use crate::bench::peers::{CRUN, Peer, RUNC};
use crate::bench::race::Contestant;
use crate::bench::yard::{self, Waiting};
use crate::world::World;

pub(super) const ALL: [Peer; 2] = [CRUN, RUNC];
/// Tried once, with this many containers; the best is kept.
const AT_ONCE: [usize; 4] = [2, 4, 8, 16];
const TRIAL: usize = 48;
/// The floor's processes that start others: one a core.
const FLOORS: usize = 2;
/// The servers share the host's network: each has a port of its own from here on.
const FIRST_PORT: usize = 10_000;

const START: &str = r#"
    seq 0 "$1" | xargs -P "$2" -I N "$3" --root "$4/state" run --detach --bundle "$4/N" burst-N
"#;
const END: &str = r#"
    seq 0 "$1" | xargs -P "$2" -I N "$3" --root "$4/state" delete --force burst-N
"#;

/// An OCI runtime.
pub(super) struct Runtime<'a> {
    peer: Peer,
    host: &'a str,
    group: Group,
    home: PathBuf,
    at_once: usize,
}

impl<'a> Runtime<'a> {
    pub(super) fn new(world: &World, host: &'a str, peer: Peer, plan: &Plan) -> Result<Self> {
        peer.fetch()?;
        let home = world.dir().join(format!("burst-{}", peer.program));
        let mut runtime = Self {
            peer,
            host,
            group: Group::of(world, &format!("bench-{}", peer.program))?,
            home,
            at_once: 1,
        };
        let most = plan.most.max(TRIAL);
        for number in 0..most {
            fs::create_dir_all(runtime.home.join(number.to_string()))?;
        }
        let first = runtime.home.join("0");
        write_bundle(peer, &first, &root(world), &runtime.group.path)?;
        let mut best = Duration::MAX;
        for at_once in AT_ONCE {
            runtime.write(super::SLEEP, TRIAL)?;
            let took = runtime.start(TRIAL, at_once)?;
            runtime.end(TRIAL)?;
            if took < best {
                (best, runtime.at_once) = (took, at_once);
            }
        }
        Ok(runtime)
    }

    /// Bundles like the first, with their own cgroup, port and this program.
    fn write(&self, program: &[&str], count: usize) -> Result<()> {
        let file = |number: usize| self.home.join(number.to_string()).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(file(0))?)?;
        config["process"]["args"] = json!(program);
        let env = config["process"]["env"].as_array().cloned();
        let mut env = env.context("a bundle without an environment")?;
        env.retain(|entry| entry.as_str().is_none_or(|e| !e.starts_with("PORT=")));
        for number in 0..count {
            let mut env = env.clone();
            env.push(json!(format!("PORT={}", FIRST_PORT + number)));
            config["process"]["env"] = env.into();
            config["linux"]["cgroupsPath"] = json!(format!("{}/{number}", self.group.path));
            fs::write(file(number), config.to_string())?;
        }
        Ok(())
    }

    fn start(&self, count: usize, at_once: usize) -> Result<Duration> {
        self.all(START, count, at_once)
    }

    fn end(&self, count: usize) -> Result<()> {
        self.all(END, count, self.at_once.max(4)).map(drop)
    }

    fn all(&self, script: &str, count: usize, at_once: usize) -> Result<Duration> {
        let (last, at_once) = ((count - 1).to_string(), at_once.to_string());
        let home = self.home.to_string_lossy();
        let words = [
            "sh",
            "-c",
            script,
            "sh",
            &last,
            &at_once,
            self.peer.program,
            &home,
        ];
        let log = self.home.join("log");
        let place = yard::waiting(self.host, &self.group, &log, &words)?;
        let began = Instant::now();
        let ended = place.begin()?.wait()?;
        ensure!(ended.success(), "{ended}; see {}", log.display());
        Ok(began.elapsed())
    }
}

impl Contestant for Runtime<'_> {
    fn name(&self) -> &'static str {
        self.peer.program
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let (program, count) = parts(case)?;
        self.write(program, count)?;
        let before = self.group.used()?;
        let took = self.start(count, self.at_once)?;
        let used = self.group.used()?.saturating_sub(before);
        self.end(count)?;
        Ok(readings(count, took, used))
    }
}

/// Containers without a runtime.
pub(in crate::bench) struct Floor<'a> {
    host: &'a str,
    group: Group,
    home: PathBuf,
    program: PathBuf,
    root: PathBuf,
}

impl<'a> Floor<'a> {
    pub(in crate::bench) fn new(world: &World, host: &'a str, plan: &Plan) -> Result<Self> {
        let home = world.dir().join("burst-floor");
        fs::create_dir_all(home.join("work"))?;
        Ok(Self {
            host,
            group: Group::of(world, "bench-floor")?,
            home,
            program: plan.programs.join("floor"),
            root: root(world),
        })
    }
}

impl Floor<'_> {
    pub(in crate::bench) fn group(&self) -> &Group {
        &self.group
    }

    /// Starts so many; what it took, and what `meanwhile` says while they are there.
    pub(in crate::bench) fn run<T>(
        &self,
        (program, count): (&[&str], usize),
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<(Duration, T)> {
        let log = self.home.join("log");
        let places: Result<Vec<_>> = (0..FLOORS)
            .map(|number| self.place(number, program, count / FLOORS, &log))
            .collect();
        let mut places = places?;
        let began = Instant::now();
        places.iter_mut().try_for_each(Waiting::say)?;
        for place in &mut places {
            let said = place.hear()?;
            ensure!(said == "started\n", "{said}; see {}", log.display());
        }
        let took = began.elapsed();
        let said = meanwhile()?;
        drop(places);
        self.group.end()?;
        Ok((took, said))
    }

    fn place(&self, number: usize, program: &[&str], count: usize, log: &Path) -> Result<Waiting> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let port = format!("PORT={}", FIRST_PORT + number * count);
        let (floor, root) = (text(&self.program), text(&self.root));
        let (work, each) = (text(&self.home.join("work")), count.to_string());
        let mut words = vec!["env", &port, &floor, "many", &each, &root, &work];
        words.extend(program);
        yard::waiting_itself(self.host, &self.group, log, &words)
    }
}

impl Contestant for Floor<'_> {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let (program, count) = parts(case)?;
        let before = self.group.used()?;
        let (took, used) = self.run((program, count), || self.group.used())?;
        Ok(readings(count, took, used.saturating_sub(before)))
    }
}
