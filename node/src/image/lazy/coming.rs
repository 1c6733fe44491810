//! The images that instances are made of before all of them is here, and their layers that arrive.
//! In memory, and a file for each image so that the next daemon goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::books::Image;
use super::super::digest::Digest;
use super::super::disk;
use super::super::error::ImageError;
use super::super::layer::Layers;
use super::arrival::Arrival;

/// More at once, and the next ones are pulled as ever.
const MAX_IMAGES: usize = 16;

/// Bytes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Weight {
    pub here: u64,
    pub due: u64,
}

pub(in super::super) struct Coming {
    /// `images/coming`
    dir: PathBuf,
    images: BTreeMap<Digest, Arc<Image>>,
    layers: BTreeMap<Digest, Arc<Arrival>>,
}

impl Coming {
    pub(in super::super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            images: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    pub(super) fn is_full(&self) -> bool {
        self.images.len() >= MAX_IMAGES
    }

    /// What arriving layers take of the disk, and what they still will: the rest of the tar, and the
    /// tree that is made of it.
    pub(in super::super) fn weight(&self, layers: &Layers) -> Weight {
        let mut weight = Weight::default();
        for (diff_id, arrival) in &self.layers {
            let (raw, here) = (arrival.arriving.list.raw, arrival.arriving.bytes());
            weight.here += here;
            if layers.marker(diff_id).is_none() {
                weight.due += raw.saturating_sub(here).saturating_add(raw);
            }
        }
        weight
    }

    /// An image that instances may be made of although it is not all here.
    pub(in super::super) fn image(&self, digest: &Digest) -> Option<Arc<Image>> {
        let image = self.images.get(digest)?;
        let void = |layer: &Arc<Arrival>| layer.is_void();
        let sound = !self.of(image).any(void);
        sound.then(|| Arc::clone(image))
    }

    pub(in super::super) fn layer(&self, diff_id: &Digest) -> Option<Arc<Arrival>> {
        self.layers.get(diff_id).cloned()
    }

    /// When somebody last asked for something of any of them.
    pub(super) fn last_want(&self) -> Option<Instant> {
        let layers = self.layers.values();
        layers.map(|arrival| arrival.arriving.last_want()).max()
    }

    fn of(&self, image: &Image) -> impl Iterator<Item = &Arc<Arrival>> {
        let ids = image.diff_ids().unwrap_or_default();
        ids.into_iter().filter_map(|id| self.layers.get(&id))
    }

    /// The layers of an image that arrive.
    pub(super) fn layers(&self, digest: &Digest) -> Vec<Arc<Arrival>> {
        let image = self.images.get(digest);
        image.map_or(Vec::new(), |image| self.of(image).cloned().collect())
    }

    pub(super) fn add_layer(&mut self, arrival: Arrival) {
        let arrival = Arc::new(arrival);
        self.layers.insert(arrival.diff_id.clone(), arrival);
    }

    pub(super) fn enter(&mut self, digest: &Digest, image: Arc<Image>) {
        self.images.insert(digest.clone(), image);
    }

    /// Writes that instances may be made of an image from now on.
    pub(super) fn record(&self, image: &Image) -> Result<(), ImageError> {
        let path = self.file(&image.digest()?);
        let bytes = serde_json::to_vec(image).map_err(|e| ImageError::malformed("record", e))?;
        // Not synced: after a power cut there is no instance left that reads it.
        std::fs::write(&path, bytes).map_err(|e| ImageError::disk("write", &path, e))
    }

    /// The image is here, or nobody needs it: what no other image needs of its layers' folders goes
    /// with the last who uses them.
    pub(super) fn forget(&mut self, digest: &Digest) {
        let _ = disk::remove_all(&self.file(digest));
        self.images.remove(digest);
        let ids = |image: &Arc<Image>| image.diff_ids().unwrap_or_default();
        let needed: Vec<Digest> = self.images.values().flat_map(ids).collect();
        self.layers.retain(|id, arrival| {
            let stays = needed.contains(id);
            if !stays {
                arrival.done();
            }
            stays
        });
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", digest.hex()))
    }
}
