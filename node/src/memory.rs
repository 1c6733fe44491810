//! The folder of the data that lies in memory and does not outlive a reboot: a file system of the
//! node's own, so that it is gone when what it speaks of is, wherever the data folder lies.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// Passed through by containers' roots, looked at by nobody. About 50 KB an instance.
const OPTIONS: &std::ffi::CStr = c"mode=0711,size=512m";
const MODE: u32 = 0o711;

/// Makes `folder` and mounts it, unless an earlier daemon did. A machine that does not allow it has a
/// slower folder on its disk.
///
/// # Errors
/// The folder cannot be made or looked at.
pub fn folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let above = folder.parent().unwrap_or(folder);
    if fs::metadata(folder)?.dev() != fs::metadata(above)?.dev() {
        return Ok(());
    }
    if let Err(error) = mount("selvedge", folder, "tmpfs", MountFlags::empty(), OPTIONS) {
        tracing::warn!(folder = %folder.display(), %error, "starts are slower: no memory file system");
        fs::set_permissions(folder, fs::Permissions::from_mode(MODE))?;
    }
    Ok(())
}
