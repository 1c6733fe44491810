//! A layer shown lazily against the same layer unpacked: names, attributes and content are equal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use super::super::budget::{Budget, Limits};
use super::super::digest::Digest;
use super::super::layer::Layers;
use super::super::manifest::{LayerPlan, Packing};
use super::super::recipe::{Recipe, Segment};
use super::super::testing::{Tar, temp};
use super::super::tree;
use super::super::unpack::{Stop, unpack};
use super::fs::{LayerFs, Supply, Then};
use super::holes::Holes;
use super::outline::Outline;
use crate::userns::Block;

/// The whole tar is here.
struct Whole(Arc<Vec<u8>>);

impl Supply for Whole {
    fn read(&self, range: Range<u64>, _: &Range<u64>, then: Then) {
        let range = size(range.start)..size(range.end);
        then(Ok(self.0[range].to_vec()));
    }
}

pub(super) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// What a recipe says of a tar: all but the files' content.
fn recipe(tar: &[u8]) -> Recipe {
    let (mut segments, mut at) = (Vec::new(), 0_usize);
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().unwrap().raw(true) {
        let entry = entry.unwrap();
        if entry.header().entry_type() == tar::EntryType::Regular && entry.size() > 0 {
            let start = size(entry.raw_file_position());
            segments.push(Segment::Inline(tar[at..start].to_vec()));
            segments.push(Segment::File {
                path: entry.path_bytes().into_owned(),
                offset: 0,
                len: entry.size(),
            });
            at = start + size(entry.size());
        }
    }
    segments.push(Segment::Inline(tar[at..].to_vec()));
    Recipe::new(segments)
}

fn outline(tar: &[u8]) -> Result<Outline, Stop> {
    Outline::read(Holes::new(&recipe(tar)), &Budget::new(Limits::default()))
}

/// Shows a layer at a folder.
pub(super) fn show(tar: &[u8], supply: impl Supply, at: &Path, block: Option<Block>) -> Mount {
    let served = LayerFs::new(outline(tar).unwrap(), supply, block);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::Suid,
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    let session = Session::new(served, at, &config).unwrap();
    std::thread::spawn(move || session.run());
    Mount(at.to_owned())
}

/// A mount that is gone with its value.
pub(super) struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// One layer, unpacked and shown.
struct Both {
    dir: TempDir,
    _mount: Mount,
}

impl Both {
    fn new(tar: &[u8], block: Option<Block>) -> Self {
        let dir = temp();
        for name in ["eager", "lazy", "upper", "work", "root"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let budget = Budget::new(Limits::default());
        let eager = dir.path().join("eager");
        let unpacked = unpack(tar, &eager, &budget, &()).unwrap();
        let listed = tree::listed(&eager, tree::IMPLIED_LIST).unwrap();
        assert_eq!(listed, *outline(tar).unwrap().implied());
        tree::mark_opaque(&eager).unwrap();
        let opaque = outline(tar).unwrap().opaque_root();
        assert_eq!(unpacked.opaque_root, opaque);
        let whole = Whole(Arc::new(tar.to_vec()));
        let mount = show(tar, whole, &dir.path().join("lazy"), block);
        Self { dir, _mount: mount }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

type Described = BTreeMap<PathBuf, String>;

/// Everything below `root` that a program can see, by name.
fn describe(root: &Path, implied: &[&str]) -> Described {
    let mut all = Described::new();
    let mut numbers = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        let kind = meta.file_type();
        let mut said = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        // Nobody said when a whiteout was made, or a directory without an entry.
        if !kind.is_char_device() && !implied.iter().any(|name| path == Path::new(name)) {
            write!(said, " {}.{}", meta.mtime(), meta.mtime_nsec()).unwrap();
        }
        if kind.is_dir() {
            let names = fs::read_dir(&full).unwrap();
            let mut names: Vec<_> = names
                .map(|entry| path.join(entry.unwrap().file_name()))
                .collect();
            names.sort_by(|a, b| b.cmp(a));
            todo.extend(names);
        } else {
            // Names of one file are told by their first.
            let first = numbers.entry(meta.ino()).or_insert_with(|| path.clone());
            write!(said, " {} names, {} bytes", meta.nlink(), meta.size()).unwrap();
            write!(said, " like {}", first.display()).unwrap();
        }
        if kind.is_file() {
            write!(said, " {:?}", Digest::of(&fs::read(&full).unwrap())).unwrap();
        }
        if kind.is_symlink() {
            write!(said, " to {:?}", fs::read_link(&full).unwrap()).unwrap();
        } else if !kind.is_char_device() {
            write!(said, " {:?}", xattrs(&full)).unwrap();
        }
        all.insert(path, said);
    }
    all
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 4096];
    let n = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 70_000];
            let n = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
            (name, value[..n].to_vec())
        })
        .collect()
}

/// Text that nowhere repeats.
pub(super) fn text(numbers: u32) -> String {
    (0..numbers).fold(String::new(), |mut text, number| {
        write!(text, "{number} ").unwrap();
        text
    })
}

/// Everything an honest layer may hold.
fn honest() -> Vec<u8> {
    let long = "long/".to_owned() + &"n".repeat(150);
    let big = text(100_000);
    Tar::default()
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0")
        .file("etc/passwd", "once more")
        .hardlink("etc/again", "etc/passwd")
        .hardlink("etc/third", "etc/again")
        .file("etc/third", "on its own again")
        .symlink("etc/link", "/etc/passwd")
        .hardlink("etc/second-link", "etc/link")
        .file("implied/deep/file", "x")
        .file("empty", "")
        .file("big", &big)
        .file(&long, "long name")
        .pax(&[
            ("path", b"pax/name"),
            ("mtime", b"-1.25"),
            ("uid", b"70000"),
            ("SCHILY.xattr.user.greeting", b"bin\n\0ary"),
            ("SCHILY.xattr.security.capability", b"not an image's"),
        ])
        .file("short", "named by pax")
        .file("etc/.wh.gone", "")
        .file(".wh.tree", "")
        .file("tree/new", "x")
        .dir("own")
        .file(".wh.own", "")
        .file("wiped/.wh..wh..opq", "")
        .file("wiped/new", "x")
        .file("turned", "first a file")
        .dir("turned")
        .end()
}

#[test]
fn what_is_shown_equals_what_is_unpacked() {
    let both = Both::new(&honest(), None);
    let implied = ["implied", "implied/deep", "long", "pax", "tree", "wiped"];
    let (eager, lazy) = (
        describe(&both.at("eager"), &implied),
        describe(&both.at("lazy"), &implied),
    );
    assert_eq!(eager, lazy);
    assert!(eager.len() > 20, "{eager:?}");
    let whiteout = fs::symlink_metadata(both.at("lazy/etc/gone")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert!(fs::write(both.at("lazy/etc/passwd"), "no").is_err());
    assert!(!both.at("lazy/etc/absent").exists());
}

/// As real tools write them: long names, links of both kinds, setuid programs, odd modes.
#[test]
fn layers_of_real_files_are_shown_as_they_are_unpacked() {
    for format in ["--format=gnu", "--format=posix", "--format=ustar"] {
        let tar = Command::new("tar")
            .args([
                format,
                "-C",
                "/",
                "-cf",
                "-",
                "usr/share/perl5",
                "usr/bin/su",
            ])
            .output()
            .unwrap();
        assert!(tar.status.success(), "{tar:?}");
        let both = Both::new(&tar.stdout, None);
        let implied = ["", "usr", "usr/share", "usr/bin"];
        let (eager, lazy) = (
            describe(&both.at("eager"), &implied),
            describe(&both.at("lazy"), &implied),
        );
        assert!(eager == lazy, "{format}");
        assert!(eager.len() > 100, "{}", eager.len());
    }
}

#[test]
fn the_recipe_a_layer_leaves_behind_gives_its_tree() {
    let dir = temp();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("layers")).unwrap();
    fs::create_dir(at("tmp")).unwrap();
    let layers = Layers::new(at("layers"), at("tmp"));
    let raw = Tar::default()
        .dir("etc")
        .file("etc/file", &text(1000))
        .hardlink("etc/again", "etc/file")
        .file("empty", "")
        .end();
    let digest = Digest::of(&raw);
    let plan = LayerPlan {
        digest: digest.clone(),
        size: raw.len() as u64,
        packing: Packing::Plain,
        diff_id: digest.clone(),
    };
    let budget = Budget::new(Limits::default());
    layers.bring_in(&raw[..], &plan, &budget).unwrap();
    let left = layers.recipe(&digest).unwrap().expect("recorded");
    assert_eq!(left.raw(), raw.len() as u64);
    let whole = u32::try_from(raw.len()).unwrap();
    let mut again = Vec::new();
    let mut tar = layers.raw(&digest).unwrap().expect("recorded");
    tar.read_at(0, whole, &mut again).unwrap();
    assert!(again == raw);
    let outline = Outline::read(Holes::new(&left), &budget).unwrap();
    assert_eq!(outline.len(), 4, "the root, a folder and two files");
}

#[test]
fn owners_are_shown_in_an_instances_block() {
    let block = Block::number(7).unwrap();
    let both = Both::new(&honest(), Some(block));
    let meta = fs::metadata(both.at("lazy/etc/passwd")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (block.root(), block.root()));
    let nobody = fs::metadata(both.at("lazy/pax/name")).unwrap().uid();
    assert_eq!(nobody, 65_534, "70000 is no id of a block");
}

#[test]
fn an_overlay_on_it_hides_runs_and_writes() {
    let program = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut header = tar::Header::new_gnu();
    header.set_path("bin/busybox").unwrap();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    let tar = Tar::default()
        .file("gone/.wh.a", "")
        .file("wiped/.wh..wh..opq", "")
        .file("kept", "lazy")
        .header(&header, &program)
        .end();
    let both = Both::new(&tar, None);
    for (name, text) in [("gone/a", "1"), ("gone/b", "2"), ("wiped/a", "3")] {
        let path = both.at("below").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let name = |name: &str| both.at(name).display().to_string();
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={},volatile",
        name("lazy"),
        name("below"),
        name("upper"),
        name("work")
    );
    let options = std::ffi::CString::new(options).unwrap();
    let root = Mount(both.at("root"));
    let flags = MountFlags::NODEV;
    rustix::mount::mount("overlay", &root.0, "overlay", flags, options.as_c_str()).unwrap();
    assert!(!root.0.join("gone/a").exists());
    assert_eq!(fs::read_to_string(root.0.join("gone/b")).unwrap(), "2");
    assert_eq!(fs::read_dir(root.0.join("wiped")).unwrap().count(), 0);
    fs::write(root.0.join("kept"), "written").unwrap();
    assert_eq!(fs::read_to_string(both.at("lazy/kept")).unwrap(), "lazy");
    let said = Command::new(root.0.join("bin/busybox"))
        .args(["echo", "mapped and run"])
        .output()
        .unwrap();
    assert_eq!(said.stdout, b"mapped and run\n");
}

#[test]
fn what_is_refused_on_disk_is_refused_in_memory() {
    let table = [
        Tar::default().file("../out", "x"),
        Tar::default().file("/abs", "x"),
        Tar::default().symlink("a", "/").file("a/b", "x"),
        Tar::default().file("a", "x").file("a/b", "x"),
        Tar::default().dir("a").file("a", "x"),
        Tar::default().hardlink("a", "b"),
        Tar::default().hardlink("a", "no/b"),
        Tar::default().hardlink("a", "a"),
        Tar::default().dir("d").hardlink("a", "d"),
        Tar::default().file(".wh.a", "").hardlink("b", "a"),
        Tar::default().symlink("a", ""),
        Tar::default().file(&"n".repeat(256), "x"),
        Tar::default().file(".", "x"),
    ];
    for tar in table {
        let tar = tar.end();
        let dir = temp();
        let budget = Budget::new(Limits::default());
        let told = |stop: Stop| match stop {
            Stop::Refused { entry, reason } => (entry, reason),
            other => panic!("{other:?}"),
        };
        let into = dir.path().join("fs");
        fs::create_dir(&into).unwrap();
        let eager = told(unpack(&tar[..], &into, &budget, &()).unwrap_err());
        let lazy = told(outline(&tar).unwrap_err());
        assert_eq!(eager, lazy);
    }
}

#[test]
fn names_that_are_no_text_are_shown() {
    let name = b"caf\xe9";
    let tar = Tar::default()
        .entry(tar::EntryType::Regular, name, b"", b"x")
        .end();
    let both = Both::new(&tar, None);
    let path = both.at("lazy").join(std::ffi::OsStr::from_bytes(name));
    assert_eq!(fs::read(path).unwrap(), b"x");
}
