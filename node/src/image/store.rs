//! The node's images as a whole, kept on disk: opening, recording, removing, sweeping. What may go is
//! decided by the books; the layers' folders are the truth about layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::sync::{Semaphore, mpsc};

use super::books::{Books, Image};
use super::budget::Limits;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::flight::Flights;
use super::gc::{Held, Marks, Wanted};
use super::health::Health;
use super::indexes;
use super::layer::{Layers, Marker};
use super::lazy::Coming;
use super::manifest::Document;
use super::proofs::Proofs;
use super::reference::Reference;
use super::registry::access::RegistryConfig;
use super::registry::partial::Partials;
use super::registry::reach::{self, Reach, Trust};
use super::registry::token::Tokens;
use super::room;
use super::serve::Recent;
use super::source::Near;
use super::tally::Tally;

/// Layers unpacked at once, by all pulls together: each costs a core, a connection and a window of
/// memory.
const LAYERS_AT_ONCE: usize = 4;

/// Clients kept for registries: one holds connections and a place in memory.
const MAX_CLIENTS: usize = 64;

/// A client, and where it may go.
type Dialer = (reqwest::Client, Arc<Reach>);
/// Its host, whether by TLS, how long it tries to connect, its own CA certificates.
type DialerKey = (String, bool, Duration, Option<Digest>);

/// Asks what of the images somebody outside needs.
pub type WantedFn = Arc<dyn Fn() -> Wanted + Send + Sync>;

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
    pub lazy_flights: Arc<Flights<Option<Arc<Image>>>>,
    pub unpackers: Arc<Semaphore>,
    pub partials: Partials,
    /// The other nodes, once there is a way to them.
    pub near: OnceLock<Arc<dyn Near>>,
    /// Rises with every piece that comes from a registry.
    pub arrived: AtomicU64,
    pub tally: Tally,
    pub health: Health,
    /// Told of instances that can read nothing more, once somebody ends them.
    pub broken: OnceLock<mpsc::Sender<PathBuf>>,
    pub recent: Recent,
    coming: Mutex<Coming>,
    pub proofs: Proofs,
    books: Mutex<Books>,
    /// Taken by whoever changes `index/`, so that records and books tell the same story. Never
    /// together with waiting for anything but the disk.
    recording: Mutex<()>,
    clients: Mutex<BTreeMap<DialerKey, Dialer>>,
    pub tokens: Arc<Tokens>,
    /// Set once the rooms that know what is needed are open.
    housekeeping: OnceLock<(Marks, WantedFn)>,
    /// Held for the life of the store: `tmp/` belongs to one process.
    _lock: File,
}

impl Store {
    /// Opens `dir` (made when missing), clears what was left unfinished, and reads what is held.
    /// An image with a layer that is not complete is forgotten: it will be pulled again.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        for part in [
            "blobs/sha256",
            "layers",
            "index",
            indexes::FOLDER,
            "uses",
            "coming",
            "lazy",
            "tmp",
        ] {
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
            lazy_flights: Flights::new(),
            unpackers: Arc::new(Semaphore::new(LAYERS_AT_ONCE)),
            partials: Partials::open(dir.join("partial"))?,
            near: OnceLock::new(),
            arrived: AtomicU64::new(0),
            tally: Tally::default(),
            health: Health::new(),
            broken: OnceLock::new(),
            recent: Recent::default(),
            coming: Mutex::new(Coming::new(dir.join("coming"))),
            proofs: Proofs::default(),
            books: Mutex::new(Books::default()),
            recording: Mutex::new(()),
            clients: Mutex::new(BTreeMap::new()),
            tokens: Arc::default(),
            housekeeping: OnceLock::new(),
            _lock: lock,
        };
        inner.read_books()?;
        drop(inner.sweep()?);
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Says how full the disk may be and who knows what is needed. Until then nothing is removed to
    /// make room; said once.
    pub fn keep_house(&self, marks: Marks, wanted: WantedFn) {
        let _ = self.inner.housekeeping.set((marks, wanted));
    }

    /// From now on other nodes are asked for images too. Only the first call counts.
    pub fn set_near(&self, near: Arc<dyn Near>) {
        let _ = self.inner.near.set(near);
    }

    /// From now on layers are unpacked by processes of their own, which run `program unpack`: the
    /// daemon's own binary. Only the first call counts.
    pub fn unpack_apart(&self, program: PathBuf) {
        self.inner.layers.unpack_apart(program);
    }

    pub(super) fn arrived(&self) -> u64 {
        self.inner.arrived.load(Ordering::Relaxed)
    }

    /// Lets go of what is kept in memory for peers that have stopped asking.
    pub fn let_go(&self) {
        self.inner.recent.let_go();
    }

    /// An image held here, by its manifest's digest.
    pub fn get(&self, digest: &str) -> Option<Arc<Image>> {
        self.inner.books().image(&digest.parse().ok()?)
    }

    /// The image last pulled or imported under this name, or by this digest.
    pub fn find(&self, reference: &Reference) -> Option<Arc<Image>> {
        match reference.digest() {
            Some(digest) => self.inner.books().image(digest),
            None => self.inner.books().named(&reference.name()),
        }
    }

    /// All images held, by digest.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.books().images()
    }

    /// Forgets an image and deletes the layers no other image has. Refused while an instance's
    /// snapshot is made of it.
    pub async fn remove(&self, digest: &str) -> Result<(), ImageError> {
        let digest: Digest = digest.parse()?;
        self.blocking(move |inner| inner.remove(&digest)).await
    }

    /// An image held here, which from now on also has this name.
    pub(super) async fn held_as(
        &self,
        digest: &Digest,
        name: &str,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        self.inner.books().used(digest, room::now());
        match self.get(digest.as_str()) {
            Some(image) if !image.names.contains(name) => {
                let (digest, name) = (digest.clone(), name.to_owned());
                self.blocking(move |inner| inner.also_known_as(&digest, name))
                    .await
            }
            held => Ok(held),
        }
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

#[cfg(test)]
impl Store {
    /// Makes an image look unused for long.
    pub(super) fn age(&self, image: &Image, last_used: u64) {
        let digest = image.digest().expect("valid");
        self.inner.books().used(&digest, last_used);
    }
}

impl Inner {
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        // A panic elsewhere leaves the books as they were between two whole changes.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never taken together with the books or across work on the disk of more than a file.
    pub(super) fn coming(&self) -> MutexGuard<'_, Coming> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn recording(&self) -> MutexGuard<'_, ()> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn holds(&self, digest: &str) -> bool {
        digest
            .parse()
            .is_ok_and(|d| self.books().image(&d).is_some())
    }

    /// The manifest and the configuration of an image held here, each what its digest says.
    pub(super) fn documents(&self, digest: &Digest) -> Result<(Vec<u8>, Vec<u8>), ImageError> {
        if self.books().image(digest).is_none() {
            let digest = digest.to_string();
            return Err(ImageError::NotHeld { digest });
        }
        let manifest = self.read_blob("manifest", digest)?;
        let Document::Manifest(parsed) = Document::parse("manifest", &manifest)? else {
            return Err(ImageError::malformed("manifest", "it is an index"));
        };
        let config = self.read_blob("configuration", &parsed.config.digest()?)?;
        Ok((manifest, config))
    }

    fn read_blob(&self, what: &str, expected: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob(expected);
        let bytes = std::fs::read(&path).map_err(|e| ImageError::disk("read", &path, e))?;
        let got = Digest::of(&bytes);
        if got != *expected {
            let (what, expected) = (what.to_owned(), expected.clone());
            return Err(ImageError::DigestMismatch {
                what,
                expected,
                got,
            });
        }
        Ok(bytes)
    }

    /// The marks, and what is needed now. Where nobody can say, everything is.
    pub(super) fn housekeeping(&self) -> (Marks, Wanted) {
        if let Some((marks, wanted)) = self.housekeeping.get() {
            return (*marks, wanted());
        }
        let all = self.books().images();
        let here = all.iter().map(|image| image.pin.digest.clone());
        let wanted = Wanted {
            here: here.collect(),
            deployed: BTreeSet::new(),
        };
        (Marks::default(), wanted)
    }

    pub(super) fn image(&self, digest: &Digest) -> Option<Arc<Image>> {
        self.books().image(digest)
    }

    /// The images and the layers that stay without them.
    pub(super) fn holdings(&self) -> Result<(Vec<Held>, BTreeSet<Digest>), ImageError> {
        self.books().holdings()
    }

    /// Deletes what failed work left, also what it could go on with.
    pub(super) fn tidy(&self) -> Result<(), ImageError> {
        self.partials.clear()?;
        let graves = self.sweep()?;
        drop(graves);
        Ok(())
    }

    /// The client for a registry, which `host` leads to. Made when first needed: a node that never
    /// speaks TLS to a registry needs no CA certificates.
    pub(super) fn client(
        &self,
        host: &str,
        registry: &str,
        access: &RegistryConfig,
    ) -> Result<Dialer, ImageError> {
        let tls = !access.is_plain_http(registry);
        let (own, digest) = access.authority(registry);
        let connect = access.patience.connect;
        let key = (host.to_owned(), tls, connect, digest);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let trust = if tls { Trust::Tls(own) } else { Trust::Plain };
        let reach = Reach::new(host);
        let made = reach::client(&reach, &trust, connect);
        let client = made.map_err(|e| {
            let detail = crate::causes::with_causes(&e);
            ImageError::io("set up TLS for registries", std::io::Error::other(detail))
        })?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, (client.clone(), Arc::clone(&reach)));
        Ok((client, reach))
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
        inner.books().hold(&layers);
        Self { inner, layers }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.inner.books().release(&self.layers);
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
