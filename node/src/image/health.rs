//! What is known of the soundness of images here, in this life of the daemon: disks change bytes,
//! so nothing runs from a layer that was not read whole since the daemon started, or brought in by
//! it. Owns when layers and documents are read again and how a damaged layer becomes whole from a
//! fresh copy; where fresh copies come from is the pull's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

use super::books::Image;
use super::budget::Budget;
use super::config::{ConfigFile, ImageConfig};
use super::digest::Digest;
use super::error::ImageError;
use super::flight::Flights;
use super::layer::Marker;
use super::manifest::{self, Document, LayerPlan};
use super::store::{Inner, Store};
use super::verify::{Damage, Finding};

/// Reading in the background rests this many times as long as it works.
const REST: u32 = 4;

/// Layers read at once before starts: each keeps a core busy, and requests want some too.
const READERS_AT_ONCE: usize = 2;

pub(super) struct Health {
    /// By diff id for layers, by the manifest's digest for an image's documents. Nothing is known
    /// of what was not yet read.
    known: Mutex<BTreeMap<Digest, Option<Damage>>>,
    /// Layers being read for starts that wait.
    flights: Arc<Flights<()>>,
    readers: Arc<Semaphore>,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::default(),
            flights: Flights::new(),
            readers: Arc::new(Semaphore::new(READERS_AT_ONCE)),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Digest, Option<Damage>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_sound(&self, digest: &Digest) -> bool {
        matches!(self.known().get(digest), Some(None))
    }

    pub(super) fn is_damaged(&self, digest: &Digest) -> bool {
        matches!(self.known().get(digest), Some(Some(_)))
    }

    pub(super) fn is_whole(&self, digest: &Digest) {
        self.known().insert(digest.clone(), None);
    }

    /// What left the disk takes what was known of it along.
    pub(super) fn forget(&self, digest: &Digest) {
        self.known().remove(digest);
    }
}

impl Inner {
    /// The marker of a layer that is complete and, as far as is known, sound.
    pub(super) fn usable(&self, diff_id: &Digest) -> Option<Marker> {
        if self.health.is_damaged(diff_id) {
            return None;
        }
        self.layers.marker(diff_id)
    }

    /// Whether a layer can be given to others.
    pub(super) fn serves(&self, diff_id: &Digest) -> bool {
        self.usable(diff_id).is_some() && self.layers.is_recorded(diff_id)
    }

    /// Unpacks and keeps a layer. A damaged copy is replaced by it, or mended when instances run
    /// from it.
    pub(super) fn take_in(
        &self,
        packed: impl Read + Send,
        plan: &LayerPlan,
        budget: &Budget,
    ) -> Result<Marker, ImageError> {
        let diff_id = &plan.diff_id;
        let (fresh, marker) = self.layers.unpack_aside(packed, plan, budget)?;
        let unsound = self.layers.folder(diff_id).exists() && self.usable(diff_id).is_none();
        if !unsound {
            self.layers.keep(&fresh, diff_id)?;
        } else if self.layer_in_use(diff_id) {
            self.layers.mend(diff_id, fresh.path())?;
            let finding = self.layers.verify(diff_id);
            self.judge(diff_id, finding)?;
        } else {
            self.layers.exchange(&fresh, diff_id)?;
        }
        if unsound {
            tracing::info!(layer = diff_id.short(), "a damaged layer is whole again");
        }
        // Digested on its way in.
        self.health.is_whole(diff_id);
        Ok(marker)
    }

    fn judge(&self, diff_id: &Digest, finding: Finding) -> Result<(), ImageError> {
        let Finding::Damaged(damage) = finding else {
            self.health.is_whole(diff_id);
            return Ok(());
        };
        if !self.layers.folder(diff_id).exists() {
            // Deleted while it was read: what was found says nothing.
            let digest = diff_id.to_string();
            return Err(ImageError::NotHeld { digest });
        }
        Err(self.condemn(diff_id, format!("layer {}", diff_id.short()), damage))
    }

    fn condemn(&self, digest: &Digest, what: String, damage: Damage) -> ImageError {
        let (files, chunks) = (damage.files.clone(), damage.chunks);
        let error = ImageError::Damaged { what, files };
        tracing::error!(chunks, %error, "no instance starts from it");
        self.health.known().insert(digest.clone(), Some(damage));
        error
    }

    /// Reads one layer unless it is known to be sound.
    fn check_layer(&self, diff_id: &Digest) -> Result<(), ImageError> {
        if self.health.is_sound(diff_id) {
            return Ok(());
        }
        let finding = self.layers.verify(diff_id);
        self.judge(diff_id, finding)
    }

    /// Reads an image's documents, and compares with them what is recorded of it.
    fn check_documents(&self, image: &Image) -> Result<(), ImageError> {
        let digest = image.digest()?;
        let read = self.documents(&digest).and_then(|(manifest, config)| {
            let what = "the manifest";
            let Document::Manifest(manifest) = Document::parse(what, &manifest)? else {
                return Err(ImageError::malformed(what, "it is an index"));
            };
            let file = ConfigFile::parse(&config)?;
            let plans = manifest::plan(&manifest, &file, &self.limits)?;
            let layers: Vec<_> = plans.iter().map(|p| p.diff_id.to_string()).collect();
            // And perhaps one of ours above: see `implied.rs`.
            let ours = image.layers.strip_prefix(&layers[..]);
            let recorded = image.config == ImageConfig::from(&file)
                && image.config_digest()? == Digest::of(&config)
                && ours.is_some_and(|ours| ours.len() <= 1);
            let differs = || ImageError::malformed("its record", "it is of something else");
            recorded.then_some(()).ok_or_else(differs)
        });
        match read {
            Ok(()) => {
                self.health.is_whole(&digest);
                Ok(())
            }
            Err(error @ ImageError::NotHeld { .. }) => Err(error),
            Err(error) => {
                let damage = Damage::of("its documents", &error);
                Err(self.condemn(&digest, format!("image {}", digest.short()), damage))
            }
        }
    }

    /// Whether instances are made of an image that is not kept yet: its documents came from a peer,
    /// each what its digest says, and are on no disk.
    fn arrives(&self, digest: &Digest) -> bool {
        self.image(digest).is_none() && self.coming().image(digest).is_some()
    }

    /// Whether a layer is not here yet but on its way. It is here before it is not on its way any more.
    pub(super) fn layer_arrives(&self, diff_id: &Digest) -> bool {
        self.coming().layer(diff_id).is_some() && self.layers.marker(diff_id).is_none()
    }

    /// Refuses layers that turned out to be damaged since they were asked for.
    pub(super) fn none_damaged(&self, diff_ids: &[Digest]) -> Result<(), ImageError> {
        let known = self.health.known();
        for diff_id in diff_ids {
            if let Some(Some(damage)) = known.get(diff_id) {
                return Err(ImageError::Damaged {
                    what: format!("layer {}", diff_id.short()),
                    files: damage.files.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Store {
    /// An image held here and sound, which from now on also has this name. [`ImageError::Damaged`]
    /// says that it must be brought in again.
    pub(super) async fn sound_as(
        &self,
        digest: &Digest,
        name: &str,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let Some(image) = self.held_as(digest, name).await? else {
            return Ok(None);
        };
        self.verified(&image).await?;
        Ok(Some(image))
    }

    /// Returns when all of an image that is here was read whole in this life of the daemon. The first
    /// to ask waits for the disk, and all who ask meanwhile wait with it. What arrives is read by
    /// others: see `lazy`.
    pub(super) async fn verified(&self, image: &Image) -> Result<(), ImageError> {
        let digest = image.digest()?;
        if !self.inner.health.is_sound(&digest) && !self.inner.arrives(&digest) {
            let image = image.clone();
            self.blocking(move |inner| inner.check_documents(&image))
                .await?;
        }
        for diff_id in image.diff_ids()? {
            if self.inner.health.is_sound(&diff_id) || self.inner.layer_arrives(&diff_id) {
                continue;
            }
            let (store, key) = (self.clone(), diff_id.to_string());
            let read = async move {
                let readers = Arc::clone(&store.inner.health.readers);
                let _turn = readers.acquire_owned().await;
                let read = store.blocking(move |inner| inner.check_layer(&diff_id));
                read.await
            };
            self.inner.health.flights.join(&key, read).await?;
        }
        Ok(())
    }

    /// Reads at leisure the images here, all of them or what is not known to be sound, and returns
    /// those that are damaged.
    pub async fn scrub(&self, all: bool) -> Vec<Arc<Image>> {
        let (mut damaged, mut read) = (Vec::new(), BTreeSet::new());
        for image in self.list() {
            let mut whole = true;
            if let Ok(digest) = image.digest()
                && (all || !self.inner.health.is_sound(&digest))
            {
                let image = Arc::clone(&image);
                let checked = self.blocking(move |inner| inner.check_documents(&image));
                whole = is_whole(&checked.await);
            }
            for diff_id in image.diff_ids().unwrap_or_default() {
                let known = !all && self.inner.health.is_sound(&diff_id);
                if !known && read.insert(diff_id.clone()) {
                    // What it finds is noted, for other images too.
                    let _ = self.scrub_layer(diff_id.clone()).await;
                }
                whole &= !self.inner.health.is_damaged(&diff_id);
            }
            if !whole {
                damaged.push(image);
            }
        }
        damaged
    }

    /// Reads one layer, resting in between: it takes the disk and the CPU from nobody for long.
    async fn scrub_layer(&self, diff_id: Digest) -> Result<(), ImageError> {
        let id = diff_id.clone();
        let begun = self.blocking(move |inner| Ok(inner.layers.reading(&id)));
        let finding = match begun.await? {
            Err(finding) => finding,
            Ok(mut reading) => loop {
                let begun = Instant::now();
                let step = self.blocking(move |_| {
                    let finding = reading.step();
                    Ok((reading, finding))
                });
                let (on, finding) = step.await?;
                if let Some(finding) = finding {
                    break finding;
                }
                reading = on;
                tokio::time::sleep(begun.elapsed() * REST).await;
            },
        };
        self.blocking(move |inner| inner.judge(&diff_id, finding))
            .await
    }
}

fn is_whole(checked: &Result<(), ImageError>) -> bool {
    !matches!(checked, Err(ImageError::Damaged { .. }))
}
