//! Images on their way to the node that dies: where they come from, how they are asked for, and what
//! has to be of them afterwards. Owns no test.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use chaos_tests::checkers::images;
use chaos_tests::world::{Node, Outcome, PATIENCE, noise, until};
use serde_json::Value;

use super::points::Step::{self, Arrive, Import, Large, Push, Remove, Resume, Share};
use super::{Crashes, HOLDER};

/// Where images are pushed to the node.
pub(super) const DOOR: &str = "127.0.0.1:5000";
/// Bytes of a layer of which a part is kept, as that of others is not.
const LARGE: u64 = 4 << 20;
/// Of a layer that is worth being read while it arrives.
const ARRIVING: u64 = 72 << 20;

impl Crashes {
    /// An image in the registry that the step needs, and what has to be done with it before.
    pub(super) fn prepare_image(&self, step: Step, name: &str) -> Result<String> {
        let layer = self.layer(step, name)?;
        match step {
            // It is to run.
            Arrive => self.world.push(name, &[layer])?,
            _ => self.world.push_alone(name, &[layer])?,
        }
        let image = self.world.image(name);
        match step {
            Remove => drop(self.node.cli(&["image", "pull", &image])?.ok()?),
            Share => {
                let other = &self.world["fra-1"];
                other.cli(&["image", "pull", &image])?.ok()?;
                until("the node hears who holds it", PATIENCE, || {
                    let all = self.node.read(&["image", "ls"])?;
                    let all = all.as_array().context("images are no list")?;
                    let only_there = |i: &Value| i["nodes"] == serde_json::json!(["fra-1"]);
                    Ok(all.iter().any(only_there).then_some(()))
                })?;
            }
            Resume => {
                fs::write(&self.order, "image::piece_kept")?;
                self.fetch(step, name, &image)?;
                self.died_at("image::piece_kept")?;
                self.deaths.set(self.deaths.get() + 1);
                fs::remove_file(&self.order)?;
                self.node.start_with(&self.launch)?;
                self.world.settle()?;
            }
            Arrive => {
                self.world[HOLDER].cli(&["image", "pull", &image])?.ok()?;
                until("it is known where the image is", PATIENCE, || {
                    let (there, known) = (digests(&self.world[HOLDER])?, digests(&self.node)?);
                    Ok(there.is_subset(&known).then_some(()))
                })?;
            }
            _ => {}
        }
        Ok(image)
    }

    /// A layer that no other image has.
    fn layer(&self, step: Step, name: &str) -> Result<PathBuf> {
        let root = self.world.dir().join(name);
        fs::create_dir(&root)?;
        fs::write(root.join(name), name)?;
        let bytes = match step {
            Large | Resume => LARGE,
            Arrive => ARRIVING,
            _ => 0,
        };
        noise(&root.join("noise"), bytes, self.deaths.get() as u64)?;
        self.world.pack(&root, name)
    }

    pub(super) fn fetch(&self, step: Step, name: &str, image: &str) -> Result<Outcome> {
        match step {
            Import => {
                let name = format!("imports.test/{name}:1");
                self.node.cli(&["image", "import", image, "--as", &name])
            }
            Push => self.node.push(image, &format!("{DOOR}/{name}:1")),
            _ => self.node.cli(&["image", "pull", image]),
        }
    }

    /// What is recorded is there, and nothing else.
    pub(super) fn images_are_whole(&self) -> Result<()> {
        images::whole(&self.node.dir().join("images")).map(drop)
    }

    /// The image is like any other, and nothing tells how it came.
    pub(super) fn has_arrived(&self) -> Result<()> {
        let coming = self.node.dir().join("images/coming");
        until("the image is here", PATIENCE, || {
            Ok((fs::read_dir(&coming)?.count() == 0).then_some(()))
        })
    }
}

/// Of the images that a node has or knows of.
fn digests(node: &Node) -> Result<BTreeSet<String>> {
    let images = node.read(&["image", "ls"])?;
    let images = images.as_array().context("images are no list")?;
    let digest = |image: &Value| image["digest"].as_str().map(ToOwned::to_owned);
    Ok(images.iter().filter_map(digest).collect())
}
