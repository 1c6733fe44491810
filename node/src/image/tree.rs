//! A directory tree that is written from names a stranger chose, and never written outside of.
//! Every step goes through `openat2` below the root's descriptor and follows no symbolic link, so
//! neither `..`, nor a link made a moment ago, nor a race leads out. It also speaks overlayfs:
//! whiteouts and opaque directories. It knows nothing of tar.
//!
//! The mark of an opaque directory is the one thing in a tree that takes a right over the whole machine
//! (`trusted.` attributes). Whoever writes a tree need not have it: the directories are listed in a file
//! beside it, and [`mark_opaque`] is for the one who asked for the tree.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::entry::{Fault, IMPLIED, Inside, MAX_PATH, Meta, refused};
use super::unpack::Sink;

const OPAQUE: &str = "trusted.overlay.opaque";
/// The list of opaque directories, beside the tree while it is made: paths, each with a NUL after it.
pub(super) const OPAQUE_LIST: &str = "opaque";
/// The list of directories that nobody described, in the same form. It stays beside the tree.
pub(super) const IMPLIED_LIST: &str = "implied";
/// What the names of an image may come to, and a NUL for each.
const MAX_LIST: u64 = 66 * 1024 * 1024;

/// Without `NOFOLLOW`: the confined walk refuses links by itself, and says so (`ELOOP`).
const WALK: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// A file nobody had.
const NEW: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What stood where something new is to be written.
enum Way {
    Free,
    Directory,
    WasWhiteout,
    WasFile,
}

/// The tree, open for writing.
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    /// Neighbours come one after another. Directories are never removed, so it cannot go stale.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Times of directories are set at the end: writing into one changes them.
    directory_times: Vec<(Vec<u8>, Timestamps)>,
    /// To be marked once the tree is whole, and where that is written down.
    opaque: Vec<u8>,
    opaque_list: PathBuf,
    /// Made because something lies in them, and so far no entry says more of them.
    implied: BTreeSet<Vec<u8>>,
    /// How many were made since somebody asked, and the bytes of their names.
    made_up: (u64, u64),
    opaque_root: bool,
    /// A file that was written has lost a name since.
    replaced: bool,
}

impl Tree {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let root = Rc::new(open_root(path)?);
        Ok(Self {
            root,
            last_parent: None,
            directory_times: Vec::new(),
            opaque: Vec::new(),
            opaque_list: path.with_file_name(OPAQUE_LIST),
            implied: BTreeSet::new(),
            made_up: (0, 0),
            opaque_root: false,
            replaced: false,
        })
    }
}

impl Sink for Tree {
    type File = File;

    fn directory(&mut self, path: &Inside, meta: &Meta) -> Result<(), Fault> {
        let fd = if path.is_root() {
            Rc::clone(&self.root)
        } else {
            let parent = self.parent_of(path)?;
            self.make_directory(&parent, path.bytes())?
        };
        meta.apply(&fd)?;
        self.implied.remove(path.bytes());
        self.directory_times
            .push((path.bytes().to_vec(), meta.times()));
        Ok(())
    }

    /// Empty at first; whatever non-directory had the name is gone from it.
    fn file(&mut self, path: &Inside, _: Range<u64>, meta: &Meta) -> Result<File, Fault> {
        let parent = self.parent_of(path)?;
        // Nobody else comes below the root while it is written; setuid bits come last all the same.
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        let make = || rustix::fs::openat(&*parent, path.name(), NEW, mode);
        match make() {
            Err(Errno::EXIST) => {
                self.clear(&parent, path.name(), false)?;
                Ok(make()?.into())
            }
            made => Ok(made?.into()),
        }
    }

    fn write(file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn finish_file(&mut self, file: File, meta: &Meta) -> Result<(), Fault> {
        let fd = OwnedFd::from(file);
        meta.apply(&fd)?;
        Ok(rustix::fs::futimens(&fd, &meta.times())?)
    }

    /// Its target is for the container to follow, never for us.
    fn symlink(&mut self, path: &Inside, target: &[u8], meta: &Meta) -> Result<(), Fault> {
        check_target(target)?;
        let parent = self.parent_of(path)?;
        self.clear(&parent, path.name(), false)?;
        rustix::fs::symlinkat(target, &*parent, path.name())?;
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&*parent, path.name(), Some(uid), Some(gid), flags)?;
        Ok(rustix::fs::utimensat(
            &*parent,
            path.name(),
            &meta.times(),
            flags,
        )?)
    }

    fn hardlink(&mut self, path: &Inside, target: &Inside) -> Result<(), Fault> {
        if target.is_root() || target == path {
            return refused("it is a hard link to itself or to the root");
        }
        let source = match self.walk(target.parent()) {
            Err(Errno::NOENT) => return refused("it is a hard link to a file outside this layer"),
            walked => walked?,
        };
        let Some(kind) = kind_of(&source, target.name())? else {
            return refused("it is a hard link to a file outside this layer");
        };
        if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
            return refused("it is a hard link to something that is no file");
        }
        let parent = self.parent_of(path)?;
        self.clear(&parent, path.name(), false)?;
        let none = AtFlags::empty();
        Ok(rustix::fs::linkat(
            &*source,
            target.name(),
            &*parent,
            path.name(),
            none,
        )?)
    }

    fn whiteout(&mut self, path: &Inside) -> Result<(), Fault> {
        let parent = self.parent_of(path)?;
        match kind_of(&parent, path.name())? {
            None => {
                let device = rustix::fs::makedev(0, 0);
                let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
                Ok(rustix::fs::mknodat(
                    &*parent,
                    path.name(),
                    kind,
                    mode,
                    device,
                )?)
            }
            Some(FileType::Directory) => {
                self.hides_below(path.bytes());
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    fn opaque(&mut self, path: &Inside) -> Result<(), Fault> {
        if path.parent().is_empty() {
            // Overlayfs does not look for the mark on a root: the snapshot has to.
            self.opaque_root = true;
            return Ok(());
        }
        self.parent_of(path)?;
        self.hides_below(path.parent());
        Ok(())
    }

    fn take_made_up(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.made_up)
    }

    fn finish(&mut self) -> Result<bool, Fault> {
        for (path, times) in std::mem::take(&mut self.directory_times) {
            let fd = self.walk(&path)?;
            rustix::fs::futimens(&*fd, &times)?;
        }
        let mut implied = Vec::new();
        for path in &self.implied {
            implied.extend_from_slice(path);
            implied.push(0);
        }
        let implied_list = self.opaque_list.with_file_name(IMPLIED_LIST);
        for (path, list) in [(&self.opaque_list, &self.opaque), (&implied_list, &implied)] {
            if !list.is_empty() {
                std::fs::write(path, list).map_err(Fault::Disk)?;
            }
        }
        Ok(self.opaque_root)
    }
}

impl Tree {
    /// Whether something took the place of a file of this very layer: then what was written as its
    /// content cannot be found by its name.
    pub(super) fn has_replaced(&self) -> bool {
        self.replaced
    }

    fn hides_below(&mut self, directory: &[u8]) {
        self.opaque.extend_from_slice(directory);
        self.opaque.push(0);
    }

    fn parent_of(&mut self, path: &Inside) -> Result<Rc<OwnedFd>, Fault> {
        if path.is_root() {
            return refused("it takes the place of the root");
        }
        if let Some((last, fd)) = &self.last_parent
            && last == path.parent()
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.walk(path.parent()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path.parent())?,
            Err(errno) => return Err(errno.into()),
        };
        self.last_parent = Some((path.parent().to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Opens a directory below the root, following nothing.
    fn walk(&self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        open_directory(&self.root, path).map(Rc::new)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Fault> {
        let mut fd = Rc::clone(&self.root);
        let mut end = 0;
        for part in path.split(|b| *b == b'/') {
            let at = &path[..end + part.len()];
            end = at.len() + 1;
            fd = match kind_of(&fd, part)? {
                Some(FileType::Directory) => self.make_directory(&fd, at)?,
                None | Some(FileType::CharacterDevice) => {
                    let made = self.make_directory(&fd, at)?;
                    // Also where its parent hands its own group down.
                    Meta::implied().apply(&made)?;
                    self.implied.insert(at.to_vec());
                    self.made_up.0 += 1;
                    self.made_up.1 += at.len() as u64;
                    made
                }
                Some(FileType::Symlink) => return Err(Errno::LOOP.into()),
                Some(_) => return Err(Errno::NOTDIR.into()),
            };
        }
        Ok(fd)
    }

    /// Opens `path`, whose parent this is, as a directory, making it when it is not there. One that
    /// takes the place of a whiteout of this layer is opaque: the lower layers' directory stays hidden.
    fn make_directory(&mut self, parent: &OwnedFd, path: &[u8]) -> Result<Rc<OwnedFd>, Fault> {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        let way = self.clear(parent, name, true)?;
        if !matches!(way, Way::Directory) {
            rustix::fs::mkdirat(parent, name, IMPLIED)?;
        }
        let fd = rustix::fs::openat2(parent, name, WALK, Mode::empty(), CONFINED)?;
        if matches!(way, Way::WasWhiteout) {
            self.hides_below(path);
        }
        Ok(Rc::new(fd))
    }

    /// Makes way for `name`. A directory is only ever kept: turning one into something else within a
    /// layer is how links get planted in paths.
    fn clear(&mut self, parent: &OwnedFd, name: &[u8], for_directory: bool) -> Result<Way, Fault> {
        let way = match kind_of(parent, name)? {
            None => return Ok(Way::Free),
            Some(FileType::Directory) if for_directory => return Ok(Way::Directory),
            Some(FileType::Directory) => {
                return refused("it replaces a directory of its own layer");
            }
            // The only devices in a tree are the whiteouts we made.
            Some(FileType::CharacterDevice) => Way::WasWhiteout,
            Some(FileType::RegularFile) => Way::WasFile,
            Some(_) => Way::Free,
        };
        self.replaced |= matches!(way, Way::WasFile);
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        Ok(way)
    }
}

/// Opens a regular file below `root` for reading, following nothing.
pub(super) fn open_file(root: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<File> {
    // Whatever else the name may be, opening it must neither wait nor act.
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), CONFINED) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => break opened?,
        }
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(File::from(fd))
}

/// Opens the directory all paths of a layer are below.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, WALK, Mode::empty())?)
}

fn kind_of(parent: &OwnedFd, name: &[u8]) -> Result<Option<FileType>, Fault> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a symbolic link can lead there.
pub(super) fn check_target(target: &[u8]) -> Result<(), Fault> {
    if target.is_empty() || target.contains(&0) || target.len() > MAX_PATH {
        return refused("its target is no path");
    }
    Ok(())
}

/// Opens a directory below `root`, following nothing.
pub(super) fn open_directory(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(root, path, WALK, Mode::empty(), CONFINED) {
            // The kernel gives up when a rename elsewhere disturbs the walk: walk again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// Marks the directories of the tree at `path` that are listed beside it, and removes the list. The
/// list is not trusted: it can only name directories of the tree.
pub(super) fn mark_opaque(path: &Path) -> io::Result<()> {
    let directories = listed(path, OPAQUE_LIST)?;
    if directories.is_empty() {
        return Ok(());
    }
    let root = open_root(path)?;
    for directory in &directories {
        let fd = open_directory(&root, directory)?;
        rustix::fs::fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty())?;
    }
    std::fs::remove_file(path.with_file_name(OPAQUE_LIST))
}

/// Whether the lower layers' content of a directory is hidden.
pub(super) fn is_opaque(fd: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::fgetxattr(fd, OPAQUE, &mut [0; 8][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The paths in a list beside the tree at `path`.
pub(super) fn listed(path: &Path, list: &str) -> io::Result<BTreeSet<Vec<u8>>> {
    let folder = open_root(path.parent().unwrap_or(path))?;
    let mut bytes = Vec::new();
    match open_file(&folder, list.as_bytes(), OFlags::RDONLY) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        opened => opened?.take(MAX_LIST).read_to_end(&mut bytes)?,
    };
    let paths = bytes.split(|b| *b == 0).filter(|path| !path.is_empty());
    Ok(paths.map(<[u8]>::to_vec).collect())
}
