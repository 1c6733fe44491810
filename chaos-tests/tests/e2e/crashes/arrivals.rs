//! Images on their way to the node that dies: where they come from, how they are asked for, and what
//! has to be of them afterwards. Owns no test.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use chaos_tests::checkers::images;
use chaos_tests::world::{Outcome, PATIENCE, noise, until};
use serde_json::Value;

use super::Crashes;
use super::points::Step::{self, Import, Large, Push, Remove, Resume, Share};

/// Where images are pushed to the node.
pub(super) const DOOR: &str = "127.0.0.1:5000";
/// Bytes of a layer of which a part is kept, as that of others is not.
const LARGE: u64 = 4 << 20;

impl Crashes {
    /// An image in the registry that the step needs, and what has to be done with it before.
    pub(super) fn prepare_image(&self, step: Step, name: &str) -> Result<String> {
        self.world.push_alone(name, &[self.layer(step, name)?])?;
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
            _ => {}
        }
        Ok(image)
    }

    /// A layer that no other image has.
    fn layer(&self, step: Step, name: &str) -> Result<PathBuf> {
        let root = self.world.dir().join(name);
        fs::create_dir(&root)?;
        fs::write(root.join(name), name)?;
        if let Large | Resume = step {
            noise(&root.join("noise"), LARGE, self.deaths.get() as u64)?;
        }
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
}
