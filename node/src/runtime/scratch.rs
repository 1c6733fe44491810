//! Where an instance's passing files lie: all that a restart of the machine makes void (its container's
//! configuration and state, its shim's record and socket). In memory, because a disk's file system
//! searches long for room where files come and go by the dozen a second; beside the folder of
//! instances, so that it is found from there.
//!
//! Owns that place, not what is in it. What must outlive the machine's restart (the
//! specification, how it ended, its log) stays in the instance's folder.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::StatFs;
use rustix::mount::MountFlags;

const NAME: &str = "scratch";
/// An instance takes about 40 KiB. More than this is a mistake that must not eat the node's memory.
const OPTIONS: &std::ffi::CStr = c"size=256m,nr_inodes=65536,mode=711";
/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: u64 = 0x0102_1994;

/// The place of the instance whose folder is `folder`.
#[must_use]
pub fn of(folder: &Path) -> PathBuf {
    let instances = folder.parent().unwrap_or(folder);
    let name = folder.file_name().unwrap_or_default();
    beside(instances).join(name)
}

pub(super) fn beside(instances: &Path) -> PathBuf {
    instances.with_file_name(NAME)
}

/// Puts memory there, if it is not there from an earlier daemon whose instances still use it. Where the
/// kernel refuses, the disk does.
pub(super) fn open(instances: &Path) -> io::Result<()> {
    let at = beside(instances);
    fs::create_dir_all(&at)?;
    // Containers' roots pass through to their own, whatever our umask is; nobody can look around.
    fs::set_permissions(&at, Permissions::from_mode(0o711))?;
    if is_memory(&rustix::fs::statfs(&at)?) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if let Err(error) = rustix::mount::mount("tmpfs", &at, "tmpfs", flags, OPTIONS) {
        tracing::warn!(at = %at.display(), %error, "no memory for instances' passing files");
    }
    Ok(())
}

fn is_memory(stat: &StatFs) -> bool {
    stat.f_type.unsigned_abs() == TMPFS
}

/// Makes the place of an instance: for root, and whom the shim lets through.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(of(folder))
}

/// Removes the places of instances whose folders are gone.
pub(super) fn sweep(instances: &Path) -> io::Result<()> {
    for entry in fs::read_dir(beside(instances))? {
        let entry = entry?;
        if !instances.join(entry.file_name()).exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_beside_the_folder_of_instances() {
        let of = of(Path::new("/var/lib/selvedge/instances/web-1"));
        assert_eq!(of, Path::new("/var/lib/selvedge/scratch/web-1"));
    }
}
