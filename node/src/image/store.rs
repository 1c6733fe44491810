//! The node's images as a whole: what is held, what uses it, what may go. The books are in memory
//! and on disk; the layers' folders are the truth about layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use scheduler::model::ImagePin;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::budget::Limits;
use super::config::ImageConfig;
use super::digest::Digest;
use super::disk::{self, Scratch};
use super::error::ImageError;
use super::flight::Flights;
use super::layer::{Layers, Marker};

use super::reference::Reference;

/// Layers unpacked at once, by all pulls together: each costs a core, a connection and a window of
/// memory.
const LAYERS_AT_ONCE: usize = 4;

/// An image held on this node, complete and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub pin: ImagePin,
    /// Every name it was asked for by, as `registry/repository:tag`.
    pub names: BTreeSet<String>,
    pub config: ImageConfig,
    /// Diff ids, the lowest layer first.
    pub layers: Vec<String>,
    /// Unpacked size; layers shared with other images count in full.
    pub bytes: u64,
    /// Documents in `blobs/`, besides the manifest itself.
    config_digest: String,
}

/// The image store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub dir: PathBuf,
    pub limits: Limits,
    pub layers: Layers,
    pub image_flights: Arc<Flights<Arc<Image>>>,
    pub layer_flights: Arc<Flights<Marker>>,
    pub unpackers: Arc<Semaphore>,
    books: Mutex<Books>,
    clients: Mutex<BTreeMap<(bool, Duration), reqwest::Client>>,
    /// Held for the life of the store: `tmp/` belongs to one process.
    _lock: File,
}

#[derive(Default)]
struct Books {
    images: BTreeMap<Digest, Arc<Image>>,
    /// Instance folders with a snapshot, and of which image.
    uses: BTreeMap<PathBuf, Digest>,
    /// Layers that work under way counts on.
    held: BTreeMap<Digest, usize>,
}

#[derive(Serialize, Deserialize)]
struct Use {
    instance: PathBuf,
    digest: String,
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
        Self {
            pin,
            names,
            config,
            layers,
            bytes,
            config_digest: config_digest.to_string(),
        }
    }

    pub fn digest(&self) -> Result<Digest, ImageError> {
        self.pin.digest.parse()
    }

    pub(super) fn diff_ids(&self) -> Result<Vec<Digest>, ImageError> {
        self.layers.iter().map(|id| id.parse()).collect()
    }
}

impl Store {
    /// Opens `dir` (made when missing), clears what was left unfinished, and reads what is held.
    /// An image with a layer that is not complete is forgotten: it will be pulled again.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        for part in ["blobs/sha256", "layers", "index", "uses", "tmp"] {
            disk::create_private_dirs(&dir.join(part))?;
        }
        let lock = lock(dir)?;
        let tmp = dir.join("tmp");
        for name in disk::names(&tmp)? {
            let path = tmp.join(name);
            disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
        }
        let layers = Layers::new(dir.join("layers"), tmp);
        let inner = Inner {
            dir: dir.to_owned(),
            limits,
            layers,
            image_flights: Flights::new(),
            layer_flights: Flights::new(),
            unpackers: Arc::new(Semaphore::new(LAYERS_AT_ONCE)),
            books: Mutex::new(Books::default()),
            clients: Mutex::new(BTreeMap::new()),
            _lock: lock,
        };
        inner.read_books()?;
        drop(inner.sweep()?);
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// An image held here, by its manifest's digest.
    pub fn get(&self, digest: &str) -> Option<Arc<Image>> {
        let digest: Digest = digest.parse().ok()?;
        self.inner.books().images.get(&digest).cloned()
    }

    /// The image last pulled or imported under this name, or by this digest.
    pub fn find(&self, reference: &Reference) -> Option<Arc<Image>> {
        if let Some(digest) = reference.digest() {
            return self.get(digest.as_str());
        }
        let name = reference.name();
        self.inner
            .books()
            .images
            .values()
            .find(|image| image.names.contains(&name))
            .cloned()
    }

    /// All images held, by digest.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.books().images.values().cloned().collect()
    }

    /// Forgets an image and deletes the layers no other image has. Refused while an instance's
    /// snapshot is made of it.
    pub async fn remove(&self, digest: &str) -> Result<(), ImageError> {
        let digest: Digest = digest.parse()?;
        self.blocking(move |inner| inner.remove(&digest)).await
    }

    /// Runs disk work off the runtime's threads.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|_| {
                Err(ImageError::Interrupted {
                    what: "work on the image store".to_owned(),
                })
            })
    }
}

impl Inner {
    fn books(&self) -> MutexGuard<'_, Books> {
        // A panic elsewhere leaves the books as they were between two whole changes.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn record(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join("index")
            .join(format!("{}.json", digest.hex()))
    }

    fn read_books(&self) -> Result<(), ImageError> {
        let mut books = self.books();
        for (_, image) in read_all::<Image>(&self.dir.join("index"))? {
            let whole = image
                .diff_ids()
                .is_ok_and(|ids| ids.iter().all(|id| self.layers.marker(id).is_some()));
            match image.digest() {
                Ok(digest) if whole => {
                    books.images.insert(digest, Arc::new(image));
                }
                _ => tracing::warn!(image = %image.pin.digest, "image is not complete: forgotten"),
            }
        }
        for (path, held) in read_all::<Use>(&self.dir.join("uses"))? {
            match held.digest.parse() {
                Ok(digest) if held.instance.exists() => {
                    books.uses.insert(held.instance, digest);
                }
                _ => disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?,
            }
        }
        Ok(())
    }

    /// Keeps an image's documents and records it as held under its name.
    pub(super) fn keep(
        &self,
        mut image: Image,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<Arc<Image>, ImageError> {
        let digest = image.digest()?;
        for (name, bytes) in [
            (Digest::of(manifest), manifest),
            (Digest::of(config), config),
        ] {
            disk::replace(&self.tmp(), &self.blob(&name), bytes)?;
        }
        if let Some(known) = self.books().images.get(&digest) {
            image.names.extend(known.names.iter().cloned());
        }
        let image = Arc::new(image);
        self.write_record(&digest, &image)?;
        let moved = self.enter(&digest, &image);
        for (digest, image) in moved {
            self.write_record(&digest, &image)?;
        }
        Ok(image)
    }

    /// Adds a name to an image that is held already.
    pub(super) fn also_known_as(&self, image: &Image, name: &str) -> Result<(), ImageError> {
        if image.names.contains(name) {
            return Ok(());
        }
        let digest = image.digest()?;
        let mut image = image.clone();
        image.names.insert(name.to_owned());
        let image = Arc::new(image);
        self.write_record(&digest, &image)?;
        for (digest, image) in self.enter(&digest, &image) {
            self.write_record(&digest, &image)?;
        }
        Ok(())
    }

    /// Enters an image in the books. A name is the newest image's: those that lost one are returned.
    fn enter(&self, digest: &Digest, image: &Arc<Image>) -> Vec<(Digest, Arc<Image>)> {
        let mut books = self.books();
        books.images.insert(digest.clone(), Arc::clone(image));
        let mut moved = Vec::new();
        for (other, held) in &mut books.images {
            if other != digest && !held.names.is_disjoint(&image.names) {
                let mut changed = Image::clone(held);
                changed.names.retain(|name| !image.names.contains(name));
                *held = Arc::new(changed);
                moved.push((other.clone(), Arc::clone(held)));
            }
        }
        moved
    }

    fn write_record(&self, digest: &Digest, image: &Image) -> Result<(), ImageError> {
        let bytes = serde_json::to_vec(image).map_err(|e| ImageError::malformed("record", e))?;
        disk::replace(&self.tmp(), &self.record(digest), &bytes)
    }

    fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let graves = {
            let mut books = self.books();
            if !books.images.contains_key(digest) {
                return Err(ImageError::NotHeld {
                    digest: digest.to_string(),
                });
            }
            let users = books.uses.iter().filter(|(_, used)| *used == digest);
            let instances: Vec<PathBuf> = users.map(|(path, _)| path.clone()).collect();
            if !instances.is_empty() {
                return Err(ImageError::InUse {
                    digest: digest.to_string(),
                    instances,
                });
            }
            let record = self.record(digest);
            disk::remove_all(&record).map_err(|e| ImageError::disk("remove", &record, e))?;
            books.images.remove(digest);
            self.sweep_books(&books)?
        };
        // The slow part: with the books open to others again.
        drop(graves);
        Ok(())
    }

    /// Takes away what no image needs. Dropping what is returned deletes it.
    fn sweep(&self) -> Result<Vec<Scratch>, ImageError> {
        let books = self.books();
        self.sweep_books(&books)
    }

    fn sweep_books(&self, books: &Books) -> Result<Vec<Scratch>, ImageError> {
        let mut needed: BTreeSet<Digest> = books.held.keys().cloned().collect();
        let mut documents = BTreeSet::new();
        for (digest, image) in &books.images {
            needed.extend(image.diff_ids()?);
            documents.insert(digest.hex().to_owned());
            documents.extend(
                image
                    .config_digest
                    .parse()
                    .map(|d: Digest| d.hex().to_owned()),
            );
        }
        let mut graves = Vec::new();
        for diff_id in self.layers.all()?.iter().filter(|id| !needed.contains(id)) {
            graves.extend(self.layers.take_away(diff_id)?);
        }
        // Documents of a pull under way are written again if this takes them; they come last.
        if books.held.is_empty() {
            let blobs = self.dir.join("blobs/sha256");
            for name in disk::names(&blobs)?
                .iter()
                .filter(|name| !documents.contains(*name))
            {
                let path = blobs.join(name);
                disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
            }
        }
        Ok(graves)
    }

    /// Notes that an instance is made of an image, before its mount exists.
    pub(super) fn begin_use(&self, instance: &Path, digest: &Digest) -> Result<(), ImageError> {
        {
            let mut books = self.books();
            if !books.images.contains_key(digest) {
                return Err(ImageError::NotHeld {
                    digest: digest.to_string(),
                });
            }
            books.uses.insert(instance.to_owned(), digest.clone());
        }
        let held = Use {
            instance: instance.to_owned(),
            digest: digest.to_string(),
        };
        let bytes = serde_json::to_vec(&held).map_err(|e| ImageError::malformed("use", e))?;
        // Not synced: after a power cut there is no instance left to protect.
        let (scratch, path) = (Scratch::reserve(&self.tmp()), self.use_file(instance));
        std::fs::write(scratch.path(), bytes)
            .and_then(|()| std::fs::rename(scratch.path(), &path))
            .map_err(|e| ImageError::disk("write", &path, e))
    }

    pub(super) fn end_use(&self, instance: &Path) -> Result<(), ImageError> {
        self.books().uses.remove(instance);
        let path = self.use_file(instance);
        disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))
    }

    fn use_file(&self, instance: &Path) -> PathBuf {
        let name = Digest::of(instance.as_os_str().as_encoded_bytes());
        self.dir.join("uses").join(format!("{}.json", name.hex()))
    }

    /// The client for a registry. Made when first needed: a node that never speaks TLS to a
    /// registry needs no CA certificates.
    pub(super) fn client(
        &self,
        tls: bool,
        connect: Duration,
    ) -> Result<reqwest::Client, ImageError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&(tls, connect)) {
            return Ok(client.clone());
        }
        let made = super::token::client(tls, connect);
        let client = made.map_err(|e| {
            let detail = super::registry::chain(&e);
            ImageError::io("set up TLS for registries", std::io::Error::other(detail))
        })?;
        clients.insert((tls, connect), client.clone());
        Ok(client)
    }
}

/// Keeps layers from being swept while a pull or an import counts on them.
pub(super) struct Hold {
    inner: Arc<Inner>,
    layers: Vec<Digest>,
}

impl Hold {
    pub(super) fn new(store: &Store, layers: Vec<Digest>) -> Self {
        let inner = Arc::clone(&store.inner);
        for layer in &layers {
            *inner.books().held.entry(layer.clone()).or_default() += 1;
        }
        Self { inner, layers }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut books = self.inner.books();
        for layer in &self.layers {
            if let Some(count) = books.held.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    books.held.remove(layer);
                }
            }
        }
    }
}

fn lock(dir: &Path) -> Result<File, ImageError> {
    let path = dir.join("lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(|e| ImageError::disk("open", &path, e))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| ImageError::disk("lock (another process has it)", &path, e))?;
    Ok(file)
}

/// Every JSON file of a folder. One that cannot be read is told and left out: it describes
/// something that can be had again.
fn read_all<T: serde::de::DeserializeOwned>(dir: &Path) -> Result<Vec<(PathBuf, T)>, ImageError> {
    let mut found = Vec::new();
    for name in disk::names(dir)? {
        let path = dir.join(name);
        let bytes = std::fs::read(&path).map_err(|e| ImageError::disk("read", &path, e))?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => found.push((path, value)),
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "unreadable: left out"),
        }
    }
    Ok(found)
}
