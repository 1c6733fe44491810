//! What the store knows, in memory: images held, snapshots made of them, layers counted on by work
//! under way; and from that, what may go. No disk here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scheduler::model::ImagePin;
use serde::{Deserialize, Serialize};

use super::config::ImageConfig;
use super::digest::Digest;
use super::error::ImageError;
use super::gc::Held;

/// An image held on this node, complete and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub pin: ImagePin,
    /// Every name it was asked for by, as `registry/repository:tag`. A name is one image's.
    pub names: BTreeSet<String>,
    pub config: ImageConfig,
    /// Diff ids, the lowest layer first.
    pub layers: Vec<String>,
    /// Unpacked size; layers shared with other images count in full.
    pub bytes: u64,
    /// Of the configuration document in `blobs/`.
    config_digest: String,
    /// What was pushed beside it, by name: an index that lists it, a list of its signatures. Each the
    /// digest of the document in `blobs/`, and of those that it needs there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) attached: BTreeMap<String, Vec<String>>,
}

impl Image {
    pub(super) fn new(
        pin: ImagePin,
        config: ImageConfig,
        layers: Vec<String>,
        bytes: u64,
        config_digest: &Digest,
    ) -> Self {
        let names = BTreeSet::from([pin.reference.clone()]);
        let config_digest = config_digest.to_string();
        Self {
            pin,
            names,
            config,
            layers,
            bytes,
            config_digest,
            attached: BTreeMap::new(),
        }
    }

    pub fn digest(&self) -> Result<Digest, ImageError> {
        self.pin.digest.parse()
    }

    pub(super) fn config_digest(&self) -> Result<Digest, ImageError> {
        self.config_digest.parse()
    }

    pub(super) fn diff_ids(&self) -> Result<Vec<Digest>, ImageError> {
        self.layers.iter().map(|id| id.parse()).collect()
    }
}

/// A snapshot made for an instance. It names its layers too: they stay while it is mounted, even
/// if the image's own record is lost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Use {
    pub instance: PathBuf,
    pub digest: String,
    pub layers: Vec<String>,
}

/// What must stay on disk.
#[derive(Debug, Default)]
pub(super) struct Needed {
    pub layers: BTreeSet<Digest>,
    /// Names of files in `blobs/`; `None` while work under way may have written some already.
    pub blobs: Option<BTreeSet<String>>,
}

#[derive(Default)]
pub(super) struct Books {
    images: BTreeMap<Digest, Arc<Image>>,
    uses: BTreeMap<PathBuf, Use>,
    /// Layers that pulls and imports under way count on, and how many of them do.
    held: BTreeMap<Digest, usize>,
    /// When an instance was last made of an image, or it was asked for: seconds of the wall clock.
    last_used: BTreeMap<Digest, u64>,
}

impl Books {
    /// Notes a use of an image held here.
    pub(super) fn used(&mut self, digest: &Digest, at: u64) {
        if self.images.contains_key(digest) {
            self.last_used.insert(digest.clone(), at);
        }
    }

    /// Strikes an image unless it was used since `seen`.
    pub(super) fn strike_idle(&mut self, digest: &Digest, seen: u64) -> Result<bool, ImageError> {
        if self.last_used.get(digest).copied().unwrap_or(0) != seen {
            return Ok(false);
        }
        match self.strike(digest) {
            Ok(()) => Ok(true),
            Err(ImageError::InUse { .. } | ImageError::NotHeld { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The images as collecting sees them, and the layers that stay without them.
    pub(super) fn holdings(&self) -> Result<(Vec<Held>, BTreeSet<Digest>), ImageError> {
        let using: BTreeSet<&str> = self.uses.values().map(|u| u.digest.as_str()).collect();
        let mut images = Vec::new();
        for (digest, image) in &self.images {
            images.push(Held {
                digest: digest.clone(),
                layers: image.diff_ids()?,
                last_used: self.last_used.get(digest).copied().unwrap_or(0),
                in_use: using.contains(digest.as_str()),
            });
        }
        let mut kept: BTreeSet<Digest> = self.held.keys().cloned().collect();
        let mounted = self.uses.values().flat_map(|held| &held.layers);
        kept.extend(mounted.filter_map(|id| id.parse().ok()));
        Ok((images, kept))
    }

    pub(super) fn image(&self, digest: &Digest) -> Option<Arc<Image>> {
        self.images.get(digest).cloned()
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<Image>> {
        self.images
            .values()
            .find(|image| image.names.contains(name))
            .cloned()
    }

    pub(super) fn images(&self) -> Vec<Arc<Image>> {
        self.images.values().cloned().collect()
    }

    /// Enters an image; its names are its own from now on. Returns what has to be recorded: this
    /// image, and those that lost a name to it.
    pub(super) fn enter(&mut self, digest: &Digest, mut image: Image) -> Vec<(Digest, Arc<Image>)> {
        if let Some(known) = self.images.get(digest) {
            image.names.extend(known.names.iter().cloned());
            for (name, documents) in &known.attached {
                let had = image.attached.entry(name.clone());
                had.or_insert_with(|| documents.clone());
            }
        }
        // Nothing is said in place of an image by the image itself.
        image.attached.retain(|_, documents| !documents.is_empty());
        let image = Arc::new(image);
        self.images.insert(digest.clone(), Arc::clone(&image));
        let mut changed = vec![(digest.clone(), Arc::clone(&image))];
        for (other, held) in &mut self.images {
            if other != digest && !held.names.is_disjoint(&image.names) {
                let mut poorer = Image::clone(held);
                poorer.names.retain(|name| !image.names.contains(name));
                poorer
                    .attached
                    .retain(|name, _| !image.names.contains(name));
                *held = Arc::new(poorer);
                changed.push((other.clone(), Arc::clone(held)));
            }
        }
        changed
    }

    /// Strikes an image that nothing uses.
    pub(super) fn strike(&mut self, digest: &Digest) -> Result<(), ImageError> {
        let instances: Vec<PathBuf> = self
            .uses
            .values()
            .filter(|held| held.digest == digest.as_str())
            .map(|held| held.instance.clone())
            .collect();
        if !instances.is_empty() {
            return Err(ImageError::InUse {
                digest: digest.to_string(),
                instances,
            });
        }
        match self.images.remove(digest) {
            Some(_) => {
                self.last_used.remove(digest);
                Ok(())
            }
            None => Err(ImageError::NotHeld {
                digest: digest.to_string(),
            }),
        }
    }

    pub(super) fn begin_use(&mut self, held: Use) {
        self.uses.insert(held.instance.clone(), held);
    }

    /// Whether an instance runs from it.
    pub(super) fn uses_layer(&self, diff_id: &Digest) -> bool {
        let mut uses = self.uses.values();
        uses.any(|held| held.layers.iter().any(|id| id == diff_id.as_str()))
    }

    /// Whether this instance runs from it.
    pub(super) fn runs_from(&self, instance: &Path, diff_id: &Digest) -> bool {
        let held = self.uses.get(instance);
        held.is_some_and(|held| held.layers.iter().any(|id| id == diff_id.as_str()))
    }

    /// Returns the image the instance was made of.
    pub(super) fn end_use(&mut self, instance: &Path) -> Option<Digest> {
        self.uses.remove(instance)?.digest.parse().ok()
    }

    /// Whether a snapshot is made of the image.
    pub(super) fn is_used(&self, digest: &Digest) -> bool {
        self.uses.values().any(|u| u.digest == digest.as_str())
    }

    pub(super) fn instances(&self) -> Vec<PathBuf> {
        self.uses.keys().cloned().collect()
    }

    pub(super) fn hold(&mut self, layers: &[Digest]) {
        for layer in layers {
            *self.held.entry(layer.clone()).or_default() += 1;
        }
    }

    pub(super) fn release(&mut self, layers: &[Digest]) {
        for layer in layers {
            match self.held.get_mut(layer) {
                Some(count) if *count > 1 => *count -= 1,
                held => {
                    assert!(held.is_some(), "{layer} is released more often than held");
                    self.held.remove(layer);
                }
            }
        }
    }

    pub(super) fn needed(&self) -> Result<Needed, ImageError> {
        let mut layers: BTreeSet<Digest> = self.held.keys().cloned().collect();
        let mut blobs = BTreeSet::new();
        for (digest, image) in &self.images {
            layers.extend(image.diff_ids()?);
            blobs.insert(digest.hex().to_owned());
            blobs.insert(image.config_digest.parse::<Digest>()?.hex().to_owned());
            for document in image.attached.values().flatten() {
                blobs.insert(document.parse::<Digest>()?.hex().to_owned());
            }
        }
        for held in self.uses.values() {
            layers.extend(held.layers.iter().filter_map(|id| id.parse().ok()));
        }
        let blobs = self.held.is_empty().then_some(blobs);
        Ok(Needed { layers, blobs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, of: &str, layers: &[&str]) -> (Digest, Image) {
        let digest = Digest::of(of.as_bytes());
        let pin = ImagePin {
            reference: name.to_owned(),
            digest: digest.to_string(),
        };
        let layers = layers
            .iter()
            .map(|l| Digest::of(l.as_bytes()).to_string())
            .collect();
        let image = Image::new(
            pin,
            ImageConfig::default(),
            layers,
            1,
            &Digest::of(b"config"),
        );
        (digest, image)
    }

    fn held(instance: &str, image: &Image) -> Use {
        let (digest, layers) = (image.pin.digest.clone(), image.layers.clone());
        Use {
            instance: instance.into(),
            digest,
            layers,
        }
    }

    #[test]
    fn a_name_moves_to_the_newest_image() {
        let mut books = Books::default();
        let (old, old_image) = image("r/a:latest", "old", &["l1"]);
        let (new, new_image) = image("r/a:latest", "new", &["l2"]);
        assert_eq!(books.enter(&old, old_image).len(), 1);
        let changed: Vec<_> = books
            .enter(&new, new_image)
            .into_iter()
            .map(|(d, _)| d)
            .collect();
        assert_eq!(changed, [new.clone(), old.clone()]);
        assert_eq!(
            books
                .named("r/a:latest")
                .expect("held")
                .digest()
                .expect("valid"),
            new
        );
        assert!(books.image(&old).expect("held").names.is_empty());
    }

    #[test]
    fn layers_stay_while_anything_counts_on_them() {
        let mut books = Books::default();
        let (one, first) = image("r/a:1", "one", &["shared", "own"]);
        let (two, second) = image("r/b:1", "two", &["shared"]);
        books.enter(&one, first.clone());
        books.enter(&two, second);
        books.begin_use(held("/i", &first));
        assert!(matches!(books.strike(&one), Err(ImageError::InUse { .. })));
        books.end_use(Path::new("/i"));
        books.strike(&one).expect("not in use");
        assert!(matches!(
            books.strike(&one),
            Err(ImageError::NotHeld { .. })
        ));
        let layer = |name: &str| Digest::of(name.as_bytes());
        let needed = books.needed().expect("valid");
        assert_eq!(needed.layers, BTreeSet::from([layer("shared")]));
        assert!(needed.blobs.expect("idle").contains(two.hex()));

        books.hold(&[layer("coming"), layer("coming")]);
        books.release(&[layer("coming")]);
        let needed = books.needed().expect("valid");
        assert!(needed.layers.contains(&layer("coming")) && needed.blobs.is_none());
        books.release(&[layer("coming")]);
        // A mounted snapshot keeps its layers, whatever became of its image's record.
        books.begin_use(held("/j", &first));
        assert!(
            books
                .needed()
                .expect("valid")
                .layers
                .contains(&layer("own"))
        );
    }
}
