//! One method per call of the kernel on a layer that is still arriving: names and attributes from its
//! [`Outline`], content from a [`Supply`]. Read-only, and nothing in it ever changes: the kernel may
//! keep every answer for good.
//!
//! A read whose bytes are not here is answered when they are; it holds up no other call.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::outline::{Kind, Node, Outline, ROOT};
use crate::userns::Block;

/// What is asked for never changes.
const KEPT: Duration = Duration::from_hours(365 * 24);
const FIRST: Generation = Generation(0);
const BLOCK: u32 = 4096;
/// What stat counts a file's size in.
const SECTOR: u64 = 512;

/// Hears what a read came to.
pub(super) type Then = Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>;

/// Where file content comes from.
pub(super) trait Supply: Send + Sync + 'static {
    /// Has `then` called with these bytes of the raw tar, verified: at once if they are here, else
    /// when they are. Does not wait. They are a part of the file at `file`.
    fn read(&self, range: Range<u64>, file: &Range<u64>, then: Then);
}

/// A layer, as the kernel asks for it.
pub(super) struct LayerFs<S> {
    outline: Outline,
    supply: S,
    /// Whose block of ids the owners are shown in.
    block: Option<Block>,
}

impl<S: Supply> LayerFs<S> {
    pub(super) fn new(outline: Outline, supply: S, block: Option<Block>) -> Self {
        Self {
            outline,
            supply,
            block,
        }
    }

    fn find(&self, ino: INodeNo) -> Result<(usize, &Node), Errno> {
        let number = usize::try_from(ino.0).ok().and_then(|n| n.checked_sub(1));
        number
            .and_then(|number| Some((number, self.outline.node(number)?)))
            .ok_or(Errno::ENOENT)
    }

    fn attr(&self, number: usize, node: &Node) -> FileAttr {
        let size = match &node.kind {
            Kind::File(content) => content.end - content.start,
            Kind::Symlink(target) => target.len() as u64,
            Kind::Directory { .. } | Kind::Whiteout => 0,
        };
        let id = |id| self.block.map_or(id, |block| block.host_id(id));
        let time = time(node.meta.mtime);
        FileAttr {
            ino: ino(number),
            size,
            blocks: size.div_ceil(SECTOR),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: kind(node),
            perm: u16::try_from(node.meta.mode & 0o7777).unwrap_or_default(),
            nlink: node.links,
            uid: id(node.meta.uid),
            gid: id(node.meta.gid),
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        }
    }

    /// Adds the names of a directory from the `offset`th on until the answer is full.
    fn list(
        &self,
        directory: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), Errno> {
        let (number, node) = self.find(directory)?;
        let Kind::Directory { names, parent } = &node.kind else {
            return Err(Errno::ENOTDIR);
        };
        let dots = [(&b"."[..], number), (&b".."[..], *parent)];
        let names = names.iter().map(|(name, node)| (&**name, *node));
        let all = dots.into_iter().chain(names).zip(1..);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((name, number), next) in all.skip(skip) {
            let Some(node) = self.outline.node(number) else {
                continue;
            };
            if reply.add(ino(number), next, kind(node), OsStr::from_bytes(name)) {
                break;
            }
        }
        Ok(())
    }
}

fn ino(number: usize) -> INodeNo {
    INodeNo(number as u64 + 1)
}

fn kind(node: &Node) -> FileType {
    match node.kind {
        Kind::Directory { .. } => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Whiteout => FileType::CharDevice,
    }
}

/// A time no clock can show is the beginning of all.
fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// A value or the list of names: its length when `size` is zero, else itself.
fn xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    match size {
        0 => reply.size(length),
        size if size < length => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl<S: Supply> Filesystem for LayerFs<S> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an older kernel has not, costs it calls and no more.
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = match self.find(parent) {
            Ok((number, _)) => number,
            Err(errno) => return reply.error(errno),
        };
        let found = self.outline.child(parent, name.as_bytes());
        let found = found.and_then(|number| Some((number, self.outline.node(number)?)));
        if let Some((number, node)) = found {
            return reply.entry(&KEPT, &self.attr(number, node), FIRST);
        }
        // Number zero says that there is no such name, and may be kept too.
        let Some(root) = self.outline.node(ROOT) else {
            return reply.error(Errno::ENOENT);
        };
        let mut nothing = self.attr(ROOT, root);
        nothing.ino = INodeNo(0);
        reply.entry(&KEPT, &nothing, FIRST);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.find(ino) {
            Ok((number, node)) => reply.attr(&KEPT, &self.attr(number, node)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.find(ino).map(|(_, node)| &node.kind) {
            Ok(Kind::Symlink(target)) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    /// "Not supported" tells the kernel that it need not ask, for any file, and may keep what it read.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = match self.find(ino).map(|(_, node)| &node.kind) {
            Ok(Kind::File(content)) => content,
            Ok(_) => return reply.error(Errno::EISDIR),
            Err(errno) => return reply.error(errno),
        };
        let start = content.start.saturating_add(offset).min(content.end);
        let end = start.saturating_add(size.into()).min(content.end);
        if start == end {
            return reply.data(&[]);
        }
        let then: Then = Box::new(move |read| match read {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        });
        self.supply.read(start..end, content, then);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.list(ino, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let names = u32::try_from(super::outline::MAX_NAME).unwrap_or(u32::MAX);
        reply.statfs(0, 0, 0, self.outline.len() as u64, 0, BLOCK, names, BLOCK);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let node = match self.find(ino) {
            Ok((_, node)) => node,
            Err(errno) => return reply.error(errno),
        };
        let mut xattrs = node.meta.xattrs.iter();
        match xattrs.find(|(had, _)| had == name.as_bytes()) {
            Some((_, value)) => xattr(reply, size, value),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.find(ino) {
            Ok((_, node)) => {
                let names = node.meta.xattrs.iter();
                let list: Vec<u8> = names
                    .flat_map(|(name, _)| name.iter().copied().chain([0]))
                    .collect();
                xattr(reply, size, &list);
            }
            Err(errno) => reply.error(errno),
        }
    }
}
