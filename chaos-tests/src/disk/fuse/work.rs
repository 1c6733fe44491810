//! What each call does: asks the rules, then does on the folder behind what was asked. Owns the
//! order of the two; how the kernel is answered is `calls`' part.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileHandle, INodeNo, OpenFlags, ReplyDirectory, Request, TimeOrNow};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Result;

use super::super::rule::{Effect, Op};
use super::Shared;
use super::tree::{Tree, lock};

/// The folder behind and the rules in force.
pub(super) struct Calls {
    pub(super) tree: Tree,
    rules: Shared,
}

/// How a call goes on after the rules were asked.
pub(super) enum Verdict {
    Pass,
    Tear,
}

/// What `setattr` changes.
pub(super) struct Change {
    pub mode: Option<u32>,
    pub owner: (Option<u32>, Option<u32>),
    pub size: Option<u64>,
    pub times: (Option<TimeOrNow>, Option<TimeOrNow>),
}

impl Calls {
    pub fn new(tree: Tree, rules: Shared) -> Self {
        Self { tree, rules }
    }

    /// What the rules say of a call; the path is found out only when one of them could name it.
    pub(super) fn ask(&self, op: Op, path: impl FnOnce() -> String) -> Result<Verdict> {
        if !lock(&self.rules).watch(op) {
            return Ok(Verdict::Pass);
        }
        let path = path();
        let effect = lock(&self.rules).on_call(op, &path);
        match effect {
            None => Ok(Verdict::Pass),
            Some(Effect::Enospc) => Err(rustix::io::Errno::NOSPC),
            Some(Effect::Torn) if op == Op::Write => Ok(Verdict::Tear),
            Some(Effect::Eio | Effect::Torn) => Err(rustix::io::Errno::IO),
            Some(Effect::Delay(time)) => {
                std::thread::sleep(time);
                Ok(Verdict::Pass)
            }
        }
    }

    /// A new name in a folder: made by `make`, given to who asked, told of.
    pub(super) fn new_name(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        make: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<FileAttr> {
        self.ask(Op::Create, || self.tree.path_in(parent, name))?;
        make(&*self.tree.fd(parent)?)?;
        self.tree.give(parent, name, request.uid(), request.gid())?;
        self.tree.lookup(parent, name)
    }

    pub(super) fn change(&self, ino: INodeNo, change: &Change) -> Result<FileAttr> {
        let (fd, link) = (self.tree.fd(ino)?, self.tree.link(ino)?);
        if let Some(size) = change.size {
            self.ask(Op::Resize, || self.tree.path(ino))?;
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(&link, flags, Mode::empty())?;
            rustix::fs::ftruncate(file, size)?;
        }
        if let (uid, gid) = change.owner
            && (uid.is_some() || gid.is_some())
        {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmod(&link, Mode::from_raw_mode(mode))?;
        }
        if let (read, written) = change.times
            && (read.is_some() || written.is_some())
        {
            let times = Timestamps {
                last_access: timespec(read),
                last_modification: timespec(written),
            };
            rustix::fs::utimensat(&*fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        self.tree.attr(ino)
    }

    pub(super) fn write_all(
        &self,
        at: (INodeNo, FileHandle),
        offset: u64,
        data: &[u8],
    ) -> Result<usize> {
        let verdict = self.ask(Op::Write, || self.tree.path(at.0))?;
        let file = self.tree.opened(at.1)?;
        match verdict {
            Verdict::Pass => rustix::io::pwrite(&file.fd, data, offset),
            Verdict::Tear => {
                rustix::io::pwrite(&file.fd, &data[..data.len() / 2], offset)?;
                Err(rustix::io::Errno::IO)
            }
        }
    }

    pub(super) fn sync(&self, ino: INodeNo, handle: FileHandle, data_only: bool) -> Result<()> {
        self.ask(Op::Fsync, || self.tree.path(ino))?;
        let file = self.tree.opened(handle)?;
        if data_only {
            rustix::fs::fdatasync(&file.fd)
        } else {
            rustix::fs::fsync(&file.fd)
        }
    }

    pub(super) fn open_file(&self, ino: INodeNo, flags: OpenFlags) -> Result<FileHandle> {
        self.ask(Op::Open, || self.tree.path(ino))?;
        self.tree.open(ino, own(flags.0))
    }

    pub(super) fn create_file(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        (mode, flags): (u32, i32),
    ) -> Result<(FileAttr, FileHandle)> {
        self.ask(Op::Create, || self.tree.path_in(parent, name))?;
        let flags = own(flags) | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let fd = rustix::fs::openat(self.tree.fd(parent)?, name, flags, mode)?;
        self.tree.give(parent, name, request.uid(), request.gid())?;
        Ok((self.tree.lookup(parent, name)?, self.tree.keep(fd)))
    }

    pub(super) fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Result<()> {
        self.ask(Op::Unlink, || self.tree.path_in(parent, name))?;
        rustix::fs::unlinkat(self.tree.fd(parent)?, name, flags)
    }

    pub(super) fn read_some(
        &self,
        at: (INodeNo, FileHandle),
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>> {
        self.ask(Op::Read, || self.tree.path(at.0))?;
        let file = self.tree.opened(at.1)?;
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            let at = offset + filled as u64;
            match rustix::io::pread(&file.fd, &mut data[filled..], at)? {
                0 => break,
                read => filled += read,
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    pub(super) fn list(
        &self,
        handle: FileHandle,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<()> {
        let folder = self.tree.opened(handle)?;
        let mut listing = lock(&folder.listing);
        if offset == 0 {
            *listing = self.tree.list(&folder.fd)?;
        }
        let seen = usize::try_from(offset).unwrap_or(usize::MAX);
        for (entry, next) in listing.iter().zip(1..).skip(seen) {
            let name = OsStr::from_bytes(&entry.name);
            if reply.add(INodeNo(entry.ino), next, entry.kind, name) {
                break;
            }
        }
        Ok(())
    }
}

/// The caller's flags, less what is the kernel's part: where appended bytes go, how buffers align.
fn own(flags: i32) -> OFlags {
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    flags.difference(OFlags::APPEND | OFlags::DIRECT | OFlags::NOCTTY)
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let mark = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match time {
        None => mark(UTIME_OMIT),
        Some(TimeOrNow::Now) => mark(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: since.as_secs().cast_signed(),
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}
