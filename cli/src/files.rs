//! Reading no more of files than is wanted, and writing them so that they are there whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context as _;

use crate::failure::Failure;
use crate::output::bytes;

/// The bytes of a file, or of stdin for `-`; larger ones are refused.
pub fn read(path: &Path, most: usize) -> anyhow::Result<Vec<u8>> {
    let read = read_past(path, most).with_context(|| format!("cannot read {}", path.display()))?;
    if read.len() > most {
        let message = format!("{} is larger than {}", path.display(), bytes(most as u64));
        return Err(Failure::usage(message).into());
    }
    Ok(read)
}

/// The same, at most one byte more than `most`: enough to see that it is larger.
pub fn read_past(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let (mut bytes, most) = (Vec::new(), (most as u64).saturating_add(1));
    if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Writes `bytes` to `path` (mode 0600, folders as needed): to a neighbour first, then renamed.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    private_folder(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = folder.join(format!(".{name}.{}", std::process::id()));
    let written = draft_then_rename(&draft, path, bytes);
    if written.is_err() {
        // The first error is the one that tells.
        let _ = std::fs::remove_file(&draft);
    }
    written?;
    File::open(folder)?.sync_all()
}

fn draft_then_rename(draft: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(draft, path)
}

/// Makes a folder and its parents; new ones are 0700.
pub fn private_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
