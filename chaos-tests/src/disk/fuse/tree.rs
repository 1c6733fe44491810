//! The folder behind: every file the kernel knows is held open by a descriptor that names it, so
//! that renames and removals in it cannot confuse two files. Owns the tables; no rule is known here.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, INodeNo};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, Stat, Uid};
use rustix::fs::{chownat, openat, statat};
use rustix::io::{Errno, Result};

/// Of one read of a folder.
const LISTING_BYTES: usize = 64 << 10;

#[derive(Debug)]
struct Known {
    fd: Arc<OwnedFd>,
    /// How often the kernel was told of it, less what it forgot.
    lookups: u64,
}

/// An entry of a folder.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub ino: u64,
    pub kind: fuser::FileType,
    pub name: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Opened {
    pub fd: OwnedFd,
    /// A folder's entries as they were when it was last read from its beginning.
    pub listing: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
pub(super) struct Tree {
    known: Mutex<BTreeMap<u64, Known>>,
    opened: Mutex<BTreeMap<u64, Arc<Opened>>>,
    next: AtomicU64,
    root: u64,
}

impl Tree {
    pub fn over(behind: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, behind, flags, Mode::empty())?;
        let root = statat(&fd, "", AtFlags::EMPTY_PATH)?.st_ino;
        let known = Known {
            fd: Arc::new(fd),
            lookups: 1,
        };
        let tree = Self {
            known: Mutex::new(BTreeMap::from([(INodeNo::ROOT.0, known)])),
            opened: Mutex::default(),
            next: AtomicU64::new(1),
            root,
        };
        Ok(tree)
    }

    pub fn fd(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        let known = lock(&self.known);
        let known = known.get(&ino.0).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.fd))
    }

    /// A path that leads to the very file, whatever became of its names.
    pub fn link(&self, ino: INodeNo) -> Result<String> {
        // The table keeps the descriptor for as long as the kernel asks about the file.
        Ok(format!("/proc/self/fd/{}", self.fd(ino)?.as_raw_fd()))
    }

    /// The file's name behind, for rules to match; empty when it has none.
    pub fn path(&self, ino: INodeNo) -> String {
        let path = self.link(ino).ok().and_then(|l| std::fs::read_link(l).ok());
        path.map_or_else(String::new, |path| path.to_string_lossy().into_owned())
    }

    pub fn path_in(&self, parent: INodeNo, name: &OsStr) -> String {
        format!("{}/{}", self.path(parent), name.to_string_lossy())
    }

    /// Tells of a file by its name, and remembers it until it is forgotten.
    pub fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.fd(parent)?, name, flags, Mode::empty())?;
        let attr = self.describe(&statat(&fd, "", AtFlags::EMPTY_PATH)?);
        let mut known = lock(&self.known);
        let fresh = || Known {
            fd: Arc::new(fd),
            lookups: 0,
        };
        known.entry(attr.ino.0).or_insert_with(fresh).lookups += 1;
        Ok(attr)
    }

    pub fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut known = lock(&self.known);
        if ino == INodeNo::ROOT {
            return;
        }
        if let Some(one) = known.get_mut(&ino.0) {
            one.lookups = one.lookups.saturating_sub(lookups);
            if one.lookups == 0 {
                known.remove(&ino.0);
            }
        }
    }

    pub fn attr(&self, ino: INodeNo) -> Result<FileAttr> {
        let stat = statat(self.fd(ino)?, "", AtFlags::EMPTY_PATH)?;
        Ok(self.describe(&stat))
    }

    /// A new file belongs to who asked for it, not to this process.
    pub fn give(&self, parent: INodeNo, name: &OsStr, uid: u32, gid: u32) -> Result<()> {
        if (uid, gid) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(self.fd(parent)?, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub fn open(&self, ino: INodeNo, flags: OFlags) -> Result<FileHandle> {
        // The name is a link by itself; the kernel has followed the file's own links already.
        let flags = flags.difference(OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL);
        let fd = openat(CWD, self.link(ino)?, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(self.keep(fd))
    }

    pub fn keep(&self, fd: OwnedFd) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let listing = Mutex::default();
        let opened = Arc::new(Opened { fd, listing });
        lock(&self.opened).insert(handle, opened);
        FileHandle(handle)
    }

    pub fn opened(&self, handle: FileHandle) -> Result<Arc<Opened>> {
        let opened = lock(&self.opened);
        opened.get(&handle.0).cloned().ok_or(Errno::BADF)
    }

    pub fn close(&self, handle: FileHandle) {
        lock(&self.opened).remove(&handle.0);
    }

    /// All entries of an opened folder, from its beginning.
    pub fn list(&self, folder: &OwnedFd) -> Result<Vec<Entry>> {
        rustix::fs::seek(folder, rustix::fs::SeekFrom::Start(0))?;
        let mut space = Vec::with_capacity(LISTING_BYTES);
        let mut reader = RawDir::new(folder, space.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = reader.next() {
            let entry = entry?;
            entries.push(Entry {
                ino: self.number(entry.ino()),
                kind: kind(entry.file_type()),
                name: entry.file_name().to_bytes().to_owned(),
            });
        }
        Ok(entries)
    }

    /// The kernel's number of a file: its own, but for the root, whose number FUSE prescribes.
    fn number(&self, ino: u64) -> u64 {
        if ino == self.root {
            INodeNo::ROOT.0
        } else {
            ino
        }
    }

    fn describe(&self, stat: &Stat) -> FileAttr {
        let mode = stat.st_mode;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        FileAttr {
            ino: INodeNo(self.number(stat.st_ino)),
            size: stat.st_size.unsigned_abs(),
            blocks: stat.st_blocks.unsigned_abs(),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            crtime: UNIX_EPOCH,
            kind: kind(FileType::from_raw_mode(mode)),
            perm: u16::try_from(mode & 0o7777).unwrap_or(0),
            nlink: small(stat.st_nlink),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: small(stat.st_rdev),
            blksize: small(stat.st_blksize.unsigned_abs()),
            flags: 0,
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kind(of: FileType) -> fuser::FileType {
    match of {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::RegularFile | FileType::Unknown => fuser::FileType::RegularFile,
    }
}

/// Times before 1970 read as 1970.
fn time(seconds: i64, nanos: impl TryInto<u32>) -> SystemTime {
    let nanos = nanos.try_into().unwrap_or(0);
    let since = u64::try_from(seconds).map(|s| Duration::new(s, nanos));
    UNIX_EPOCH + since.unwrap_or_default()
}
