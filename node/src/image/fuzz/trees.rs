//! One tar read twice: into a tree on the disk, as layers are unpacked, and into one in memory, as layers
//! are shown while they arrive. Both must take and refuse the same, and say the same of what they took.

use std::collections::BTreeSet;
use std::fs;
use std::mem::discriminant;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::budget::Budget;
use super::super::lazy::{Holes, Kind, Node, Outline, ROOT};
use super::super::likeness;
use super::super::recipe::Recipe;
use super::super::tree::{self, IMPLIED_LIST, listed};
use super::super::unpack::{self, Stop};
use super::LIMITS;

/// A folder of its own, gone with its value.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sel-fuzz-{}-{number}", std::process::id());
        // Memory, where there is some: a search makes many trees.
        let base = Some(PathBuf::from("/dev/shm")).filter(|shm| shm.is_dir());
        let dir = base.unwrap_or_else(std::env::temp_dir).join(name);
        let made = fs::create_dir_all(dir.join("fs"));
        assert!(made.is_ok(), "{}: {made:?}", dir.display());
        Self(dir)
    }

    fn tree(&self) -> PathBuf {
        self.0.join("fs")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A recipe a peer gave: of a tar whose contents are not here.
pub(super) fn outlined(recipe: &Recipe) {
    let outline = Outline::read(Holes::new(recipe), &Budget::new(LIMITS));
    if let Ok(outline) = outline {
        assert!(outline.node(ROOT).is_some());
    }
}

pub(super) fn alike(tar: &[u8]) {
    let folder = Folder::make();
    let shown = Outline::of(tar, &Budget::new(LIMITS));
    let made = unpack::unpack(tar, &folder.tree(), &Budget::new(LIMITS), &());
    match (shown, made) {
        (Ok(outline), Ok(made)) => {
            assert!(made.entries <= LIMITS.files);
            assert_eq!(outline.opaque_root(), made.opaque_root);
            let implied = listed(&folder.tree(), IMPLIED_LIST);
            assert_eq!(Some(outline.implied()), implied.ok().as_ref());
            tree::mark_opaque(&folder.tree()).unwrap_or_else(|e| panic!("marking: {e}"));
            let differ = likeness::differences(&outline, &folder.tree(), 10);
            assert_eq!(differ.ok(), Some(BTreeSet::new()));
            contents(&outline, ROOT, &folder.tree(), tar);
        }
        (Err(shown), Err(made)) => {
            let same = discriminant(&shown) == discriminant(&made);
            assert!(same, "{shown:?} is not {made:?}");
        }
        (Ok(_), Err(Stop::Disk { entry, source })) => panic!("`{entry}`: {source}"),
        (shown, made) => {
            let shown = shown.map(|_| "taken");
            panic!("in memory {shown:?}, on the disk {made:?}")
        }
    }
}

/// What the comparison of a tree at rest leaves out: contents, and how many names each has.
fn contents(outline: &Outline, number: usize, path: &Path, tar: &[u8]) {
    let Some(Node {
        kind: Kind::Directory { names, .. },
        ..
    }) = outline.node(number)
    else {
        panic!("{} is no directory", path.display());
    };
    for (name, number) in names {
        let path = path.join(std::ffi::OsStr::from_bytes(name));
        let shown = path.display();
        match outline.node(*number) {
            Some(Node {
                kind: Kind::Directory { .. },
                ..
            }) => {
                contents(outline, *number, &path, tar);
            }
            Some(Node {
                kind: Kind::File(content),
                links,
                ..
            }) => {
                let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
                let content = tar.get(at(content.start)..at(content.end));
                assert_eq!(fs::read(&path).ok().as_deref(), content, "{shown}");
                let there = fs::metadata(&path).map_or(0, |meta| meta.nlink());
                assert_eq!(there, u64::from(*links), "{shown}");
            }
            _ => {}
        }
    }
}
