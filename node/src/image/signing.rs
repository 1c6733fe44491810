//! What the tests of signatures stand on: who signs, in cosign's format with openssl, and where signatures
//! are put.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use scheduler::model::ImagePin;
use tempfile::TempDir;

use super::signature::{ANNOTATION, Key, MEDIA_TYPE};
use super::testing::{Hub, Layout, base, impatient, install_tls, open_store, run, temp};
use super::{Digest, ImageError, Policy, Reference, SignatureRule, Store};

pub(super) const CURVE: [&str; 4] = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// Somebody who signs.
pub(super) struct Signer {
    dir: TempDir,
    raw: bool,
}

impl Signer {
    pub(super) fn new(kind: &[&str]) -> Self {
        let dir = temp();
        let signer = Self {
            dir,
            raw: kind.contains(&"ED25519"),
        };
        let (private, public) = (signer.file("key"), signer.public());
        run("openssl", &[&["genpkey", "-out", &private], kind].concat());
        let public = public.to_str().unwrap();
        run(
            "openssl",
            &["pkey", "-in", &private, "-pubout", "-out", public],
        );
        signer
    }

    pub(super) fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(super) fn public(&self) -> PathBuf {
        self.dir.path().join("key.pub")
    }

    pub(super) fn key(&self) -> Key {
        Key::parse(&fs::read(self.public()).unwrap()).unwrap()
    }

    /// In base64, as cosign writes it.
    pub(super) fn sign(&self, payload: &[u8]) -> String {
        let (key, given, made) = (self.file("key"), self.file("given"), self.file("made"));
        fs::write(&given, payload).unwrap();
        if self.raw {
            let sign = ["pkeyutl", "-sign", "-rawin", "-inkey", &key];
            run(
                "openssl",
                &[&sign[..], &["-in", &given, "-out", &made]].concat(),
            );
        } else {
            run(
                "openssl",
                &["dgst", "-sha256", "-sign", &key, "-out", &made, &given],
            );
        }
        STANDARD.encode(fs::read(&made).unwrap())
    }
}

pub(super) fn payload(digest: &Digest) -> Vec<u8> {
    let text = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"r.example/app"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    text.into_bytes()
}

/// Puts signatures where `cosign sign` does.
pub(super) fn publish(
    hub: &Hub,
    repository: &str,
    digest: &Digest,
    signatures: &[(Vec<u8>, String)],
) {
    let dir = temp();
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        format!(r#""digest":"{digest}","size":{}"#, bytes.len())
    };
    let layer = |(payload, signature): &(Vec<u8>, String)| {
        let described = put(payload);
        format!(
            r#"{{"mediaType":"{MEDIA_TYPE}",{described},"annotations":{{"{ANNOTATION}":"{signature}"}}}}"#
        )
    };
    let layers: Vec<_> = signatures.iter().map(layer).collect();
    let config =
        put(br#"{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{0}","config":{{"mediaType":"{1}",{config}}},"layers":[{2}]}}"#,
        super::manifest::OCI_MANIFEST,
        super::manifest::OCI_CONFIG,
        layers.join(",")
    );
    let described = put(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}",{described},"annotations":{{"org.opencontainers.image.ref.name":"s"}}}}]}}"#,
        super::manifest::OCI_MANIFEST
    );
    fs::write(dir.path().join("index.json"), index).unwrap();
    fs::write(
        dir.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let from = format!("oci:{}:s", dir.path().display());
    let to = format!(
        "docker://{}/{repository}:sha256-{}.sig",
        hub.address,
        digest.hex()
    );
    run(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            &from,
            &to,
        ],
    );
}

pub(super) fn rule(namespaces: &[&str], images: &[&str], keys: &[&Signer]) -> SignatureRule {
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    SignatureRule {
        namespaces: owned(namespaces),
        images: owned(images),
        keys: keys.iter().map(|signer| signer.public()).collect(),
    }
}

pub(super) fn strict(dir: &TempDir, rules: &[SignatureRule]) -> Store {
    let store = open_store(dir);
    store.require(Policy::load(rules).unwrap()).unwrap();
    store
}

pub(super) async fn admit(
    store: &Store,
    namespace: Option<&str>,
    pin: &ImagePin,
) -> Result<(), ImageError> {
    let reference = Reference::parse(&pin.reference).unwrap();
    store.admit(namespace, &reference, pin, &impatient()).await
}

pub(super) fn refused(outcome: Result<(), ImageError>, words: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), "ImageUnsigned", "{error}");
    assert!(error.to_string().contains(words), "{words}: {error}");
}

/// An image in a registry of its own.
pub(super) fn pushed() -> (Hub, ImagePin, Digest) {
    install_tls();
    let (hub, layout) = (Hub::start(), Layout::new(&[&base]));
    hub.push(&layout, "team/app:1", &[]);
    let digest = Digest::of(&hub.manifest("team/app", "1"));
    let pin = ImagePin {
        reference: hub.name("team/app:1").name(),
        digest: digest.to_string(),
    };
    (hub, pin, digest)
}
