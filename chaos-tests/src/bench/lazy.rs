//! `lazy`: from a request to the first byte of its answer on a node that has nothing of the image,
//! which another node of the cluster holds; the program reads a part of the image before it serves.
//! An instance that starts while the image arrives against one that waits for all of it. No registry
//! is asked, and both nodes are asked through their own front door.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, OURS, Reading, TTFB};
use super::client::first_byte;
use super::race::{Contestant, race};
use super::{Plan, yard};
use crate::world::{Node, ORIGIN, PATIENCE, World, until};

/// It holds the images.
const HOLDER: &str = "par-1";
/// Each in a region of its own, so that a service can be told where to run.
const LAZY: &str = "fra-1";
const EAGER: &str = "lis-1";
/// Every so many files, one is read at the start: 5 % of the image.
const READ_EVERY: usize = 20;
const READS: &str = "/data/read-*";

/// An image beside the program and what that needs, which are another 17 MB.
struct Case {
    name: &'static str,
    image: &'static str,
    files: usize,
    /// Bytes of each.
    file: u64,
}

const fn case(name: &'static str, image: &'static str, files: usize, file: u64) -> Case {
    Case {
        name,
        image,
        files,
        file,
    }
}

/// The smaller ones show from which size on it is worth it: see `LINE` in `node::image::lazy`.
const CASES: [Case; 5] = [
    case("500MB-5%", "of500", 200, 2_500_000),
    case("250MB-5%", "of250", 100, 2_500_000),
    case("80MB-5%", "of80", 40, 2_000_000),
    case("20MB-5%", "of20", 40, 500_000),
    case("5MB-5%", "of5", 40, 125_000),
];

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("lazy");
    let world = World::of(&[HOLDER, LAZY, EAGER])?;
    for (node, lazy) in [(LAZY, "on"), (EAGER, "off")] {
        let node = &world[node];
        node.configure_runtime(&format!("image_lazy = \"{lazy}\"\nparked = 0"))?;
        node.stop()?;
        node.start()?;
    }
    world.settle()?;
    let names = plan.chosen(&CASES.map(|case| case.name));
    let cases = || CASES.iter().filter(|case| names.contains(&case.name));
    for case in cases() {
        let layer = layer(&world, case)?;
        world.push(case.image, &[layer])?;
        let image = world.image(case.image);
        world[HOLDER].cli(&["image", "pull", &image])?.ok()?;
    }
    world.stop_registry()?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = Vec::new();
    for (name, node) in [(OURS, LAZY), ("eager", EAGER)] {
        let node = &world[node];
        let starter = Starter {
            name,
            world: &world,
            node,
        };
        for case in cases() {
            starter.deploy(case)?;
        }
        contestants.push(Box::new(starter));
    }
    race(&mut board, &names, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// A layer of files whose bytes neither pack nor repeat.
fn layer(world: &World, case: &Case) -> Result<PathBuf> {
    let path = world.dir().join(format!("{}.tar", case.image));
    let root = world.dir().join(case.image);
    let data = root.join("data");
    fs::create_dir_all(&data)?;
    let mut noise = File::open("/dev/urandom")?;
    for number in 0..case.files {
        let word = if number % READ_EVERY == 0 {
            "read"
        } else {
            "rest"
        };
        let mut bytes = Vec::new();
        noise.by_ref().take(case.file).read_to_end(&mut bytes)?;
        fs::write(data.join(format!("{word}-{number}")), bytes)?;
    }
    let args = [
        "-cf".into(),
        path.clone(),
        "-C".into(),
        root.clone(),
        "data".into(),
    ];
    crate::world::run("tar", args)?.ok()?;
    fs::remove_dir_all(root)?;
    Ok(path)
}

/// A node that is asked for a service whose image it has to get.
struct Starter<'a> {
    name: &'static str,
    world: &'a World,
    node: &'a Node,
}

impl Starter<'_> {
    fn service(&self, case: &Case) -> String {
        format!("{}-{}", self.name, case.image)
    }

    fn deploy(&self, case: &Case) -> Result<()> {
        let (region, _) = self.node.name.split_once('-').context("no region")?;
        let script = format!("cat {READS} >/dev/null && exec /bin/box");
        let words = ["--cmd", "/bin/sh", "--cmd", "-c", "--cmd", &script];
        let rest = ["--scale", "0..1", "--pull", "never", "--region", region];
        let image = self.world.image(case.image);
        let all = [&rest[..], &words].concat();
        let holder = &self.world[HOLDER];
        holder.deploy(&self.service(case), &image, &all)?.ok()?;
        self.clear(case)
    }

    /// Nothing of the image is left on the node.
    fn clear(&self, case: &Case) -> Result<()> {
        self.world.rest(&self.service(case))?;
        let (image, coming) = (self.world.image(case.image), self.node.dir());
        until("the image has arrived and can go", PATIENCE, || {
            let arrives = fs::read_dir(coming.join("images/coming"))?.count() > 0;
            ensure!(!arrives && self.node.lazies().is_empty(), "it is in use");
            let held = self.node.cli(&["image", "ls"])?.ok()?.out;
            if held.contains(&format!("/{}:", case.image)) {
                self.node.cli(&["--yes", "image", "rm", &image])?.ok()?;
            }
            Ok(Some(()))
        })
    }
}

impl Contestant for Starter<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let case = CASES.iter().find(|known| known.name == case);
        let case = case.context("no such case")?;
        // Nobody waits for what another left to be written.
        rustix::fs::sync();
        let host = format!("{}.{ORIGIN}", self.service(case));
        let first = yard::on_host(&self.node.netns, || {
            first_byte(self.node.door(), &host, Instant::now())
        })?;
        // What still arrives must not be carried by the next one's turn.
        self.clear(case)?;
        Ok(vec![TTFB.of(first.took.as_secs_f64() * 1e3)])
    }
}
