//! One address announced by every node: a real BIRD beside each, and a router with another, whose
//! kernel has a route with a way to each of them. Owns those processes and the router's host; the
//! faults of BGP are made on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};

use super::shell::{Outcome, run, until};
use super::{Node, PATIENCE, ROUTER_HOST, Tag, World, address, host};

/// What all nodes announce (RFC 5737).
pub const ANYCAST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// The router's name on the wire.
const ROUTER: &str = "router";
/// Seconds without a word after which a session counts as lost: BGP's least.
const HOLD: u32 = 3;

/// The routing daemons of a world, by the name of their host.
pub struct Anycast {
    netns: String,
    dir: PathBuf,
    tag: Tag,
    birds: Mutex<BTreeMap<String, Child>>,
}

impl World {
    /// Announces [`ANYCAST`] from every node there is, and waits until the router knows them all.
    pub fn announce(&mut self) -> Result<()> {
        let dir = self.dir().join("bird");
        fs::create_dir_all(&dir)?;
        let anycast = Anycast {
            netns: host(&self.tag, &self.wire, ROUTER, ROUTER_HOST)?,
            dir,
            tag: self.tag.clone(),
            birds: Mutex::default(),
        };
        let router = address(&self.tag, ROUTER_HOST);
        anycast.configure(ROUTER, &router_config(router, &self.nodes))?;
        anycast.run(ROUTER, &anycast.netns)?;
        for node in &self.nodes {
            let own = format!("{ANYCAST}/32");
            node.run("ip", &["address", "add", &own, "dev", "lo"])?
                .ok()?;
            anycast.configure(&node.name, &node_config(node.address, router))?;
            anycast.start(node)?;
        }
        let all = self.nodes.iter().map(|node| node.address).collect();
        until("every node is announced", PATIENCE, || {
            let ways = anycast.ways()?;
            ensure!(ways == all, "ways to {ways:?}");
            Ok(Some(()))
        })?;
        self.anycast = Some(anycast);
        Ok(())
    }

    /// What announces its nodes.
    pub fn anycast(&self) -> Result<&Anycast> {
        self.anycast.as_ref().context("nothing is announced here")
    }
}

impl Anycast {
    /// The nodes that the router sends somebody to.
    pub fn ways(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let route = format!("{ANYCAST}/32");
        let said = run("ip", ["-n", &self.netns, "route", "show", &route])?.ok()?;
        let mut words = said.out.split_whitespace();
        let mut ways = BTreeSet::new();
        while words.any(|word| word == "via") {
            ways.insert(words.next().context("a way to nowhere")?.parse()?);
        }
        Ok(ways)
    }

    /// A program on the router: where clients come from.
    pub fn client(&self, program: &str, args: &[&str]) -> Result<Outcome> {
        let netns = format!("--net=/run/netns/{}", self.netns);
        let words = [&netns, "--", program].into_iter();
        run("nsenter", words.chain(args.iter().copied()))
    }

    /// Starts a node's BIRD.
    pub fn start(&self, node: &Node) -> Result<()> {
        self.run(&node.name, &format!("{}-{}", self.tag.name(), node.name))
    }

    /// Sends a signal, as `kill` names it, to a node's BIRD.
    pub fn signal(&self, node: &str, signal: &str) -> Result<()> {
        let mut birds = self.birds();
        let bird = birds.get_mut(node).context("no such BIRD")?;
        run("kill", [signal, &bird.id().to_string()])?.ok()?;
        if signal == "-KILL" {
            bird.wait()?;
        }
        Ok(())
    }

    fn configure(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(format!("{name}.conf")), text)?)
    }

    fn run(&self, name: &str, netns: &str) -> Result<()> {
        let file = |kind: &str| self.dir.join(format!("{name}.{kind}"));
        let child = Command::new("nsenter")
            .args([
                &format!("--net=/run/netns/{netns}"),
                "--",
                "bird",
                "-f",
                "-c",
            ])
            .arg(file("conf"))
            .arg("-s")
            .arg(file("ctl"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(file("log"))?)
            .spawn()
            .context("running bird")?;
        self.birds().insert(name.to_owned(), child);
        Ok(())
    }

    fn birds(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.birds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Anycast {
    fn drop(&mut self) {
        for bird in self.birds().values_mut() {
            bird.kill().ok();
            bird.wait().ok();
        }
    }
}

/// Fast as BGP allows, and BFD for what does not say goodbye.
fn session(own: Ipv4Addr, number: u32, other: Ipv4Addr, others: u32, way: &str) -> String {
    format!(
        "protocol bgp {{\n  local {own} as {number};\n  neighbor {other} as {others};\n  bfd on;\n  \
         hold time {HOLD}; keepalive time 1; connect delay time 1; connect retry time 1;\n  \
         error wait time 1, 2;\n  ipv4 {{ {way} }};\n}}\n"
    )
}

const COMMON: &str = "log stderr all;\nprotocol device { }\n\
    protocol bfd { interface \"eth0\" { interval 200 ms; multiplier 3; }; }\n";
/// Numbers for private use.
const NODES: u32 = 65001;
const OUTSIDE: u32 = 65000;

fn node_config(own: Ipv4Addr, router: Ipv4Addr) -> String {
    let announced = format!("protocol static {{ ipv4; route {ANYCAST}/32 blackhole; }}\n");
    let session = session(own, NODES, router, OUTSIDE, "import none; export all;");
    format!("router id {own};\n{COMMON}{announced}{session}")
}

fn router_config(own: Ipv4Addr, nodes: &[Node]) -> String {
    let kernel = "protocol kernel { merge paths on; ipv4 { import none; export all; }; }\n";
    let sessions = nodes.iter().map(|node| {
        session(
            own,
            OUTSIDE,
            node.address,
            NODES,
            "import all; export none;",
        )
    });
    format!(
        "router id {own};\n{COMMON}{kernel}{}",
        sessions.collect::<String>()
    )
}
