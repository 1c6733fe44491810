//! Instances that start while their image still arrives from another node.

use std::fs::{self, File};
use std::io::Read as _;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::leaks;
use chaos_tests::world::{Node, PATIENCE, World, run, until};
use serde_json::{Value, json};

use crate::images::on_every_node;

const SERVICE: &str = "large";
/// One instance for each node, and no room for two.
const ONE_EACH: [&str; 6] = ["--scale", "2..2", "--cpu", "1.2", "--pull", "never"];
/// What the image has beside its program.
const BIG: u64 = 72 << 20;
const HASH: &str = "busybox sha256sum /big";

/// A node that has an image, and one that starts it as it comes: slowly, so that there is time.
struct Pair {
    world: World,
    name: String,
    /// Of the big file.
    hash: String,
}

impl Pair {
    fn new() -> Result<Self> {
        Self::under(|_| Ok(String::new()), |_| Ok(()))
    }

    /// With these lines more in both nodes' configuration, and this done once the image is pushed.
    fn under(
        lines: impl FnOnce(&World) -> Result<String>,
        pushed: impl FnOnce(&World) -> Result<()>,
    ) -> Result<Self> {
        let world = World::of(&["par-1", "fra-1"])?;
        let lines = lines(&world)?;
        for (node, line) in world.nodes().iter().zip([
            "image_peer_rate = \"3MiB\"",
            "image_lazy = \"on\"\nparked = 0",
        ]) {
            node.configure_runtime(line)?;
            // Starts it again.
            node.configure(&lines)?;
        }
        world.settle()?;
        let root = world.dir().join("big-root");
        fs::create_dir_all(&root)?;
        let big = root.join("big");
        let mut noise = File::open("/dev/urandom")?.take(BIG);
        std::io::copy(&mut noise, &mut File::create(&big)?)?;
        let hash = run("sha256sum", [&big])?.ok()?.out;
        let hash = hash.split(' ').next().unwrap_or_default().to_owned();
        let layer = world.dir().join("big.tar");
        let args = ["-cf".into(), layer.clone(), "-C".into(), root, "big".into()];
        run("tar", args)?.ok()?;
        world.push(SERVICE, &[layer])?;
        pushed(&world)?;
        let name = world.image(SERVICE);
        world.first().cli(&["image", "pull", &name])?.ok()?;
        // The program is not what is waited for.
        let program = world.image("box");
        let fra = &world["fra-1"];
        fra.cli(&["image", "pull", &program])?.ok()?;
        until("who starts it knows who has it", PATIENCE, || {
            let all = fra.read(&["image", "ls"])?;
            let held = |image: &Value| image["nodes"] == json!(["par-1"]);
            let all = all.as_array().context("a list")?;
            Ok(all.iter().any(held).then_some(()))
        })?;
        world.stop_registry()?;
        Ok(Self { world, name, hash })
    }

    fn holder(&self) -> &Node {
        &self.world["par-1"]
    }

    fn starter(&self) -> &Node {
        &self.world["fra-1"]
    }

    fn deploy(&self) -> Result<()> {
        self.holder().deploy(SERVICE, &self.name, &ONE_EACH)?.ok()?;
        on_every_node(&self.world, SERVICE)
    }

    fn arrives(&self) -> Result<bool> {
        Ok(fs::read_dir(self.starter().dir().join("images/coming"))?.count() > 0)
    }

    fn has_arrived(&self) -> Result<()> {
        until("the image is here", PATIENCE, || {
            Ok((!self.arrives()?).then_some(()))
        })
    }

    /// The process that shows a layer can read that, and speak with its daemon.
    fn is_confined(&self, pid: u32) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for line in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapInh:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            ensure!(status.contains(line), "not {line}: {status}");
        }
        let images = self.starter().dir().join("images");
        let root = fs::read_link(format!("/proc/{pid}/root"))?;
        ensure!(
            root == images.join("lazy"),
            "its root is {}",
            root.display()
        );
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let to = fs::read_link(entry?.path())?;
            let named = to.starts_with(images.join("coming")) || to.ends_with("lazy.log");
            let unnamed = to.starts_with("/dev") || to.to_string_lossy().starts_with("socket:");
            ensure!(named || unnamed, "it has {} open", to.display());
        }
        Ok(())
    }

    fn reads_all(&self) -> Result<()> {
        let said = self.starter().inside_container(SERVICE, HASH)?;
        ensure!(said.contains(&self.hash), "{said}, not {}", self.hash);
        Ok(())
    }
}

/// It answers before its image is here, through its daemon's death too; later the image is like any
/// other, and nothing is left of how it came.
#[test]
fn an_instance_runs_while_its_image_arrives() -> Result<()> {
    let pair = Pair::new()?;
    let (world, fra) = (&pair.world, pair.starter());
    let before = leaks::at_rest(world, PATIENCE)?;
    pair.deploy()?;
    ensure!(pair.arrives()?, "it was all here before it ran");
    let (shown, containers) = (fra.lazies(), fra.containers());
    ensure!(!shown.is_empty());
    for pid in &shown {
        pair.is_confined(*pid)?;
    }

    fra.kill()?;
    fra.start()?;
    world.settle()?;
    ensure!(pair.arrives()?, "the next daemon does not go on");
    ensure!(fra.lazies() == shown && fra.containers() == containers);
    pair.reads_all()?;
    pair.has_arrived()?;
    ensure!(
        fra.log()
            .contains("a layer came from peers while it was read")
    );
    pair.reads_all()?;
    ensure!(
        fra.lazies() == shown,
        "whoever reads it goes on as it began"
    );

    fra.cli(&["delete", SERVICE, "--yes"])?.ok()?;
    until("nobody shows it", PATIENCE, || {
        Ok(fra.lazies().is_empty().then_some(()))
    })?;
    pair.deploy()?;
    ensure!(
        fra.lazies().is_empty(),
        "an ordinary image needs no process"
    );
    pair.reads_all()?;
    fra.cli(&["delete", SERVICE, "--yes"])?.ok()?;
    leaks::nothing_more(world, &before, PATIENCE)
}

/// With nobody to give the rest a read fails, and comes back with them; without its process the
/// instance is replaced.
#[test]
fn what_cannot_be_read_fails_and_does_not_hang() -> Result<()> {
    let pair = Pair::new()?;
    let (world, par, fra) = (&pair.world, pair.holder(), pair.starter());
    let before = leaks::at_rest(world, PATIENCE)?;
    pair.deploy()?;
    ensure!(pair.arrives()?, "it was all here before it ran");
    par.kill()?;
    let script = format!("{HASH} 2>&1; true");
    let said = fra.inside_container(SERVICE, &script)?;
    ensure!(
        said.contains("I/O error") || said.contains("Input/output"),
        "{said}"
    );
    ensure!(fra.log().contains("what waits for it fails"));
    par.start()?;
    world.settle()?;
    until("its holder is back", PATIENCE, || {
        pair.reads_all().map(Some)
    })?;

    let (shown, containers) = (fra.lazies(), fra.containers());
    for pid in &shown {
        run("kill", ["-KILL", &pid.to_string()])?.ok()?;
    }
    until("it is replaced", PATIENCE, || {
        let now = fra.containers();
        let new = !now.is_empty() && now.iter().all(|pid| !containers.contains(pid));
        ensure!(new, "{now:?} were {containers:?}");
        fra.get(SERVICE, "/")?.ok().map(Some)
    })?;
    ensure!(fra.lazies().iter().all(|pid| !shown.contains(pid)));
    pair.reads_all()?;
    pair.has_arrived()?;
    par.cli(&["delete", SERVICE, "--yes"])?.ok()?;
    leaks::nothing_more(world, &before, PATIENCE)
}

/// Who signed it is known before anything of it runs, from the node that gives it: no registry is left to
/// ask, and most of the image is still to come.
#[test]
fn a_signature_is_demanded_before_an_image_arrives() -> Result<()> {
    let rule = |world: &World| {
        let (signer, name) = (world.signer("team")?, world.image(SERVICE));
        let (name, _) = name.rsplit_once(':').context("a tag")?;
        let key = signer.display();
        Ok(format!(
            "[[images.signatures]]\nimages = [\"{name}\"]\nkeys = [\"{key}\"]\n"
        ))
    };
    let sign = |world: &World| {
        let image = world.image(SERVICE);
        let refused = world.first().cli(&["image", "pull", &image])?;
        ensure!(refused.code != 0, "nobody signed it");
        refused.says("ImageUnsigned")?;
        world.sign(SERVICE, &world.dir().join("team.pub")).map(drop)
    };
    let pair = Pair::under(rule, sign)?;
    let proofs = || {
        let folder = pair.starter().dir().join("images/proofs");
        fs::read_dir(folder).map_or(0, Iterator::count)
    };
    ensure!(proofs() == 0);
    pair.deploy()?;
    ensure!(pair.arrives()?, "it was all here before it ran");
    ensure!(proofs() == 1, "it runs, and who signed it is not known");
    pair.reads_all()?;
    pair.has_arrived()
}
