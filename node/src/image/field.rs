//! A place to unpack hostile layers in, with a canary beside it: files of every kind whose content,
//! owner, mode, times, attributes and names are compared before and after. For tests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Limits;
use super::budget::Budget;
use super::testing::temp;
use super::tree;
use super::unpack::{Stop, Unpacked, unpack};

/// What there is to know of a file. Its change time is among it, which nobody can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Mode, owner, group, links, device.
    pub inode: (u32, u32, u32, u64, u64),
    pub mtime: (i64, i64),
    changed: (i64, i64),
    /// A file's bytes or a link's target.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Facts {
    pub(super) fn of(path: &Path) -> Self {
        let meta = fs::symlink_metadata(path).expect("there");
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(path).expect("readable"),
            kind if kind.is_symlink() => {
                let to = fs::read_link(path).expect("readable");
                to.as_os_str().as_bytes().to_vec()
            }
            _ => Vec::new(),
        };
        Self {
            inode: (
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.nlink(),
                meta.rdev(),
            ),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            content,
            xattrs: xattrs(path),
        }
    }
}

/// Everything at and below `path`, by name.
pub(super) fn facts_below(path: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = BTreeMap::from([(path.to_owned(), Facts::of(path))]);
    if fs::symlink_metadata(path).expect("there").is_dir() {
        for entry in fs::read_dir(path).expect("readable") {
            all.append(&mut facts_below(&entry.expect("an entry").path()));
        }
    }
    all
}

pub(super) fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let n = rustix::fs::llistxattr(path, &mut names[..]).expect("listed");
    let names = names[..n]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let name = String::from_utf8(name.to_vec()).expect("text");
        let mut value = vec![0; 64 * 1024];
        let n = rustix::fs::lgetxattr(path, &name, &mut value[..]).expect("read");
        (name, value[..n].to_vec())
    };
    names.map(read).collect()
}

/// A layer's place with the canary beside it.
pub(super) struct Field {
    dir: TempDir,
    canary: BTreeMap<PathBuf, Facts>,
}

impl Field {
    pub(super) fn new() -> Self {
        let dir = temp();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("made");
        fs::create_dir(outside.join("folder")).expect("made");
        for (name, mode) in [
            ("sentinel", 0o640),
            ("folder/own", 0o600),
            ("setuid", 0o4755),
        ] {
            let path = outside.join(name);
            fs::write(&path, "untouched").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        }
        symlink("sentinel", outside.join("link")).expect("made");
        fs::hard_link(outside.join("sentinel"), outside.join("folder/twin")).expect("made");
        let (flags, mark) = (rustix::fs::XattrFlags::empty(), b"kept");
        rustix::fs::setxattr(outside.join("sentinel"), "user.canary", mark, flags).expect("set");
        fs::create_dir_all(dir.path().join("store/fs")).expect("made");
        let canary = facts_below(&outside);
        Self { dir, canary }
    }

    pub(super) fn layer(&self) -> PathBuf {
        self.dir.path().join("store/fs")
    }

    pub(super) fn unpack(&self, tar: &[u8]) -> Result<Unpacked, Stop> {
        self.unpack_within(tar, Limits::default())
    }

    pub(super) fn unpack_within(&self, tar: &[u8], limits: Limits) -> Result<Unpacked, Stop> {
        let outcome = unpack(tar, &self.layer(), &Budget::new(limits), &());
        tree::mark_opaque(&self.layer()).expect("marked");
        self.check();
        outcome
    }

    /// Nothing but the layer has changed.
    pub(super) fn check(&self) {
        assert_eq!(facts_below(&self.dir.path().join("outside")), self.canary);
        for (folder, allowed) in [("", &["outside", "store"]), ("store", &["fs", "implied"])] {
            for entry in fs::read_dir(self.dir.path().join(folder)).expect("readable") {
                let name = entry.expect("an entry").file_name();
                let known = allowed.iter().any(|allowed| name == *allowed);
                assert!(known, "{} is new beside the layer", name.display());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let here = self.dir.path().to_str().expect("text");
        assert!(!mounts.contains(here), "something is mounted");
    }
}
