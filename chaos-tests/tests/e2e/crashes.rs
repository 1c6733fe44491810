//! The daemon dies at every step of an instance's, an image's and a change's life, as by `kill -9`:
//! nothing that was acknowledged is lost, what ran goes on, and nothing is left behind.
//!
//! Steps inside a shim are the shim's own death, not the daemon's, and not here.

mod arrivals;
mod points;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::images;
use chaos_tests::checkers::leaks::{self, Footprint};
use chaos_tests::disk::Prefix;
use chaos_tests::workload::api::Door;
use chaos_tests::workload::history::Phase;
use chaos_tests::world::{Launch, Node, Outcome, PATIENCE, World, run, until};
use serde_json::Value;

use crate::SMALL;
use arrivals::DOOR;
use points::Step::{
    self, Arrive, Boot, Changes, Delete, Deploy, Equip, Idle, Import, Large, Pull, Push, Remove,
    Request, Resume, Share, Thaw, Unparked,
};
use points::{AWAITED, POINTS};

/// The service that runs all the time.
const KEPT: &str = "kept";
/// Names the file from which a daemon reads where it is to die.
const ORDER: &str = "SELVEDGE_DIE_AT";
const ONE: [&str; 4] = ["--scale", "1..1", "--cpu", "0.1"];
/// Where there are two nodes, one has the images and the daemon of the other dies.
const HOLDER: &str = "par-1";
const OTHER: &str = "fra-1";
const AT_OTHER: [&str; 4] = ["--region", "fra", "--pull", "never"];
/// So that a layer is read while it arrives.
const SLOWLY: &str = "image_peer_rate = \"24MiB\"";
/// From a provoked step to the death.
pub(crate) const DYING: Duration = Duration::from_secs(20);
/// More changes than there are between two snapshots.
const MANY: u64 = 3000;

/// What has to be so once the daemon runs again.
enum Promise {
    /// The service is there and answers.
    There,
    Gone,
    /// It is there, and its scale is the last that was acknowledged, or one more.
    Scaled(u64),
    /// The outcome was not told.
    Either,
}

/// One node with a service that runs, and the deaths of its daemon.
struct Crashes {
    world: World,
    node: Node,
    launch: Launch,
    order: PathBuf,
    before: Footprint,
    containers: Vec<u32>,
    /// Deaths so far.
    deaths: Cell<usize>,
}

/// A daemon that dies at the point named in a file, and that file.
pub(crate) fn ordered(world: &World) -> (Launch, PathBuf) {
    let order = world.dir().join("die-at");
    let env = vec![(ORDER.into(), order.clone().into_os_string())];
    let prefix = Prefix {
        env,
        ..Prefix::default()
    };
    let launch = Launch {
        prefix,
        ..Launch::default()
    };
    (launch, order)
}

impl Crashes {
    fn begin(steps: &[Step]) -> Result<Self> {
        // The other node is in another region: it has no part in the service.
        let shares = steps.contains(&Share);
        let world = World::of(if shares {
            &["par-1", "fra-1"]
        } else {
            &["par-1"]
        })?;
        let node = world.first().clone();
        if steps.contains(&Push) {
            node.configure(&format!("[images]\nlisten = \"{DOOR}\"\n"))?;
            world.settle()?;
        }
        world
            .deploy(KEPT, &[&ONE[..], &["--region", "par"]].concat())?
            .ok()?;
        Self::of(world, node)
    }

    /// A node that starts what another one has while it arrives.
    fn begin_arriving() -> Result<Self> {
        let world = World::of(&[HOLDER, OTHER])?;
        let lazily = "image_lazy = \"on\"\nparked = 0";
        for (name, line) in [(HOLDER, SLOWLY), (OTHER, lazily)] {
            let node = &world[name];
            node.configure_runtime(line)?;
            node.stop()?;
            node.start()?;
        }
        world.settle()?;
        let node = world[OTHER].clone();
        world
            .deploy(KEPT, &[&ONE[..], &AT_OTHER[..2]].concat())?
            .ok()?;
        Self::of(world, node)
    }

    fn of(world: World, node: Node) -> Result<Self> {
        let (launch, order) = ordered(&world);
        node.kill()?;
        node.start_with(&launch)?;
        world.settle()?;
        node.get(KEPT, "/")?.ok()?;
        let before = leaks::at_rest(&world, PATIENCE)?;
        let containers = node.containers();
        Ok(Self {
            world,
            node,
            launch,
            order,
            before,
            containers,
            deaths: Cell::default(),
        })
    }

    /// Dies at every point that these steps lead to.
    fn all(&self, steps: &[Step]) -> Result<()> {
        let points = POINTS.iter().chain(&AWAITED);
        for (point, step) in points.filter(|(_, step)| steps.contains(step)) {
            let began = Instant::now();
            let done = self.at(point, *step);
            eprintln!("{point} ({step:?}): {:?}", began.elapsed());
            done.with_context(|| format!("a death at {point}"))?;
        }
        Ok(())
    }

    /// One death, a new start, and what has to be so then.
    fn at(&self, point: &str, step: Step) -> Result<()> {
        let name = format!("crash-{}", self.deaths.get());
        self.deaths.set(self.deaths.get() + 1);
        let prepared = self.prepare(step, &name)?;
        fs::write(&self.order, point)?;
        let promise = self.provoke(step, &name, &prepared)?;
        self.died_at(point)?;
        fs::remove_file(&self.order)?;
        self.node.start_with(&self.launch)?;
        self.world.settle()?;
        if step == Arrive {
            // The next try may be an ordinary pull, which takes longer than a request waits.
            until("it serves", PATIENCE, || self.serves(&name).map(Some))?;
            self.has_arrived()?;
        }
        self.holds(&name, &promise)?;
        self.images_are_whole()?;
        if let Pull | Large | Resume | Share | Import | Push | Remove = step {
            self.fetch(step, &name, &prepared)?.ok()?;
            self.images_are_whole()?;
            images::nothing_partial(&self.node.dir().join("images"))?;
        }
        self.nothing_is_left(&name)
    }

    /// What has to be there before the step; for images, where the image is.
    fn prepare(&self, step: Step, name: &str) -> Result<String> {
        match step {
            Request | Unparked => {
                self.world.deploy(name, &SMALL)?.ok()?;
                self.world.rest(name)?;
                if step == Unparked {
                    // What was parked does not outlive the daemon.
                    self.node.kill()?;
                    self.node.start_with(&self.launch)?;
                    self.world.settle()?;
                } else {
                    self.is(name, "Parked")?;
                }
                Ok(String::new())
            }
            Delete | Idle | Thaw => {
                self.world.deploy(name, &ONE)?.ok()?;
                self.node.get(name, "/")?.ok()?;
                if step == Thaw {
                    self.is(name, "Frozen")?;
                }
                Ok(String::new())
            }
            Arrive | Pull | Large | Resume | Share | Push | Remove => {
                self.prepare_image(step, name)
            }
            Import => {
                let file = self.world.archive("oci-archive", "")?;
                Ok(file.to_string_lossy().into_owned())
            }
            Changes => {
                self.world.deploy(name, &ONE)?.ok()?;
                Ok(String::new())
            }
            Equip => {
                self.node.cli(&["config", "set", "app", "a=1"])?.ok()?;
                Ok(format!("volume/{name}:/data"))
            }
            Deploy | Boot => Ok(String::new()),
        }
    }

    /// Waits until an instance of the service is in this state.
    fn is(&self, service: &str, state: &str) -> Result<()> {
        until(&format!("{service} is {state}"), PATIENCE, || {
            let all = self.node.read(&["get", "instances"])?;
            let all = all.as_array().context("instances are no list")?;
            let there = |i: &Value| i["service"] == service && i["state"] == state;
            Ok(all.iter().any(there).then_some(()))
        })
    }

    fn provoke(&self, step: Step, name: &str, prepared: &str) -> Result<Promise> {
        let now = ["--no-wait"];
        let acked = |said: Outcome, then| match said.code {
            0 => then,
            _ => Promise::Either,
        };
        Ok(match step {
            Deploy => acked(
                self.world.deploy(name, &[&ONE[..], &now].concat())?,
                Promise::There,
            ),
            Arrive => {
                let flags = [&ONE[..], &now, &AT_OTHER].concat();
                let said = self.world[HOLDER].deploy(name, prepared, &flags)?;
                acked(said, Promise::There)
            }
            Idle => Promise::There,
            Equip => {
                let own = [
                    "--mount",
                    "config/app:/app",
                    "--mount",
                    "memory=1Mi:/scratch",
                ];
                let local = ["--mount", prepared];
                let flags = [&ONE[..], &now, &own, &local].concat();
                acked(self.world.deploy(name, &flags)?, Promise::There)
            }
            Request | Unparked | Thaw => {
                let answered = self.node.get(name, "/");
                ensure!(answered.is_err(), "the request was answered: {answered:?}");
                Promise::There
            }
            Delete => acked(
                self.node.cli(&["delete", name, "--no-wait", "--yes"])?,
                Promise::Gone,
            ),
            Pull | Large | Resume | Share | Import | Push => {
                self.fetch(step, name, prepared)?;
                Promise::Gone
            }
            Remove => {
                self.node.cli(&["-y", "image", "rm", prepared])?;
                Promise::Gone
            }
            Boot => {
                self.node.kill()?;
                self.node.launch(&self.launch)?;
                Promise::Gone
            }
            Changes => Promise::Scaled(self.change_until_it_dies(name)?),
        })
    }

    /// Raises a service's scale by one again and again; the last that was acknowledged.
    fn change_until_it_dies(&self, name: &str) -> Result<u64> {
        let door = Door::of(&self.node);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            for max in 1..=MANY {
                if door.scale(name, max).await.phase != Phase::Ok {
                    return Ok(max - 1);
                }
            }
            anyhow::bail!("{MANY} changes, and the daemon lives")
        })
    }

    fn died_at(&self, point: &str) -> Result<()> {
        let log = self.node.dir().join("log/selvedged.log");
        until("the daemon to die", DYING, || {
            let log = fs::read_to_string(&log)?;
            let said = log.lines().filter(|line| line.contains("dies at"));
            let deaths: Vec<_> = said.collect();
            let here = deaths.last().is_some_and(|line| line.ends_with(point));
            Ok((deaths.len() == self.deaths.get() && here).then_some(()))
        })?;
        self.node.is_gone(DYING)
    }

    /// What was acknowledged is so, and what ran before runs on.
    fn holds(&self, name: &str, promise: &Promise) -> Result<()> {
        self.serves(KEPT)?;
        let now = self.node.containers();
        let lost: Vec<_> = self
            .containers
            .iter()
            .filter(|c| !now.contains(c))
            .collect();
        ensure!(lost.is_empty(), "processes of {KEPT} are gone: {lost:?}");
        match promise {
            Promise::There => self.serves(name),
            Promise::Gone => {
                ensure!(!self.knows(name)?, "{name} is there again");
                Ok(())
            }
            Promise::Scaled(acked) => {
                let found = self.node.read(&["get", "services", name])?;
                let max = found
                    .pointer("/0/service/scale/max")
                    .or(found.pointer("/service/scale/max"));
                let max = max
                    .and_then(Value::as_u64)
                    .with_context(|| format!("no scale: {found}"))?;
                ensure!(
                    max == *acked || max == acked + 1,
                    "{acked} was acknowledged, it is {max}"
                );
                self.serves(name)
            }
            // A change is made whole or not at all.
            Promise::Either if self.knows(name)? => self.serves(name),
            Promise::Either => Ok(()),
        }
    }

    fn serves(&self, service: &str) -> Result<()> {
        self.node.get(service, "/")?.ok()?.says("box").map(drop)
    }

    fn knows(&self, service: &str) -> Result<bool> {
        let services = self.node.read(&["get", "services"])?;
        Ok(services.to_string().contains(&format!("\"{service}\"")))
    }

    fn nothing_is_left(&self, name: &str) -> Result<()> {
        if self.knows(name)? {
            self.node
                .cli(&["delete", name, "--no-wait", "--yes"])?
                .ok()?;
        }
        leaks::nothing_more(&self.world, &self.before, PATIENCE)
    }
}

fn dies_at(steps: &[Step]) -> Result<()> {
    let mut crashes = Crashes::begin(steps)?;
    crashes.all(steps)?;
    crashes.world.hush();
    Ok(())
}

#[test]
fn the_daemon_dies_while_an_image_arrives_that_is_read() -> Result<()> {
    let mut crashes = Crashes::begin_arriving()?;
    crashes.all(&[Arrive])?;
    crashes.world.hush();
    Ok(())
}

#[test]
fn the_daemon_dies_while_volumes_are_made() -> Result<()> {
    dies_at(&[Equip])
}

/// The list here is the daemon's: no step is left out.
#[test]
fn every_point_of_the_daemon_is_died_at() -> Result<()> {
    let world = World::empty()?;
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2);
    let daemon = beside.map(|dir| dir.join("selvedged")).find(|p| p.exists());
    let daemon = daemon.context("no selvedged")?;
    let said = run(&daemon.to_string_lossy(), ["--failpoints"])?.ok()?;
    let there: BTreeSet<_> = said
        .out
        .lines()
        .filter_map(|l| l.split('\t').next())
        .collect();
    let here: BTreeSet<_> = POINTS.iter().map(|(point, _)| *point).collect();
    drop(world);
    ensure!(there == here, "{:?}", there.symmetric_difference(&here));
    Ok(())
}

#[test]
fn the_daemon_dies_while_an_instance_starts() -> Result<()> {
    dies_at(&[Deploy, Request, Unparked])
}

#[test]
fn the_daemon_dies_while_an_instance_is_held_still() -> Result<()> {
    dies_at(&[Idle, Thaw])
}

#[test]
fn the_daemon_dies_while_an_instance_ends() -> Result<()> {
    dies_at(&[Delete])
}

#[test]
fn the_daemon_dies_over_images_at_boot_and_over_snapshots() -> Result<()> {
    dies_at(&[Pull, Import, Boot, Changes])
}

#[test]
fn the_daemon_dies_while_images_are_pushed_to_it_and_removed() -> Result<()> {
    dies_at(&[Push, Remove])
}

#[test]
fn the_daemon_dies_while_an_image_comes_piece_by_piece() -> Result<()> {
    dies_at(&[Large, Resume, Share])
}
