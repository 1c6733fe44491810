//! Images as this node uses them: the store together with how its registries are spoken to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::ImagePin;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::config::RegistrySection;
use crate::image::{self, Image, ImageError, Limits, Reference, RegistryConfig, Store};

/// The node's images. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Store,
    registries: Arc<RegistryConfig>,
}

impl Images {
    /// Opens `DATA/images`.
    pub fn open(
        data: &Path,
        registries: &BTreeMap<String, RegistrySection>,
    ) -> Result<Self, ImageError> {
        let insecure = registries
            .iter()
            .filter(|(_, section)| section.insecure)
            .map(|(host, _)| host.clone());
        let mut config = RegistryConfig {
            insecure: insecure.collect(),
            ..RegistryConfig::default()
        };
        if let Some(path) = docker_config() {
            config.load_docker_config(&path)?;
        }
        let store = Store::open(&data.join("images"), Limits::default())?;
        Ok(Self {
            store,
            registries: Arc::new(config),
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The digest a deploy of `text` pins. With the policy `Never`, and when the registry is out of
    /// reach, an image held here under that name is taken as it is.
    pub async fn pin(&self, text: &str, policy: &str) -> Result<ImagePin, ImageError> {
        let reference = Reference::parse(text)?;
        let held = self.held(&reference);
        if policy == "Never" {
            return held.ok_or_else(|| ImageError::NotHeld {
                digest: reference.to_string(),
            });
        }
        match (self.store.resolve(&reference, &self.registries).await, held) {
            (Err(error), Some(held)) if error.is_passing() => Ok(held),
            (resolved, _) => resolved,
        }
    }

    fn held(&self, reference: &Reference) -> Option<ImagePin> {
        let image = self.store.find(reference)?;
        Some(ImagePin {
            reference: reference.name(),
            digest: image.pin.digest.clone(),
        })
    }

    /// Brings a pinned image here; quick when it is here already.
    pub async fn pull(&self, pin: &ImagePin) -> Result<Arc<Image>, ImageError> {
        self.store.pull(pin, &self.registries, None).await
    }

    pub async fn pull_reference(&self, text: &str) -> Result<Arc<Image>, ImageError> {
        let reference = Reference::parse(text)?;
        self.store
            .pull_reference(&reference, &self.registries, None)
            .await
    }

    pub async fn import(
        &self,
        archive: impl AsyncRead + Unpin + Send,
        reference: Option<&str>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let reference = reference.map(Reference::parse).transpose()?;
        self.store.import(archive, reference.as_ref()).await
    }

    /// Answers a peer's request.
    pub async fn serve(&self, request: ImageRequest, answers: mpsc::Sender<ImageAnswer>) {
        image::serve(&self.store, &self.registries, request, answers).await;
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        self.store.list()
    }
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
