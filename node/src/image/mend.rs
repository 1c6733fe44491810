//! A damaged layer from which instances run: they hold its files, so it can be neither moved nor
//! replaced, and gets the right bytes where the wrong ones are. Running instances see them at once.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::budget::{Budget, Limits};
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::layer::Layers;
use super::lazy;
use super::likeness;
use super::recipe::Segment;
use super::tree;

const BLOCK: usize = 64 * 1024;
/// The kernel takes it from every file that is written to.
const CAPABILITY: &str = "security.capability";
/// A capability set with its owner is 24 bytes.
const MAX_CAPABILITY: usize = 64;

impl Layers {
    /// Makes the files of a layer equal to those of a fresh copy, which gives its record away. A
    /// file that is gone cannot be mended: instances would not see another one in its place.
    pub(super) fn mend(&self, diff_id: &Digest, fresh: &Path) -> Result<(), ImageError> {
        let content = self.content(diff_id);
        let open = |path: &Path| {
            tree::open_root(path).map_err(|e| ImageError::disk("open to mend", path, e))
        };
        let (good, bad) = (open(&fresh.join("fs"))?, open(&content)?);
        self.replace_record(diff_id, fresh)?;
        let recipe = self.recipe(diff_id)?.unwrap_or_default();
        for segment in &recipe.segments {
            let Segment::File { path, .. } = segment else {
                continue;
            };
            mend_file(&good, &bad, path).map_err(|e| {
                let path = String::from_utf8_lossy(path).escape_debug().to_string();
                let layer = diff_id.short();
                ImageError::io(
                    format!("mend `{path}` of layer {layer} while instances use it"),
                    e,
                )
            })?;
        }
        let outline = lazy::outline(diff_id, &recipe, &Budget::new(Limits::default()))?;
        likeness::put_right(&outline, &content)
            .map_err(|e| ImageError::disk("mend", &content, e))?;
        disk::sync_filesystem(&content)
    }
}

fn mend_file(good: &OwnedFd, bad: &OwnedFd, path: &[u8]) -> io::Result<()> {
    let from = tree::open_file(good, path, OFlags::RDONLY)?;
    let old = tree::open_file(bad, path, OFlags::RDONLY)?;
    let size = from.metadata()?.len();
    let mut to: Option<File> = None;
    let (mut right, mut there) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).map_or(BLOCK, |left| left.min(BLOCK));
        from.read_exact_at(&mut right[..len], at)?;
        // A sector that cannot be read may be written all the same.
        let same = old.read_exact_at(&mut there[..len], at).is_ok() && right[..len] == there[..len];
        if !same {
            let to = match &mut to {
                Some(to) => to,
                none => none.insert(tree::open_file(bad, path, OFlags::WRONLY)?),
            };
            to.write_all_at(&right[..len], at)?;
        }
        at += len as u64;
    }
    if to.is_none() && old.metadata()?.len() != size {
        to = Some(tree::open_file(bad, path, OFlags::WRONLY)?);
    }
    match to {
        Some(to) => {
            to.set_len(size)?;
            restore(&from, &to)
        }
        None => Ok(()),
    }
}

/// What writing to a file changes about it.
fn restore(from: &File, to: &File) -> io::Result<()> {
    let meta = from.metadata()?;
    let mut capability = [0; MAX_CAPABILITY];
    match rustix::fs::fgetxattr(from, CAPABILITY, &mut capability) {
        Ok(len) => rustix::fs::fsetxattr(to, CAPABILITY, &capability[..len], XattrFlags::empty())?,
        Err(Errno::NODATA | Errno::NOTSUP) => {}
        Err(errno) => return Err(errno.into()),
    }
    to.set_permissions(meta.permissions())?;
    to.set_modified(meta.modified()?)
}
