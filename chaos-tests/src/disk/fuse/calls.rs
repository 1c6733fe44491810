//! One method per call of the kernel: asks the rules, then does on the folder behind what was asked.
//! Owns the order of the two and nothing else.
//!
//! The kernel keeps no answer about names and attributes (their time to live is zero), so what a test
//! does to the folder behind shows at once.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, Timespec, Uid};
use rustix::fs::{Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Result;

use super::super::rule::{Effect, Op};
use super::Shared;
use super::tree::{Tree, lock};

const NOT_KEPT: Duration = Duration::ZERO;
const FIRST: Generation = Generation(0);

pub(super) struct Calls {
    tree: Tree,
    rules: Shared,
}

/// How a call goes on after the rules were asked.
enum Verdict {
    Pass,
    Tear,
}

/// What `setattr` changes.
struct Change {
    mode: Option<u32>,
    owner: (Option<u32>, Option<u32>),
    size: Option<u64>,
    times: (Option<TimeOrNow>, Option<TimeOrNow>),
}

impl Calls {
    pub fn new(tree: Tree, rules: Shared) -> Self {
        Self { tree, rules }
    }

    fn ask(&self, op: Op, path: impl FnOnce() -> String) -> Result<Verdict> {
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
    fn new_name(
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

    fn change(&self, ino: INodeNo, change: &Change) -> Result<FileAttr> {
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

    fn write_all(&self, at: (INodeNo, FileHandle), offset: u64, data: &[u8]) -> Result<usize> {
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

    fn sync(&self, ino: INodeNo, handle: FileHandle, data_only: bool) -> Result<()> {
        self.ask(Op::Fsync, || self.tree.path(ino))?;
        let file = self.tree.opened(handle)?;
        if data_only {
            rustix::fs::fdatasync(&file.fd)
        } else {
            rustix::fs::fsync(&file.fd)
        }
    }

    fn open_file(&self, ino: INodeNo, flags: OpenFlags) -> Result<FileHandle> {
        self.ask(Op::Open, || self.tree.path(ino))?;
        self.tree.open(ino, own(flags.0))
    }

    fn create_file(
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

    fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Result<()> {
        self.ask(Op::Unlink, || self.tree.path_in(parent, name))?;
        rustix::fs::unlinkat(self.tree.fd(parent)?, name, flags)
    }

    fn read_some(&self, at: (INodeNo, FileHandle), offset: u64, size: u32) -> Result<Vec<u8>> {
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

    fn list(&self, handle: FileHandle, offset: u64, reply: &mut ReplyDirectory) -> Result<()> {
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

fn refusal(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
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

fn entry(reply: ReplyEntry, done: Result<FileAttr>) {
    match done {
        Ok(attr) => reply.entry(&NOT_KEPT, &attr, FIRST),
        Err(error) => reply.error(refusal(error)),
    }
}

fn attr(reply: ReplyAttr, done: Result<FileAttr>) {
    match done {
        Ok(attr) => reply.attr(&NOT_KEPT, &attr),
        Err(error) => reply.error(refusal(error)),
    }
}

fn empty(reply: ReplyEmpty, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(refusal(error)),
    }
}

fn data(reply: ReplyData, done: Result<Vec<u8>>) {
    match done {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(refusal(error)),
    }
}

fn opened(reply: ReplyOpen, done: Result<FileHandle>) {
    match done {
        Ok(handle) => reply.opened(handle, FopenFlags::empty()),
        Err(error) => reply.error(refusal(error)),
    }
}

/// An attribute's value or the list of names: its length when `size` is zero, else itself.
fn xattr(reply: ReplyXattr, size: u32, read: impl FnOnce(&mut [u8]) -> Result<usize>) {
    let mut space = vec![0; size as usize];
    match read(&mut space) {
        Ok(length) if size == 0 => reply.size(u32::try_from(length).unwrap_or(u32::MAX)),
        Ok(length) => reply.data(&space[..length]),
        Err(error) => reply.error(refusal(error)),
    }
}

impl Filesystem for Calls {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.tree.lookup(parent, name));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.tree.forget(ino, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, self.tree.attr(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change {
            mode,
            owner: (uid, gid),
            size,
            times: (atime, mtime),
        };
        attr(reply, self.change(ino, &change));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.tree.fd(ino).and_then(|fd| {
            let target = rustix::fs::readlinkat(&*fd, "", Vec::new())?;
            Ok(target.into_bytes())
        });
        data(reply, target);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode));
        let make = |fd: &OwnedFd| rustix::fs::mknodat(fd, name, kind, mode, rdev.into());
        entry(reply, self.new_name(request, (parent, name), make));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let make = |fd: &OwnedFd| rustix::fs::mkdirat(fd, name, Mode::from_raw_mode(mode));
        entry(reply, self.new_name(request, (parent, name), make));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::empty()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::REMOVEDIR));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let make = |fd: &OwnedFd| rustix::fs::symlinkat(target, fd, name);
        entry(reply, self.new_name(request, (parent, name), make));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            self.ask(Op::Rename, || self.tree.path_in(new_parent, new_name))?;
            let (from, to) = (self.tree.fd(parent)?, self.tree.fd(new_parent)?);
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            rustix::fs::renameat_with(&*from, name, &*to, new_name, flags)
        };
        empty(reply, rename());
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let link = || {
            self.ask(Op::Create, || self.tree.path_in(parent, name))?;
            let (from, to) = (self.tree.link(ino)?, self.tree.fd(parent)?);
            rustix::fs::linkat(CWD, from, &*to, name, AtFlags::SYMLINK_FOLLOW)?;
            self.tree.lookup(parent, name)
        };
        entry(reply, link());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        opened(reply, self.open_file(ino, flags));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_file(request, (parent, name), (mode, flags)) {
            Ok((attr, handle)) => {
                reply.created(&NOT_KEPT, &attr, FIRST, handle, FopenFlags::empty());
            }
            Err(error) => reply.error(refusal(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        data(reply, self.read_some((ino, handle), offset, size));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_all((ino, handle), offset, bytes) {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(refusal(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back here: every write went behind when it came.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.sync(ino, handle, data_only));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        opened(reply, self.tree.open(ino, flags));
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.list(handle, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(refusal(error)),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.sync(ino, handle, data_only));
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match self.tree.fd(ino).and_then(|fd| rustix::fs::fstatvfs(&*fd)) {
            Ok(of) => reply.statfs(
                of.f_blocks,
                of.f_bfree,
                of.f_bavail,
                of.f_files,
                of.f_ffree,
                small(of.f_bsize),
                small(of.f_namemax),
                small(of.f_frsize),
            ),
            Err(error) => reply.error(refusal(error)),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        let link = self.tree.link(ino);
        empty(
            reply,
            link.and_then(|link| rustix::fs::setxattr(link, name, value, flags)),
        );
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, size, |space| {
            rustix::fs::getxattr(self.tree.link(ino)?, name, space)
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, size, |space| {
            rustix::fs::listxattr(self.tree.link(ino)?, space)
        });
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let link = self.tree.link(ino);
        empty(
            reply,
            link.and_then(|link| rustix::fs::removexattr(link, name)),
        );
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let set_aside = || {
            self.ask(Op::Resize, || self.tree.path(ino))?;
            let file = self.tree.opened(handle)?;
            let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            rustix::fs::fallocate(&file.fd, mode, offset, length)
        };
        empty(reply, set_aside());
    }
}
