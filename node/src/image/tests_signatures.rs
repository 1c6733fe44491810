//! Signatures in cosign's format, made with openssl and kept in a real registry: which count, what is
//! refused without them, and what is remembered when nobody can be asked any more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use scheduler::model::ImagePin;
use tempfile::TempDir;

use super::signature::{ANNOTATION, Key, MAX_PAYLOAD, MEDIA_TYPE, Proof, Refusal, Signature};
use super::testing::{Hub, Layout, base, impatient, install_tls, open_store, run, temp};
use super::tests_peers::{Fault, nowhere, room};
use super::{Digest, ImageError, Policy, Reference, SignatureRule, Store};

const CURVE: [&str; 4] = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// Somebody who signs.
struct Signer {
    dir: TempDir,
    raw: bool,
}

impl Signer {
    fn new(kind: &[&str]) -> Self {
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

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn public(&self) -> PathBuf {
        self.dir.path().join("key.pub")
    }

    fn key(&self) -> Key {
        Key::parse(&fs::read(self.public()).unwrap()).unwrap()
    }

    /// In base64, as cosign writes it.
    fn sign(&self, payload: &[u8]) -> String {
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

fn payload(digest: &Digest) -> Vec<u8> {
    let text = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"r.example/app"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    );
    text.into_bytes()
}

/// Puts signatures where `cosign sign` does.
fn publish(hub: &Hub, repository: &str, digest: &Digest, signatures: &[(Vec<u8>, String)]) {
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

fn rule(namespaces: &[&str], images: &[&str], keys: &[&Signer]) -> SignatureRule {
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    SignatureRule {
        namespaces: owned(namespaces),
        images: owned(images),
        keys: keys.iter().map(|signer| signer.public()).collect(),
    }
}

fn strict(dir: &TempDir, rules: &[SignatureRule]) -> Store {
    let store = open_store(dir);
    store.require(Policy::load(rules).unwrap()).unwrap();
    store
}

async fn admit(store: &Store, namespace: Option<&str>, pin: &ImagePin) -> Result<(), ImageError> {
    let reference = Reference::parse(&pin.reference).unwrap();
    store.admit(namespace, &reference, pin, &impatient()).await
}

fn refused(outcome: Result<(), ImageError>, words: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), "ImageUnsigned", "{error}");
    assert!(error.to_string().contains(words), "{words}: {error}");
}

/// What is signed, by which signatures, with which index, whether it counts and what is said.
type Case<'a> = (
    &'a str,
    Vec<Signature>,
    Option<&'a str>,
    bool,
    &'a [Refusal],
);

fn listing(image: &Digest) -> String {
    format!(r#"{{"manifests":[{{"digest":"{image}","size":1}}]}}"#)
}

#[test]
fn only_a_known_key_over_this_digest_counts() {
    let image = Digest::of(b"image");
    let (other, index) = (Digest::of(b"other"), listing(&image));
    let stranger = Signer::new(&CURVE);
    let kinds: [&[&str]; 3] = [&CURVE, &["-algorithm", "ED25519"], &["-algorithm", "RSA"]];
    for kind in kinds {
        let signer = Signer::new(kind);
        let (key, strange) = (signer.key(), stranger.key());
        let signed =
            |payload: &[u8], by: &Signer| Signature::new(payload, &by.sign(payload)).unwrap();
        let right = signed(&payload(&image), &signer);
        let foreign = signed(&payload(&image), &stranger);
        let moved = signed(&payload(&other), &signer);
        let listed = signed(&payload(&Digest::of(index.as_bytes())), &signer);
        let untyped = signed(&payload(&image).to_ascii_uppercase(), &signer);
        let garbled = Signature::new(&payload(&image), "?").unwrap();
        let swapped = Signature::new(&payload(&image), &signer.sign(&payload(&other))).unwrap();
        let table: Vec<Case<'_>> = vec![
            ("right", vec![right.clone()], None, true, &[]),
            ("none", vec![], None, false, &[]),
            (
                "a stranger's",
                vec![foreign.clone()],
                None,
                false,
                &[Refusal::NoKey],
            ),
            (
                "another image's",
                vec![moved.clone()],
                None,
                false,
                &[Refusal::OtherImage],
            ),
            (
                "of another document",
                vec![swapped],
                None,
                false,
                &[Refusal::NoKey],
            ),
            (
                "no base64",
                vec![garbled.clone()],
                None,
                false,
                &[Refusal::NotBase64],
            ),
            (
                "no document",
                vec![untyped],
                None,
                false,
                &[Refusal::NoPayload],
            ),
            (
                "one of several",
                vec![foreign, garbled, moved, right.clone()],
                None,
                true,
                &[Refusal::NoKey, Refusal::OtherImage, Refusal::NotBase64],
            ),
            ("its index's", vec![listed.clone()], Some(&index), true, &[]),
            (
                "its own beside an index",
                vec![right],
                Some(&index),
                false,
                &[Refusal::OtherImage],
            ),
            (
                "an index without it",
                vec![listed],
                Some(r#"{"manifests":[]}"#),
                false,
                &[Refusal::OtherImage],
            ),
        ];
        for (what, signatures, index, counts, refusals) in table {
            let proof = Proof {
                signatures,
                index: index.map(str::to_owned),
            };
            let (signers, said) = proof.signers(&image, &[&key]);
            assert_eq!(signers.contains(&key.id), counts, "{kind:?}: {what}");
            assert_eq!(
                said.into_iter().collect::<Vec<_>>(),
                refusals,
                "{kind:?}: {what}"
            );
            assert!(!proof.signers(&image, &[]).0.contains(&strange.id));
        }
    }
}

#[test]
fn of_many_signatures_those_of_an_image_are_kept() {
    let (image, other) = (Digest::of(b"image"), Digest::of(b"other"));
    let index = listing(&image);
    let named = |digest: &Digest| Signature::new(&payload(digest), "x").unwrap();
    let (own, of_index) = (named(&image), named(&Digest::of(index.as_bytes())));
    let both = [named(&other), of_index.clone(), own.clone()];
    let found = |all: &[Signature]| Proof::of(&image, Some(index.clone()), all);
    assert_eq!(found(&both).signatures, [own]);
    assert_eq!(found(&both).index, None);
    assert_eq!(found(&both[..2]).signatures, [of_index]);
    assert_eq!(found(&both[..2]).index, Some(index.clone()));
    let large = vec![b' '; usize::try_from(MAX_PAYLOAD).unwrap() + 1];
    assert_eq!(Signature::new(&large, ""), Err(Refusal::TooLarge));
    assert_eq!(
        Signature::new(b"{}", &"A".repeat(4096)),
        Err(Refusal::TooLarge)
    );
    assert_eq!(Signature::new(b"\xff", ""), Err(Refusal::NoPayload));
}

#[test]
fn a_wrong_rule_is_refused_with_what_is_wrong() {
    let (good, dir) = (Signer::new(&CURVE), temp());
    let odd = Signer::new(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    let written = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let pem = fs::read_to_string(good.public()).unwrap();
    let secret = fs::read_to_string(good.file("key")).unwrap();
    let keyed = |path: PathBuf| SignatureRule {
        keys: vec![path],
        ..SignatureRule::default()
    };
    let table = [
        (rule(&[], &[], &[]), "`keys` names 1 to"),
        (keyed(dir.path().join("missing")), "No such file"),
        (keyed(written("text", "hello")), "not one public key"),
        (
            keyed(written("two", &format!("{pem}{pem}"))),
            "not one public key",
        ),
        (
            keyed(written("secret", &secret)),
            "`PRIVATE KEY`, not a `PUBLIC KEY`",
        ),
        (keyed(odd.public()), "its kind is not known"),
        (
            rule(&[], &["team"], &[&good]),
            "no beginning of a whole name",
        ),
        (
            rule(&[], &["r.example/app:1"], &[&good]),
            "no beginning of a whole name",
        ),
        (
            rule(&[], &["R.example/app"], &[&good]),
            "no beginning of a whole name",
        ),
    ];
    for (bad, words) in table {
        let error = Policy::load(&[rule(&[], &[], &[&good]), bad])
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(words) && error.contains("number 2"),
            "{words}: {error}"
        );
        assert!(!error.contains("BEGIN"), "{error}");
    }
}

#[test]
fn rules_hold_by_namespace_and_by_the_beginning_of_names() {
    let (team, all) = (Signer::new(&CURVE), Signer::new(&CURVE));
    let rules = [
        rule(&["prod"], &["r.example/team"], &[&team]),
        rule(&["bank"], &[], &[&all]),
        rule(&["prod"], &["r.example/team/vault"], &[&all]),
        rule(&["hub"], &["docker.io/acme"], &[&all]),
    ];
    let policy = Policy::load(&rules).unwrap();
    let (team, all) = (team.key().id, all.key().id);
    let table: [(Option<&str>, &str, &[&Digest], bool); 14] = [
        (Some("prod"), "r.example/team/app:1", &[], false),
        (Some("prod"), "r.example:443/team/app:1", &[], false),
        (Some("prod"), "r.example/team/app:1", &[&team], true),
        (Some("prod"), "r.example/team/app:1", &[&all], false),
        (Some("prod"), "r.example/teams/app:1", &[], true),
        (Some("prod"), "r.example/team:1", &[], false),
        (Some("prod"), "r.example/team/vault:1", &[&team], false),
        (Some("prod"), "r.example/team/vault:1", &[&team, &all], true),
        (Some("dev"), "r.example/team/app:1", &[], true),
        (Some("bank"), "docker.io/library/nginx:1", &[], false),
        (Some("bank"), "docker.io/library/nginx:1", &[&all], true),
        (Some("hub"), "registry-1.docker.io/acme/app:1", &[], false),
        (None, "r.example/team/app:1", &[], false),
        (None, "r.example/team/app:1", &[&all], true),
    ];
    for (namespace, name, signers, met) in table {
        let signers = signers.iter().map(|id| (*id).clone()).collect();
        let demand = policy.demand(namespace, name);
        assert_eq!(demand.is_met(&signers), met, "{namespace:?} {name}");
    }
}

/// An image in a registry of its own.
fn pushed() -> (Hub, ImagePin, Digest) {
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

/// The image and its signature in one archive, as copies of both.
fn archived(hub: &Hub, digest: &Digest, change: impl Fn(String) -> String) -> (TempDir, PathBuf) {
    let dir = temp();
    let layout = dir.path().join("layout");
    for tag in ["1", &format!("sha256-{}.sig", digest.hex())] {
        let from = format!("docker://{}/team/app:{tag}", hub.address);
        let to = format!("oci:{}:{tag}", layout.display());
        run(
            "skopeo",
            &[
                "copy",
                "--insecure-policy",
                "--src-tls-verify=false",
                &from,
                &to,
            ],
        );
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
    run(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            &from,
            &to,
        ],
    );
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
