//! Whether an image may be used here: the proofs of who signed it, found in its registry, in an archive
//! or with a peer, kept on disk, and what they say, in memory. A proof is verified again whenever it is
//! read, so that whoever can write to the disk gains nothing by it, and new keys need no registry. Who
//! needs whose signature is `policy`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use scheduler::model::ImagePin;

use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::manifest::{Document, Manifest};
use super::peers::Company;
use super::policy::{Demand, Policy};
use super::reference::Reference;
use super::registry::Registry;
use super::registry::access::RegistryConfig;
use super::signature::{ANNOTATION, MAX_INDEX, MAX_PAYLOAD, MAX_SIGNATURES, MEDIA_TYPE};
use super::signature::{Proof, Refusal, Signature};
use super::store::{Inner, Store};

/// A proof: an index, and signatures with their documents. Also what a peer may give.
pub(super) const MAX_PROOF: usize = 2 * 1024 * 1024;
/// The manifest that lists an image's signatures.
const MAX_LIST: u64 = 256 * 1024;

/// What is demanded, and who signed what. Without a policy nothing is.
#[derive(Default)]
pub(super) struct Proofs {
    policy: OnceLock<Policy>,
    /// By image: the ids of the keys that signed it.
    signers: Mutex<BTreeMap<Digest, BTreeSet<Digest>>>,
}

impl Proofs {
    fn signers(&self) -> MutexGuard<'_, BTreeMap<Digest, BTreeSet<Digest>>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn demand(&self, namespace: Option<&str>, name: &str) -> Option<Demand<'_>> {
        let policy = self.policy.get().filter(|policy| !policy.is_empty())?;
        Some(policy.demand(namespace, name))
    }

    fn meets(&self, demand: &Demand<'_>, image: &Digest) -> bool {
        match self.signers().get(image) {
            Some(signers) => demand.is_met(signers),
            None => demand.is_met(&BTreeSet::new()),
        }
    }
}

impl Store {
    /// From now on images are used only as this policy allows. Only the first call counts.
    pub fn require(&self, policy: Policy) -> Result<(), ImageError> {
        let _ = self.inner.proofs.policy.set(policy);
        self.inner.read_proofs()
    }

    /// Whether an image may be used in a namespace, or in any. What was found once is only looked up,
    /// in memory; else the registry of `reference` is asked for signatures.
    pub async fn admit(
        &self,
        namespace: Option<&str>,
        reference: &Reference,
        pin: &ImagePin,
        config: &RegistryConfig,
    ) -> Result<(), ImageError> {
        let proofs = &self.inner.proofs;
        let Some(demand) = proofs.demand(namespace, &pin.reference) else {
            return Ok(());
        };
        let digest: Digest = pin.digest.parse()?;
        if proofs.meets(&demand, &digest) {
            return Ok(());
        }
        let company = self.inner.near.get().map(|near| {
            let (near, pin) = (Arc::clone(near), pin.clone());
            Company::new(self.clone(), near, pin, false)
        });
        let told = |everybody| self.told(company.as_ref(), &demand, &digest, everybody);
        if let Some(proof) = told(false).await {
            return self.learn(&digest, proof).await.map(drop);
        }
        if config.is_own(reference.registry()) {
            // What was pushed with it is known, and there is nobody else to ask.
            return match told(true).await {
                Some(proof) => self.learn(&digest, proof).await.map(drop),
                None => self.met(&demand, namespace, pin, &BTreeSet::new()),
            };
        }
        let failure = match in_time(self, reference, &digest, config).await {
            Ok(proof) => {
                let refusals = self.learn(&digest, proof).await?;
                return self.met(&demand, namespace, pin, &refusals);
            }
            Err(failure) => failure,
        };
        if let Some(proof) = told(true).await {
            return self.learn(&digest, proof).await.map(drop);
        }
        let (detail, passing) = (failure.to_string(), failure.is_passing());
        Err(refused(&demand, namespace, pin, &detail, passing))
    }

    /// A peer's proof, when it shows all that is demanded.
    async fn told(
        &self,
        company: Option<&Company>,
        demand: &Demand<'_>,
        image: &Digest,
        everybody: bool,
    ) -> Option<Proof> {
        let policy = self.inner.proofs.policy.get()?;
        let shows = |proof: &Proof| demand.is_met(&proof.signers(image, &policy.keys()).0);
        company?.proof(everybody, shows).await
    }

    /// [`Store::admit`] of an image that came with what an archive has of proofs.
    pub(super) async fn admit_with(&self, pin: &ImagePin, proof: Proof) -> Result<(), ImageError> {
        let Some(demand) = self.inner.proofs.demand(None, &pin.reference) else {
            return Ok(());
        };
        let refusals = self.learn(&pin.digest.parse()?, proof).await?;
        self.met(&demand, None, pin, &refusals)
    }

    fn met(
        &self,
        demand: &Demand<'_>,
        namespace: Option<&str>,
        pin: &ImagePin,
        refusals: &BTreeSet<Refusal>,
    ) -> Result<(), ImageError> {
        if self.inner.proofs.meets(demand, &pin.digest.parse()?) {
            return Ok(());
        }
        let said: Vec<_> = refusals.iter().map(Refusal::to_string).collect();
        let said = if said.is_empty() {
            "it has no signature".to_owned()
        } else {
            said.join(", ")
        };
        Err(refused(demand, namespace, pin, &said, false))
    }

    /// Keeps a proof when it shows anything.
    async fn learn(&self, image: &Digest, proof: Proof) -> Result<BTreeSet<Refusal>, ImageError> {
        let image = image.clone();
        self.blocking(move |inner| inner.learn(&image, &proof))
            .await
    }
}

impl Inner {
    fn proof(&self, image: &Digest) -> PathBuf {
        let name = format!("{}.json", image.hex());
        self.dir.join("proofs").join(name)
    }

    /// For a peer, which verifies it.
    pub(super) fn proof_bytes(&self, image: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.proof(image);
        std::fs::read(&path).map_err(|e| ImageError::disk("read", &path, e))
    }

    fn learn(&self, image: &Digest, proof: &Proof) -> Result<BTreeSet<Refusal>, ImageError> {
        let Some(policy) = self.proofs.policy.get() else {
            return Ok(BTreeSet::new());
        };
        let (signers, refusals) = proof.signers(image, &policy.keys());
        if !signers.is_empty() {
            let bytes = serde_json::to_vec(proof).map_err(|e| ImageError::malformed("proof", e))?;
            // On disk first: a restart without a registry must find what a deploy relied on.
            disk::replace(&self.tmp(), &self.proof(image), &bytes)?;
            let mut known = self.proofs.signers();
            known.entry(image.clone()).or_default().extend(signers);
        }
        Ok(refusals)
    }

    /// Keeps a proof that was pushed, whoever signed: nobody else could be asked for it, and a rule may come
    /// later or be another node's.
    pub(super) fn keep_proof(&self, image: &Digest, proof: &Proof) -> Result<(), ImageError> {
        let bytes = serde_json::to_vec(proof).map_err(|e| ImageError::malformed("proof", e))?;
        disk::create_private_dirs(&self.dir.join("proofs"))?;
        disk::replace(&self.tmp(), &self.proof(image), &bytes)?;
        let keys = self.proofs.policy.get().map(Policy::keys);
        let (signers, _) = proof.signers(image, &keys.unwrap_or_default());
        self.proofs.signers().insert(image.clone(), signers);
        Ok(())
    }

    /// What is on disk, verified. What cannot be read is left out, and asked for again when needed.
    fn read_proofs(&self) -> Result<(), ImageError> {
        let policy = self.proofs.policy.get();
        let Some(policy) = policy.filter(|policy| !policy.is_empty()) else {
            return Ok(());
        };
        let dir = self.dir.join("proofs");
        disk::create_private_dirs(&dir)?;
        for name in disk::names(&dir)? {
            let image = name.strip_suffix(".json").and_then(Digest::from_hex);
            let Some(image) = image else { continue };
            let path = self.proof(&image);
            if self.image(&image).is_none() {
                disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|e| ImageError::disk("read", &path, e))?;
            let Ok(proof) = serde_json::from_slice::<Proof>(&bytes) else {
                tracing::warn!(path = %path.display(), "unreadable: left out");
                continue;
            };
            let (signers, _) = proof.signers(&image, &policy.keys());
            self.proofs.signers().insert(image, signers);
        }
        Ok(())
    }

    /// An image went.
    pub(super) fn forget_proof(&self, image: &Digest) -> Result<(), ImageError> {
        self.proofs.signers().remove(image);
        let path = self.proof(image);
        disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))
    }
}

fn refused(
    demand: &Demand<'_>,
    namespace: Option<&str>,
    pin: &ImagePin,
    detail: &str,
    passing: bool,
) -> ImageError {
    let place = namespace.map_or_else(|| "here".to_owned(), |n| format!("in namespace {n}"));
    ImageError::Unsigned {
        image: format!("{}@{}", pin.reference, pin.digest),
        place,
        wants: demand.wants(),
        detail: detail.to_owned(),
        passing,
    }
}

/// [`found`], with a deadline on all of it.
async fn in_time(
    store: &Store,
    reference: &Reference,
    image: &Digest,
    config: &RegistryConfig,
) -> Result<Proof, ImageError> {
    let limit = config.patience.answer.saturating_mul(2);
    let found = tokio::time::timeout(limit, found(store, reference, image, config)).await;
    found.unwrap_or_else(|_| {
        Err(ImageError::TimedOut {
            registry: reference.registry().to_owned(),
            what: "the image's signatures".to_owned(),
        })
    })
}

/// The signatures of an image in its registry; where it has none, those of the index it was found by.
async fn found(
    store: &Store,
    reference: &Reference,
    image: &Digest,
    config: &RegistryConfig,
) -> Result<Proof, ImageError> {
    let signatures = signatures(store, reference, image, config).await?;
    if !signatures.is_empty() {
        let index = None;
        return Ok(Proof { signatures, index });
    }
    let registry = Registry::new(store, reference, config)?;
    let (bytes, digest) = match registry
        .manifest(reference.digest(), MAX_INDEX as u64)
        .await
    {
        Ok(found) => found,
        // The name may be gone: the image itself is not signed.
        Err(ImageError::NotFound { .. }) => return Ok(Proof::default()),
        Err(error) => return Err(error),
    };
    let (Document::Index(_), Ok(index)) = (
        Document::parse("index", &bytes)?,
        String::from_utf8(bytes.to_vec()),
    ) else {
        return Ok(Proof::default());
    };
    let signatures = self::signatures(store, reference, &digest, config).await?;
    let index = (!signatures.is_empty()).then_some(index);
    Ok(Proof { signatures, index })
}

/// What a registry has under the tag by which cosign finds a digest's signatures.
async fn signatures(
    store: &Store,
    reference: &Reference,
    signed: &Digest,
    config: &RegistryConfig,
) -> Result<Vec<Signature>, ImageError> {
    let (host, repository) = (reference.registry(), reference.repository());
    let tagged = format!("{host}/{repository}:sha256-{}.sig", signed.hex());
    let registry = Registry::new(store, &Reference::parse(&tagged)?, config)?;
    let bytes = match registry.manifest(None, MAX_LIST).await {
        Ok((bytes, _)) => bytes,
        Err(ImageError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Document::Manifest(list) = Document::parse(&tagged, &bytes)? else {
        return Err(ImageError::malformed(tagged, "it is an index"));
    };
    let mut signatures = Vec::new();
    for (digest, size, text) in listed(&list)? {
        let payload = registry
            .small_blob(&digest, size, "signed document")
            .await?;
        // One that is of no use must not hide one that is.
        signatures.extend(Signature::new(&payload, &text));
    }
    Ok(signatures)
}

/// The documents a list of signatures names, with their sizes and signatures.
pub(super) fn listed(list: &Manifest) -> Result<Vec<(Digest, u64, String)>, ImageError> {
    let signed = list.layers.iter().filter(|l| l.media_type == MEDIA_TYPE);
    let mut found = Vec::new();
    for layer in signed.take(MAX_SIGNATURES) {
        let text = layer
            .annotations
            .as_ref()
            .and_then(|all| all.get(ANNOTATION));
        if let Some(text) = text.filter(|_| layer.size <= MAX_PAYLOAD) {
            found.push((layer.digest()?, layer.size, text.clone()));
        }
    }
    Ok(found)
}
