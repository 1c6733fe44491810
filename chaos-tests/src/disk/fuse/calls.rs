//! One method per call of the kernel: hands it to `work` and answers what came of it. Owns the answers
//! and nothing else.
//!
//! The kernel keeps no answer about names and attributes (their time to live is zero), so what a test
//! does to the folder behind shows at once.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Result;

use super::super::rule::Op;
use super::work::{Calls, Change};

const NOT_KEPT: Duration = Duration::ZERO;
const FIRST: Generation = Generation(0);

fn refusal(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
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
