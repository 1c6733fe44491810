//! Images pushed to this node: blobs on their way in, and the manifest that makes an image of them.
//! Owns what has arrived and is not yet an image; speaks no protocol.
//!
//! Packed blobs are not kept beside the trees: a second copy of every layer would cost a node half
//! its disk for clients that pull, and nodes take layers from each other unpacked. So a layer that
//! became a tree is known by its packed digest (nobody sends it twice), and its packed bytes are
//! gone. What has arrived lives below `tmp/` only: a daemon that dies forgets unfinished pushes.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use scheduler::model::ImagePin;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::beside;
use super::books::Image;
use super::budget::Budget;
use super::config::ConfigFile;
use super::digest::Digest;
use super::disk::Scratch;
use super::error::ImageError;
use super::layer::Marker;
use super::manifest::{self, Document, LayerPlan, Manifest};
use super::reference::Reference;
use super::store::{Hold, Inner, Store};

/// Uploads under way at once, by all clients: each is an open file.
const MAX_UPLOADS: usize = 64;
/// Blobs that wait for their manifest.
const MAX_BLOBS: usize = 512;
/// What nobody touched for so long was given up by its client.
const EXPIRY: Duration = Duration::from_mins(30);
/// Between two pieces of a body.
const IDLE: Duration = Duration::from_mins(1);
const CHUNK: usize = 256 * 1024;

/// Why a push was refused.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("there is no such upload: it was finished, given up, or forgotten by a restart")]
    UploadUnknown,
    #[error("the upload has {have} bytes: go on from there")]
    OutOfOrder { have: u64 },
    #[error("too many uploads or waiting blobs at once; try again later")]
    TooMany,
    #[error("the body ended early: {0}")]
    Cut(std::io::Error),
    #[error("the upload has digest {got}, not {expected}")]
    WrongDigest { expected: Digest, got: Digest },
    #[error("blob {0} was not pushed")]
    BlobUnknown(Digest),
    #[error("{0}, which it is about, is not held here: push that first")]
    SubjectUnknown(Digest),
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What is being pushed to this node.
pub struct Pushes {
    pub(super) store: Store,
    arrived: Mutex<Arrived>,
}

#[derive(Default)]
pub(super) struct Arrived {
    next: u64,
    uploads: BTreeMap<String, Upload>,
    blobs: BTreeMap<Digest, Arc<Blob>>,
    /// Manifests that are no image of this node's, until an index that lists them is here.
    pub(super) others: BTreeMap<Digest, (Bytes, Instant)>,
}

/// What became of a manifest.
#[derive(Debug)]
pub enum Pushed {
    Image(Arc<Image>),
    /// It lies beside the image that it is about.
    Beside(Arc<Image>),
    /// It is for nodes of another kind, or for nobody: known until its index is here.
    Other,
}

/// A blob of which more is to come. While a piece is written it is out of the books, so that two
/// pieces never mix.
struct Upload {
    repository: String,
    scratch: Scratch,
    file: tokio::fs::File,
    state: Sha256,
    size: u64,
    touched: Instant,
}

/// A whole blob that waits for its manifest.
struct Blob {
    scratch: Scratch,
    size: u64,
    arrived: Instant,
}

impl Pushes {
    pub fn new(store: Store) -> Self {
        let arrived = Mutex::default();
        Self { store, arrived }
    }

    pub(super) fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All images of the store.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store.list()
    }

    /// The image held under a name.
    pub fn find(&self, name: &Reference) -> Option<Arc<Image>> {
        self.store.find(name)
    }

    /// Forgets what its client gave up.
    pub fn expire(&self, now: Instant) {
        let mut arrived = self.arrived();
        let fresh = |since: Instant| now.saturating_duration_since(since) < EXPIRY;
        arrived.uploads.retain(|_, upload| fresh(upload.touched));
        arrived.blobs.retain(|_, blob| fresh(blob.arrived));
        arrived.others.retain(|_, (_, since)| fresh(*since));
    }

    /// Begins an upload and says what it is called.
    pub async fn begin(&self, repository: &str) -> Result<String, PushError> {
        let scratch = Scratch::reserve(&self.store.inner.tmp());
        let file = tokio::fs::File::create_new(scratch.path()).await;
        let file = file.map_err(|e| ImageError::disk("write", scratch.path(), e))?;
        let upload = Upload {
            repository: repository.to_owned(),
            scratch,
            file,
            state: Sha256::new(),
            size: 0,
            touched: Instant::now(),
        };
        let mut arrived = self.arrived();
        if arrived.uploads.len() >= MAX_UPLOADS || arrived.blobs.len() >= MAX_BLOBS {
            return Err(PushError::TooMany);
        }
        arrived.next += 1;
        let id = arrived.next.to_string();
        arrived.uploads.insert(id.clone(), upload);
        fail::fail_point!("image::upload_begun");
        Ok(id)
    }

    /// How many bytes an upload has.
    pub fn size(&self, repository: &str, id: &str) -> Result<u64, PushError> {
        let arrived = self.arrived();
        let upload = arrived
            .uploads
            .get(id)
            .filter(|u| u.repository == repository);
        upload.map(|u| u.size).ok_or(PushError::UploadUnknown)
    }

    /// Ends an upload and deletes what it has.
    pub fn cancel(&self, repository: &str, id: &str) -> Result<(), PushError> {
        self.take(repository, id).map(drop)
    }

    fn take(&self, repository: &str, id: &str) -> Result<Upload, PushError> {
        self.size(repository, id)?;
        let taken = self.arrived().uploads.remove(id);
        taken.ok_or(PushError::UploadUnknown)
    }

    /// Appends a piece; `at` is where its sender believes it belongs. A piece cut short keeps what
    /// came, so that its sender can go on.
    pub async fn append(
        &self,
        repository: &str,
        id: &str,
        at: Option<u64>,
        body: impl AsyncRead + Unpin,
    ) -> Result<u64, PushError> {
        let have = self.size(repository, id)?;
        if at.is_some_and(|at| at != have) {
            return Err(PushError::OutOfOrder { have });
        }
        let mut upload = self.take(repository, id)?;
        let most = self.store.inner.limits.compressed;
        if self.arrived().waiting() > most {
            return Err(PushError::TooMany);
        }
        let written = upload.receive(body, most).await;
        // A file that is not what its digest says is of no use to anybody.
        if matches!(written, Err(PushError::Image(_))) {
            return written.map(|()| 0);
        }
        upload.touched = Instant::now();
        let size = upload.size;
        self.arrived().uploads.insert(id.to_owned(), upload);
        fail::fail_point!("image::upload_written");
        written.map(|()| size)
    }

    /// Makes a whole blob of an upload.
    pub fn complete(&self, repository: &str, id: &str, digest: &Digest) -> Result<(), PushError> {
        let upload = self.take(repository, id)?;
        let (got, blob) = upload.finish();
        if got != *digest {
            let expected = digest.clone();
            return Err(PushError::WrongDigest { expected, got });
        }
        self.arrived().blobs.insert(got, Arc::new(blob));
        fail::fail_point!("image::blob_arrived");
        Ok(())
    }

    /// The size of a blob that need not be sent again.
    pub async fn held(&self, digest: &Digest) -> Result<Option<u64>, PushError> {
        if let Some(blob) = self.arrived().blobs.get(digest) {
            return Ok(Some(blob.size));
        }
        if let Some(bytes) = self.document(digest).await? {
            return Ok(Some(bytes.len() as u64));
        }
        Ok(self.layer_from(digest).await?.map(|marker| marker.packed))
    }

    /// The exact bytes of a manifest or a configuration held here.
    pub async fn document(&self, digest: &Digest) -> Result<Option<Bytes>, PushError> {
        let digest = digest.clone();
        let read = move |inner: &Inner| match std::fs::read(inner.blob(&digest)) {
            Ok(bytes) if Digest::of(&bytes) == digest => Ok(Some(Bytes::from(bytes))),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ImageError::disk("read", &inner.blob(&digest), e)),
        };
        Ok(self.store.blocking(read).await?)
    }

    /// The layer that came from these packed bytes.
    async fn layer_from(&self, packed: &Digest) -> Result<Option<Marker>, PushError> {
        let packed = packed.to_string();
        let found = self.store.blocking(move |inner| {
            let all = inner.layers.all()?;
            let mut markers = all.iter().filter_map(|id| inner.usable(id));
            Ok(markers.find(|marker| marker.digest == packed))
        });
        Ok(found.await?)
    }

    /// Takes a manifest, or what lies beside one, whose parts are here, under `name`.
    pub async fn accept(&self, name: &Reference, bytes: Bytes) -> Result<Pushed, PushError> {
        match Document::parse("manifest", &bytes)? {
            Document::Index(index) => self.index(name, &index, bytes).await,
            Document::Manifest(manifest) => match beside::signed_by(name) {
                Some(signed) => self.signatures(name, &signed, &manifest, bytes).await,
                None if name.digest().is_some() && !self.is_ours(&manifest).await? => {
                    self.other(&manifest, bytes).await
                }
                None => self.image(name, manifest, bytes).await.map(Pushed::Image),
            },
        }
    }

    /// Makes an image of a manifest whose blobs are here, under `name`.
    async fn image(
        &self,
        name: &Reference,
        manifest: Manifest,
        bytes: Bytes,
    ) -> Result<Arc<Image>, PushError> {
        let digest = Digest::of(&bytes);
        match self.store.sound_as(&digest, &name.name()).await {
            Ok(Some(image)) => return Ok(self.alone(image, name).await?),
            // What is damaged of it was asked for like what is missing.
            Ok(None) | Err(ImageError::Damaged { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let config = self.config(&manifest).await?;
        let file = ConfigFile::parse(&config)?;
        file.check_platform(&name.name())?;
        let plans = manifest::plan(&manifest, &file, &self.store.inner.limits)?;
        let layers = plans.iter().map(|plan| plan.diff_id.clone()).collect();
        let _hold = Hold::new(&self.store, layers);
        let budget = Budget::new(self.store.inner.limits);
        let mut markers = Vec::new();
        for plan in &plans {
            markers.push(self.layer(plan, &budget).await?);
        }
        let pin = ImagePin {
            reference: name.name(),
            digest: digest.to_string(),
        };
        let image = self
            .store
            .finish(pin, (bytes, config), &plans, markers)
            .await?;
        fail::fail_point!("image::push_kept");
        self.settle(&manifest);
        Ok(self.alone(image, name).await?)
    }

    /// Under this name there is the image and no index any more.
    async fn alone(&self, image: Arc<Image>, name: &Reference) -> Result<Arc<Image>, ImageError> {
        let name = name.name();
        if !image.attached.contains_key(&name) {
            return Ok(image);
        }
        let digest = image.digest()?;
        let attach = move |inner: &Inner| inner.attach(&digest, &name, Vec::new());
        self.store.blocking(attach).await?;
        Ok(image)
    }

    /// The configuration a manifest names, from what arrived or from what is held.
    pub(super) async fn config(&self, manifest: &Manifest) -> Result<Bytes, PushError> {
        let limit = self.store.inner.limits.document;
        self.small(&manifest.config.digest()?, limit).await
    }

    /// A document, from what arrived or from what is held.
    pub(super) async fn small(&self, digest: &Digest, limit: u64) -> Result<Bytes, PushError> {
        let blob = self.arrived().blobs.get(digest).cloned();
        let Some(blob) = blob else {
            let held = self.document(digest).await?;
            return held.ok_or_else(|| PushError::BlobUnknown(digest.clone()));
        };
        if blob.size > limit {
            let what = format!("document {digest}");
            return Err(ImageError::TooLarge { what, limit }.into());
        }
        let bytes = tokio::fs::read(blob.scratch.path()).await;
        Ok(bytes
            .map_err(|e| ImageError::disk("read", blob.scratch.path(), e))?
            .into())
    }

    async fn layer(&self, plan: &LayerPlan, budget: &Arc<Budget>) -> Result<Marker, PushError> {
        let blob = self.arrived().blobs.get(&plan.digest).cloned();
        let (plan, budget, store) = (plan.clone(), Arc::clone(budget), self.store.clone());
        let packed = plan.digest.clone();
        let key = plan.diff_id.to_string();
        let Some(blob) = blob else {
            // Only a layer that came from these very bytes stands in for them.
            let id = plan.diff_id.clone();
            let held = store.blocking(move |inner| Ok(inner.usable(&id))).await?;
            let same = held.filter(|marker| marker.digest == packed.as_str());
            return same.ok_or(PushError::BlobUnknown(packed));
        };
        let work = async move {
            let inside = store.clone();
            let work = inside.blocking(move |inner| {
                if let Some(marker) = inner.usable(&plan.diff_id) {
                    return Ok(marker);
                }
                let path = blob.scratch.path();
                let file = File::open(path).map_err(|e| ImageError::disk("read", path, e))?;
                inner.take_in(file, &plan, &budget)
            });
            work.await
        };
        Ok(self.store.inner.layer_flights.join(&key, work).await?)
    }

    /// What became part of an image waits no longer.
    pub(super) fn settle(&self, manifest: &Manifest) {
        let mut arrived = self.arrived();
        for part in manifest.layers.iter().chain([&manifest.config]) {
            if let Ok(digest) = part.digest() {
                arrived.blobs.remove(&digest);
            }
        }
    }
}

impl Arrived {
    /// Bytes on the disk that are no image yet, less those of pieces being written.
    fn waiting(&self) -> u64 {
        let uploads = self.uploads.values().map(|upload| upload.size);
        let blobs = self.blobs.values().map(|blob| blob.size);
        uploads.chain(blobs).sum()
    }
}

impl Upload {
    async fn receive(
        &mut self,
        mut body: impl AsyncRead + Unpin,
        most: u64,
    ) -> Result<(), PushError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = match tokio::time::timeout(IDLE, body.read(&mut buffer)).await {
                Ok(Ok(n)) => n,
                Ok(Err(e)) => return Err(PushError::Cut(e)),
                Err(_) => return Err(PushError::Cut(std::io::ErrorKind::TimedOut.into())),
            };
            if read == 0 {
                let flushed = self.file.flush().await;
                return flushed
                    .map_err(|e| ImageError::disk("write", self.scratch.path(), e).into());
            }
            if self.size + read as u64 > most {
                let (what, limit) = ("the blob".to_owned(), most);
                return Err(ImageError::TooLarge { what, limit }.into());
            }
            let written = self.file.write_all(&buffer[..read]).await;
            written.map_err(|e| ImageError::disk("write", self.scratch.path(), e))?;
            self.state.update(&buffer[..read]);
            self.size += read as u64;
        }
    }

    fn finish(self) -> (Digest, Blob) {
        let digest = Digest::from_sha256(&self.state.finalize().into());
        let blob = Blob {
            scratch: self.scratch,
            size: self.size,
            arrived: Instant::now(),
        };
        (digest, blob)
    }
}
