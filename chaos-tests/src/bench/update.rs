//! `pull-update`: a node that holds an image of 150 MB gets its next version from a node beside it.
//! In one case every hundredth file was given other content, all of it; in the other the packages
//! are those with the security updates since the release's last point. Skopeo copies the same from
//! the registry into a folder that has the first version: what it shares are whole layers. Counted
//! is what the network carried to the host, all protocols' own bytes included. Then our daemon is
//! started again, and reads the image anew before anything could start from it.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, MOVED, OURS, PULL, Reading, SHARE, VERIFY};
use super::race::{Contestant, race};
use super::{Plan, peers};
use crate::world::{Node, REGISTRY, Standard, World, change};

const NODES: [&str; 2] = ["par-1", "par-2"];
const CASES: [&str; 2] = ["one-in-100", "security"];
const ONE_IN: usize = 100;
const SKOPEO: peers::Peer = peers::Peer {
    program: "skopeo",
    package: "skopeo",
};

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("pull-update");
    let world = World::of(&NODES)?;
    let updates = updates(&world)?;
    for update in &updates {
        for image in [&update.old, &update.new] {
            world.first().cli(&["image", "pull", image])?.ok()?;
            // The other one has it too when it was elected to ask the registry for both.
            drop(world[NODES[1]].cli(&["-y", "image", "rm", image])?);
        }
    }
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![Box::new(Ours {
        world: &world,
        updates: &updates,
    })];
    match SKOPEO.fetch() {
        Ok(()) => contestants.push(Box::new(Skopeo {
            world: &world,
            updates: &updates,
        })),
        Err(error) => board.missing("skopeo", format!("{error:#}")),
    }
    race(&mut board, &CASES, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// Two versions of an image, in the registry.
struct Update {
    old: String,
    new: String,
    /// Of the new one, unpacked.
    bytes: u64,
}

/// One for each case.
fn updates(world: &World) -> Result<Vec<Update>> {
    let current = world.files(Standard::Debian)?;
    let first = world.pack(&current, "first")?;
    let changed = change(&current, ONE_IN)?;
    ensure!(changed > 10, "only {changed} files were changed");
    let second = world.pack(&current, "second")?;
    let before = world.files(Standard::DebianBefore)?;
    let before = world.pack(&before, "before")?;
    let mut updates = Vec::new();
    for (case, old, new) in [(CASES[0], &first, &second), (CASES[1], &before, &first)] {
        let push = |version: &str, layer: &PathBuf| -> Result<String> {
            let name = format!("{case}-{version}");
            world.push(&name, std::slice::from_ref(layer))?;
            Ok(world.image(&name))
        };
        updates.push(Update {
            old: push("old", old)?,
            new: push("new", new)?,
            bytes: fs::metadata(new)?.len(),
        });
    }
    Ok(updates)
}

fn of<'a>(updates: &'a [Update], case: &str) -> Result<&'a Update> {
    let number = CASES.iter().position(|known| *known == case);
    let update = number.and_then(|number| updates.get(number));
    update.with_context(|| format!("no case {case}"))
}

/// Runs `work` and says how long it took and what came to the second node meanwhile.
fn measured(
    world: &World,
    update: &Update,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Reading>> {
    let to = NODES[1];
    let came = || -> Result<u64> {
        let stats = world.wire().stats()?;
        let from = [NODES[0], REGISTRY];
        let counts = from.map(|from| stats.of(from, to).map(|counts| counts.delivered_bytes));
        counts.into_iter().sum()
    };
    let before = came()?;
    let began = Instant::now();
    work()?;
    let took = began.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "bytes of one image")]
    let [moved, all] = [came()? - before, update.bytes].map(|bytes| bytes as f64);
    Ok(vec![
        PULL.of(took.as_secs_f64() * 1e3),
        MOVED.of(moved / 1e6),
        SHARE.of(100.0 * moved / all),
    ])
}

struct Ours<'a> {
    world: &'a World,
    updates: &'a [Update],
}

impl Ours<'_> {
    fn node(&self) -> &Node {
        &self.world[NODES[1]]
    }
}

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let update = of(self.updates, case)?;
        let pull = |image: &str| self.node().cli(&["image", "pull", image])?.ok().map(drop);
        pull(&update.old)?;
        // Nobody waits for what another left to be written.
        rustix::fs::sync();
        let mut readings = measured(self.world, update, || pull(&update.new))?;
        self.node().stop()?;
        self.node().start()?;
        let began = Instant::now();
        pull(&update.new)?;
        readings.push(VERIFY.of(began.elapsed().as_secs_f64() * 1e3));
        for image in [&update.new, &update.old] {
            self.node().cli(&["-y", "image", "rm", image])?.ok()?;
        }
        Ok(readings)
    }
}

struct Skopeo<'a> {
    world: &'a World,
    updates: &'a [Update],
}

impl Contestant for Skopeo<'_> {
    fn name(&self) -> &'static str {
        "skopeo"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let update = of(self.updates, case)?;
        let folder = self.world.dir().join("skopeo");
        let copy = |image: &str, tag: &str| {
            let from = format!("docker://{image}");
            let to = format!("oci:{}:{tag}", folder.display());
            let words = ["--insecure-policy", "copy", "--quiet"];
            let more = ["--src-tls-verify=false", &from, &to];
            let node = &self.world[NODES[1]];
            node.run("skopeo", &[&words[..], &more].concat())?
                .ok()
                .map(drop)
        };
        copy(&update.old, "old")?;
        rustix::fs::sync();
        let readings = measured(self.world, update, || copy(&update.new, "new"))?;
        fs::remove_dir_all(&folder)?;
        Ok(readings)
    }
}
