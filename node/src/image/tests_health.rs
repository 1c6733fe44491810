//! Damage at rest: found, named, never run from, and mended where there is a source.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::EntryType;
use tempfile::TempDir;

use super::testing::{Mounted, Tar, install_tls, oci_archive, open_store, temp};
use super::tests_peers::{Fault, noise, nowhere, room};
use super::verify::Finding;
use super::{Digest, Image, ImageError, Store};

/// Changes one byte of a file and nothing about it that `stat` shows.
fn flip(path: &Path, at: u64) {
    let before = fs::metadata(path).unwrap();
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
}

fn layer() -> Vec<u8> {
    let big = noise(5, 200_000);
    Tar::default()
        .dir("d")
        .entry(EntryType::Regular, b"app", b"", big.as_bytes())
        .hardlink("again", "app")
        .file("d/small", "little")
        .file("empty", "")
        .symlink("link", "app")
        .end()
}

const PLACES: usize = 7;

/// A node's store with one image, and the places of its files.
struct Held {
    dir: TempDir,
    store: Store,
    image: Arc<Image>,
}

impl Held {
    async fn new() -> Self {
        let dir = temp();
        let store = open_store(&dir);
        let archive = oci_archive(&[layer()]);
        let image = store.import(&archive[..], None).await.unwrap().remove(0);
        Self { dir, store, image }
    }

    /// The next life of the daemon.
    fn reborn(self) -> Self {
        let Self { dir, store, image } = self;
        drop(store);
        let store = open_store(&dir);
        let image = store.get(&image.pin.digest).unwrap();
        Self { dir, store, image }
    }

    fn layer(&self, name: &str) -> PathBuf {
        let hex = self.image.layers[0].trim_start_matches("sha256:");
        self.dir.path().join("images/layers").join(hex).join(name)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.store.inner.blob(digest)
    }

    /// What of an image may be damaged, and what is said of it.
    fn places(&self) -> [(PathBuf, u64, &'static str); PLACES] {
        let record = format!("images/index/{}.json", self.digest().hex());
        let record = self.dir.path().join(record);
        let text = fs::read_to_string(&record).unwrap();
        let command = text.find("\"/app\"").unwrap() as u64;
        [
            (self.layer("fs/app"), 70_000, "app"),
            (self.layer("fs/d/small"), 2, "d/small"),
            (self.layer("recipe"), 40, "recipe"),
            (self.layer("chunks"), 40, "chunk list"),
            (self.blob(&self.digest()), 100, "manifest"),
            (self.blob(&self.config()), 100, "configuration"),
            (record, command + 3, "record"),
        ]
    }

    fn digest(&self) -> Digest {
        self.image.digest().unwrap()
    }

    fn config(&self) -> Digest {
        self.image.config_digest().unwrap()
    }

    /// A pull that can ask no registry.
    async fn pull(&self) -> Result<Arc<Image>, ImageError> {
        let (pin, config) = nowhere(&self.image.pin);
        self.store.pull(&pin, &config, None).await
    }
}

/// A change of a tree that leaves all contents as they are, and the name that is told.
type Change = (fn(&Path), &'static str);

const CHANGES: [Change; 8] = [
    (|root| mode(&root.join("app"), 0o777), "app"),
    (|root| mode(&root.join("d"), 0o700), "d"),
    (
        |root| lchown(root.join("d/small"), Some(1), None).unwrap(),
        "d/small",
    ),
    (
        |root| lchown(root.join("link"), None, Some(1)).unwrap(),
        "link",
    ),
    (
        |root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("elsewhere", root.join("link")).unwrap();
        },
        "link",
    ),
    (
        |root| fs::write(root.join("d/planted"), "").unwrap(),
        "d/planted",
    ),
    (|root| fs::remove_file(root.join("empty")).unwrap(), "empty"),
    (
        |root| {
            let file = fs::OpenOptions::new()
                .append(true)
                .open(root.join("d/small"));
            std::io::Write::write_all(&mut file.unwrap(), b"more").unwrap();
        },
        "d/small",
    ),
];

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn names_modes_owners_and_links_are_compared_too() {
    for (change, named) in CHANGES {
        let held = Held::new().await;
        let (layers, id) = (&held.store.inner.layers, &held.image.diff_ids().unwrap()[0]);
        assert_eq!(layers.verify(id), Finding::Whole);
        change(&held.layer("fs"));
        match layers.verify(id) {
            Finding::Damaged(damage) => {
                let names = if named == "app" { 2 } else { 1 };
                assert_eq!(
                    (damage.files.len(), damage.chunks),
                    (names, 0),
                    "{damage:?}"
                );
                assert!(damage.files.contains(named), "{damage:?}");
            }
            other => panic!("{named}: {other:?}"),
        }
        let held = held.reborn();
        let refused = held.store.verified(&held.image).await.unwrap_err();
        assert!(refused.to_string().contains(named), "{refused}");
        let archive = oci_archive(&[layer()]);
        held.store.import(&archive[..], None).await.unwrap();
        assert_eq!(
            held.store.inner.layers.verify(id),
            Finding::Whole,
            "{named}"
        );
    }
}

/// As if an instance had been started before the change was found.
#[tokio::test]
async fn modes_and_owners_of_a_layer_in_use_are_put_right() {
    for (change, named) in &CHANGES[..4] {
        let held = Held::new().await;
        let id = &held.image.diff_ids().unwrap()[0];
        change(&held.layer("fs"));
        let held = held.reborn();
        let instance = held.dir.path().join("instance");
        fs::create_dir(&instance).unwrap();
        let inner = &held.store.inner;
        inner.begin_use(&instance, &held.digest()).unwrap();
        assert!(held.store.verified(&held.image).await.is_err(), "{named}");
        let archive = oci_archive(&[layer()]);
        held.store.import(&archive[..], None).await.unwrap();
        assert_eq!(inner.layers.verify(id), Finding::Whole, "{named}");
    }
}

#[test]
fn damage_is_found_and_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let held = runtime.block_on(Held::new());
    let (layers, id) = (&held.store.inner.layers, &held.image.diff_ids().unwrap()[0]);
    assert_eq!(layers.verify(id), Finding::Whole);
    let named = |expected: &str| match layers.verify(id) {
        Finding::Damaged(damage) => {
            let named = damage.files.iter().any(|file| file.contains(expected));
            assert!(named, "{damage:?}");
        }
        other => panic!("{expected}: {other:?}"),
    };
    let app = held.layer("fs/app");
    flip(&app, 150_000);
    named("app");
    flip(&app, 150_000);
    assert_eq!(layers.verify(id), Finding::Whole);
    let small = held.layer("fs/d/small");
    let kept = fs::read(&small).unwrap();
    fs::remove_file(&small).unwrap();
    named("d/small");
    // Nothing is read through a link somebody planted.
    let outside = held.dir.path().join("outside");
    fs::write(&outside, &kept).unwrap();
    std::os::unix::fs::symlink(&outside, &small).unwrap();
    named("d/small");
    fs::remove_file(&small).unwrap();
    fs::write(&small, "litt").unwrap();
    named("d/small");
    fs::write(&small, kept).unwrap();
    assert_eq!(layers.verify(id), Finding::Whole);
    let marker = fs::read(held.layer("complete")).unwrap();
    fs::write(held.layer("complete"), b"{}").unwrap();
    named("record");
    fs::write(held.layer("complete"), marker).unwrap();
    fs::remove_file(held.layer("recipe")).unwrap();
    named("record");
}

#[tokio::test]
async fn without_a_source_nothing_starts_and_the_error_says_why() {
    install_tls();
    let mut held = Held::new().await;
    for place in 0..PLACES {
        let (path, at, named) = held.places()[place].clone();
        flip(&path, at);
        held = held.reborn();
        let instance = held.dir.path().join("instance");
        let _mounted = Mounted(instance.clone());
        let refused = held.store.snapshot(&held.image, &instance, None).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, ImageError::Damaged { .. }), "{refused}");
        assert!(refused.to_string().contains(named), "{refused}");
        assert!(!instance.join("rootfs/app").exists());
        if named == "record" {
            // All it says is in the documents.
            let healed = held.pull().await.unwrap();
            assert_eq!(healed.config.cmd, ["/app"]);
            held.store.verified(&healed).await.unwrap();
            continue;
        }
        let error = held.pull().await.unwrap_err();
        assert!(matches!(error, ImageError::Unhealed { .. }), "{error}");
        assert_eq!(error.code(), "ImageCorrupt");
        let said = error.to_string();
        assert!(said.contains(named) && said.contains("registry"), "{said}");
        flip(&path, at);
        held = held.reborn();
        held.pull().await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_heals_what_is_damaged_with_no_more_than_that() {
    install_tls();
    let source = Held::new().await;
    let mut held = Held::new().await;
    for place in 0..PLACES {
        let (path, at, named) = held.places()[place].clone();
        flip(&path, at);
        held = held.reborn();
        let room = room(&source.store, "", &[(Fault::None, true)]);
        let moved = Arc::clone(&room.moved);
        held.store.set_near(Arc::new(room));
        let image = held.pull().await.unwrap();
        held.store.verified(&image).await.unwrap();
        assert_eq!(image.config, source.image.config, "{named}");
        let app = fs::read_to_string(held.layer("fs/again")).unwrap();
        assert!(app == noise(5, 200_000), "{named}");
        // What can still be read here is not asked for.
        let most = match named {
            "recipe" | "chunk list" => 210_000,
            "app" | "d/small" => 70_000,
            _ => 0,
        };
        let moved = *moved.lock().unwrap();
        assert!(moved <= most, "{named}: {moved} bytes moved");
        held = held.reborn();
        held.store.verified(&image).await.unwrap();
    }
}

#[tokio::test]
async fn a_layer_in_use_is_mended_where_it_is_and_replaced_when_it_is_not() {
    let held = Held::new().await;
    let archive = oci_archive(&[layer()]);
    let (app, again) = (held.layer("fs/app"), held.layer("fs/again"));
    let right = noise(5, 200_000);
    flip(&app, 70_000);
    let held = held.reborn();
    // As if an instance had been started before the damage was found.
    let instance = held.dir.path().join("instance");
    fs::create_dir(&instance).unwrap();
    held.store
        .inner
        .begin_use(&instance, &held.digest())
        .unwrap();
    let inode = fs::metadata(&app).unwrap().ino();
    assert!(held.store.verified(&held.image).await.is_err());
    held.store.import(&archive[..], None).await.unwrap();
    held.store.verified(&held.image).await.unwrap();
    let mended = fs::metadata(&app).unwrap();
    assert_eq!((mended.ino(), mended.mtime()), (inode, 1_000_000_000));
    assert!(fs::read_to_string(&again).unwrap() == right);

    // A file that is gone cannot be mended below a mount.
    fs::remove_file(held.layer("fs/d/small")).unwrap();
    let held = held.reborn();
    assert!(held.store.verified(&held.image).await.is_err());
    let error = held.store.import(&archive[..], None).await.unwrap_err();
    assert!(error.to_string().contains("d/small"), "{error}");
    assert!(held.store.verified(&held.image).await.is_err());

    held.store.inner.end_use(&instance).unwrap();
    held.store.import(&archive[..], None).await.unwrap();
    held.store.verified(&held.image).await.unwrap();
    assert_eq!(
        fs::read_to_string(held.layer("fs/d/small")).unwrap(),
        "little"
    );
    let held = held.reborn();
    held.store.verified(&held.image).await.unwrap();
}

#[tokio::test]
async fn a_scrub_finds_what_changed_since_and_leaves_the_known_alone() {
    let held = Held::new().await;
    flip(&held.layer("fs/app"), 70_000);
    // Brought in by this very daemon: not read again before its day has come.
    assert!(held.store.scrub(false).await.is_empty());
    held.store.verified(&held.image).await.unwrap();
    let damaged = held.store.scrub(true).await;
    assert_eq!(damaged.len(), 1);
    assert!(held.store.verified(&held.image).await.is_err());
    assert_eq!(held.store.scrub(false).await.len(), 1);
    let id = &held.image.diff_ids().unwrap()[0];
    assert!(!held.store.inner.serves(id), "nor does it go to peers");
}
