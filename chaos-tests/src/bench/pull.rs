//! `pull`: 150 MB of Debian's files from a registry on the same host into a store with nothing in it,
//! until every file is unpacked and verified; against skopeo with umoci and podman, and against one
//! `gunzip` that writes the same bytes. Ours also has the digest of every 16 KiB when it ends, and
//! where there is a disk, all of it there.
//!
//! Everybody gets a file system in memory, new each time. On a disk whose files were deleted a
//! moment ago ext4 spends more on inodes than all else costs (it leaves recently deleted ones
//! alone and looks for others one by one), so that whoever comes after another pays for it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, CPU, OURS, PULL, Reading};
use super::group::{self, Group};
use super::race::{Contestant, race};
use super::{Plan, peers, yard};
use crate::world::{self, Standard, World};

const CASES: [&str; 2] = ["one-layer", "four-layers"];
/// What is unpacked weighs at least so much, or it was not all unpacked.
const LEAST: u64 = 100 << 20;

/// Copies, unpacks. The layout is what `umoci` reads.
const SKOPEO: &str = r#"
    set -e
    skopeo --insecure-policy copy --quiet --src-tls-verify=false "docker://$2" "oci:$1/layout:x"
    umoci unpack --image "$1/layout:x" "$1/bundle"
"#;
const PODMAN: &str = r#"
    exec podman --root "$1/root" --runroot "$1/run" --storage-driver overlay \
        pull --quiet --tls-verify=false "$2"
"#;
/// The layers' files come after the folder.
const FLOOR: &str = r#"
    set -e
    out=$1; shift
    for layer; do gunzip -c <"$layer" >"$out/${layer##*/}"; done
"#;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("pull");
    let world = World::empty()?;
    let images = [Standard::Debian, Standard::DebianInParts];
    let images: Result<Vec<_>> = images.iter().map(|image| world.standard(*image)).collect();
    let images = images?;
    let fetch = plan.programs.join("fetch");
    let hint = "build it: cargo build --release -p chaos-tests --bin fetch";
    ensure!(fetch.exists(), "no {}; {hint}", fetch.display());
    let fetch = fetch.to_string_lossy().into_owned();

    let systems = |name, words: &[&str]| Puller::new(&world, &images, name, words);
    let shell = |name, script| systems(name, &["sh", "-c", script, "sh"]);
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![
        Box::new(systems(OURS, &[&fetch])?),
        Box::new(floor(shell("gunzip", FLOOR)?, &images)?),
    ];
    let others = [
        ("skopeo+umoci", SKOPEO, &[peers::SKOPEO, peers::UMOCI][..]),
        ("podman", PODMAN, &[peers::PODMAN]),
    ];
    for (name, script, programs) in others {
        match programs.iter().try_for_each(|program| program.fetch()) {
            Ok(()) => contestants.push(Box::new(shell(name, script)?)),
            Err(error) => board.missing(name, format!("{error:#}")),
        }
    }
    race(&mut board, &CASES, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// A program that is given a folder with nothing in it and what to put there.
struct Puller {
    name: &'static str,
    netns: String,
    group: Group,
    home: PathBuf,
    words: Vec<String>,
    /// By case.
    sources: Vec<Vec<String>>,
}

impl Puller {
    fn new(world: &World, images: &[String], name: &'static str, words: &[&str]) -> Result<Self> {
        let home = world.dir().join(format!("pull-{name}"));
        fs::create_dir_all(&home)?;
        Ok(Self {
            name,
            netns: world.registry_host(),
            group: Group::of(world, &format!("bench-{name}"))?,
            home,
            words: words.iter().map(|&word| word.to_owned()).collect(),
            sources: images.iter().map(|image| vec![image.clone()]).collect(),
        })
    }

    fn pull(&self, source: &[String], folder: &Path) -> Result<(Duration, Duration)> {
        let folder = folder.to_string_lossy();
        let mut words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        words.push(&folder);
        words.extend(source.iter().map(String::as_str));
        let waiting = yard::waiting(&self.netns, &self.group, &self.home.join("log"), &words)?;
        let before = self.group.used()?;
        let began = Instant::now();
        let status = waiting.begin()?.wait()?;
        let took = began.elapsed();
        let log = || fs::read_to_string(self.home.join("log")).unwrap_or_default();
        ensure!(status.success(), "it ended with {status}\n{}", log());
        Ok((took, self.group.used()?.saturating_sub(before)))
    }
}

impl Contestant for Puller {
    fn name(&self) -> &'static str {
        self.name
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let number = CASES.iter().position(|known| *known == case);
        let source = number.and_then(|number| self.sources.get(number));
        let source = source.with_context(|| format!("no case {case}"))?;
        let folder = self.home.join("store");
        let memory = Memory::mount(&folder)?;
        let pulled = self.pull(source, &folder)?;
        let weighs = weight(&folder)?;
        drop(memory);
        ensure!(weighs >= LEAST, "only {weighs} bytes were unpacked");
        let (took, used) = pulled;
        Ok(vec![
            PULL.of(took.as_secs_f64() * 1e3),
            CPU.of(group::each(used, 1)),
        ])
    }
}

/// A file system in memory.
struct Memory<'a>(&'a Path);

impl<'a> Memory<'a> {
    fn mount(folder: &'a Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let place = [OsStr::new("pull"), folder.as_os_str()];
        let kind = ["-t", "tmpfs", "-o", "size=2g"].map(OsStr::new);
        world::run("mount", kind.into_iter().chain(place))?.ok()?;
        Ok(Self(folder))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // Nothing of it is used any more; the world unmounts what is left.
        if let Err(error) = world::run("umount", [self.0]).and_then(world::Outcome::ok) {
            eprintln!("{}: {error:#}", self.0.display());
        }
    }
}

/// Bytes below a folder.
fn weight(folder: &Path) -> Result<u64> {
    let said = world::run("du", ["-sb".as_ref(), folder.as_os_str()])?
        .ok()?
        .out;
    let number = said.split_whitespace().next().context("du says nothing")?;
    Ok(number.parse()?)
}

/// The floor reads the packed layers from the disk, where this puts them.
fn floor(mut floor: Puller, images: &[String]) -> Result<Puller> {
    for (number, image) in images.iter().enumerate() {
        let folder = floor.home.join(number.to_string());
        let into = format!("dir:{}", folder.display());
        let from = format!("docker://{image}");
        let netns = format!("--net=/run/netns/{}", floor.netns);
        let copy = ["skopeo", "--insecure-policy", "copy", "--quiet"];
        let place = ["--src-tls-verify=false", &from, &into];
        world::run(
            "nsenter",
            [&[netns.as_str(), "--"], &copy[..], &place].concat(),
        )?
        .ok()?;
        floor.sources[number] = packed(&folder)?;
    }
    Ok(floor)
}

/// The layers of an image in a folder, as its manifest names them.
fn packed(folder: &Path) -> Result<Vec<String>> {
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("manifest.json"))?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let file = |layer: &serde_json::Value| {
        let digest = layer["digest"].as_str().context("no digest")?;
        let hex = digest.rsplit(':').next().unwrap_or_default();
        Ok(folder.join(hex).to_string_lossy().into_owned())
    };
    layers.iter().map(file).collect()
}
