//! A node loses its power at every step of an image's way here and away. After the next boot the store
//! lists what is whole, holds nothing else, and what is fetched again is what an undisturbed pull left.
//!
//! Points of [`crate::crashes`] that are not here have written nothing (a name resolved, a plan made,
//! an upload opened), or are followed by the same steps as those here: a layer is unpacked, synced,
//! marked and named in one way, whether it comes from a registry, a peer, an archive or a push.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::checkers::images::{self, Content};
use chaos_tests::world::{Launch, Media, Node, PATIENCE, World, noise, until};

use crate::crashes::{DYING, ordered};

/// Where images are pushed to the node.
const DOOR: &str = "127.0.0.1:5000";
const PUSHED: &str = "127.0.0.1:5000/app:1";
/// Bytes of a layer of which a part is kept when the rest does not come.
const LARGE: u64 = 3 << 20;

/// What happens to the image when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Pull,
    Push,
    Remove,
}
use Act::{Pull, Push, Remove};

/// At which point, and whether the image is there after the next boot. No point: it was acknowledged.
type Cut = (Act, Option<&'static str>, bool);

const PULLS: [Cut; 8] = [
    (Pull, Some("image::piece_kept"), false),
    (Pull, Some("image::layer_begun"), false),
    (Pull, Some("image::layer_unpacked"), false),
    (Pull, Some("image::layer_marked"), false),
    (Pull, Some("image::layer_named"), false),
    (Pull, Some("image::documents_kept"), false),
    (Pull, Some("image::recorded"), true),
    (Pull, None, true),
];

const PUSHES_AND_REMOVALS: [Cut; 9] = [
    (Push, Some("image::upload_written"), false),
    (Push, Some("image::blob_arrived"), false),
    (Push, Some("image::push_kept"), true),
    (Push, None, true),
    (Remove, Some("image::struck"), true),
    (Remove, Some("image::unrecorded"), false),
    (Remove, Some("image::layer_buried"), false),
    (Remove, Some("image::buried"), false),
    (Remove, None, false),
];

/// A node on a disk that forgets, and what an undisturbed pull of the image leaves there.
struct Cuts {
    world: World,
    node: Node,
    launch: Launch,
    order: PathBuf,
    store: PathBuf,
    image: String,
    content: Content,
}

impl Cuts {
    fn begin() -> Result<Self> {
        let world = World::on(&["par-1"], Media::Powered)?;
        let node = world.first().clone();
        node.configure(&format!("[images]\nlisten = \"{DOOR}\"\n"))?;
        world.push("app", &[world.pack(&files(&world)?, "app")?])?;
        let (launch, order) = ordered(&world);
        node.kill()?;
        node.start_with(&launch)?;
        world.settle()?;
        let mut cuts = Self {
            store: node.dir().join("images"),
            image: world.image("app"),
            content: Content::new(),
            world,
            node,
            launch,
            order,
        };
        cuts.act(Pull)?;
        cuts.content = images::content(&cuts.store)?;
        Ok(cuts)
    }

    fn act(&self, act: Act) -> Result<bool> {
        let said = match act {
            Pull => self.node.cli(&["image", "pull", &self.image])?,
            Push => self.node.push(&self.image, PUSHED)?,
            Remove => self.node.cli(&["-y", "image", "rm", &self.held()?])?,
        };
        Ok(said.code == 0)
    }

    /// The name of the one image there is.
    fn held(&self) -> Result<String> {
        let all = self.node.read(&["image", "ls"])?;
        let name = all[0]["reference"].as_str();
        name.map(ToOwned::to_owned).context("there is no image")
    }

    fn at(&self, (act, point, there): Cut) -> Result<()> {
        let is = !images::whole(&self.store)?.is_empty();
        if is != (act == Remove) {
            let first = if is { Remove } else { Pull };
            ensure!(self.act(first)?, "{first:?} in peace");
        }
        match point {
            Some(point) => {
                fs::write(&self.order, point)?;
                ensure!(!self.act(act)?, "{act:?} was acknowledged at {point}");
                self.died_at(point)?;
                fs::remove_file(&self.order)?;
            }
            None => ensure!(self.act(act)?, "{act:?} in peace"),
        }
        self.world.power_off(&self.node)?;
        self.world.boot_with(&self.node, &self.launch)?;
        self.world.settle()?;
        self.is_right(there)?;
        let again = if act == Remove { Pull } else { act };
        ensure!(self.act(again)?, "{again:?} after the cut");
        self.is_right(true)?;
        images::nothing_partial(&self.store)
    }

    /// The log's end is read before it may be lost.
    fn died_at(&self, point: &str) -> Result<()> {
        let log = self.node.dir().join("log/selvedged.log");
        until("the daemon to die", DYING, || {
            let log = fs::read_to_string(&log)?;
            let mut said = log.lines().filter(|line| line.contains("dies at"));
            let here = said.next_back().is_some_and(|line| line.ends_with(point));
            Ok(here.then_some(()))
        })?;
        self.node.is_gone(DYING)
    }

    /// Listed is what is whole, and that is all or nothing.
    fn is_right(&self, there: bool) -> Result<()> {
        let whole = images::whole(&self.store)?;
        let listed = self.node.read(&["image", "ls"])?;
        let listed = listed.as_array().context("images are no list")?;
        let listed: Vec<_> = listed.iter().filter_map(|i| i["digest"].as_str()).collect();
        ensure!(
            whole.iter().eq(&listed),
            "{whole:?} on disk, {listed:?} told"
        );
        ensure!(whole.len() == usize::from(there), "held: {whole:?}");
        let none = Content::new();
        let content = if there { &self.content } else { &none };
        images::equal(&images::content(&self.store)?, content)
    }

    fn all(&self, cuts: &[Cut]) -> Result<()> {
        for cut in cuts {
            let done = self.at(*cut);
            done.with_context(|| format!("power lost at {cut:?}"))?;
        }
        // What was made in all these lives runs.
        let name = self.held()?;
        let never = ["--scale", "1..1", "--cpu", "0.1", "--pull", "never"];
        self.node.deploy("app", &name, &never)?.ok()?;
        until("it serves", PATIENCE, || {
            self.node.get("app", "/")?.ok()?.says("box").map(Some)
        })
        .map(drop)
    }
}

/// Files of all kinds that a layer has.
fn files(world: &World) -> Result<PathBuf> {
    let root = world.dir().join("app");
    fs::create_dir_all(root.join("data/deep"))?;
    noise(&root.join("data/large"), LARGE, 7)?;
    for number in 0..40 {
        fs::write(root.join(format!("data/deep/{number}")), number.to_string())?;
    }
    fs::write(root.join("data/empty"), "")?;
    std::os::unix::fs::symlink("deep/1", root.join("data/link"))?;
    fs::hard_link(root.join("data/deep/2"), root.join("data/two"))?;
    Ok(root)
}

fn power_goes_at(list: &[Cut]) -> Result<()> {
    let mut cuts = Cuts::begin()?;
    cuts.all(list)?;
    cuts.world.hush();
    Ok(())
}

#[test]
fn the_power_goes_while_an_image_is_pulled() -> Result<()> {
    power_goes_at(&PULLS)
}

#[test]
fn the_power_goes_while_an_image_is_pushed_or_removed() -> Result<()> {
    power_goes_at(&PUSHES_AND_REMOVALS)
}
