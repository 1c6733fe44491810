//! From a name to an image on this disk: resolve once, then fetch by digest, each layer verified
//! while it streams from the network into its directory. One pull per digest and one download per
//! layer at a time, however many ask.

use std::sync::Arc;

use bytes::Bytes;
use scheduler::model::ImagePin;
use tokio::time::{Instant, timeout};

use super::books::Image;
use super::budget::Budget;
use super::config::{ConfigFile, ImageConfig};
use super::digest::Digest;
use super::error::ImageError;
use super::fetch::Fetch;
use super::implied;
use super::layer::Marker;
use super::manifest::{self, Document, LayerPlan, Manifest};
use super::peers::Company;
use super::reference::Reference;
use super::registry::Registry;
use super::registry::access::RegistryConfig;
use super::store::{Hold, Store};

/// An index may point to an index; deeper nesting is a riddle, not an image.
const MAX_NESTING: usize = 3;

/// How far one layer's download is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Of the packed bytes.
    pub layer: Digest,
    pub received: u64,
    pub total: u64,
}

/// Called from the download as it goes; must not block.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

impl Store {
    /// Finds the manifest for this machine behind a name, and pins it. Nothing is kept.
    pub async fn resolve(
        &self,
        reference: &Reference,
        config: &RegistryConfig,
    ) -> Result<ImagePin, ImageError> {
        let registry = Registry::new(self, reference, config)?;
        let limit = self.inner.limits.document;
        let name = reference.to_string();
        let mut wanted = reference.digest().cloned();
        // What a tag meant the last time it most often still means: a head tells.
        if wanted.is_none()
            && let Some(held) = self.find(reference)
            && let Some(digest) = registry.tagged().await
        {
            if held.pin.digest == digest.as_str() {
                let reference = reference.name();
                let digest = digest.to_string();
                return Ok(ImagePin { reference, digest });
            }
            wanted = Some(digest);
        }
        for _ in 0..MAX_NESTING {
            let (bytes, digest) = match (registry.manifest(wanted.as_ref(), limit).await, wanted) {
                // A digest says all a registry could say. What a tag means only its registry knows.
                (Err(error), Some(wanted)) if error.is_passing() => {
                    let known = self.known(reference, &wanted).await;
                    (known.ok_or(error)?, wanted)
                }
                (asked, _) => asked?,
            };
            match Document::parse(&format!("the manifest of {name}"), &bytes)? {
                Document::Manifest(_) => {
                    fail::fail_point!("image::resolved");
                    let (reference, digest) = (reference.name(), digest.to_string());
                    return Ok(ImagePin { reference, digest });
                }
                Document::Index(index) => {
                    wanted = Some(index.choose(&name)?.digest()?);
                    self.keep_index(&digest, &bytes).await;
                }
            }
        }
        Err(ImageError::malformed(
            format!("the index of {name}"),
            "it nests too deep",
        ))
    }

    /// A manifest or an index by its digest, from here or from another node.
    async fn known(&self, reference: &Reference, digest: &Digest) -> Option<Bytes> {
        let wanted = digest.clone();
        let kept = self.blocking(move |inner| match inner.documents(&wanted) {
            Ok((manifest, _)) => Ok(manifest),
            Err(_) => inner.index(&wanted),
        });
        if let Ok(bytes) = kept.await {
            return Some(bytes.into());
        }
        let near = self.inner.near.get().map(Arc::clone)?;
        let (reference, of) = (reference.name(), digest.to_string());
        let pin = ImagePin {
            reference,
            digest: of,
        };
        let company = Company::new(self.clone(), near, pin, false);
        match company.documents(true).await {
            Some((manifest, _)) => Some(manifest),
            None => company.index(digest).await,
        }
    }

    /// Brings a pinned image here, or finds it here.
    pub async fn pull(
        &self,
        pin: &ImagePin,
        config: &RegistryConfig,
        progress: Option<ProgressFn>,
    ) -> Result<Arc<Image>, ImageError> {
        self.bring_image(pin, config, progress, true).await
    }

    /// [`Store::pull`] for a peer that asked for it: not passed on to another.
    pub(super) async fn pull_for_peer(
        &self,
        pin: &ImagePin,
        config: &RegistryConfig,
    ) -> Result<Arc<Image>, ImageError> {
        self.bring_image(pin, config, None, false).await
    }

    async fn bring_image(
        &self,
        pin: &ImagePin,
        config: &RegistryConfig,
        progress: Option<ProgressFn>,
        elects: bool,
    ) -> Result<Arc<Image>, ImageError> {
        let reference = Reference::parse(&pin.reference)?;
        let digest: Digest = pin.digest.parse()?;
        let damage = match self.sound_as(&digest, &pin.reference).await {
            Ok(Some(image)) => return Ok(image),
            Ok(None) => None,
            // Brought in again like any other: only what is damaged is fetched.
            Err(error @ ImageError::Damaged { .. }) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let company = self.inner.near.get().map(|near| {
            let (near, pin) = (Arc::clone(near), pin.clone());
            Arc::new(Company::new(self.clone(), near, pin, elects))
        });
        let pull = Pull {
            store: self.clone(),
            company,
            registry: Arc::new(Registry::new(self, &reference, config)?),
            pin: pin.clone(),
            progress,
        };
        let (limit, key) = (config.patience.pull, digest.to_string());
        let store = self.clone();
        let work = async move {
            let began = Instant::now();
            let outcome = match timeout(limit, pull.through(digest)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(ImageError::TimedOut {
                    registry: reference.registry().to_owned(),
                    what: format!("the pull of {reference} took longer than {limit:?}"),
                }),
            };
            store.inner.tally.pull(outcome.is_ok(), began.elapsed());
            outcome
        };
        let brought = self.inner.image_flights.join(&key, work).await;
        let image = brought.map_err(|cause| match damage {
            Some(damage) => {
                let cause = Box::new(cause);
                ImageError::Unhealed { damage, cause }
            }
            None => cause,
        })?;
        // Who started the pull may have asked under another name.
        Ok(self
            .held_as(&image.digest()?, &pin.reference)
            .await?
            .unwrap_or(image))
    }

    /// [`Store::resolve`] and [`Store::pull`] in one.
    pub async fn pull_reference(
        &self,
        reference: &Reference,
        config: &RegistryConfig,
        progress: Option<ProgressFn>,
    ) -> Result<Arc<Image>, ImageError> {
        let pin = self.resolve(reference, config).await?;
        self.pull(&pin, config, progress).await
    }

    /// The last steps of bringing an image in, whatever way it came.
    pub(super) async fn finish(
        &self,
        pin: ImagePin,
        documents: (Bytes, Bytes),
        plans: &[LayerPlan],
        markers: Vec<Marker>,
    ) -> Result<Arc<Image>, ImageError> {
        let mut diff_ids: Vec<Digest> = plans.iter().map(|plan| plan.diff_id.clone()).collect();
        let below = diff_ids.clone();
        let folders = self
            .blocking(move |inner| implied::layer(inner, &below))
            .await?;
        diff_ids.extend(folders.as_ref().map(|folders| folders.plan.diff_id.clone()));
        let _hold = Hold::new(self, diff_ids.clone());
        self.blocking(move |inner| {
            let total = Budget::new(inner.limits);
            for marker in &markers {
                total.raw(marker.raw)?;
                total.entries(marker.entries)?;
            }
            if let Some(folders) = folders {
                folders.bring_in(inner)?;
            }
            super::snapshot::check_root(inner, &diff_ids)?;
            let (manifest, config) = documents;
            let file = ConfigFile::parse(&config)?;
            let image = Image::new(
                pin,
                ImageConfig::from(&file),
                diff_ids.iter().map(Digest::to_string).collect(),
                markers.iter().map(|marker| marker.raw).sum(),
                &Digest::of(&config),
            );
            inner.keep(&image, &manifest, &config)
        })
        .await
    }
}

/// One pull under way.
struct Pull {
    store: Store,
    /// Missing where there are no other nodes, as in tests of the store alone.
    company: Option<Arc<Company>>,
    registry: Arc<Registry>,
    pin: ImagePin,
    progress: Option<ProgressFn>,
}

impl Pull {
    /// The pull, tried once more when the disk was full and room could be made.
    async fn through(self, digest: Digest) -> Result<Arc<Image>, ImageError> {
        match self.run(&digest).await {
            Ok(image) => Ok(image),
            Err(error) => {
                self.store.after_full(&self.pin.reference, error).await?;
                let again = self.run(&digest).await;
                match again {
                    Err(error) if error.is_full_disk() => {
                        Err(self.store.no_room(&self.pin.reference).await?)
                    }
                    done => done,
                }
            }
        }
    }

    async fn run(&self, digest: &Digest) -> Result<Arc<Image>, ImageError> {
        let limits = self.store.inner.limits;
        let (bytes, config) = self.documents(digest, limits.document).await?;
        let manifest = self.manifest(&bytes)?;
        let file = ConfigFile::parse(&config)?;
        file.check_platform(&self.pin.reference)?;
        let plans = manifest::plan(&manifest, &file, &limits)?;

        fail::fail_point!("image::planned");
        let diff_ids = plans.iter().map(|plan| plan.diff_id.clone()).collect();
        let _hold = Hold::new(&self.store, diff_ids);
        self.store
            .make_room(&self.pin.reference, self.missing(&plans).await?)
            .await?;
        let budget = Budget::new(limits);
        let layers = plans.iter().map(|plan| self.layer(plan, &budget));
        let markers = match futures::future::try_join_all(layers).await {
            Err(error) if error.is_full_disk() => {
                // What is swept now must not be added to, and what is told free must be free.
                for plan in &plans {
                    let flights = &self.store.inner.layer_flights;
                    flights.landed(plan.diff_id.as_str()).await;
                }
                return Err(error);
            }
            markers => markers?,
        };
        self.store
            .finish(self.pin.clone(), (bytes, config), &plans, markers)
            .await
    }

    /// Bytes of the layers that are not here, packed: what they take at the very least.
    async fn missing(&self, plans: &[LayerPlan]) -> Result<u64, ImageError> {
        let plans = plans.to_vec();
        self.store
            .blocking(move |inner| {
                let missing = plans
                    .iter()
                    .filter(|plan| inner.usable(&plan.diff_id).is_none())
                    // Room was made for it when it began.
                    .filter(|plan| !inner.layer_arrives(&plan.diff_id));
                Ok(missing.map(|plan| plan.size).sum())
            })
            .await
    }

    /// From here when only a layer is damaged, else from a near peer, from the registry, and when
    /// that fails from any peer there is.
    async fn documents(&self, digest: &Digest, limit: u64) -> Result<(Bytes, Bytes), ImageError> {
        let wanted = digest.clone();
        let kept = self
            .store
            .blocking(move |inner| inner.documents(&wanted))
            .await;
        if let Ok((manifest, config)) = kept {
            return Ok((manifest.into(), config.into()));
        }
        if let Some(company) = &self.company
            && let Some(documents) = company.documents(false).await
        {
            return Ok(documents);
        }
        let failure = match self.registered(digest, limit).await {
            Ok(documents) => return Ok(documents),
            Err(failure) => failure,
        };
        match &self.company {
            Some(company) => company.documents(true).await.ok_or(failure),
            None => Err(failure),
        }
    }

    async fn registered(&self, digest: &Digest, limit: u64) -> Result<(Bytes, Bytes), ImageError> {
        let (bytes, _) = self.registry.manifest(Some(digest), limit).await?;
        let manifest = self.manifest(&bytes)?;
        let config = self.config(&manifest, limit).await?;
        let both = bytes.len() + config.len();
        self.store.inner.tally.add_registry(both as u64);
        Ok((bytes, config))
    }

    fn manifest(&self, bytes: &[u8]) -> Result<Manifest, ImageError> {
        let what = format!("the manifest of {}", self.pin.reference);
        match Document::parse(&what, bytes)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => Err(ImageError::malformed(what, "the pin names an index")),
        }
    }

    async fn config(&self, manifest: &Manifest, limit: u64) -> Result<Bytes, ImageError> {
        let (what, described) = ("image configuration", &manifest.config);
        if described.size > limit {
            return Err(ImageError::TooLarge {
                what: what.to_owned(),
                limit,
            });
        }
        self.registry
            .small_blob(&described.digest()?, described.size, what)
            .await
    }

    /// One layer, from here, from a peer or from the registry.
    async fn layer(&self, plan: &LayerPlan, budget: &Arc<Budget>) -> Result<Marker, ImageError> {
        let fetch = Fetch {
            store: self.store.clone(),
            company: self.company.clone(),
            registry: Arc::clone(&self.registry),
            plan: plan.clone(),
            budget: Arc::clone(budget),
            progress: self.progress.clone(),
        };
        let flights = &self.store.inner.layer_flights;
        flights.join(plan.diff_id.as_str(), fetch.run()).await
    }
}
