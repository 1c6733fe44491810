//! A layer that arrives, as the store has it: the folder with its file and what it is read by. Owns
//! the folder `images/coming/HEX`, which is gone when the layer is done and nobody needs it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use scheduler::model::NodeId;

use super::super::budget::Budget;
use super::super::chunks::ChunkList;
use super::super::digest::Digest;
use super::super::disk;
use super::super::error::ImageError;
use super::super::implied::Directories;
use super::super::recipe::Recipe;
use super::super::unpack::Stop;
use super::arriving::Arriving;
use super::holes::Holes;
use super::outline::{Kind, Outline, ROOT};
use super::told::Told;

const RECIPE: &str = "recipe";
const CHUNKS: &str = "chunks";
const TAR: &str = "tar";

/// What a name in the root of a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Point {
    Directory,
    Whiteout,
    Other,
}

pub(in super::super) struct Arrival {
    pub diff_id: Digest,
    /// Who said what it is like; unknown after a restart.
    pub author: Option<NodeId>,
    pub recipe: Recipe,
    pub opaque_root: bool,
    /// The directories that no entry describes.
    pub implied: BTreeSet<Vec<u8>>,
    pub(super) arriving: Arriving,
    root: Vec<(Box<[u8]>, Point)>,
    folder: PathBuf,
    done: AtomicBool,
}

impl Arrival {
    /// Makes the folder of a layer below `dir`.
    pub(in super::super) fn begin(
        dir: &Path,
        diff_id: &Digest,
        told: Told,
        budget: &Budget,
    ) -> Result<Self, ImageError> {
        let folder = dir.join(diff_id.hex());
        disk::remove_all(&folder).map_err(|e| ImageError::disk("remove", &folder, e))?;
        disk::create_private_dirs(&folder)?;
        let outline = outline(diff_id, &told.recipe, budget)?;
        for (name, bytes) in [
            (RECIPE, told.recipe.encode()?),
            (CHUNKS, told.list.encode()?),
        ] {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(|e| ImageError::disk("write", &path, e))?;
        }
        let arriving = Arriving::open(&folder.join(TAR), told.list, &told.profile)?;
        let author = Some(told.author);
        Ok(Self::new(
            diff_id,
            author,
            told.recipe,
            &outline,
            arriving,
            folder,
        ))
    }

    /// What an earlier daemon began, with what has arrived of it.
    pub(in super::super) fn reopen(
        dir: &Path,
        diff_id: &Digest,
        budget: &Budget,
    ) -> Result<Self, ImageError> {
        let folder = dir.join(diff_id.hex());
        let (recipe, list, _) = Parts::open(&folder)?.read()?;
        let outline = outline(diff_id, &recipe, budget)?;
        let arriving = Arriving::open(&folder.join(TAR), list, &[])?;
        Ok(Self::new(diff_id, None, recipe, &outline, arriving, folder))
    }

    fn new(
        diff_id: &Digest,
        author: Option<NodeId>,
        recipe: Recipe,
        outline: &Outline,
        arriving: Arriving,
        folder: PathBuf,
    ) -> Self {
        Self {
            diff_id: diff_id.clone(),
            author,
            recipe,
            opaque_root: outline.opaque_root(),
            implied: outline.implied().clone(),
            arriving,
            root: points(outline),
            folder,
            done: AtomicBool::new(false),
        }
    }

    /// What `name` in its root is; `None` when there is no such name.
    pub(in super::super) fn point(&self, name: &str) -> Option<Point> {
        let mut root = self.root.iter();
        let found = root.find(|(had, _)| **had == *name.as_bytes());
        found.map(|(_, point)| *point)
    }

    /// How its directories are described. Made anew: few images have a use for it.
    pub(in super::super) fn directories(
        &self,
        budget: &Budget,
    ) -> Result<Box<dyn Directories>, ImageError> {
        Ok(Box::new(outline(&self.diff_id, &self.recipe, budget)?))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn tar(&self) -> PathBuf {
        self.folder.join(TAR)
    }

    /// Whether a peer's word for it was found wrong.
    pub(in super::super) fn is_void(&self) -> bool {
        self.arriving.is_void()
    }

    /// The folder goes with the last who uses it.
    pub(super) fn done(&self) {
        self.arriving.close();
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.done.load(Ordering::Relaxed) {
            return;
        }
        let folder = std::mem::take(&mut self.folder);
        let remove = move || {
            if let Err(error) = disk::remove_all(&folder) {
                tracing::warn!(path = %folder.display(), %error, "left until restart");
            }
        };
        // Freeing a large file takes a while.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// What a process that shows the layer needs of its folder: opened, and read when it has no power left.
pub(super) struct Parts {
    recipe: File,
    chunks: File,
    tar: File,
}

impl Parts {
    pub(super) fn open(folder: &Path) -> Result<Self, ImageError> {
        let open = |name| {
            let path = folder.join(name);
            File::open(&path).map_err(|e| ImageError::disk("open", &path, e))
        };
        Ok(Self {
            recipe: open(RECIPE)?,
            chunks: open(CHUNKS)?,
            tar: open(TAR)?,
        })
    }

    pub(super) fn read(self) -> Result<(Recipe, ChunkList, File), ImageError> {
        let recipe = Recipe::decode(BufReader::new(self.recipe))?;
        let list = ChunkList::decode(BufReader::new(self.chunks))?;
        Ok((recipe, list, self.tar))
    }
}

/// The tree that a recipe describes.
pub(in super::super) fn outline(
    diff_id: &Digest,
    recipe: &Recipe,
    budget: &Budget,
) -> Result<Outline, ImageError> {
    let layer = diff_id.short();
    Outline::read(Holes::new(recipe), budget).map_err(|stop| match stop {
        Stop::Limit(error) => error,
        Stop::Refused { entry, reason } => ImageError::UnsafeLayer {
            layer: layer.to_owned(),
            entry,
            reason,
        },
        Stop::Stream(source) | Stop::Disk { source, .. } => {
            ImageError::malformed(format!("layer {layer}"), source)
        }
    })
}

fn points(outline: &Outline) -> Vec<(Box<[u8]>, Point)> {
    let Some(Kind::Directory { names, .. }) = outline.node(ROOT).map(|root| &root.kind) else {
        return Vec::new();
    };
    let kinds = names.iter().filter_map(|(name, number)| {
        let point = match outline.node(*number)?.kind {
            Kind::Directory { .. } => Point::Directory,
            Kind::Whiteout => Point::Whiteout,
            Kind::File(_) | Kind::Symlink(_) => Point::Other,
        };
        Some((name.clone(), point))
    });
    kinds.collect()
}
