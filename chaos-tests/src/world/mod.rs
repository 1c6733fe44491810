//! A world: namespace hosts on a bridge of their own, a registry with a small image, and a cluster
//! of real daemons. Everything carries the test's pid and goes when the world is dropped.
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

mod http;
mod image;
mod node;
mod power;
mod shell;
mod traces;

use std::fs;
use std::net::Ipv4Addr;
use std::ops::Index;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use http::{Request, Response};
pub use node::{Node, ORIGIN};
pub use shell::{Outcome, run, until};
use traces::Tag;

/// Enough for anything a healthy cluster does on two busy cores.
pub const PATIENCE: Duration = Duration::from_mins(1);
const REGISTRY_HOST: u8 = 10;
const FIRST_NODE: u8 = 11;

pub struct World {
    tag: Tag,
    nodes: Vec<Node>,
    layout: PathBuf,
    registry: Child,
}

impl World {
    /// A cluster of these nodes; the region is the name up to its dash. The first starts it, the
    /// others join, and all have settled when this returns.
    pub fn of(names: &[&str]) -> Result<Self> {
        let mut world = Self::empty()?;
        for name in names {
            world.add(name)?;
        }
        world.settle()?;
        Ok(world)
    }

    /// Hosts and a registry, no nodes.
    pub fn empty() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        traces::sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = Tag {
            pid: std::process::id(),
            number,
        };
        let undo = Undo(Some(tag.clone()));
        fs::create_dir_all(tag.dir())?;
        let bridge = tag.link("b");
        let gateway = format!("{}/24", address(&tag, 1));
        run("ip", ["link", "add", &bridge, "type", "bridge"])?.ok()?;
        run("ip", ["address", "add", &gateway, "dev", &bridge])?.ok()?;
        run("ip", ["link", "set", &bridge, "up"])?.ok()?;
        host(&tag, "registry", REGISTRY_HOST)?;
        let registry = start_registry(&tag)?;
        let layout = image::make_box(&tag.dir(), &programs()?.join("box"))?;
        image::push(&layout, "box", &registry_name(&tag))?;
        undo.keep();
        Ok(Self {
            tag,
            nodes: Vec::new(),
            layout,
            registry,
        })
    }

    /// A host that could be a node but is none yet.
    pub fn bare(&mut self, name: &str) -> Result<Node> {
        let used = u8::try_from(self.nodes.len()).context("too many nodes")?;
        let netns = host(&self.tag, name, FIRST_NODE + used)?;
        let node = Node {
            name: name.to_owned(),
            address: address(&self.tag, FIRST_NODE + used),
            netns,
            dir: self.tag.dir().join(name),
            cgroup: format!("/{}/{name}", self.tag.name()),
            registry: registry_name(&self.tag),
            programs: programs()?,
        };
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// A node more: the first starts the cluster, the others join it.
    pub fn add(&mut self, name: &str) -> Result<Node> {
        let first = self.nodes.first().cloned();
        let node = self.bare(name)?;
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
        until(&format!("{service} at zero"), PATIENCE, || {
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
        image::assemble(&self.layout, name, &layers)?;
        image::push(&self.layout, name, &registry_name(&self.tag))
    }

    /// The test image as an archive, as `skopeo` makes one of `kind`, under a name or without.
    pub fn archive(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let file = self.dir().join(format!("{kind}.tar"));
        image::archive(&self.layout, "box", kind, &file, name)?;
        Ok(file)
    }

    /// From now on nobody answers where images come from.
    pub fn stop_registry(&mut self) -> Result<()> {
        self.registry.kill()?;
        self.registry.wait()?;
        Ok(())
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
        // Shown by the test harness only when the test failed.
        for node in &self.nodes {
            eprintln!("--- {}: the end of its log\n{}", node.name, node.log());
        }
        tidy(&self.tag);
        self.registry.wait().ok();
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

/// Makes a host on the world's bridge; returns its namespace's name.
fn host(tag: &Tag, name: &str, last: u8) -> Result<String> {
    let netns = format!("{}-{name}", tag.name());
    let (link, bridge) = (tag.link(&last.to_string()), tag.link("b"));
    let (own, gateway) = (
        format!("{}/24", address(tag, last)),
        address(tag, 1).to_string(),
    );
    run("ip", ["netns", "add", &netns])?.ok()?;
    let veth = [
        "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &netns,
    ];
    run("ip", veth)?.ok()?;
    run("ip", ["link", "set", &link, "master", &bridge, "up"])?.ok()?;
    for inside in [
        &["link", "set", "lo", "up"][..],
        &["address", "add", &own, "dev", "eth0"],
        &["link", "set", "eth0", "up"],
        &["route", "add", "default", "via", &gateway],
    ] {
        run("ip", ["-n", &netns].iter().chain(inside))?.ok()?;
    }
    Ok(netns)
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
    let beside = || own.ancestors().nth(2);
    let dir = PROGRAMS.get().map(PathBuf::as_path).or_else(beside);
    let dir = dir.context("the test has no folder")?;
    for program in ["selvedge", "selvedged", "box"] {
        let hint = "build it: cargo build --workspace --bins";
        ensure!(
            Path::new(dir).join(program).exists(),
            "no {program} in {}; {hint}",
            dir.display()
        );
    }
    Ok(dir.to_owned())
}
