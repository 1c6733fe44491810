//! Signatures of images as cosign makes them: a small document (`simple signing`) that names the digest
//! of a manifest, and a signature of its bytes. Owns what a key is, and which of given keys signed a
//! digest. Pure: where signatures come from is `proofs`', who needs which is `policy`'s.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};
use x509_parser::asn1_rs::Oid;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use super::digest::Digest;
use super::manifest::Index;

/// The kind of a layer that is a signed document.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of such a layer in which its signature stands.
pub(super) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Of one image. Whoever can write to a registry can add more.
pub(super) const MAX_SIGNATURES: usize = 32;
/// Bytes of a signed document; cosign's have about 250, and what its user adds.
pub(super) const MAX_PAYLOAD: u64 = 32 * 1024;
/// An index that was signed in an image's place.
pub(super) const MAX_INDEX: usize = 256 * 1024;
/// In base64: RSA with 8192 bits takes 1368.
const MAX_SIGNATURE: usize = 2048;
const PAYLOAD_TYPE: &str = "cosign container image signature";

/// A public key that may sign images.
pub(super) struct Key {
    /// Of the key itself, whatever file it stands in.
    pub id: Digest,
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl Key {
    /// Reads the PEM form that `cosign generate-key-pair` and `openssl pkey -pubout` write.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut blocks = Pem::iter_from_buffer(pem);
        let (Some(Ok(block)), None) = (blocks.next(), blocks.next()) else {
            return Err("it is not one public key in PEM form".to_owned());
        };
        if block.label != "PUBLIC KEY" {
            let label: String = block.label.escape_debug().take(50).collect();
            return Err(format!("it holds a `{label}`, not a `PUBLIC KEY`"));
        }
        let sound = SubjectPublicKeyInfo::from_der(&block.contents);
        let Ok((&[], key)) = sound else {
            return Err("its public key cannot be read".to_owned());
        };
        let bytes = key.subject_public_key.data.to_vec();
        let curve = key.algorithm.parameters.as_ref();
        let curve: Option<Oid> = curve.and_then(|curve| curve.as_oid().ok());
        let kind = &key.algorithm.algorithm;
        let algorithm: &dyn VerificationAlgorithm = if *kind == OID_SIG_ED25519 {
            &ED25519
        } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256) {
            &ECDSA_P256_SHA256_ASN1
        } else if *kind == OID_PKCS1_RSAENCRYPTION {
            &RSA_PKCS1_2048_8192_SHA256
        } else {
            return Err("its kind is not known here: ECDSA P-256, Ed25519 and RSA are".to_owned());
        };
        Ok(Self {
            id: Digest::of(&block.contents),
            algorithm,
            bytes,
        })
    }

    fn signed(&self, payload: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, &self.bytes);
        key.verify(payload, signature).is_ok()
    }
}

/// A signed document with its signature. Nothing in it is believed before a key fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Signature {
    payload: String,
    /// In base64, as it stands in the annotation.
    signature: String,
}

impl Signature {
    pub(super) fn new(payload: &[u8], signature: &str) -> Result<Self, Refusal> {
        let large = payload.len() as u64 > MAX_PAYLOAD || signature.len() > MAX_SIGNATURE;
        if large {
            return Err(Refusal::TooLarge);
        }
        let payload = std::str::from_utf8(payload).map_err(|_| Refusal::NoPayload)?;
        Ok(Self {
            payload: payload.to_owned(),
            signature: signature.to_owned(),
        })
    }

    /// Which of the keys signed this for `digest`: with one key at most one signature fits.
    fn signer<'a>(&self, digest: &Digest, keys: &[&'a Key]) -> Result<&'a Key, Refusal> {
        if self.payload.len() as u64 > MAX_PAYLOAD || self.signature.len() > MAX_SIGNATURE {
            return Err(Refusal::TooLarge);
        }
        let signature = STANDARD.decode(self.signature.trim());
        let signature = signature.map_err(|_| Refusal::NotBase64)?;
        let payload = self.payload.as_bytes();
        // The key first: a document that nobody known signed is not even read.
        let key = keys.iter().find(|key| key.signed(payload, &signature));
        let key = key.ok_or(Refusal::NoKey)?;
        let read: Payload = serde_json::from_slice(payload).map_err(|_| Refusal::NoPayload)?;
        if read.critical.kind != PAYLOAD_TYPE {
            return Err(Refusal::NoPayload);
        }
        if read.critical.image.digest != digest.as_str() {
            return Err(Refusal::OtherImage);
        }
        Ok(key)
    }
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Signed,
}

#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Why a signature counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a signature is none of the keys'")]
    NoKey,
    #[error("a signature is of another image")]
    OtherImage,
    #[error("a signature is not in base64")]
    NotBase64,
    #[error("a signed document is not cosign's")]
    NoPayload,
    #[error("a signature or its document is too large")]
    TooLarge,
}

/// All that shows who signed an image; what a node keeps beside it and gives to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    pub signatures: Vec<Signature>,
    /// The exact text of the index that lists the image, where that was signed in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
}

impl Proof {
    /// Of many signatures those that can be of this image, else those of the index it was found by.
    pub(super) fn of(image: &Digest, index: Option<String>, all: &[Signature]) -> Self {
        let naming = |digest: &Digest| -> Vec<Signature> {
            let these = all.iter().filter(|s| s.payload.contains(digest.as_str()));
            these.take(MAX_SIGNATURES).cloned().collect()
        };
        let own = naming(image);
        match index.filter(|index| own.is_empty() && index.len() <= MAX_INDEX) {
            Some(index) => Self {
                signatures: naming(&Digest::of(index.as_bytes())),
                index: Some(index),
            },
            None => Self {
                signatures: own,
                index: None,
            },
        }
    }

    /// The ids of those keys that signed the image with this digest, and why other signatures do not
    /// count.
    pub(super) fn signers(
        &self,
        image: &Digest,
        keys: &[&Key],
    ) -> (BTreeSet<Digest>, BTreeSet<Refusal>) {
        let (mut signers, mut refusals) = (BTreeSet::new(), BTreeSet::new());
        let Some(signed) = self.signed(image) else {
            return (signers, BTreeSet::from([Refusal::OtherImage]));
        };
        for signature in self.signatures.iter().take(MAX_SIGNATURES) {
            match signature.signer(&signed, keys) {
                Ok(key) => drop(signers.insert(key.id.clone())),
                Err(refusal) => drop(refusals.insert(refusal)),
            }
        }
        (signers, refusals)
    }

    /// What must be signed: the image, or the index that lists it.
    fn signed(&self, image: &Digest) -> Option<Digest> {
        let Some(index) = &self.index else {
            return Some(image.clone());
        };
        let read: Index = serde_json::from_str(index).ok()?;
        let mut listed = read.manifests.iter();
        let listed = listed.any(|entry| entry.digest == image.as_str());
        listed.then(|| Digest::of(index.as_bytes()))
    }
}
