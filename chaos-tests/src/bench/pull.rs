//! `pull`: 150 MB of Debian's files from a registry on the same host into a store with nothing in it,
//! until every file is unpacked and verified; against skopeo with umoci and podman, and against one
//! `gunzip` that writes the same bytes. Ours unpacks in a process without powers, as the daemon does,
//! has the digest of every 16 KiB when it ends, and where there is a disk, all of it there. The cases
//! that go on to the first answer of an instance are `request`'s.
//!
//! Everybody gets a file system with nothing in it, new each time: in memory, or an ext4 with a journal
//! on blocks in memory. Not the machine's own disk: an ext4 without a journal, as here, looks past
//! every inode that was freed within the last minutes, one by one, and whoever comes after another
//! would pay for what that one deleted.

mod request;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::board::{Board, CPU, OURS, PULL, Reading};
use super::group::{self, Group};
use super::race::{Contestant, race};
use super::{Plan, peers, yard};
use crate::world::{self, Standard, World};

/// What is pulled, and onto what.
const CASES: [(&str, Standard, Disk); 3] = [
    ("one-layer", Standard::Debian, Disk::Memory),
    ("four-layers", Standard::DebianInParts, Disk::Memory),
    ("one-layer-ext4", Standard::Debian, Disk::Ext4),
];
/// What is unpacked weighs at least so much, or it was not all unpacked.
const LEAST: u64 = 100 << 20;
/// Of the disk.
const EXT4: u64 = 1536 << 20;

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
/// The folder, the program that unpacks, the image.
const OURS_SCRIPT: &str = r#"exec "$1" "$3" "$4" "$2""#;
/// The layers' files come after the folder.
const FLOOR: &str = r#"
    set -e
    out=$1; shift
    for layer; do gunzip -c <"$layer" >"$out/${layer##*/}"; done
"#;

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("pull");
    let cases = plan.chosen(&CASES.map(|(name, ..)| name));
    if !cases.is_empty() {
        files(plan, &cases, &mut board)?;
    }
    request::run(plan, &mut board)?;
    Ok(board)
}

/// The cases that end when all files are there.
fn files(plan: &Plan, cases: &[&str], board: &mut Board) -> Result<()> {
    let world = World::empty()?;
    let images = CASES.map(|(_, image, _)| world.standard(image));
    let images: Vec<_> = images.into_iter().collect::<Result<_>>()?;
    let [fetch, unpacker] = ["fetch", "selvedged"].map(|name| plan.programs.join(name));
    let hint = "build it: cargo build --release -p chaos-tests --bin fetch";
    ensure!(fetch.exists(), "no {}; {hint}", fetch.display());
    let (fetch, unpacker) = (fetch.to_string_lossy(), unpacker.to_string_lossy());

    let systems = |name, words: &[&str]| Puller::new(&world, &images, name, words);
    let shell = |name, script| systems(name, &["sh", "-c", script, "sh"]);
    let ours = ["sh", "-c", OURS_SCRIPT, "sh", &fetch, &unpacker];
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![
        Box::new(systems(OURS, &ours)?),
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
    race(board, cases, plan.rounds, &mut contestants)
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
        let mut known = CASES.iter().zip(&self.sources);
        let found = known.find(|((name, ..), _)| *name == case);
        let ((.., disk), source) = found.with_context(|| format!("no case {case}"))?;
        let folder = self.home.join("store");
        let mounts = disk.mount(&folder)?;
        let pulled = self.pull(source, &folder)?;
        let weighs = weight(&folder)?;
        drop(mounts);
        ensure!(weighs >= LEAST, "only {weighs} bytes were unpacked");
        let (took, used) = pulled;
        Ok(vec![
            PULL.of(took.as_secs_f64() * 1e3),
            CPU.of(group::each(used, 1)),
        ])
    }
}

/// What somebody works on.
#[derive(Debug, Clone, Copy)]
enum Disk {
    Memory,
    Ext4,
}

impl Disk {
    /// One with nothing in it, at a folder. What is returned is dropped in its order.
    fn mount(self, folder: &Path) -> Result<Vec<Mounted>> {
        let memory = ["-t", "tmpfs", "-o", "size=2g"].map(OsStr::new);
        match self {
            Self::Memory => Ok(vec![Mounted::new(&memory, OsStr::new("pull"), folder)?]),
            Self::Ext4 => {
                let blocks = folder.with_extension("blocks");
                let below = Mounted::new(&memory, OsStr::new("pull"), &blocks)?;
                let image = blocks.join("ext4");
                File::create(&image)?.set_len(EXT4)?;
                let make = ["-q", "-F"].map(OsStr::new).into_iter();
                world::run("mkfs.ext4", make.chain([image.as_os_str()]))?.ok()?;
                let loops = ["-t", "ext4", "-o", "loop"].map(OsStr::new);
                Ok(vec![
                    Mounted::new(&loops, image.as_os_str(), folder)?,
                    below,
                ])
            }
        }
    }
}

/// A mount that goes with its value.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &[&OsStr], what: &OsStr, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let place = [what, folder.as_os_str()];
        world::run("mount", kind.iter().copied().chain(place))?.ok()?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing of it is used any more; the world unmounts what is left.
        if let Err(error) = world::run("umount", [&self.0]).and_then(world::Outcome::ok) {
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
