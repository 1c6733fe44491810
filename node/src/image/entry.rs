//! One entry of a tree, before it is in it: its name, checked, and what is said of it. Owns what a name may
//! be, and why something is not written; where trees are is another's.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Names longer than this are no path on Linux (its limit counts the ending NUL).
pub(super) const MAX_PATH: usize = 4095;
/// The kernel's limit for the names, and for one value.
const MAX_XATTRS: usize = 64 * 1024;
/// Directories nobody described get the mode every unpacker gives them.
pub(super) const IMPLIED: Mode = Mode::from_raw_mode(0o755);

/// Why something was not written.
#[derive(Debug)]
pub(super) enum Fault {
    /// The name or the entry is at fault.
    Refused(String),
    /// The disk is.
    Disk(io::Error),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        let reason = match errno {
            Errno::LOOP => "it leads through a symbolic link",
            Errno::NOTDIR => "it lies below something that is no directory",
            Errno::XDEV => "it leads out of the layer",
            Errno::NAMETOOLONG => "its name is too long",
            other => return Self::Disk(other.into()),
        };
        Self::Refused(reason.to_owned())
    }
}

pub(super) fn refused<T>(reason: &str) -> Result<T, Fault> {
    Err(Fault::Refused(reason.to_owned()))
}

/// A checked, relative name: no empty, `.` or `..` part, no NUL. Empty is the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside {
    bytes: Vec<u8>,
    /// Where the last part begins.
    name_at: usize,
}

impl Inside {
    /// Checks `raw`; `./a//b/` is the same as `a/b`.
    pub(super) fn new(raw: &[u8], max_depth: usize) -> Result<Self, Fault> {
        if raw.first() == Some(&b'/') {
            return refused("its name is absolute");
        }
        if raw.contains(&0) {
            return refused("its name holds a NUL");
        }
        let parts = raw
            .split(|b| *b == b'/')
            .filter(|p| !p.is_empty() && *p != b".");
        let mut inside = Self {
            bytes: Vec::with_capacity(raw.len()),
            name_at: 0,
        };
        for (depth, part) in parts.enumerate() {
            if part == b".." {
                return refused("its name holds `..`");
            }
            if depth >= max_depth {
                return refused("it lies too deep");
            }
            if depth > 0 {
                inside.bytes.push(b'/');
            }
            inside.name_at = inside.bytes.len();
            inside.bytes.extend_from_slice(part);
        }
        if inside.bytes.len() > MAX_PATH {
            return refused("its name is too long");
        }
        Ok(inside)
    }

    pub(super) fn is_root(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.bytes[self.name_at..]
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The directory it lies in; empty is the root.
    pub(super) fn parent(&self) -> &[u8] {
        &self.bytes[..self.name_at.saturating_sub(1)]
    }

    /// Another name in the same directory. `name` must be a single part.
    pub(super) fn sibling(&self, name: &[u8]) -> Self {
        let mut bytes = self.bytes[..self.name_at].to_vec();
        bytes.extend_from_slice(name);
        Self {
            bytes,
            name_at: self.name_at,
        }
    }
}

/// Owner, mode, times and extended attributes of what is written.
#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    /// Of a directory that nobody described.
    pub(super) fn implied() -> Self {
        Self {
            mode: IMPLIED.as_raw_mode(),
            ..Self::default()
        }
    }

    /// What an open directory has of it, as far as an image can give it.
    pub(super) fn of(fd: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        let mut names = vec![0; MAX_XATTRS];
        let len = match rustix::fs::flistxattr(fd, &mut names[..]) {
            Err(Errno::OPNOTSUPP) => 0,
            listed => listed?,
        };
        let mut xattrs = Vec::new();
        for name in names[..len].split(|b| *b == 0) {
            if name.starts_with(b"user.") {
                let mut value = vec![0; MAX_XATTRS];
                let len = rustix::fs::fgetxattr(fd, name, &mut value[..])?;
                value.truncate(len);
                xattrs.push((name.to_vec(), value));
            }
        }
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (
                stat.st_mtime,
                u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
            xattrs,
        })
    }

    pub(super) fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime.0,
            tv_nsec: self.mtime.1.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    /// Everything but the times, and only what is not so already: to ask costs nothing on a disk, and
    /// to change is a transaction each. The owner first: changing it clears the setuid bit.
    pub(super) fn apply(&self, fd: &OwnedFd) -> Result<(), Fault> {
        let stat = rustix::fs::fstat(fd)?;
        let given = (stat.st_uid, stat.st_gid) != (self.uid, self.gid);
        if given {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::fchown(fd, Some(uid), Some(gid))?;
        }
        if given || stat.st_mode & 0o7777 != self.mode & 0o7777 {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(self.mode & 0o7777))?;
        }
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
                // A file system without them, or too small for them: an image runs without.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_or_refused() {
        let inside = |raw: &str| Inside::new(raw.as_bytes(), 4).map(|i| i.bytes);
        for (raw, expected) in [("./a//b/", "a/b"), (".", ""), ("", ""), ("a/./b", "a/b")] {
            assert_eq!(inside(raw).expect(raw), expected.as_bytes());
        }
        for raw in ["/a", "..", "a/../b", "a/..", "a\0", "a/b/c/d/e"] {
            assert!(matches!(inside(raw), Err(Fault::Refused(_))), "{raw}");
        }
        let long = vec![b'a'; MAX_PATH + 1];
        assert!(matches!(Inside::new(&long, 4), Err(Fault::Refused(_))));
        let path = Inside::new(b"a/b/c", 4).expect("valid");
        assert_eq!((path.parent(), path.name()), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(path.sibling(b"d").bytes(), b"a/b/d");
        assert_eq!(Inside::new(b"c", 4).expect("valid").parent(), b"");
    }
}
