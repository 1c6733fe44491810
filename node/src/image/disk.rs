//! Small, durable steps on this node's disk: nothing gets its name before it is synced, and what
//! was not finished is gone at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ImageError;

/// Tells scratch names of one process apart; `tmp/` is emptied when the store opens.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A path below `tmp/` that is removed with all below it when dropped, unless it was renamed away.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A name that was not used before in this process's life.
    pub(super) fn name() -> String {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", std::process::id())
    }

    /// A name, nothing there yet.
    pub(super) fn reserve(tmp: &Path) -> Self {
        Self(tmp.join(Self::name()))
    }

    /// An empty directory.
    pub(super) fn create(tmp: &Path) -> Result<Self, ImageError> {
        let scratch = Self::reserve(tmp);
        create_dir(&scratch.0)?;
        Ok(scratch)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = remove_all(&self.0) {
            tracing::warn!(path = %self.0.display(), error = %e, "scratch is left until restart");
        }
    }
}

/// Removes a file or a tree; nothing there is fine. Never follows a symbolic link.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes one directory, mode 0755 whatever the umask: it may become a container's root.
pub(super) fn create_dir(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt as _;
    let made = fs::create_dir(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|e| ImageError::disk("create", path, e))
}

/// Makes a directory only root can enter, with its parents.
pub(super) fn create_private_dirs(path: &Path) -> Result<(), ImageError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|e| ImageError::disk("create", path, e))
}

/// The names in a directory that are text.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let read = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries
            .into_iter()
            .filter_map(|e| e.file_name().into_string().ok())
            .collect())
    };
    read().map_err(|e| ImageError::disk("list", dir, e))
}

/// Writes a new file and syncs it.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| ImageError::disk("write", path, e))
}

/// Replaces `path` with `bytes`, whole or not at all, and durably.
pub(super) fn replace(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let scratch = Scratch::reserve(tmp);
    write_synced(scratch.path(), bytes)?;
    fs::rename(scratch.path(), path).map_err(|e| ImageError::disk("write", path, e))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    let synced = File::open(dir).and_then(|d| d.sync_all());
    synced.map_err(|e| ImageError::disk("sync", dir, e))
}

/// Makes everything below `path` durable in one call: thousands of small files are far cheaper to
/// sync together than one by one.
pub(super) fn sync_filesystem(path: &Path) -> Result<(), ImageError> {
    let synced = File::open(path).and_then(|d| Ok(rustix::fs::syncfs(d)?));
    synced.map_err(|e| ImageError::disk("sync", path, e))
}
