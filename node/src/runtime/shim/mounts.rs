//! The mount namespace a container is built in. The host's grows with every instance (roots,
//! networks, volumes), and who builds a container reads that list many times; so the nursery keeps
//! a base without any of them, and a shim takes along what its own instance needs.
//!
//! Owns both namespaces. What is mounted inside the container is libcontainer's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::super::adopt;
use super::super::scratch;
use super::super::spec::ContainerSpec;

const OWN: &str = "/proc/self/ns/mnt";
/// What every container's file systems are made from, kept with all that is mounted below.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];
/// In an instance's scratch: where what is mounted into its container is found.
const CARRIED: &str = "carried";

/// A namespace with the host's root, its kernel file systems and the folders of instances, but
/// nothing that is mounted for an instance.
pub(super) struct Base(OwnedFd);

impl Base {
    /// For a process of one thread, which is then where it was before.
    pub fn make(instances: &Path) -> io::Result<Self> {
        let host = File::open(OWN)?;
        own_namespace()?;
        bare(instances);
        let made = File::open(OWN);
        move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(Self(made?.into()))
    }

    /// Moves this process (of one thread) into a copy of the base with the root and the volumes of
    /// `spec`, which is changed to say where these are in there.
    pub fn enter(self, spec: &mut ContainerSpec, scratch: &Path) -> io::Result<Carried> {
        let mut trees = vec![(tree(&spec.rootfs)?, spec.rootfs.clone())];
        for (number, mount) in spec.mounts.iter_mut().enumerate() {
            let from = tree(&mount.source)?;
            mount.source = place(scratch, number, &mount.source)?;
            trees.push((from, mount.source.clone()));
        }
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Mount))?;
        own_namespace()?;
        for (tree, to) in &trees {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree, "", CWD, to, flags).map_err(|e| named(to, &e.into()))?;
        }
        Ok(Carried {
            rootfs: spec.rootfs.clone(),
            sources: spec.mounts.iter().map(|m| m.source.clone()).collect(),
        })
    }
}

/// What a shim took along to have it mounted into its container.
pub(super) struct Carried {
    rootfs: PathBuf,
    sources: Vec<PathBuf>,
}

impl Carried {
    /// Lets go of it, once the container has it. Must not fail unnoticed: the shim removes its scratch
    /// in the end, and the places are removed here so that nobody's volume is found there then.
    pub fn release(self) -> io::Result<()> {
        for at in self.sources.iter().chain([&self.rootfs]) {
            unmount(at, UnmountFlags::DETACH).map_err(|e| named(at, &e.into()))?;
        }
        for at in &self.sources {
            let kind = fs::symlink_metadata(at)?;
            let removed = if kind.is_dir() {
                fs::remove_dir(at)
            } else {
                fs::remove_file(at)
            };
            removed.map_err(|e| named(at, &e))?;
        }
        Ok(())
    }
}

/// Takes what is mounted for instances, or by anybody else, out of a namespace of our own.
fn bare(instances: &Path) {
    let scratch = scratch::beside(instances);
    let wanted = |at: &Path| {
        let system = SYSTEM.iter().any(|folder| at.starts_with(folder));
        system || instances.starts_with(at) || scratch.starts_with(at)
    };
    // The innermost first.
    for at in adopt::mount_points().iter().rev() {
        if !wanted(at) {
            // One that goes with another is gone already.
            let _ = unmount(at, UnmountFlags::DETACH);
        }
    }
}

/// From now on mounts are seen by this process and its children only.
fn own_namespace() -> io::Result<()> {
    // SAFETY: of all that can be unshared, this leaves memory and descriptors as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags)?;
    Ok(())
}

/// What is mounted at `path`, or the part of it that begins there, to be mounted elsewhere.
fn tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).map_err(|e| named(path, &e.into()))
}

/// Makes something of the kind of `source` to mount it on.
fn place(scratch: &Path, number: usize, source: &Path) -> io::Result<PathBuf> {
    let folder = scratch.join(CARRIED);
    let place = folder.join(number.to_string());
    if fs::metadata(source)?.is_dir() {
        fs::create_dir_all(&place)?;
    } else {
        fs::create_dir_all(&folder)?;
        File::create(&place)?;
    }
    Ok(place)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
