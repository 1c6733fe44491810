//! What is pushed beside images: indexes and signatures, what of them is kept, and what a rule makes of it.

use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::manifest::host_architecture;
use super::push::{PushError, Pushed};
use super::signature::{ANNOTATION, MEDIA_TYPE};
use super::signing::{CURVE, Signer, admit, payload, refused, rule, strict};
use super::testing::{Tar, install_tls, open_store, temp};
use super::{Digest, Image, Prune, Pushes, Reference, Store};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const REPOSITORY: &str = "localhost/app";

/// Whoever pushes.
struct Pusher(Pushes);

impl Pusher {
    fn to(store: &Store) -> Self {
        install_tls();
        Self(Pushes::new(store.clone()))
    }

    /// Sends a blob; how a descriptor names it.
    async fn blob(&self, bytes: &[u8]) -> String {
        let id = self.0.begin("app").await.unwrap();
        self.0.append("app", &id, None, bytes).await.unwrap();
        let digest = Digest::of(bytes);
        self.0.complete("app", &id, &digest).unwrap();
        described(bytes)
    }

    async fn put(&self, tag: &str, text: &str) -> Result<Pushed, PushError> {
        let name = Reference::parse(&format!("{REPOSITORY}{tag}")).unwrap();
        self.0.accept(&name, Bytes::from(text.to_owned())).await
    }

    /// An image with one file, and the text of its manifest, which is not put.
    async fn image(&self, architecture: &str) -> String {
        let layer = Tar::default().file("name", architecture).end();
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(&layer)
        );
        let (layer, config) = (self.blob(&layer).await, self.blob(config.as_bytes()).await);
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{layer}}}]}}"#
        )
    }

    /// What buildx pushes beside each image: no image at all.
    async fn attestation(&self) -> String {
        let (config, layer) = (self.blob(b"{}").await, self.blob(b"{\"_type\":1}").await);
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{{"mediaType":"application/vnd.in-toto+json",{layer}}}]}}"#
        )
    }

    /// Signs as `cosign sign` does, and pushes that.
    async fn sign(&self, signer: &Signer, digest: &Digest) -> Result<Pushed, PushError> {
        let document = payload(digest);
        let (config, layer) = (self.blob(b"{}").await, self.blob(&document).await);
        let list = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{{"mediaType":"{MEDIA_TYPE}",{layer},"annotations":{{"{ANNOTATION}":"{}"}}}}]}}"#,
            signer.sign(&document)
        );
        self.put(&format!(":sha256-{}.sig", digest.hex()), &list)
            .await
    }

    /// The image of a name, and the exact bytes that the name gives.
    async fn named(&self, tag: &str) -> (Option<Arc<Image>>, Option<Bytes>) {
        let name = Reference::parse(&format!("{REPOSITORY}{tag}")).unwrap();
        (self.0.find(&name), self.0.beside(&name).await.unwrap())
    }
}

fn described(bytes: &[u8]) -> String {
    format!(r#""digest":"{}","size":{}"#, Digest::of(bytes), bytes.len())
}

fn entry(manifest: &str, architecture: &str) -> String {
    let described = described(manifest.as_bytes());
    format!(
        r#"{{"mediaType":"{MANIFEST}",{described},"platform":{{"architecture":"{architecture}","os":"linux"}}}}"#
    )
}

fn index(entries: &[String]) -> String {
    let entries = entries.join(",");
    format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)
}

fn at(text: &str) -> String {
    format!("@{}", Digest::of(text.as_bytes()))
}

/// A pushed index of our image, of one for other machines, and of an attestation.
async fn several(pusher: &Pusher) -> (String, String) {
    let ours = pusher.image(host_architecture()).await;
    let theirs = pusher.image("mips").await;
    let beside = pusher.attestation().await;
    for (manifest, other) in [(&theirs, true), (&ours, false), (&beside, true)] {
        let put = pusher.put(&at(manifest), manifest).await.unwrap();
        assert_eq!(matches!(put, Pushed::Other), other, "{put:?}");
    }
    let entries = [
        entry(&theirs, "mips"),
        entry(&ours, host_architecture()),
        entry(&beside, "unknown"),
    ];
    let index = index(&entries);
    let put = pusher.put(":1", &index).await.unwrap();
    assert!(matches!(put, Pushed::Beside(_)), "{put:?}");
    (ours, index)
}

fn waiting(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.path().join("images/tmp"))
        .unwrap()
        .count()
}

#[tokio::test]
async fn of_an_index_this_machines_image_is_kept_and_the_index_given_back() {
    let dir = temp();
    let store = open_store(&dir);
    let pusher = Pusher::to(&store);
    let (ours, index) = several(&pusher).await;
    let digest = Digest::of(ours.as_bytes());
    let is_whole = async |pusher: &Pusher| {
        let (image, text) = pusher.named(":1").await;
        assert_eq!(image.unwrap().digest().unwrap(), digest);
        assert_eq!(text.unwrap(), index.as_bytes());
    };
    is_whole(&pusher).await;
    assert_eq!(pusher.named(&at(&index)).await.1.unwrap(), index.as_bytes());
    assert_eq!(store.list().len(), 1, "nobody here could run another");
    assert_eq!(waiting(&dir), 0, "and nothing of it stays");
    drop((pusher, store));

    let store = open_store(&dir);
    let pusher = Pusher::to(&store);
    is_whole(&pusher).await;
    // The image alone takes the name, and then there is no index of that name.
    let put = pusher.put(":1", &ours).await.unwrap();
    assert!(matches!(put, Pushed::Image(_)));
    assert_eq!(pusher.named(":1").await.1, None);
}

#[tokio::test]
async fn what_is_not_here_cannot_be_told_of() {
    let dir = temp();
    let store = open_store(&dir);
    let pusher = Pusher::to(&store);
    let missing = |put: Result<Pushed, PushError>| {
        let error = put.unwrap_err();
        let fits = matches!(
            error,
            PushError::BlobUnknown(_) | PushError::SubjectUnknown(_)
        );
        assert!(fits, "{error}");
    };
    let ours = pusher.image(host_architecture()).await;
    missing(
        pusher
            .put(":1", &index(&[entry(&ours, host_architecture())]))
            .await,
    );
    let signer = Signer::new(&CURVE);
    missing(pusher.sign(&signer, &Digest::of(ours.as_bytes())).await);
    let elsewhere = pusher.attestation().await.replace("sha256:", "sha256:0");
    assert!(pusher.put(&at(&elsewhere), &elsewhere).await.is_err());
    let theirs = pusher.image("mips").await;
    let error = pusher.put(":1", &theirs).await.unwrap_err();
    assert!(error.to_string().contains("mips"), "{error}");
    let error = pusher
        .put(":1", &index(&[entry(&theirs, "mips")]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("mips"), "{error}");
    assert!(store.list().is_empty());
}

/// Whether the image or the index it is listed by was signed, and by whom: what is pushed is a proof
/// like any other, over a restart too, and goes with the image.
#[tokio::test]
async fn a_pushed_signature_meets_a_rule() {
    let (signer, stranger) = (Signer::new(&CURVE), Signer::new(&CURVE));
    let rules = [rule(&["prod"], &[REPOSITORY], &[&signer])];
    for whole in [true, false] {
        let dir = temp();
        let store = strict(&dir, &rules);
        let pusher = Pusher::to(&store);
        let (ours, index) = several(&pusher).await;
        let signed = Digest::of(if whole {
            index.as_bytes()
        } else {
            ours.as_bytes()
        });
        let image = pusher.named(":1").await.0.unwrap();
        let pin = scheduler::model::ImagePin {
            reference: format!("{REPOSITORY}:1"),
            digest: image.pin.digest.clone(),
        };
        refused(
            admit(&store, Some("prod"), &pin).await,
            "it has no signature",
        );
        pusher.sign(&stranger, &signed).await.unwrap();
        refused(
            admit(&store, Some("prod"), &pin).await,
            "it has no signature",
        );
        pusher.sign(&signer, &signed).await.unwrap();
        admit(&store, Some("prod"), &pin).await.unwrap();
        assert_eq!(waiting(&dir), 0);
        let tag = format!(":sha256-{}.sig", signed.hex());
        assert!(
            pusher.named(&tag).await.1.is_some(),
            "cosign reads it before it adds one"
        );
        drop((pusher, store));

        let store = strict(&dir, &rules);
        admit(&store, Some("prod"), &pin).await.unwrap();
        store.prune(Prune::All, false).await.unwrap();
        store.remove(&pin.digest).await.ok();
        for folder in ["blobs/sha256", "proofs"] {
            let left = std::fs::read_dir(dir.path().join("images").join(folder)).unwrap();
            assert_eq!(left.count(), 0, "{folder}");
        }
    }
}

/// A rule may come later than the signature.
#[tokio::test]
async fn a_signature_is_kept_without_a_rule() {
    let (dir, signer) = (temp(), Signer::new(&CURVE));
    let store = open_store(&dir);
    let pusher = Pusher::to(&store);
    let ours = pusher.image(host_architecture()).await;
    pusher.put(":1", &ours).await.unwrap();
    let digest = Digest::of(ours.as_bytes());
    pusher.sign(&signer, &digest).await.unwrap();
    drop((pusher, store));
    let store = strict(&dir, &[rule(&[], &[], &[&signer])]);
    let pin = scheduler::model::ImagePin {
        reference: format!("{REPOSITORY}:1"),
        digest: digest.to_string(),
    };
    admit(&store, Some("prod"), &pin).await.unwrap();
}
