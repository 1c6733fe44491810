//! One run: a cluster with a service, HTTP clients at its doors and clients of its registry; faults,
//! one after the other or at once; then every checker's word on it.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::excuse::{Excuses, Outage};
use crate::checkers::{accounting, convergence, deploys, leaks, linear, oracle, watch};
use crate::faults::{Active, Fault};
use crate::workload::api::Door;
use crate::workload::ledger::{BackendLedger, ClientLedger, LogReader};
use crate::workload::{history, load, registry};
use crate::world::{Node, ORIGIN, World, until};

/// What the HTTP clients ask.
const SERVICE: &str = "web";
/// What the registry's clients put is like this one, which rests.
const LIKE: &str = "like";
/// Requests a second: what three nodes of a debug build serve on two cores with room for the faults.
const RATE: f64 = 60.0;
/// An instance answers so late, so that requests overlap with faults.
const PATH: &str = "/do?delay=10ms";
/// The load before anything is broken.
const BEFORE: Duration = Duration::from_secs(2);
/// And after everything is healed: what a fault leaves behind shows then.
const AFTER: Duration = Duration::from_secs(5);
/// Nodes on one machine agree by then, whatever was broken before.
const AGREEING: Duration = Duration::from_mins(1);
/// For instances to end and what they had to be taken down.
const TIDYING: Duration = Duration::from_secs(90);
/// For the search of an order in the registry's history.
const DECIDING: Duration = Duration::from_mins(1);
/// The loads end by themselves when a run hangs.
const LONGEST: Duration = Duration::from_hours(3);

/// See the module.
pub struct Stage {
    pub world: World,
    before: leaks::Footprint,
    loads: Option<Loads>,
    excuses: Excuses,
}

struct Loads {
    began: Instant,
    requests: load::Load,
    registry: registry::Load,
    logs: LogReader,
}

/// What a run showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Lines for people: counts and times.
    pub told: Vec<String>,
    /// What must not be. A run without any has passed.
    pub findings: Vec<String>,
}

impl Stage {
    /// A cluster of these nodes, all with the test image.
    pub fn of(names: &[&str]) -> Result<Self> {
        Self::on(World::of(names)?)
    }

    /// The same in a world made otherwise.
    pub fn on(world: World) -> Result<Self> {
        for node in world.nodes() {
            node.cli(&["image", "pull", &world.image("box")])?.ok()?;
        }
        let before = leaks::at_rest(&world, TIDYING)?;
        world
            .deploy(
                SERVICE,
                &["--scale", "0..6", "--cpu", "0.1", "--target", "20"],
            )?
            .ok()?;
        world
            .deploy(
                LIKE,
                &["--scale", "0..1", "--cpu", "0.1", "--pull", "never"],
            )?
            .ok()?;
        Ok(Self {
            world,
            before,
            loads: None,
            excuses: Excuses::default(),
        })
    }

    /// Starts the loads, with `seed` for what they draw.
    pub fn begin(&mut self, seed: u64) -> Result<()> {
        let doors: Vec<_> = self.world.nodes().iter().map(Node::door).collect();
        self.excuses.doors = self.world.nodes().iter().map(|n| n.name.clone()).collect();
        let config = load::Config::new(&format!("{SERVICE}.{ORIGIN}"), &doors)
            .rate(RATE)
            .path(PATH)
            .posts(0.2)
            .poisson(seed);
        let dir = self.world.dir().join("histories");
        std::fs::create_dir_all(&dir)?;
        let plan = registry::Plan {
            seed,
            clients: 4,
            keys: 3,
            watchers: 2,
            pace: Duration::from_millis(150),
            lasting: LONGEST,
            like: LIKE.to_owned(),
            dir,
        };
        let nodes = self.world.nodes().iter().map(Door::of);
        self.loads = Some(Loads {
            began: Instant::now(),
            registry: registry::start(plan, nodes.collect()),
            requests: load::Load::start(config)?,
            logs: LogReader::of(&self.world),
        });
        std::thread::sleep(BEFORE); // The load before anything is broken.
        Ok(())
    }

    /// Lets a fault hold for so long while the loads go on.
    pub fn during(&mut self, fault: &Fault, span: Duration) -> Result<()> {
        self.together(std::slice::from_ref(fault), span)
    }

    /// The same with several at once. All are healed, also when one of them does not hold.
    pub fn together(&mut self, faults: &[Fault], span: Duration) -> Result<()> {
        let from = self.since_begin();
        let mut active = Vec::new();
        let injected = faults
            .iter()
            .filter(|f| f.finds_something(&self.world))
            .try_for_each(|f| {
                active.push(f.inject(&self.world)?);
                Ok(())
            });
        let held = match injected {
            Ok(()) => {
                std::thread::sleep(span); // The faults' time.
                Ok(())
            }
            // What was set and not seen to hold has nobody to undo it.
            Err(error) => self.world.wire().reset().and(Err(error)),
        };
        let healed: Vec<_> = active
            .into_iter()
            .rev()
            .map(|a| self.heal(a, from))
            .collect();
        healed.into_iter().fold(held, Result::and)
    }

    /// Since the loads began.
    pub fn since_begin(&self) -> Duration {
        let began = self.loads.as_ref().map(|loads| loads.began);
        began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Ends a fault that began at `from`.
    pub fn heal(&mut self, active: Active, from: Duration) -> Result<()> {
        let fault = active.fault().clone();
        let healed = active.heal(&self.world);
        self.broke(fault, from);
        healed
    }

    /// Notes that the loads met this fault from then until now.
    pub fn broke(&mut self, fault: Fault, from: Duration) {
        let until = self.since_begin();
        self.excuses.outages.push(Outage { fault, from, until });
    }

    /// Reads what instances wrote down so far; nodes keep the logs of few that are gone.
    pub fn read_logs(&mut self) -> Result<()> {
        match &mut self.loads {
            Some(loads) => loads.logs.read().map(drop),
            None => Ok(()),
        }
    }

    /// Waits until all nodes have caught up while the loads go on; returns how long that took.
    pub fn caught_up(&self) -> Result<Duration> {
        convergence::caught_up(&self.world, AGREEING)
    }

    /// Ends the loads and asks every checker.
    pub fn end(mut self) -> Result<Report> {
        let mut report = Report::default();
        std::thread::sleep(AFTER); // The load after everything is healed.
        self.read_logs()?;
        let loads = self.loads.take().context("the stage has not begun")?;
        loads.registry.stop();
        let requests = loads.requests.stop()?;
        let registry = loads.registry.finish()?;
        match convergence::converged(&self.world, AGREEING) {
            Ok(took) => report
                .told
                .push(format!("the nodes agreed after {took:.1?}")),
            Err(error) => report.findings.push(format!("convergence: {error:#}")),
        }
        let mut logs = loads.logs;
        self.requests(&requests, logs.read_all(&requests)?, &mut report);
        judge_registry(&registry, &self.world, &mut report);
        self.nothing_left(&registry, &mut report)?;
        if report.findings.is_empty() {
            self.world.hush();
        }
        Ok(report)
    }

    fn requests(&self, book: &ClientLedger, served: &BackendLedger, report: &mut Report) {
        report.told.push(book.summary());
        let lost = self.excuses.outages.iter().any(|o| o.fault.loses_logs());
        let rules = accounting::Rules {
            whole_logs: !lost,
            ..accounting::Rules::broken(SERVICE)
        };
        let findings = accounting::check(book, served, &rules);
        report.find("requests", findings);
        let mut excused = 0;
        for failure in &book.failures {
            match self.excuses.of(failure) {
                Some(_) => excused += 1,
                None => report.findings.push(format!("requests: {failure:?}")),
            }
        }
        report.told.push(format!(
            "{excused} failures are explained by what was broken"
        ));
    }

    /// Deletes everything and waits until nothing of it is left.
    fn nothing_left(&self, registry: &registry::Run, report: &mut Report) -> Result<()> {
        let keys = registry.last.keys.keys().map(String::as_str);
        for service in keys.chain([SERVICE, LIKE]) {
            let service = service.rsplit('/').next().unwrap_or(service);
            self.world.first().cli(&["-y", "delete", service])?.ok()?;
        }
        let gone = until("no instance is left", TIDYING, || {
            for node in self.world.nodes() {
                let left = node.instance_folders()?;
                ensure!(left.is_empty(), "{} has {left:?}", node.name);
            }
            Ok(Some(()))
        });
        let nothing = gone.and_then(|()| leaks::nothing_more(&self.world, &self.before, TIDYING));
        report.find("leaks", nothing.err().map(|error| format!("{error:#}")));
        Ok(())
    }
}

fn judge_registry(run: &registry::Run, world: &World, report: &mut Report) {
    report
        .told
        .push(format!("registry: {:?}", run.history.counts()));
    match linear::check(&run.history, DECIDING) {
        linear::Verdict::Linearizable => {}
        linear::Verdict::Violation(why) => report.find("linearizability", why),
        linear::Verdict::Unknown(why) => report.find("linearizability not decided", why),
    }
    let restarts = restarts(world);
    report.find(
        "registry",
        oracle::check(&run.history, &run.last, &restarts),
    );
    report.find("deploys", deploys::check(&run.history, &run.last));
    for notes in &run.watches {
        report.find("watch", watch::check(notes, &run.history, &run.last));
    }
}

/// In the histories' time.
fn restarts(world: &World) -> Vec<oracle::Restart> {
    let ago = |at: Instant| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let of = |node: &Node| {
        let name = node.name.clone();
        let starts = node.starts().into_iter();
        starts.map(move |at| oracle::Restart {
            node: name.clone(),
            at: history::now().saturating_sub(ago(at)),
        })
    };
    world.nodes().iter().flat_map(of).collect()
}

impl Report {
    fn find(&mut self, what: &str, findings: impl IntoIterator<Item = String>) {
        let findings = findings.into_iter().map(|f| format!("{what}: {f}"));
        self.findings.extend(findings);
    }

    /// Itself when nothing was found.
    pub fn passed(self) -> Result<Self> {
        ensure!(self.findings.is_empty(), "{self}");
        Ok(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.told {
            writeln!(f, "  {line}")?;
        }
        for finding in &self.findings {
            writeln!(f, "! {finding}")?;
        }
        Ok(())
    }
}
