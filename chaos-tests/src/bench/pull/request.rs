//! The cases of `pull` that end with the first byte of an answer: somebody who has nothing of an image
//! of Debian's files is asked for the program in it. From the registry, against podman and skopeo with
//! umoci and crun; and, with the registry stopped, from another node, which the others cannot do.
//! Everybody works in memory and reaches the registry over the same network.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::super::board::{Board, OURS, Reading, TTFB};
use super::super::client::first_byte;
use super::super::group::Group;
use super::super::race::{Contestant, race};
use super::super::{Plan, peers, yard};
use super::Disk;
use crate::world::{Media, Node, ORIGIN, PATIENCE, Standard, World, until};

const FROM_REGISTRY: &str = "request";
const FROM_PEER: &str = "request-from-peer";
const HOLDER: &str = "par-1";
/// In a region of its own, so that the service can be told where to run.
const ASKED: &str = "fra-1";
const NAME: &str = "web";
const DISKS: Media = Media::Small {
    bytes: 2 << 30,
    inodes: 200_000,
};
/// Where the program listens.
const DOOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// The host's network, and no cgroup: nothing that the others' starts need not.
const CRUN: &str = r#"
    set -e
    skopeo --insecure-policy copy --quiet --src-tls-verify=false "docker://$2" "oci:$1/layout:x"
    umoci unpack --image "$1/layout:x" "$1/bundle"
    perl -0pi -e 's/"terminal": true/"terminal": false/; s/\{\s*"type": "network"\s*\},?//' \
        "$1/bundle/config.json"
    exec crun --root "$1/state" --cgroup-manager=disabled run --bundle "$1/bundle" x
"#;
const PODMAN: &str = r#"
    exec podman --root "$1/root" --runroot "$1/run" --storage-driver overlay --runtime crun \
        run --quiet --tls-verify=false --network host --cgroups disabled --log-driver none \
        --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$2"
"#;

pub(super) fn run(plan: &Plan, board: &mut Board) -> Result<()> {
    let cases = plan.chosen(&[FROM_REGISTRY, FROM_PEER]);
    if cases.is_empty() {
        return Ok(());
    }
    let world = World::on(&[HOLDER, ASKED], DISKS)?;
    let node = &world[ASKED];
    node.configure_runtime("parked = 0")?;
    node.stop()?;
    node.start()?;
    world.settle()?;
    let layer = world.pack(&world.files(Standard::Debian)?, "debian")?;
    world.push(NAME, &[layer])?;
    let image = world.image(NAME);
    let ours = Ours {
        world: &world,
        image: &image,
    };
    ours.deploy()?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![Box::new(ours)];
    if cases.contains(&FROM_REGISTRY) {
        let crun = &[peers::SKOPEO, peers::UMOCI, peers::CRUN][..];
        let podman = &[peers::PODMAN, peers::CRUN][..];
        for (name, script, programs) in [
            ("skopeo+umoci+crun", CRUN, crun),
            ("podman", PODMAN, podman),
        ] {
            match programs.iter().try_for_each(|program| program.fetch()) {
                Ok(()) => contestants.push(Box::new(Other::new(&world, name, script, &image)?)),
                Err(error) => board.missing(name, format!("{error:#}")),
            }
        }
        race(board, &[FROM_REGISTRY], plan.rounds, &mut contestants)?;
    }
    if cases.contains(&FROM_PEER) {
        contestants.truncate(1);
        world[HOLDER].cli(&["image", "pull", &image])?.ok()?;
        world.stop_registry()?;
        race(board, &[FROM_PEER], plan.rounds, &mut contestants)?;
    }
    Ok(())
}

/// A node that is asked through its own front door.
struct Ours<'a> {
    world: &'a World,
    image: &'a str,
}

impl Ours<'_> {
    fn node(&self) -> &Node {
        &self.world[ASKED]
    }

    fn deploy(&self) -> Result<()> {
        let (region, _) = ASKED.split_once('-').context("no region")?;
        let how = ["--scale", "0..1", "--region", region];
        self.world[HOLDER].deploy(NAME, self.image, &how)?.ok()?;
        self.clear()
    }

    /// Nothing of the image is left on the node.
    fn clear(&self) -> Result<()> {
        self.world.rest(NAME)?;
        until("the image can go", PATIENCE, || {
            let held = self.node().cli(&["image", "ls"])?.ok()?.out;
            if held.contains(&format!("/{NAME}:")) {
                self.node()
                    .cli(&["--yes", "image", "rm", self.image])?
                    .ok()?;
            }
            Ok(Some(()))
        })
    }
}

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, _: &str) -> Result<Vec<Reading>> {
        let host = format!("{NAME}.{ORIGIN}");
        let node = self.node();
        let first = yard::on_host(&node.netns, || {
            first_byte(node.door(), &host, Instant::now())
        })?;
        self.clear()?;
        Ok(vec![TTFB.of(first.took.as_secs_f64() * 1e3)])
    }
}

/// Programs that fetch the image and start it, on the same host.
struct Other<'a> {
    name: &'static str,
    world: &'a World,
    group: Group,
    home: PathBuf,
    script: &'static str,
    image: &'a str,
}

impl<'a> Other<'a> {
    fn new(
        world: &'a World,
        name: &'static str,
        script: &'static str,
        image: &'a str,
    ) -> Result<Self> {
        let home = world.dir().join(format!("request-{name}"));
        std::fs::create_dir_all(&home)?;
        Ok(Self {
            name,
            world,
            group: Group::of(world, &format!("bench-{name}"))?,
            home,
            script,
            image,
        })
    }
}

impl Contestant for Other<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn take(&mut self, _: &str) -> Result<Vec<Reading>> {
        let (folder, log) = (self.home.join("store"), self.home.join("log"));
        let mounts = Disk::Memory.mount(&folder)?;
        let folder = folder.to_string_lossy();
        let words = ["sh", "-c", self.script, "sh", &folder, self.image];
        let netns = &self.world[ASKED].netns;
        let waiting = yard::waiting(netns, &self.group, &log, &words)?;
        let began = Instant::now();
        let running = waiting.begin()?;
        let first = yard::on_host(netns, || first_byte(DOOR, "box", began));
        self.group.end()?;
        drop(running);
        drop(mounts);
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let first = first.with_context(said)?;
        Ok(vec![TTFB.of(first.took.as_secs_f64() * 1e3)])
    }
}
