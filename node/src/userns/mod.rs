//! User namespaces: which ids of the host a container's ids are, namespaces that say so, and folders
//! shown with their owners mapped the same way.
//!
//! Each instance has a [`Block`] of 65,536 ids that nobody else on the host has, another one than any
//! other instance of this node: what gets out of one container is nobody on the host and nobody in the
//! next container, and no limit that the kernel counts by user (processes, watches, locks) is shared.
//! Blocks cost nothing, so tenants need not share one. Who has which block follows from its network
//! (`network`); what is mounted where is `image`'s business.
#![allow(unsafe_code)] // clone(2), mount_setattr(2) and one ioctl, each with its reason.

mod kernel;
mod trial;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

pub use trial::trial;

/// Ids of the host that a container's ids 0 to 65,535 are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Block {
    first: u32,
}

impl Block {
    /// Ids in a block: all that images use (`nobody` is 65,534).
    pub const SIZE: u32 = 1 << 16;
    /// The first block's number. Clear of people, of services, and of what `useradd` hands the first
    /// users of a host for containers of their own (from 100,000).
    const FIRST: u32 = 16;
    /// How many there are: ids from 2^31 on are negative numbers to much software.
    pub const COUNT: u32 = (1 << 15) - Self::FIRST;

    /// The block number `n`, below [`Block::COUNT`].
    #[must_use]
    pub fn number(n: u32) -> Option<Self> {
        (n < Self::COUNT).then(|| Self {
            first: (Self::FIRST + n) * Self::SIZE,
        })
    }

    /// What root in the container is on the host.
    #[must_use]
    pub fn root(self) -> u32 {
        self.first
    }

    /// Whether a container with this block can have the user or group `id`.
    #[must_use]
    pub fn has(id: u32) -> bool {
        id < Self::SIZE
    }

    /// What user or group `id` of the container is on the host. One that it cannot have is nobody.
    #[must_use]
    pub fn host_id(self, id: u32) -> u32 {
        /// As the kernel shows an id that is not mapped.
        const NOBODY: u32 = 65_534;
        if Self::has(id) {
            self.first + id
        } else {
            NOBODY
        }
    }

    /// As `/proc/PID/uid_map` takes it.
    fn map(self) -> String {
        format!("0 {} {}\n", self.first, Self::SIZE)
    }
}

/// A container's user namespace, to map owners by.
#[derive(Debug)]
pub struct Owner {
    pub block: Block,
    namespace: OwnedFd,
}

impl Owner {
    /// The owner of a network namespace that [`network`] made.
    ///
    /// # Errors
    /// The file is no namespace, or belongs to no user namespace this process may see.
    pub fn of(block: Block, network: &Path) -> io::Result<Self> {
        let namespace = owning(File::open(network)?.as_fd())?;
        Ok(Self { block, namespace })
    }

    /// What is below `folder`, read-only, with owners as the container is to see them: the host's root
    /// is the container's. Nothing is copied, and nothing appears in the host's tree of mounts.
    ///
    /// # Errors
    /// The file system cannot be shown with other owners, or the kernel is older than 5.12.
    pub fn show(&self, folder: &Path) -> io::Result<Shown> {
        self.mapped(folder, libc::MOUNT_ATTR_RDONLY).map(Shown)
    }

    /// Mounts `folder` at `place` with owners as the container is to see them: what its user 33
    /// writes there belongs to 33 on the disk, whatever block the next container has.
    ///
    /// # Errors
    /// As [`Owner::show`], and what `place` was refused for.
    pub fn lend(&self, folder: &Path, place: &Path) -> io::Result<()> {
        let tree = self.mapped(folder, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(rustix::mount::move_mount(
            tree.as_fd(),
            c"",
            CWD,
            place,
            from,
        )?)
    }

    fn mapped(&self, folder: &Path, attributes: u64) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, folder, flags)?;
        kernel::map_owners(tree.as_fd(), self.namespace.as_fd(), attributes)?;
        Ok(tree)
    }
}

/// A folder shown with mapped owners; gone when it is dropped, but for what overlayfs made of it.
#[derive(Debug)]
pub struct Shown(OwnedFd);

impl Shown {
    /// An overlay made of this folder by `mount`, with the working folder `work`: of what is shown, or,
    /// as before Linux 6.15 overlayfs takes no other, of what is mounted in the host's tree at `place`
    /// (made and removed). Which of the two this kernel takes is found out once.
    ///
    /// # Errors
    /// Those of `mount`, and what `place` was refused for.
    pub fn build_on(
        &self,
        (place, work): (&Path, &Path),
        mount: impl Fn() -> Result<(), Errno>,
    ) -> io::Result<()> {
        static IN_TREE: AtomicBool = AtomicBool::new(false);
        if !IN_TREE.load(Ordering::Relaxed) {
            match mount() {
                Err(Errno::INVAL) => {}
                other => return Ok(other?),
            }
            // A refused overlay has marked its working folder as used.
            match std::fs::remove_dir_all(work.join("work")) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::create_dir(place)?;
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let built =
            rustix::mount::move_mount(self.0.as_fd(), c"", CWD, place, from).and_then(|()| {
                let built = mount();
                rustix::mount::unmount(place, UnmountFlags::DETACH).and(built)
            });
        std::fs::remove_dir(place)?;
        built?;
        IN_TREE.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl AsFd for Shown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The user namespace that owns a network namespace. It needs no name of its own: it lives as long as
/// what it owns.
///
/// # Errors
/// The descriptor is no namespace.
pub fn owning(network: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    kernel::owning(network)
}

/// A new network namespace that a new user namespace with `block` owns: who is root in the one has
/// root's powers over the other and over nothing else.
///
/// # Errors
/// The kernel refuses user namespaces, or has no more.
pub fn network(block: Block) -> io::Result<File> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
    // It only keeps the namespaces alive until they are held here.
    let keeper = kernel::Keeper::start(flags)?;
    keeper.process().map(block)?;
    keeper.process().namespace("net")
}

/// As the path a namespace is joined by: a descriptor needs no way through the host's folders, which
/// a container's root has not.
#[must_use]
pub fn path_of(namespace: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_never_the_hosts_own_ids() {
        let all = [0, 1, 2, 999, Block::COUNT - 1].map(|n| Block::number(n).unwrap());
        for pair in all.windows(2) {
            assert!(pair[0].host_id(65_535) < pair[1].host_id(0), "{pair:?}");
        }
        assert!(all[0].root() > 1_000_000);
        assert_eq!(all[4].host_id(65_535), i32::MAX.cast_unsigned());
        assert_eq!(Block::number(Block::COUNT), None);
        assert_eq!(Block::number(u32::MAX), None);
        assert_eq!(all[0].host_id(33), all[0].root() + 33);
        assert_eq!(all[0].host_id(65_536), 65_534);
    }

    #[test]
    fn a_network_namespace_belongs_to_the_blocks_root() {
        let block = Block::number(5).unwrap();
        let network = network(block).unwrap();
        let owner = owning(network.as_fd()).unwrap();
        let own = File::open("/proc/self/ns/user").unwrap();
        let id = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_ne!(id(owner.as_fd()), id(own.as_fd()));
    }

    #[test]
    fn many_threads_make_namespaces_at_once_and_leave_no_process() {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for n in 0..20 {
                        network(Block::number(100 + thread * 20 + n).unwrap()).unwrap();
                    }
                });
            }
        });
        // SAFETY: asks about children of this process that have ended, and takes none away.
        let left = unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WCLONE;
            libc::waitid(libc::P_ALL, 0, &raw mut info, flags)
        };
        assert_eq!(left, -1, "a keeper was not waited for");
    }

    #[test]
    fn this_kernel_gives_what_containers_need_or_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(folder.path(), open).unwrap();
        assert_eq!(trial(folder.path()), Ok(()));
        // A folder that only the host's root may enter is no place for containers.
        let shut = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder.path(), shut).unwrap();
        let refused = trial(folder.path()).unwrap_err();
        assert!(refused.contains("enter"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
