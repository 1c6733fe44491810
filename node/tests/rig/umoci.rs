//! Honest images come out as another unpacker has them: twenty made of Debian's packages as they are
//! on this machine, changed and packed again by umoci, are the same through our store, our process
//! that unpacks and an overlay as in umoci's own tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use node::image::{Limits, Store};

use crate::world::World;

const IMAGES: usize = 20;
/// First those with something special: setuid and setgid files, capabilities, hard links, names that
/// are not ASCII, folders for everybody. Others fill up where some are not installed.
const SPECIAL: [&str; 12] = [
    "passwd",
    "mount",
    "openssh-client",
    "perl-base",
    "ca-certificates",
    "iputils-ping",
    "git-man",
    "procps",
    "util-linux",
    "dbus-daemon",
    "coreutils",
    "ncurses-base",
];
/// KiB.
const LARGEST: u64 = 8_000;

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    // To tar, 1 is a file that changed meanwhile: it is packed as it was then.
    let fine = output.status.success() || (program, output.status.code()) == ("tar", Some(1));
    assert!(fine, "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn packages() -> Vec<String> {
    let all = run(
        "dpkg-query",
        &[
            "-W",
            "-f",
            "${db:Status-Abbrev} ${Package} ${Installed-Size}\n",
        ],
    );
    let mut fitting: Vec<String> = all
        .lines()
        .filter_map(|line| {
            let [status, name, size] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                return None;
            };
            let fits = status == "ii" && size.parse::<u64>().ok()? < LARGEST;
            fits.then(|| name.to_owned())
        })
        .collect();
    fitting.sort_by_key(|name| !SPECIAL.contains(&name.as_str()));
    fitting.truncate(IMAGES);
    assert_eq!(fitting.len(), IMAGES, "packages of a Debian machine");
    fitting
}

/// The package's files as they are here, packed in each of the ways tars are.
fn pack(package: &str, format: &str, tar: &Path) {
    let list = run("dpkg-query", &["-L", package]);
    // Some are still listed by where they were before Debian moved them behind a link.
    let real = |line: &str| {
        let path = Path::new(line);
        fs::symlink_metadata(path).ok()?;
        let folder = fs::canonicalize(path.parent()?).ok()?;
        Some(folder.join(path.file_name()?))
    };
    let files: Vec<PathBuf> = list.lines().filter_map(real).collect();
    let all = files.iter().flat_map(|path| path.ancestors());
    let names: BTreeSet<String> = all.map(|path| format!(".{}", path.display())).collect();
    let names = Vec::from_iter(names);
    let names_at = tar.with_extension("names");
    fs::write(&names_at, names.join("\n")).unwrap();
    let mut args = vec![
        "--no-recursion",
        "-C",
        "/",
        "-T",
        names_at.to_str().unwrap(),
    ];
    args.extend(["-cf", tar.to_str().unwrap(), format]);
    if format.ends_with("pax") {
        args.extend(["--xattrs", "--xattrs-include=*"]);
    }
    run("tar", &args);
}

/// What a new version of an image may do to it.
fn change(root: &Path) {
    let all = tree(root);
    let files: Vec<_> = all
        .iter()
        .filter(|(_, facts)| facts.kind == "file")
        .map(|f| f.0)
        .collect();
    let at = |n: usize| root.join(files[n % files.len()]);
    fs::remove_file(at(1)).unwrap();
    if files.len() > 4 {
        fs::write(at(files.len() / 2), "another").unwrap();
        let (flags, note) = (rustix::fs::XattrFlags::empty(), b"kept");
        rustix::fs::setxattr(at(files.len() - 1), "user.note", note, flags).unwrap();
        // Last: writing and giving away both clear it.
        fs::set_permissions(at(files.len() - 1), fs::Permissions::from_mode(0o4711)).unwrap();
    }
    let docs = root.join("usr/share/doc");
    if docs.is_dir() {
        fs::remove_dir_all(&docs).unwrap();
        fs::create_dir(&docs).unwrap();
    }
    let new = root.join("new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join("file"), "new").unwrap();
    fs::hard_link(new.join("file"), new.join("twin")).unwrap();
    symlink("../../etc/shadow", new.join("link")).unwrap();
    fs::write(new.join("näme\nof two lines"), "odd").unwrap();
    chown(new.join("link"), None, Some(50)).ok();
    chown(&new, Some(33), Some(34)).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o3777)).unwrap();
}

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    content: Vec<u8>,
    /// The first of the names it has.
    same_as: PathBuf,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let (mut all, mut first) = (BTreeMap::new(), BTreeMap::new());
    collect(root, Path::new(""), &mut all, &mut first);
    all
}

fn collect(
    root: &Path,
    below: &Path,
    all: &mut BTreeMap<PathBuf, Facts>,
    first: &mut BTreeMap<u64, PathBuf>,
) {
    let entries = fs::read_dir(root.join(below)).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        let at = root.join(&path);
        let meta = fs::symlink_metadata(&at).unwrap();
        let (kind, content) = match meta.file_type() {
            kind if kind.is_file() => ("file", fs::read(&at).unwrap()),
            kind if kind.is_symlink() => (
                "link",
                fs::read_link(&at).unwrap().as_os_str().as_bytes().to_vec(),
            ),
            kind if kind.is_dir() => ("folder", Vec::new()),
            _ => ("other", Vec::new()),
        };
        let facts = Facts {
            kind,
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            content,
            same_as: first
                .entry(meta.ino())
                .or_insert_with(|| path.clone())
                .clone(),
            xattrs: xattrs(&at),
        };
        let folder = facts.kind == "folder";
        all.insert(path.clone(), facts);
        if folder {
            collect(root, &path, all, first);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..n]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty());
    let read = |name: &[u8]| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut value = vec![0; 64 * 1024];
        let n = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
        (name, value[..n].to_vec())
    };
    names.map(read).collect()
}

/// Makes a package's image in `dir`: a layer of the package and umoci's layer of the changes. Returns
/// umoci's own tree of it, and the archive.
fn make(dir: &Path, package: &str, format: &str) -> (PathBuf, PathBuf) {
    fs::create_dir(dir).unwrap();
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (layout, layer, image) = (at("layout"), at("layer.tar"), at("layout") + ":t");
    pack(package, format, Path::new(&layer));
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["raw", "add-layer", "--image", &image, &layer]);
    run("umoci", &["unpack", "--image", &image, &at("bundle")]);
    change(&dir.join("bundle/rootfs"));
    run("umoci", &["repack", "--image", &image, &at("bundle")]);
    run("umoci", &["unpack", "--image", &image, &at("again")]);
    run("tar", &["-C", &layout, "-cf", &at("archive.tar"), "."]);
    (dir.join("again/rootfs"), dir.join("archive.tar"))
}

#[tokio::test]
async fn twenty_images_of_debian_come_out_as_umocis() {
    let world = World::new();
    let store = Store::open(&world.folder.join("images"), Limits::default()).unwrap();
    store.unpack_apart(env!("CARGO_BIN_EXE_selvedged").into());
    let (mut files, mut special, mut dropped) = (0, 0, 0);
    for (number, package) in packages().iter().enumerate() {
        let format = if number < SPECIAL.len() {
            "-Hpax"
        } else {
            "-Hgnu"
        };
        let dir = world.folder.join(package);
        let (theirs, archive) = make(&dir, package, format);
        let archive = tokio::fs::File::open(archive).await.unwrap();
        let images = store.import(archive, None).await.unwrap();
        let place = world.folder.join("instances").join(package);
        let snapshot = store.snapshot(&images[0], &place, None).await.unwrap();
        let (ours, mut theirs) = (tree(&snapshot.rootfs), tree(&theirs));
        snapshot.remove(&store).await.unwrap();
        for facts in theirs.values_mut() {
            // The one thing that is not kept, on purpose.
            dropped += usize::from(facts.xattrs.remove("security.capability").is_some());
            special += usize::from(facts.mode & 0o7000 != 0);
        }
        files += theirs.len();
        for (path, facts) in &theirs {
            assert_eq!(ours.get(path), Some(facts), "{package}: {}", path.display());
        }
        assert_eq!(ours.len(), theirs.len(), "{package}: names nobody packed");
        fs::remove_dir_all(&dir).unwrap();
    }
    println!("{files} files, {special} with special bits, {dropped} with capabilities");
    assert!(
        files > 1000 && special > 2 * IMAGES,
        "images worth comparing"
    );
}
