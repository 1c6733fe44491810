//! Writing secrets so that nobody else reads them and a crash leaves the old or the new file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::IdentityError;

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;
/// No file of ours is larger; a larger one is not ours.
const FILE_MAX: u64 = 64 * 1024;

fn at(path: &Path) -> impl FnOnce(io::Error) -> IdentityError + '_ {
    move |source| IdentityError::File {
        path: path.to_owned(),
        source,
    }
}

/// Makes `dir` if it is missing and closes it to others.
pub(super) fn private_dir(dir: &Path) -> Result<(), IdentityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIR)
        .create(dir)
        .map_err(at(dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(PRIVATE_DIR)).map_err(at(dir))
}

/// Replaces `dir/name` in one step and makes it durable.
pub(super) fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), IdentityError> {
    let (path, tmp) = (dir.join(name), dir.join(format!(".{name}.tmp")));
    // A leftover of a crash would keep its mode: start afresh.
    match fs::remove_file(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&tmp)(error)),
        _ => {}
    }
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE_FILE)
            .open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(at(&path))
}

pub(super) fn read(dir: &Path, name: &str) -> Result<String, IdentityError> {
    let path = dir.join(name);
    let read = || {
        if fs::metadata(&path)?.len() > FILE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "larger than 64 KiB",
            ));
        }
        fs::read_to_string(&path)
    };
    read().map_err(at(&path))
}

pub(super) fn exists(dir: &Path, name: &str) -> bool {
    dir.join(name).exists()
}
