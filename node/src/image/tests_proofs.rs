//! Proofs of who signed an image, in a real registry, with peers and in archives: what is refused without
//! them, and what is remembered when nobody can be asked any more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use scheduler::model::ImagePin;
use tempfile::TempDir;

use super::signing::{CURVE, Signer, admit, payload, publish, pushed, refused, rule, strict};
use super::testing::{Hub, impatient, run, temp};
use super::tests_peers::{Fault, nowhere, room};
use super::{Digest, ImageError, Reference, Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_admitted_once_needs_no_registry_again() {
    let (hub, pin, digest) = pushed();
    let (signer, stranger, dir) = (Signer::new(&CURVE), Signer::new(&CURVE), temp());
    let rules = [rule(&["prod"], &[], &[&signer])];
    let store = strict(&dir, &rules);
    let config = impatient();
    store.pull(&pin, &config, None).await.unwrap();
    admit(&store, Some("dev"), &pin).await.unwrap();
    refused(
        admit(&store, Some("prod"), &pin).await,
        "it has no signature",
    );
    let document = payload(&digest);
    let wrong = (document.clone(), stranger.sign(&document));
    publish(&hub, "team/app", &digest, std::slice::from_ref(&wrong));
    refused(admit(&store, Some("prod"), &pin).await, "none of the keys'");
    let right = (document.clone(), signer.sign(&document));
    publish(&hub, "team/app", &digest, &[wrong, right]);
    admit(&store, Some("prod"), &pin).await.unwrap();

    drop((hub, store));
    let store = strict(&dir, &rules);
    admit(&store, Some("prod"), &pin).await.unwrap();
    drop(store);
    // Another key is wanted now: what is remembered is the proof, not that it once was enough.
    let store = strict(&dir, &[rule(&[], &[], &[&stranger])]);
    admit(&store, Some("prod"), &pin).await.unwrap();
    drop(store);
    let store = strict(&dir, &[rule(&[], &[], &[&Signer::new(&CURVE)])]);
    refused(admit(&store, Some("prod"), &pin).await, "cannot be reached");
    drop(store);
    // Whoever can write there cannot sign.
    let kept = dir
        .path()
        .join(format!("images/proofs/{}.json", digest.hex()));
    let text = fs::read_to_string(&kept).unwrap();
    fs::write(&kept, text.replace("r.example/app", "r.example/bad")).unwrap();
    let store = strict(&dir, &rules);
    refused(admit(&store, Some("prod"), &pin).await, "cannot be reached");
    store.remove(&pin.digest).await.unwrap();
    assert!(!kept.exists(), "it goes with its image");
}

/// `cosign sign` of a name that is an index signs the index, and instances run what it lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_index_vouches_for_what_it_lists() {
    let (hub, pin, digest) = pushed();
    let (signer, dir, files) = (Signer::new(&CURVE), temp(), temp());
    let layout = files.path().join("layout");
    let from = format!("docker://{}/team/app:1", hub.address);
    let to = format!("oci:{}:1", layout.display());
    let copy = ["copy", "--insecure-policy", "--all"];
    let plain = ["--src-tls-verify=false", &from, &to];
    run("skopeo", &[&copy[..], &plain].concat());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{0}","manifests":[{{"mediaType":"{1}","digest":"{digest}","size":{2},"platform":{{"os":"linux","architecture":"{3}"}}}}]}}"#,
        super::manifest::OCI_INDEX,
        super::manifest::OCI_MANIFEST,
        hub.manifest("team/app", "1").len(),
        super::manifest::host_architecture()
    );
    let whole = Digest::of(index.as_bytes());
    fs::write(layout.join("blobs/sha256").join(whole.hex()), &index).unwrap();
    let top = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{whole}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"m"}}}}]}}"#,
        super::manifest::OCI_INDEX,
        index.len()
    );
    fs::write(layout.join("index.json"), top).unwrap();
    let from = format!("oci:{}:m", layout.display());
    let to = format!("docker://{}/team/app:2", hub.address);
    let plain = ["--dest-tls-verify=false", &from, &to];
    run("skopeo", &[&copy[..], &plain].concat());

    let store = strict(&dir, &[rule(&[], &[], &[&signer])]);
    let name = hub.name("team/app:2");
    let found = store.resolve(&name, &impatient()).await.unwrap();
    assert_eq!(found.digest, pin.digest);
    refused(
        admit(&store, Some("prod"), &found).await,
        "it has no signature",
    );
    let document = payload(&whole);
    let signature = signer.sign(&document);
    publish(&hub, "team/app", &whole, &[(document, signature)]);
    // By the other name nothing leads to the index.
    refused(
        admit(&store, Some("prod"), &pin).await,
        "it has no signature",
    );
    admit(&store, Some("prod"), &found).await.unwrap();
    admit(&store, Some("prod"), &pin).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_shows_the_proof_where_no_registry_does() {
    let (hub, pin, digest) = pushed();
    let (signer, there, here) = (Signer::new(&CURVE), temp(), temp());
    let document = payload(&digest);
    publish(
        &hub,
        "team/app",
        &digest,
        &[(document.clone(), signer.sign(&document))],
    );
    let rules = [rule(&[], &[], &[&signer])];
    let holder = strict(&there, &rules);
    holder.pull(&pin, &impatient(), None).await.unwrap();
    admit(&holder, Some("prod"), &pin).await.unwrap();
    let (gone, _) = nowhere(&pin);
    for (fault, shown) in [(Fault::Dead, false), (Fault::None, true)] {
        let store = strict(&here, &rules);
        store.set_near(Arc::new(room(&holder, "", &[(fault, true)])));
        let outcome = admit(&store, Some("prod"), &gone).await;
        assert_eq!(outcome.is_ok(), shown, "{fault:?}: {outcome:?}");
    }
}

/// Of the hub, which has no TLS, to a file.
fn copy(from: &str, to: &str) {
    let plain = ["copy", "--insecure-policy", "--src-tls-verify=false"];
    run("skopeo", &[&plain[..], &[from, to]].concat());
}

/// The image and its signature in one archive, as copies of both.
fn archived(hub: &Hub, digest: &Digest, change: impl Fn(String) -> String) -> (TempDir, PathBuf) {
    let dir = temp();
    let layout = dir.path().join("layout");
    for tag in ["1", &format!("sha256-{}.sig", digest.hex())] {
        let from = format!("docker://{}/team/app:{tag}", hub.address);
        let to = format!("oci:{}:{tag}", layout.display());
        copy(&from, &to);
    }
    let index = layout.join("index.json");
    fs::write(&index, change(fs::read_to_string(&index).unwrap())).unwrap();
    let file = dir.path().join("archive.tar");
    let made = Command::new("tar")
        .arg("-C")
        .arg(&layout)
        .arg("-cf")
        .arg(&file)
        .arg(".")
        .status();
    assert!(made.unwrap().success());
    (dir, file)
}

async fn import(store: &Store, file: &Path) -> Result<(), ImageError> {
    let name = Reference::parse("imports.test/app:1").unwrap();
    let archive = tokio::fs::File::open(file).await.unwrap();
    store.import(archive, Some(&name)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_brings_its_signatures_or_is_refused() {
    let (hub, pin, digest) = pushed();
    let (signer, dir, others, free) = (Signer::new(&CURVE), temp(), temp(), temp());
    let document = payload(&digest);
    publish(
        &hub,
        "team/app",
        &digest,
        &[(document.clone(), signer.sign(&document))],
    );
    let tag = format!(
        r#""org.opencontainers.image.ref.name":"sha256-{}.sig""#,
        digest.hex()
    );
    // As `cosign save` marks them.
    let marked = |index: String| {
        assert!(index.contains(&tag), "{index}");
        index.replace(&tag, r#""kind":"dev.cosignproject.cosign/sigs""#)
    };
    let (_by_tag, copied) = archived(&hub, &digest, |index| index);
    let (_by_kind, saved) = archived(&hub, &digest, marked);
    let bare = dir.path().join("bare.tar");
    let from = format!("docker://{}/team/app:1", hub.address);
    let to = format!("docker-archive:{}:imports.test/app:1", bare.display());
    copy(&from, &to);
    drop(hub);

    let rules = [rule(&["prod"], &["imports.test"], &[&signer])];
    for signed in [&copied, &saved] {
        let dir = temp();
        let store = strict(&dir, &rules);
        import(&store, signed).await.unwrap();
        let named = ImagePin {
            reference: "imports.test/app:1".to_owned(),
            ..pin.clone()
        };
        admit(&store, Some("prod"), &named).await.unwrap();
    }
    let store = strict(&dir, &rules);
    refused(import(&store, &bare).await, "it has no signature");
    assert!(store.list().is_empty());
    let store = strict(&others, &[rule(&[], &[], &[&Signer::new(&CURVE)])]);
    refused(import(&store, &copied).await, "none of the keys'");
    let store = strict(&free, &[rule(&[], &["elsewhere.test"], &[&signer])]);
    import(&store, &bare).await.unwrap();
}
