//! What is pushed beside images: an index that lists them, a list of signatures under cosign's tag, and
//! manifests that are no image for this machine. Owns which image each is about, and that what it is
//! about is here first; it speaks no protocol.
//!
//! Of an index the image for this node's platform is kept and named, and the index is given back to who
//! asks for it. Images for other platforms are taken and not kept: a deploy pins one platform's image,
//! so that no node could ever run them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::books::Image;
use super::config::ConfigFile;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::manifest::{self, Descriptor, Index, Manifest};
use super::proofs::listed;
use super::push::{PushError, Pushed, Pushes};
use super::reference::Reference;
use super::signature::{MAX_INDEX, MAX_PAYLOAD, Proof, Signature};
use super::store::Inner;

/// Manifests that wait for their index.
const MAX_OTHERS: usize = 64;
/// Documents of one image.
const MAX_ATTACHED: usize = 64;
/// The configuration of a list of signatures says nothing.
const MAX_EMPTY: u64 = 64 * 1024;

/// The digest whose signatures a tag names, as cosign writes it: `sha256-HEX.sig`.
pub(super) fn signed_by(name: &Reference) -> Option<Digest> {
    let hex = name.tag()?.strip_prefix("sha256-")?.strip_suffix(".sig")?;
    Digest::from_hex(hex)
}

impl Pushes {
    /// What was pushed beside an image under this name or with this digest.
    pub async fn beside(&self, name: &Reference) -> Result<Option<Bytes>, PushError> {
        let attached = |image: &Arc<Image>| {
            let named = image.attached.get(&name.name());
            let document = match name.digest() {
                None => named.and_then(|documents| documents.first()),
                Some(digest) => {
                    let mut all = image.attached.values().filter_map(|all| all.first());
                    all.find(|document| *document == digest.as_str())
                }
            };
            document.cloned()
        };
        match self.list().iter().find_map(attached) {
            Some(digest) => self.document(&digest.parse()?).await,
            None => Ok(None),
        }
    }

    /// Whether a manifest is an image that this machine could run.
    pub(super) async fn is_ours(&self, manifest: &Manifest) -> Result<bool, PushError> {
        let config = self.config(manifest).await?;
        let limits = &self.store.inner.limits;
        let fits = ConfigFile::parse(&config).and_then(|file| {
            file.check_platform("")?;
            manifest::plan(manifest, &file, limits)
        });
        // One that is too large is ours, and that is said when it is unpacked.
        let large = matches!(fits, Err(ImageError::TooLarge { .. }));
        Ok(large || fits.is_ok())
    }

    /// A manifest for others. What it names has to be here, as it has in a registry.
    pub(super) async fn other(
        &self,
        manifest: &Manifest,
        bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        for part in manifest.layers.iter().chain([&manifest.config]) {
            let digest = part.digest()?;
            if self.held(&digest).await?.is_none() {
                return Err(PushError::BlobUnknown(digest));
            }
        }
        let mut arrived = self.arrived();
        if arrived.others.len() >= MAX_OTHERS {
            return Err(PushError::TooMany);
        }
        arrived
            .others
            .insert(Digest::of(&bytes), (bytes, Instant::now()));
        Ok(Pushed::Other)
    }

    /// Names the image for this platform, whose manifest is here.
    pub(super) async fn index(
        &self,
        name: &Reference,
        index: &Index,
        bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        if bytes.len() > MAX_INDEX {
            let (what, limit) = ("the index".to_owned(), MAX_INDEX as u64);
            return Err(ImageError::TooLarge { what, limit }.into());
        }
        let chosen = index.choose(&name.to_string())?.digest()?;
        let tagged = name.name();
        let held = self.store.held_as(&chosen, &tagged).await?;
        let held = held.ok_or(PushError::BlobUnknown(chosen))?;
        let name = match name.digest() {
            Some(digest) => format!("{tagged}@{digest}"),
            None => tagged,
        };
        let image = self.attach(&held, name, vec![bytes]).await?;
        self.forget(index);
        Ok(Pushed::Beside(image))
    }

    /// The manifests for others have done their part, and so have their layers.
    fn forget(&self, index: &Index) {
        let listed = index.manifests.iter().map(Descriptor::digest);
        for digest in listed.filter_map(Result::ok) {
            let other = self.arrived().others.remove(&digest);
            let parsed = other.and_then(|(bytes, _)| serde_json::from_slice(&bytes).ok());
            if let Some(manifest) = parsed {
                self.settle(&manifest);
            }
        }
    }

    /// A list of signatures of an image, or of an index that lists one. What they are worth is judged
    /// when the image is to be used.
    pub(super) async fn signatures(
        &self,
        name: &Reference,
        signed: &Digest,
        list: &Manifest,
        bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        let (image, index) = self.subject(signed).await?;
        let (mut documents, mut signatures) = (vec![bytes], Vec::new());
        documents.push(self.small(&list.config.digest()?, MAX_EMPTY).await?);
        for (digest, _, text) in listed(list)? {
            let payload = self.small(&digest, MAX_PAYLOAD).await?;
            signatures.extend(Signature::new(&payload, &text));
            documents.push(payload);
        }
        let (digest, proof) = (image.digest()?, Proof { signatures, index });
        let keep = move |inner: &Inner| inner.keep_proof(&digest, &proof);
        self.store.blocking(keep).await?;
        let image = self.attach(&image, name.name(), documents).await?;
        self.settle(list);
        Ok(Pushed::Beside(image))
    }

    /// The image that was signed; with the index, where that was.
    async fn subject(&self, signed: &Digest) -> Result<(Arc<Image>, Option<String>), PushError> {
        if let Some(image) = self.store.get(signed.as_str()) {
            return Ok((image, None));
        }
        let unknown = || PushError::SubjectUnknown(signed.clone());
        let lists = |image: &Arc<Image>| {
            let mut documents = image.attached.values().filter_map(|all| all.first());
            documents.any(|document| document == signed.as_str())
        };
        let image = self.list().into_iter().find(lists).ok_or_else(unknown)?;
        let index = self.document(signed).await?.ok_or_else(unknown)?;
        let index = String::from_utf8(index.to_vec()).map_err(|_| unknown())?;
        Ok((image, Some(index)))
    }

    async fn attach(
        &self,
        image: &Image,
        name: String,
        documents: Vec<Bytes>,
    ) -> Result<Arc<Image>, PushError> {
        let digest = image.digest()?;
        if image.attached.len() >= MAX_ATTACHED && !image.attached.contains_key(&name) {
            let (what, limit) = ("what lies beside the image".to_owned(), MAX_ATTACHED as u64);
            return Err(ImageError::TooLarge { what, limit }.into());
        }
        let of = digest.clone();
        let attach = move |inner: &Inner| {
            let digests = documents.iter().map(|bytes| Digest::of(bytes));
            let digests: Vec<Digest> = digests.collect();
            for (bytes, digest) in documents.iter().zip(&digests) {
                disk::replace(&inner.tmp(), &inner.blob(digest), bytes)?;
            }
            inner.attach(&of, &name, digests.iter().map(Digest::to_string).collect())
        };
        self.store.blocking(attach).await?;
        let unknown = || PushError::SubjectUnknown(digest.clone());
        self.store.get(digest.as_str()).ok_or_else(unknown)
    }
}
