//! Images as this node uses them: the store together with how its registries are spoken to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::{ImagePin, Revision, RevisionKey};
use scheduler::registry::State;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::config::{ImageLazy, ImagesSection, RegistrySection, SignaturesSection};
use crate::image::{
    self, Image, ImageCounts, ImageError, Limits, Marks, Policy, Prune, Reference, RegistryConfig,
    Removed, Share, Stocked, Store, Wanted, WantedFn,
};

/// How often the disk is looked at: a system call, no more, while it is below its high mark.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Disks lose bytes over months, not hours.
const SCRUB_EVERY: Duration = Duration::from_hours(24);
/// A damaged image that nobody could give again.
const HEAL_AGAIN: Duration = Duration::from_mins(10);

/// The node's images. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Store,
    registries: Arc<RegistryConfig>,
    /// Where images are pushed to this node.
    door: Option<SocketAddr>,
    lazy: ImageLazy,
}

impl Images {
    /// Opens `DATA/images`.
    pub fn open(
        data: &Path,
        registries: &BTreeMap<String, RegistrySection>,
        section: &ImagesSection,
    ) -> Result<Self, ImageError> {
        let mut config = RegistryConfig::default();
        for (host, section) in registries {
            if section.insecure {
                config.insecure.insert(host.clone());
            }
            if let Some(ca) = &section.ca {
                config.load_authority(host, ca)?;
            }
            config.set_mirrors(host, &section.mirror)?;
        }
        if let Some(path) = docker_config() {
            config.load_docker_config(&path)?;
        }
        if let Some(door) = section.listen.0 {
            for host in ["localhost", "127.0.0.1", "[::1]"] {
                config.own.insert(format!("{host}:{}", door.port()));
            }
        }
        let store = Store::open(&data.join("images"), Limits::default())?;
        // Through /proc the binary is found even after an upgrade replaced it.
        store.unpack_apart("/proc/self/exe".into());
        let rules = section.signatures.iter();
        let rules: Vec<_> = rules.map(SignaturesSection::rule).collect();
        store.require(Policy::load(&rules)?)?;
        Ok(Self {
            store,
            registries: Arc::new(config),
            door: section.listen.0,
            lazy: ImageLazy::Off,
        })
    }

    /// Whether instances may start while their image arrives.
    #[must_use]
    pub fn lazy(self, lazy: ImageLazy) -> Self {
        Self { lazy, ..self }
    }

    /// Goes on with images that were read while they arrived, whatever is set now. Tells the folders of
    /// instances that can read nothing more.
    pub fn resume(&self) -> mpsc::Receiver<PathBuf> {
        self.store.resume(&self.registries)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The digest a deploy of `text` in a namespace pins, when its signatures are those demanded there.
    /// What is held here under that name is taken as it is with the policy `Never`, when it was pushed
    /// to this node, and when the registry is out of reach; with `IfNotPresent` it is, if it is held,
    /// without asking.
    pub async fn pin(
        &self,
        namespace: &str,
        text: &str,
        policy: &str,
    ) -> Result<ImagePin, ImageError> {
        let reference = Reference::parse(text)?;
        let pin = self.found(&reference, policy).await?;
        let admitted = self
            .store
            .admit(Some(namespace), &reference, &pin, &self.registries);
        admitted.await?;
        Ok(pin)
    }

    async fn found(&self, reference: &Reference, policy: &str) -> Result<ImagePin, ImageError> {
        let held = self.held(reference);
        if policy == "Never" || self.is_door(reference) {
            return held.ok_or_else(|| ImageError::NotHeld {
                digest: reference.to_string(),
            });
        }
        if let ("IfNotPresent", Some(held)) = (policy, &held) {
            return Ok(held.clone());
        }
        match (self.store.resolve(reference, &self.registries).await, held) {
            (Err(error), Some(held)) if error.is_passing() => Ok(held),
            (resolved, _) => resolved,
        }
    }

    /// Whether a reference names this node as its registry: then what was pushed here is the truth.
    /// `localhost` without a port is what has no registry at all.
    fn is_door(&self, reference: &Reference) -> bool {
        if reference.registry() == "localhost" {
            return true;
        }
        let Some(door) = self.door else { return false };
        let Some((host, port)) = reference.registry().rsplit_once(':') else {
            return false;
        };
        let local = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        local && port.parse() == Ok(door.port())
    }

    fn held(&self, reference: &Reference) -> Option<ImagePin> {
        let named = self.store.find(reference);
        let image = named.or_else(|| self.store.find_listed(reference))?;
        Some(ImagePin {
            reference: reference.name(),
            digest: image.pin.digest.clone(),
        })
    }

    /// [`Images::pull`] for an instance in a namespace. Of an image that was admitted once nobody is
    /// asked again.
    pub async fn pull_for(
        &self,
        namespace: &str,
        pin: &ImagePin,
    ) -> Result<Arc<Image>, ImageError> {
        self.admit(namespace, pin).await?;
        self.pull(pin).await
    }

    /// The same as far as an instance needs it to start.
    pub async fn pull_to_start(
        &self,
        namespace: &str,
        pin: &ImagePin,
    ) -> Result<Arc<Image>, ImageError> {
        // A signature is over the manifest, and that is here before anything is read of a layer.
        self.admit(namespace, pin).await?;
        match self.lazy {
            ImageLazy::Off => self.pull(pin).await,
            ImageLazy::On => self.store.pull_to_start(pin, &self.registries).await,
        }
    }

    async fn admit(&self, namespace: &str, pin: &ImagePin) -> Result<(), ImageError> {
        let reference = Reference::parse(&pin.reference)?;
        let admitted = self
            .store
            .admit(Some(namespace), &reference, pin, &self.registries);
        admitted.await
    }

    /// Brings a pinned image here; quick when it is here already.
    async fn pull(&self, pin: &ImagePin) -> Result<Arc<Image>, ImageError> {
        self.store.pull(pin, &self.registries, None).await
    }

    pub async fn pull_reference(&self, text: &str) -> Result<Arc<Image>, ImageError> {
        let reference = Reference::parse(text)?;
        let pin = self.store.resolve(&reference, &self.registries).await?;
        let admitted = self.store.admit(None, &reference, &pin, &self.registries);
        admitted.await?;
        self.pull(&pin).await
    }

    pub async fn import(
        &self,
        archive: impl AsyncRead + Unpin + Send,
        reference: Option<&str>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let reference = reference.map(Reference::parse).transpose()?;
        self.store.import(archive, reference.as_ref()).await
    }

    /// From now on the disk is kept below its marks, sparing what `wanted` names; `removed` is
    /// called when something went.
    pub fn keep_house(
        &self,
        marks: Marks,
        wanted: WantedFn,
        removed: impl Fn() + Send + Sync + 'static,
    ) {
        self.store.keep_house(marks, wanted.clone());
        let store = self.store.clone();
        tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                store.let_go();
                match store.collect(marks, wanted()).await {
                    Ok(gone) if gone.images.is_empty() => {}
                    Ok(_) => removed(),
                    Err(error) => tracing::warn!(%error, "images could not be collected"),
                }
            }
        });
    }

    /// From now on what is held here is read at leisure, first what was not yet read in this life of
    /// the daemon and every day all of it; what is damaged is brought in again.
    pub fn keep_sound(&self) {
        let images = self.clone();
        tokio::spawn(async move {
            let mut scrubbed = Instant::now();
            loop {
                let all = scrubbed.elapsed() >= SCRUB_EVERY;
                if all {
                    scrubbed = Instant::now();
                }
                let mut pause = SCRUB_EVERY;
                for image in images.store.scrub(all).await {
                    if let Err(error) = images.pull(&image.pin).await {
                        tracing::warn!(image = %image.pin.reference, %error, "an image stays damaged");
                        pause = HEAL_AGAIN;
                    }
                }
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// Whether there is room for an image that may never be needed.
    pub async fn is_roomy(&self) -> Result<bool, ImageError> {
        self.store.is_roomy().await
    }

    /// What is held here, with sizes and last uses.
    pub async fn stock(&self) -> Result<Vec<Stocked>, ImageError> {
        self.store.stock().await
    }

    /// What the images of each service take on this node's disk; see [`Store::shares`].
    pub async fn shares(
        &self,
        services: BTreeMap<String, BTreeSet<String>>,
    ) -> Result<BTreeMap<String, Share>, ImageError> {
        self.store.shares(services).await
    }

    /// Removes what is not needed, or tells what that would be.
    pub async fn prune(&self, what: Prune, dry_run: bool) -> Result<Removed, ImageError> {
        self.store.prune(what, dry_run).await
    }

    /// Removes one image by its digest, unless an instance is made of it.
    pub async fn remove(&self, digest: &str) -> Result<(), ImageError> {
        self.store.remove(digest).await
    }

    /// Answers a peer's request.
    pub async fn serve(&self, request: ImageRequest, answers: mpsc::Sender<ImageAnswer>) {
        image::serve(&self.store, &self.registries, request, answers).await;
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store.list()
    }

    /// What pulls did since the daemon began, and what is held now.
    pub async fn counts(&self) -> Result<ImageCounts, ImageError> {
        self.store.counts().await
    }
}

/// What of the images is needed: by instances of this node, and by revisions that services route
/// to or would start next.
pub fn wanted(state: &State, placed: &BTreeSet<RevisionKey>) -> Wanted {
    let digest = |revision: &Revision| revision.image.digest.clone();
    let here = placed.iter().filter_map(|key| state.revisions.get(key));
    Wanted {
        here: here.map(digest).collect(),
        deployed: deployed(state).map(digest).collect(),
    }
}

/// The revisions that services route to or would start next.
pub fn deployed(state: &State) -> impl Iterator<Item = &Revision> {
    let keys = state.services.values().flat_map(|service| {
        let mut keys = service.routed();
        keys.extend(service.status.latest_created.clone());
        keys
    });
    keys.filter_map(|key| state.revisions.get(&key))
}

fn docker_config() -> Option<std::path::PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .map(std::path::PathBuf::from)
        .or_else(|| {
            std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".docker"))
        })?;
    let path = dir.join("config.json");
    path.is_file().then_some(path)
}
