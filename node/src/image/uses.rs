//! Which images instances are made of: noted before a mount exists, so that nothing it stands on goes, and
//! remembered over a restart. What may go is decided by the books.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};

use super::books::Use;
use super::digest::Digest;
use super::disk::{self, Scratch};
use super::error::ImageError;
use super::room;
use super::store::Inner;

const UTIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};

impl Inner {
    /// Whether an instance is made of the image.
    pub(super) fn is_used(&self, digest: &Digest) -> bool {
        self.books().is_used(digest)
    }

    /// The folders of all instances that are made of an image.
    pub(super) fn instances(&self) -> Vec<PathBuf> {
        self.books().instances()
    }

    /// An instance is made of an image now, or was until now. The time of its record remembers it over
    /// a restart: one call, not synced, and no harm when lost.
    pub(super) fn used(&self, digest: &Digest) {
        self.books().used(digest, room::now());
        let now = Timestamps {
            last_access: UTIME,
            last_modification: UTIME,
        };
        let _ = rustix::fs::utimensat(CWD, self.record(digest), &now, AtFlags::empty());
    }

    /// Notes that an instance is made of an image, before its mount exists.
    pub(super) fn begin_use(&self, instance: &Path, digest: &Digest) -> Result<(), ImageError> {
        let held = {
            let coming = self.coming().image(digest);
            let mut books = self.books();
            let Some(image) = books.image(digest).or(coming) else {
                return Err(ImageError::NotHeld {
                    digest: digest.to_string(),
                });
            };
            let (instance, digest) = (instance.to_owned(), digest.to_string());
            let held = Use {
                instance,
                digest,
                layers: image.layers.clone(),
            };
            books.begin_use(held.clone());
            held
        };
        self.used(digest);
        let bytes = serde_json::to_vec(&held).map_err(|e| ImageError::malformed("use", e))?;
        // Not synced: after a power cut there is no instance left to protect.
        let (scratch, path) = (Scratch::reserve(&self.tmp()), self.use_file(instance));
        std::fs::write(scratch.path(), bytes)
            .and_then(|()| std::fs::rename(scratch.path(), &path))
            .map_err(|e| ImageError::disk("write", &path, e))?;
        fail::fail_point!("image::use_noted");
        Ok(())
    }

    /// Whether an instance's root file system has this layer below it.
    pub(super) fn layer_in_use(&self, diff_id: &Digest) -> bool {
        self.books().uses_layer(diff_id)
    }

    pub(super) fn end_use(&self, instance: &Path) -> Result<(), ImageError> {
        let digest = self.books().end_use(instance);
        if let Some(digest) = digest {
            self.used(&digest);
        }
        let path = self.use_file(instance);
        disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))
    }

    fn use_file(&self, instance: &Path) -> PathBuf {
        let name = Digest::of(instance.as_os_str().as_encoded_bytes());
        self.dir.join("uses").join(format!("{}.json", name.hex()))
    }
}
