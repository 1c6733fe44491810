//! `pull-fleet`: twenty nodes of one site, fast links between them and one thin link to the registry
//! for all, are asked for an image in the same moment: what the thin link carries. In one case the
//! image is new to them all; in the other all hold the version before it. Skopeo on every host is
//! what a fleet does whose nodes know nothing of each other. Counted are whole frames, what the
//! protocols add included; the share is of the image's own packed bytes, each once.

use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, MOVED, OURS, PACKED_SHARE, PULL, Reading};
use super::race::{Contestant, race};
use super::{Plan, peers};
use crate::world::{self, Node, REGISTRY, World, change, noise};

const NODES: usize = 20;
const CASES: [&str; 2] = ["new", "next-version"];
/// An image small enough that twenty copies of it pass the thin link in about a minute.
const FILES: u64 = 80;
const SIZE: u64 = 100_000;
/// Of every so many files of the next version one is another.
const ONE_IN: usize = 40;
/// What leaves the registry, for all nodes together; the queue is a home router's.
const UPLINK: &str = "tbf rate 20mbit burst 64kb latency 400ms";

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("pull-fleet");
    let names: Vec<String> = (1..=NODES).map(|n| format!("par-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = World::of(&names)?;
    let (old, new) = versions(&world)?;
    let host = world.registry_host();
    let shape = format!("qdisc add dev eth0 root {UPLINK}");
    let words = ["netns", "exec", &host, "tc"].into_iter();
    world::run("ip", words.chain(shape.split(' ')))?.ok()?;
    let site = Site {
        world: &world,
        old,
        new,
    };
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![Box::new(Ours(&site))];
    match peers::SKOPEO.fetch() {
        Ok(()) => contestants.push(Box::new(Skopeo(&site))),
        Err(error) => board.missing("skopeo", format!("{error:#}")),
    }
    race(&mut board, &CASES, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// Two versions of one image, each of a layer of files that do not pack.
fn versions(world: &World) -> Result<(String, String)> {
    let root = world.dir().join("app");
    fs::create_dir(&root)?;
    for file in 0..FILES {
        noise(&root.join(format!("f{file:03}")), SIZE, 1000 + file)?;
    }
    world.push("old", &[world.pack(&root, "old")?])?;
    ensure!(change(&root, ONE_IN)? > 0, "nothing was changed");
    world.push("next", &[world.pack(&root, "next")?])?;
    Ok((world.image("old"), world.image("next")))
}

struct Site<'a> {
    world: &'a World,
    old: String,
    new: String,
}

impl Site<'_> {
    /// All nodes do it at once; what the thin link carried, of the packed bytes of `image`.
    fn measured(
        &self,
        image: &str,
        work: impl Fn(&Node) -> Result<()> + Sync,
    ) -> Result<Vec<Reading>> {
        let before = self.carried()?;
        let began = Instant::now();
        self.everywhere(work)?;
        let took = began.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "bytes of one image")]
        let [moved, unique] =
            [self.carried()? - before, Self::packed(image)?].map(|bytes| bytes as f64);
        Ok(vec![
            PULL.of(took.as_secs_f64() * 1e3),
            MOVED.of(moved / 1e6),
            PACKED_SHARE.of(100.0 * moved / unique),
        ])
    }

    fn everywhere(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        let work = &work;
        thread::scope(|scope| {
            let nodes = self.world.nodes().iter();
            let running: Vec<_> = nodes.map(|n| scope.spawn(move || work(n))).collect();
            running.into_iter().try_for_each(|one| {
                let ended = one.join().ok().context("a thread of the bench panicked")?;
                ended.map(drop)
            })
        })
    }

    /// Bytes that came from the registry to any node so far.
    fn carried(&self) -> Result<u64> {
        let stats = self.world.wire().stats()?;
        let nodes = self.world.nodes().iter();
        let each = nodes.map(|node| Ok(stats.of(REGISTRY, &node.name)?.delivered_bytes));
        each.sum()
    }

    /// The manifest's bytes and those of all that it names.
    fn packed(image: &str) -> Result<u64> {
        let source = format!("docker://{image}");
        let words = ["inspect", "--raw", "--tls-verify=false", &source];
        let raw = world::run("skopeo", words)?.ok()?.out;
        let manifest: serde_json::Value = serde_json::from_str(&raw)?;
        let layers = manifest["layers"].as_array().context("layers")?;
        let parts = layers.iter().chain([&manifest["config"]]);
        let sizes = parts.map(|part| part["size"].as_u64().context("a size"));
        let named: u64 = sizes.sum::<Result<u64>>()?;
        Ok(named + raw.len() as u64)
    }

    /// The image that a case is about, and what is held before it.
    fn images(&self, case: &str) -> (&str, Option<&str>) {
        match case {
            "new" => (&self.old, None),
            _ => (&self.new, Some(&self.old)),
        }
    }
}

struct Ours<'a>(&'a Site<'a>);

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let (image, held) = self.0.images(case);
        let pull = |node: &Node, image: &str| node.cli(&["image", "pull", image])?.ok().map(drop);
        if let Some(held) = held {
            self.0.everywhere(|node| pull(node, held))?;
        }
        let readings = self.0.measured(image, |node| pull(node, image))?;
        self.0.everywhere(|node| {
            for image in [Some(image), held].into_iter().flatten() {
                node.cli(&["-y", "image", "rm", image])?.ok()?;
            }
            Ok(())
        })?;
        Ok(readings)
    }
}

struct Skopeo<'a>(&'a Site<'a>);

impl Contestant for Skopeo<'_> {
    fn name(&self) -> &'static str {
        "skopeo"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let (image, held) = self.0.images(case);
        let folder = |node: &Node| self.0.world.dir().join(format!("skopeo-{}", node.name));
        let copy = |node: &Node, image: &str, tag: &str| {
            let from = format!("docker://{image}");
            let to = format!("oci:{}:{tag}", folder(node).display());
            let words = ["--insecure-policy", "copy", "--quiet"];
            let more = ["--src-tls-verify=false", &from, &to];
            let words = [&words[..], &more].concat();
            node.run("skopeo", &words)?.ok().map(drop)
        };
        if let Some(held) = held {
            // Not over the thin link: whoever holds it got it another day.
            let from = format!("docker://{held}");
            let first = folder(self.0.world.first());
            let to = format!("oci:{}:held", first.display());
            let words = [
                "--insecure-policy",
                "copy",
                "--quiet",
                "--src-tls-verify=false",
            ];
            world::run("skopeo", words.into_iter().chain([from.as_str(), &to]))?.ok()?;
            for node in &self.0.world.nodes()[1..] {
                let to = folder(node);
                world::run("cp", ["-r".as_ref(), first.as_os_str(), to.as_os_str()])?.ok()?;
            }
        }
        let readings = self.0.measured(image, |node| copy(node, image, "new"))?;
        for node in self.0.world.nodes() {
            fs::remove_dir_all(folder(node))?;
        }
        Ok(readings)
    }
}
