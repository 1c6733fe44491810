//! Mounting a tmpfs and taking it away again.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Owner, VolumeError};

/// A tmpfs of at most `bytes` at `at`, which is made. `no_exec` is for files that are only read.
pub(super) fn tmpfs(
    at: &Path,
    bytes: u64,
    mode: &str,
    owner: Owner,
    no_exec: bool,
) -> Result<(), VolumeError> {
    way(at)?;
    fail::fail_point!("volumes::laid_out");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::NOEXEC, no_exec);
    let options = format!(
        "size={bytes},mode={mode},uid={},gid={}",
        owner.uid, owner.gid
    );
    // What is in memory for a reason is not swapped out, where the kernel (6.4) can promise that.
    let mounted = match try_mount(at, flags, &format!("{options},noswap")) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => try_mount(at, flags, &options),
        other => other,
    };
    mounted.map_err(VolumeError::io("cannot mount", at))?;
    fail::fail_point!("volumes::mounted");
    Ok(())
}

fn try_mount(at: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    Ok(rustix::mount::mount(
        "tmpfs",
        at,
        "tmpfs",
        flags,
        options.as_c_str(),
    )?)
}

/// A folder for us alone, with those above it.
pub(super) fn folder(at: &Path) -> Result<(), VolumeError> {
    made(at, 0o700)
}

/// A folder below an instance's, with those above it: the container's root, which is nobody on the
/// host, passes through it to what it mounts.
pub(super) fn way(at: &Path) -> Result<(), VolumeError> {
    made(at, 0o711)
}

fn made(at: &Path, mode: u32) -> Result<(), VolumeError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(at)
        .map_err(VolumeError::io("cannot make", at))
}

/// Unmounts all that lies on `at`. Lazily: a process that still has a file open holds up nobody.
pub(super) fn unmount(at: &Path) -> Result<(), VolumeError> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    loop {
        match rustix::mount::unmount(at, flags) {
            // Mounts may lie on top of each other.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(VolumeError::io("cannot unmount", at)(error.into())),
        }
    }
}

/// Unmounts what is mounted in `folder` and removes it with all that an instance wrote there.
pub(super) fn remove(folder: &Path) -> Result<(), VolumeError> {
    for at in entries(folder)? {
        unmount(&at)?;
    }
    fail::fail_point!("volumes::unmounted");
    absent_is_fine(fs::remove_dir_all(folder)).map_err(VolumeError::io("cannot remove", folder))
}

/// What is in a folder; one that is not there is empty.
pub(super) fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>, VolumeError> {
    let read = || match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    read().map_err(VolumeError::io("cannot read", folder))
}

pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
