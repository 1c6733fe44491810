//! Folders that are empty at first and gone with their instance. In memory the kernel keeps their
//! size, and what is in them counts as the container's memory; on disk they are measured now and
//! then, as a kubelet does, because few file systems can be told a folder's size.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Owner, VolumeError, mount};

/// In memory, when neither the volume nor the container has a limit.
const DEFAULT_BYTES: u64 = 64 << 20;
/// Every user of the container may write, as in Kubernetes: images change their user themselves.
const MODE: u32 = 0o777;

/// The size of a folder in memory: its own, or all the memory the container has.
pub(super) const fn size(own: u64, memory: u64) -> u64 {
    match (own, memory) {
        (0, 0) => DEFAULT_BYTES,
        (0, limit) => limit,
        (own, _) => own,
    }
}

/// Makes it at `at`: in memory when it has a `size`.
pub(super) fn make(at: &Path, size: Option<u64>, owner: Owner) -> Result<(), VolumeError> {
    if let Some(size) = size {
        return mount::tmpfs(at, size, "0777", owner, false);
    }
    mount::way(at)?;
    give(at, owner, MODE)
}

/// Makes a folder `owner`'s.
pub(super) fn give(at: &Path, owner: Owner, mode: u32) -> Result<(), VolumeError> {
    use std::os::unix::fs::{PermissionsExt, chown};
    chown(at, Some(owner.uid), Some(owner.gid))
        // After the owner, which would take bits away; and not at its making, for the umask.
        .and_then(|()| fs::set_permissions(at, fs::Permissions::from_mode(mode)))
        .map_err(VolumeError::io("cannot give away", at))
}

/// Bytes on disk below `at`, each file once; stops counting beyond `enough`.
pub(super) fn used(at: &Path, enough: u64) -> u64 {
    let mut total: u64 = 0;
    let mut seen = std::collections::BTreeSet::new();
    let mut folders = vec![at.to_owned()];
    while let Some(folder) = folders.pop() {
        // What goes meanwhile takes no room.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let again = meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino());
            if !again {
                total = total.saturating_add(meta.blocks().saturating_mul(512));
            }
            if meta.is_dir() {
                folders.push(entry.path());
            }
            if total > enough {
                return total;
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_has_a_size() {
        assert_eq!(size(0, 0), DEFAULT_BYTES);
        assert_eq!(size(0, 7 << 20), 7 << 20);
        assert_eq!(size(1 << 20, 7 << 20), 1 << 20);
    }

    #[test]
    fn a_folder_is_measured_by_what_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        let file = folder.path().join("deep/file");
        fs::write(&file, vec![1; 256 << 10]).unwrap();
        fs::hard_link(&file, folder.path().join("twin")).unwrap();
        let sparse = fs::File::create(folder.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let bytes = used(folder.path(), u64::MAX);
        assert!((256 << 10..320 << 10).contains(&bytes), "{bytes}");
        assert!(used(folder.path(), 1000) > 1000);
    }
}
