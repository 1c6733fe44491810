//! A world: namespace hosts on a wire of their own, a registry with a small image, and a cluster
//! of real daemons. Everything carries the test's pid and goes when the world is dropped.
//! The test itself is on the wire as `outside`, the images' registry as `registry`.
//! `SELVEDGE_TEST_LOG=netfabric=debug` sets what the daemons log.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use chaos_tests::world::World;
//! let world = World::of(&["par-1", "fra-1", "lis-1"])?;
//! world.deploy("web", &["--scale", "0..3"])?.ok()?;
//! world["fra-1"].get("web", "/")?.ok()?.says("box")?;
//! # Ok(())
//! # }
//! ```

mod anycast;
mod daemon;
mod http;
mod image;
mod media;
mod node;
mod pebble;
mod power;
mod shell;
mod signed;
mod standard;
mod systemd;
mod traces;
mod version;

use std::fs;
use std::net::Ipv4Addr;
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use anycast::{ANYCAST, Anycast};
pub use daemon::Launch;
pub use http::{Request, Response};
use media::Disks;
pub use media::Media;
pub use node::{Node, ORIGIN};
pub(crate) use node::{is_running, pids};
pub use pebble::{Habits, Pebble};
pub use shell::{Outcome, run, run_with, until};
pub use standard::Standard;
pub use systemd::Systemd;
use traces::Tag;
pub use version::{change, noise};

use crate::wire::{Preset, Wire};

/// Enough for anything a healthy cluster does on two busy cores.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// The wire's port of the test's own namespace, which is also every host's gateway.
pub const OUTSIDE: &str = "outside";
/// The wire's port of the registry of images.
pub const REGISTRY: &str = "registry";
const GATEWAY: u8 = 1;
const REGISTRY_HOST: u8 = 10;
const ROUTER_HOST: u8 = 9;
const FIRST_NODE: u8 = 11;
/// What the network's draws begin with: the same in every run.
const SEED: u64 = 1;

pub struct World {
    tag: Tag,
    nodes: Vec<Node>,
    layout: PathBuf,
    registry: Mutex<Child>,
    wire: Arc<Wire>,
    disks: Disks,
    anycast: Option<Anycast>,
    /// Whether nobody wants to see the daemons' logs any more.
    hushed: bool,
}

impl World {
    /// A cluster of these nodes on one fast network; the region is the name up to its dash. The
    /// first starts it, the others join, and all have settled when this returns.
    pub fn of(names: &[&str]) -> Result<Self> {
        Self::with(names, Preset::Lan)
    }

    /// A cluster of these nodes on a network like this.
    pub fn with(names: &[&str], network: Preset) -> Result<Self> {
        Self::empty_with(network)?.inhabited(names, Media::Plain)
    }

    /// A cluster of these nodes, each on a disk like this.
    pub fn on(names: &[&str], media: Media) -> Result<Self> {
        Self::empty()?.inhabited(names, media)
    }

    fn inhabited(mut self, names: &[&str], media: Media) -> Result<Self> {
        for name in names {
            self.add_on(name, media)?;
        }
        self.settle()?;
        Ok(self)
    }

    /// A registry of images and no nodes.
    pub fn empty() -> Result<Self> {
        Self::empty_with(Preset::Lan)
    }

    /// The same on a network like this.
    pub fn empty_with(network: Preset) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        traces::sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = Tag {
            pid: std::process::id(),
            number,
        };
        let undo = Undo(Some(tag.clone()));
        fs::create_dir_all(tag.dir())?;
        let wire = Wire::start(&programs()?.join("wire"), &tag.dir(), SEED, network)?;
        outside(&tag, &wire)?;
        host(&tag, &wire, REGISTRY, REGISTRY_HOST)?;
        let registry = start_registry(&tag)?;
        let layout = image::make_box(&tag.dir(), &programs()?.join("box"))?;
        image::push(&layout, "box", &registry_name(&tag))?;
        undo.keep();
        Ok(Self {
            tag,
            nodes: Vec::new(),
            layout,
            registry: Mutex::new(registry),
            wire: Arc::new(wire),
            disks: Disks::new(),
            anycast: None,
            hushed: false,
        })
    }

    /// A host that could be a node but is none yet.
    pub fn bare(&mut self, name: &str) -> Result<Node> {
        let used = u8::try_from(self.nodes.len()).context("too many nodes")?;
        let netns = host(&self.tag, &self.wire, name, FIRST_NODE + used)?;
        let node = Node {
            name: name.to_owned(),
            address: address(&self.tag, FIRST_NODE + used),
            netns,
            dir: self.tag.dir().join(name),
            cgroup: format!("/{}/{name}", self.tag.name()),
            registry: registry_name(&self.tag),
            programs: programs()?,
            starts: Arc::default(),
        };
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// A node more: the first starts the cluster, the others join it.
    pub fn add(&mut self, name: &str) -> Result<Node> {
        self.add_on(name, Media::Plain)
    }

    /// The same on a disk like this.
    pub fn add_on(&mut self, name: &str, media: Media) -> Result<Node> {
        let first = self.nodes.first().cloned();
        let node = self.bare(name)?;
        let disk = Mutex::new(media.mount(&node)?);
        self.disks.insert(name.to_owned(), disk);
        match first {
            None => node.enrol(&["up"], &[])?.ok()?,
            Some(first) => {
                let (at, token) = first.invite("10m")?;
                node.enrol(&["join", &at, "--token", &token], &[])?.ok()?
            }
        };
        Ok(node)
    }

    /// Waits until every node sees every other and the registry takes changes.
    pub fn settle(&self) -> Result<()> {
        for node in &self.nodes {
            until(&format!("{} settles", node.name), PATIENCE, || {
                let status = node.status()?;
                let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
                let alive = nodes.iter().filter(|n| n["alive"] == true).count();
                let voters = status["registry"]["voters"].as_array().map_or(0, Vec::len);
                let wanted = self.nodes.len().min(3);
                let settled = status["registry"]["quorum"] == true && voters == wanted;
                ensure!(alive == self.nodes.len() && settled, "{status}");
                Ok(Some(()))
            })
            .with_context(|| format!("{}:\n{}", node.name, node.log()))?;
        }
        Ok(())
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn first(&self) -> &Node {
        &self.nodes[0]
    }

    /// The registry's leader, as any node that answers says.
    pub fn leader(&self) -> Result<&Node> {
        let name = until("a leader", PATIENCE, || {
            let said = self.nodes.iter().find_map(|node| {
                let status = node.daemon().and_then(|_| node.status().ok())?;
                let leader = status["registry"]["leader"].as_u64()?;
                let nodes = status["nodes"].as_array()?;
                let node = nodes.iter().find(|n| n["id"] == leader)?;
                Some(node["name"].as_str()?.to_owned())
            });
            Ok(said)
        })?;
        let leader = self.nodes.iter().find(|n| n.name == name);
        leader.with_context(|| format!("{name} is none of ours"))
    }

    /// The reference of an image in this world's registry.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:1", registry_name(&self.tag))
    }

    /// `selvedge deploy` of the test image at the first node.
    pub fn deploy(&self, service: &str, more: &[&str]) -> Result<Outcome> {
        self.deploy_at(self.first(), service, more)
    }

    pub fn deploy_at(&self, node: &Node, service: &str, more: &[&str]) -> Result<Outcome> {
        let image = self.image("box");
        node.deploy(service, &image, more)
    }

    /// Waits until a service has no instance anywhere. Every node that runs is asked: the others may
    /// not have heard yet of the instance that one of them runs.
    pub fn rest(&self, service: &str) -> Result<()> {
        self.rest_within(service, PATIENCE)
    }

    /// The same where many instances have to leave.
    pub fn rest_within(&self, service: &str, patience: Duration) -> Result<()> {
        until(&format!("{service} at zero"), patience, || {
            for node in self.nodes.iter().filter(|n| n.daemon().is_some()) {
                let left = node.instances(service)?;
                ensure!(left.is_empty(), "{} knows {left:?}", node.name);
            }
            Ok(Some(()))
        })
    }

    /// Pushes an image of the test image's files and these layers above them.
    pub fn push(&self, name: &str, layers: &[PathBuf]) -> Result<()> {
        let base = self.dir().join("box.tar");
        let layers: Vec<_> = std::iter::once(base)
            .chain(layers.iter().cloned())
            .collect();
        self.push_alone(name, &layers)
    }

    /// Pushes an image of these layers and nothing below them: quick, and good for all but running.
    pub fn push_alone(&self, name: &str, layers: &[PathBuf]) -> Result<()> {
        image::assemble(&self.layout, name, layers, &image::BOX)?;
        image::push(&self.layout, name, &registry_name(&self.tag))
    }

    /// The test image as an archive, as `skopeo` makes one of `kind`, under a name or without.
    pub fn archive(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let file = self.dir().join(format!("{kind}.tar"));
        image::archive(&self.layout, "box", kind, &file, name)?;
        Ok(file)
    }

    /// From now on nobody answers where images come from.
    pub fn stop_registry(&self) -> Result<()> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.kill()?;
        registry.wait()?;
        Ok(())
    }

    /// The registry of images answers again, with all that it had.
    pub fn start_registry(&self) -> Result<()> {
        let started = start_registry(&self.tag)?;
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = started;
        Ok(())
    }

    /// Whether the registry of images takes requests.
    pub fn registry_answers(&self) -> bool {
        let request = Request {
            patience: Duration::from_secs(2),
            ..Request::get("r", "/v2/")
        };
        let door = registry_name(&self.tag).parse();
        door.is_ok_and(|door| request.send(door).is_ok_and(|said| said.status == 200))
    }

    /// The host of the registry of images.
    pub fn registry_host(&self) -> String {
        format!("{}-registry", self.tag.name())
    }

    /// The network between the hosts, to be broken and measured. Its ports are the nodes' names,
    /// [`OUTSIDE`] and [`REGISTRY`].
    pub fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// A folder with another copy of the programs, to upgrade to.
    pub fn next_build(&self) -> Result<PathBuf> {
        let next = self.dir().join("next");
        fs::create_dir_all(&next)?;
        let (from, to) = (programs()?.join("selvedged"), next.join("selvedged"));
        // A link is as good as a copy, where both lie on one file system.
        if !to.exists() && fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to)?;
        }
        Ok(next)
    }

    /// All went well: the daemons' logs are of no interest.
    pub fn hush(&mut self) {
        self.hushed = true;
    }

    /// A folder for a test's own files; goes with the world.
    pub fn dir(&self) -> PathBuf {
        self.tag.dir()
    }
}

impl Index<&str> for World {
    type Output = Node;

    /// # Panics
    /// When there is no node of this name: a mistake in the test.
    fn index(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.unwrap_or_else(|| panic!("this world has no node {name}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test harness shows this only when the test failed.
        for node in self.nodes.iter().filter(|_| !self.hushed) {
            eprintln!("--- {}: the end of its log\n{}", node.name, node.log());
        }
        tidy(&self.tag);
        let registry = self
            .registry
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        registry.wait().ok();
    }
}

/// Removes a half-made world.
struct Undo(Option<Tag>);

impl Undo {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.0.iter().for_each(tidy);
    }
}

fn tidy(tag: &Tag) {
    if let Err(error) = traces::remove(tag) {
        eprintln!("{} leaves traces: {error:#}", tag.name());
    }
}

/// A /24 of 10.0.0.0/8 that no other living test has.
fn address(tag: &Tag, last: u8) -> Ipv4Addr {
    let [.., high, low] = tag
        .pid
        .wrapping_mul(4)
        .wrapping_add(tag.number % 4)
        .to_be_bytes();
    Ipv4Addr::new(10, 128 + high % 64, low, last)
}

fn registry_name(tag: &Tag) -> String {
    format!("{}:5000", address(tag, REGISTRY_HOST))
}

/// Plugs this namespace in: what is here reaches every host, and is their gateway.
fn outside(tag: &Tag, wire: &Wire) -> Result<()> {
    let device = tag.link("out");
    wire.add_port(OUTSIDE, &device)?;
    run(
        "ip",
        ["link", "set", &device, "address", &mac(tag, GATEWAY)],
    )?
    .ok()?;
    let own = format!("{}/24", address(tag, GATEWAY));
    run("ip", ["address", "add", &own, "dev", &device])?.ok()?;
    run("ip", ["link", "set", &device, "up"])?.ok()?;
    Ok(())
}

/// Makes a host and plugs it in under its name; returns its namespace's name.
fn host(tag: &Tag, wire: &Wire, name: &str, last: u8) -> Result<String> {
    let netns = format!("{}-{name}", tag.name());
    let device = tag.link(&last.to_string());
    let (own, mac) = (format!("{}/24", address(tag, last)), mac(tag, last));
    let gateway = address(tag, GATEWAY).to_string();
    run("ip", ["netns", "add", &netns])?.ok()?;
    wire.add_port(name, &device)?;
    let inside = ["link", "set", &device, "netns", &netns, "name", "eth0"];
    run("ip", inside)?.ok()?;
    for inside in [
        &["link", "set", "lo", "up"][..],
        &["link", "set", "eth0", "address", &mac],
        &["address", "add", &own, "dev", "eth0"],
        &["link", "set", "eth0", "up"],
        &["route", "add", "default", "via", &gateway],
    ] {
        run("ip", ["-n", &netns].iter().chain(inside))?.ok()?;
    }
    Ok(netns)
}

/// A host keeps its hardware's address when it boots again.
fn mac(tag: &Tag, last: u8) -> String {
    let [a, b, c, d] = address(tag, last).octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn start_registry(tag: &Tag) -> Result<Child> {
    let home = tag.dir().join("registry");
    fs::create_dir_all(&home)?;
    let config = home.join("config.yml");
    let (data, listen) = (home.join("data"), registry_name(tag));
    let text = format!(
        "version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n\
         http: {{ addr: \"{listen}\" }}\n",
        data.display()
    );
    fs::write(&config, text)?;
    let log = fs::File::create(home.join("log"))?;
    let netns = format!("--net=/run/netns/{}-registry", tag.name());
    let child = Command::new("nsenter")
        .args([&netns, "--", "docker-registry", "serve"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting docker-registry")?;
    let door = listen.parse()?;
    until("the registry answers", PATIENCE, || {
        Request::get("r", "/v2/").send(door)?.ok().map(Some)
    })?;
    Ok(child)
}

/// Set by programs that are no tests.
static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();

/// From now on worlds run the programs in `dir`. The first call counts.
pub fn use_programs(dir: PathBuf) {
    PROGRAMS.get_or_init(|| dir);
}

/// The folder of `selvedge` and `selvedged`: where cargo put this test's own folder.
fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // A test lies in a folder of its own among the programs; the bench and the soak lie beside them.
    let near = || own.ancestors().skip(1).take(2);
    let beside = || near().find(|dir| dir.join("selvedged").exists());
    let dir = PROGRAMS.get().map(PathBuf::as_path).or_else(beside);
    let dir = dir
        .or_else(|| near().last())
        .context("the test has no folder")?;
    for program in ["selvedge", "selvedged", "box", "wire"] {
        let hint = "build it: cargo build --workspace --bins --features node/failpoints";
        ensure!(
            Path::new(dir).join(program).exists(),
            "no {program} in {}; {hint}",
            dir.display()
        );
    }
    Ok(dir.to_owned())
}
