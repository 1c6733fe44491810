//! One byte changed in any file of a store at rest: the next daemon brings the image back to what it was,
//! byte for byte, and holds nothing else in its place.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::EntryType;
use tempfile::TempDir;

use super::testing::{Tar, install_tls, open_store, temp};
use super::tests_peers::{Fault, NAME, import, noise, nowhere, room, runtime};
use super::verify::Finding;
use super::{Digest, Image, Store};

/// Directories that no entry describes, a link of each kind, a mark, and files of one chunk and of several.
fn layer() -> Vec<u8> {
    let big = noise(9, 150_000);
    Tar::default()
        .entry(EntryType::Regular, b"usr/bin/app", b"", big.as_bytes())
        .hardlink("usr/bin/again", "usr/bin/app")
        .file("etc/conf", "key = value")
        .file("etc/.wh.gone", "")
        .symlink("link", "usr/bin/app")
        .end()
}

/// All regular files below a directory that have a byte.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let facts = fs::symlink_metadata(&path).unwrap();
        if facts.is_dir() {
            found.extend(files(&path));
        } else if facts.is_file() && facts.len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// The whole tar, as the tree gives it back.
fn tar_of(store: &Store, layer: &Digest) -> Vec<u8> {
    let mut raw = store.inner.layers.raw(layer).unwrap().unwrap();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    while (all.len() as u64) < raw.size() {
        let left = raw.size() - all.len() as u64;
        let length = u32::try_from(left.min(64 << 10)).unwrap();
        raw.read_at(all.len() as u64, length, &mut part).unwrap();
        all.extend_from_slice(&part);
    }
    all
}

/// The next life of the daemon, which another node has the image for.
async fn is_put_right(dir: &TempDir, source: &Store, image: &Image, what: &str) {
    let store = open_store(dir);
    store.set_near(Arc::new(room(source, "", &[(Fault::None, true)])));
    let (pin, config) = nowhere(&image.pin);
    let pulled = store.pull(&pin, &config, None).await;
    let pulled = pulled.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(pulled.config, image.config, "{what}");
    assert_eq!(pulled.layers, image.layers, "{what}");
    let verified = store.verified(&pulled).await;
    verified.unwrap_or_else(|error| panic!("{what}: {error}"));
    for id in pulled.diff_ids().unwrap() {
        assert_eq!(store.inner.layers.verify(&id), Finding::Whole, "{what}");
        assert!(Digest::of(&tar_of(&store, &id)) == id, "{what}");
    }
    for held in store.list() {
        assert_eq!(held.pin.digest, image.pin.digest, "{what}");
    }
}

#[test]
fn a_byte_changed_in_any_file_is_put_right() {
    install_tls();
    runtime().block_on(async {
        let (there, dir) = (temp(), temp());
        let source = open_store(&there);
        let image = import(&source, layer(), NAME).await;
        is_put_right(&dir, &source, &image, "nothing").await;
        let all = files(&dir.path().join("images"));
        assert!(all.len() > 8, "{all:?}");
        for path in all {
            let length = fs::metadata(&path).unwrap().len();
            for at in [0, length / 3, length / 2, length - 1] {
                // What is written anew is of another length at times.
                let length = fs::metadata(&path).map_or(0, |facts| facts.len());
                if at < length {
                    flip(&path, at);
                    let what = format!("{}, byte {at}", path.display());
                    is_put_right(&dir, &source, &image, &what).await;
                }
            }
        }
    });
}
