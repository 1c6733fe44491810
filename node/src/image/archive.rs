//! What an image archive says of its images: an OCI layout in a tar, or what `docker save` writes. Owns
//! reading and checking its documents; a `docker save` image has no manifest of its own, so one is
//! written for it and its digest is the image's. Layers are only named here.

use std::io::{self, Read};

use bytes::Bytes;
use serde::Deserialize;

use super::budget::Limits;
use super::config::ConfigFile;
use super::digest::{Digest, Digesting};
use super::error::ImageError;
use super::manifest::{
    self, Descriptor, Document, Index, LayerPlan, Manifest, OCI_CONFIG, OCI_MANIFEST, Packing,
};
use super::proofs::listed;
use super::reference::Reference;
use super::signature::{Proof, Signature};
use super::spool::Spool;

/// Images of one archive.
const MAX_IMAGES: usize = 32;
const MAX_NESTING: usize = 3;
/// What `cosign save` says of the entries of an archive's index.
const KIND: &str = "kind";
const SIGNATURES: &str = "dev.cosignproject.cosign/sigs";
const ATTESTATIONS: &str = "dev.cosignproject.cosign/atts";
const BILLS: &str = "dev.cosignproject.cosign/sboms";

/// One image found in an archive, all documents read, no layer yet.
pub(super) struct Found {
    pub reference: String,
    pub digest: Digest,
    pub manifest: Bytes,
    pub config: Bytes,
    /// Each with the member that has its bytes.
    pub layers: Vec<(LayerPlan, String)>,
    /// The index that led to it.
    pub index: Option<Bytes>,
    pub proof: Proof,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads an archive's documents.
pub(super) struct Archive<'a> {
    pub spool: &'a Spool,
    pub limits: &'a Limits,
}

impl Archive<'_> {
    /// A newer `docker save` writes both forms: the one with digests is read.
    pub(super) fn images(&self) -> Result<Vec<Found>, ImageError> {
        let found = if self.spool.has("oci-layout") && self.spool.has("index.json") {
            self.oci()?
        } else if self.spool.has("manifest.json") {
            self.docker()?
        } else {
            let detail = "it has neither `index.json` nor `manifest.json`".to_owned();
            return Err(ImageError::NotAnArchive { detail });
        };
        if found.is_empty() {
            let detail = "it holds no image".to_owned();
            return Err(ImageError::NotAnArchive { detail });
        }
        Ok(found)
    }

    fn oci(&self) -> Result<Vec<Found>, ImageError> {
        let bytes = self.spool.document("index.json", self.limits.document)?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| ImageError::malformed("index.json", e))?;
        check_images(index.manifests.len())?;
        let (signed, images) = self.signed(&index)?;
        let several = images.len() > 1;
        let mut found = Vec::new();
        for entry in images {
            match self.oci_image(entry) {
                Ok(mut image) => {
                    let text = image.index.as_ref().map(|bytes| bytes.to_vec());
                    let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
                    image.proof = Proof::of(&image.digest, text, &signed);
                    found.push(image);
                }
                // One archive may carry an image for each kind of machine.
                Err(ImageError::NoPlatform { .. }) if several => {}
                Err(error) => return Err(error),
            }
        }
        if found.is_empty() && several {
            index.choose("the archive")?;
        }
        Ok(found)
    }

    /// The signatures an archive carries, as `cosign save` or a copy of their tag puts them there, and
    /// its other entries.
    fn signed<'i>(
        &self,
        index: &'i Index,
    ) -> Result<(Vec<Signature>, Vec<&'i Descriptor>), ImageError> {
        let (signed, others): (Vec<_>, Vec<_>) = index.manifests.iter().partition(|entry| {
            let kind = note(entry, KIND);
            kind == Some(SIGNATURES) || ref_name(entry).is_some_and(is_signature_tag)
        });
        let mut signatures = Vec::new();
        for entry in signed {
            let bytes = self.blob(&entry.digest()?, "list of signatures")?;
            let Document::Manifest(list) = Document::parse("a list of signatures", &bytes)? else {
                continue;
            };
            for (digest, _, text) in listed(&list)? {
                let payload = self.blob(&digest, "signed document")?;
                signatures.extend(Signature::new(&payload, &text));
            }
        }
        let images = others.into_iter().filter(|entry| {
            let kind = note(entry, KIND);
            !matches!(kind, Some(ATTESTATIONS | BILLS))
        });
        Ok((signatures, images.collect()))
    }

    fn oci_image(&self, entry: &Descriptor) -> Result<Found, ImageError> {
        let reference = oci_name(entry)?;
        let mut digest = entry.digest()?;
        let mut listing = None;
        for _ in 0..MAX_NESTING {
            let bytes = self.blob(&digest, "manifest")?;
            match Document::parse("the archive's manifest", &bytes)? {
                Document::Index(index) => {
                    listing = Some(bytes.clone());
                    digest = index.choose(&reference)?.digest()?;
                }
                Document::Manifest(manifest) => {
                    let mut found = self.described(reference, digest, bytes, &manifest)?;
                    found.index = listing;
                    return Ok(found);
                }
            }
        }
        Err(ImageError::malformed(
            "the archive's index",
            "it nests too deep",
        ))
    }

    fn described(
        &self,
        reference: String,
        digest: Digest,
        bytes: Bytes,
        manifest: &Manifest,
    ) -> Result<Found, ImageError> {
        let config = self.blob(&manifest.config.digest()?, "image configuration")?;
        let file = ConfigFile::parse(&config)?;
        file.check_platform(&reference)?;
        let plans = manifest::plan(manifest, &file, self.limits)?;
        let member = |plan: LayerPlan| {
            let name = blob_name(&plan.digest);
            (plan, name)
        };
        let layers = plans.into_iter().map(member).collect();
        Ok(Found {
            reference,
            digest,
            manifest: bytes,
            config,
            layers,
            index: None,
            proof: Proof::default(),
        })
    }

    fn blob(&self, digest: &Digest, what: &str) -> Result<Bytes, ImageError> {
        let bytes = self
            .spool
            .document(&blob_name(digest), self.limits.document)?;
        let got = Digest::of(&bytes);
        if got == *digest {
            return Ok(bytes.into());
        }
        Err(ImageError::DigestMismatch {
            what: what.to_owned(),
            expected: digest.clone(),
            got,
        })
    }

    fn docker(&self) -> Result<Vec<Found>, ImageError> {
        let bytes = self.spool.document("manifest.json", self.limits.document)?;
        let images: Vec<DockerImage> = serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::malformed("manifest.json", e))?;
        check_images(images.len())?;
        images
            .iter()
            .map(|image| self.docker_image(image))
            .collect()
    }

    fn docker_image(&self, image: &DockerImage) -> Result<Found, ImageError> {
        let config: Bytes = self
            .spool
            .document(&image.config, self.limits.document)?
            .into();
        let file = ConfigFile::parse(&config)?;
        let digest = Digest::of(&config);
        let reference = match image.repo_tags.iter().flatten().next() {
            Some(tag) => Reference::parse(tag)?.name(),
            None => unnamed(&digest),
        };
        file.check_platform(&reference)?;
        if image.layers.len() != file.rootfs.diff_ids.len() {
            let detail = "its layers and its configuration do not match".to_owned();
            return Err(ImageError::NotAnArchive { detail });
        }
        let pairs = image.layers.iter().zip(&file.rootfs.diff_ids);
        let layers = pairs.map(|(member, diff_id)| self.docker_layer(member, diff_id));
        let layers: Vec<(LayerPlan, String)> = layers.collect::<Result<_, _>>()?;
        let manifest = written_manifest(&config, &layers)?;
        let digest = Digest::of(&manifest);
        Ok(Found {
            reference,
            digest,
            manifest,
            config,
            layers,
            index: None,
            proof: Proof::default(),
        })
    }

    fn docker_layer(&self, member: &str, diff_id: &str) -> Result<(LayerPlan, String), ImageError> {
        let mut magic = Vec::new();
        let told = |e| ImageError::io(format!("read `{member}` of the archive"), e);
        self.spool
            .open(member)?
            .take(4)
            .read_to_end(&mut magic)
            .map_err(told)?;
        let packing = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
            _ => Packing::Plain,
        };
        let diff_id: Digest = diff_id.parse()?;
        let digest = if packing == Packing::Plain {
            diff_id.clone()
        } else {
            let mut packed = Digesting::new(self.spool.open(member)?);
            io::copy(&mut packed, &mut io::sink()).map_err(told)?;
            packed.finish().0
        };
        let size = self.spool.size(member)?;
        let plan = LayerPlan {
            digest,
            size,
            packing,
            diff_id,
        };
        Ok((plan, member.to_owned()))
    }
}

/// A manifest for an image that has none, the same for the same image wherever it is imported.
fn written_manifest(config: &[u8], layers: &[(LayerPlan, String)]) -> Result<Bytes, ImageError> {
    let describe = |media_type: &str, digest: &Digest, size| Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size,
        platform: None,
        annotations: None,
    };
    let layer = |(plan, _): &(LayerPlan, String)| {
        describe(plan.packing.media_type(), &plan.digest, plan.size)
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        config: describe(OCI_CONFIG, &Digest::of(config), config.len() as u64),
        layers: layers.iter().map(layer).collect(),
    };
    let bytes = serde_json::to_vec(&manifest);
    bytes
        .map(Bytes::from)
        .map_err(|e| ImageError::malformed("manifest", e))
}

fn check_images(number: usize) -> Result<(), ImageError> {
    if number > MAX_IMAGES {
        let what = "the number of images in the archive".to_owned();
        return Err(ImageError::TooLarge {
            what,
            limit: MAX_IMAGES as u64,
        });
    }
    Ok(())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// containerd writes the full name; others write what was typed, perhaps only a tag.
fn oci_name(entry: &Descriptor) -> Result<String, ImageError> {
    match note(entry, "io.containerd.image.name").or_else(|| ref_name(entry)) {
        Some(text) if text.contains([':', '/']) => Ok(Reference::parse(text)?.name()),
        _ => Ok(unnamed(&entry.digest()?)),
    }
}

fn note<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.as_ref()?.get(key).map(String::as_str)
}

fn ref_name(entry: &Descriptor) -> Option<&str> {
    note(entry, "org.opencontainers.image.ref.name")
}

/// `sha256-HEX.sig`, perhaps with a repository before it.
fn is_signature_tag(name: &str) -> bool {
    let tag = name.rsplit(':').next().unwrap_or(name);
    let hex = tag
        .strip_prefix("sha256-")
        .and_then(|tag| tag.strip_suffix(".sig"));
    hex.is_some_and(|hex| Digest::from_hex(hex).is_some())
}

fn unnamed(digest: &Digest) -> String {
    format!("localhost/imported:{}", digest.short())
}
