//! What is written down of images: a record for each, beside the books in memory, and the blobs and layers
//! that records need. Owns that both tell the same story after a crash at any step, and the removal of
//! what no record needs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use super::books::{Image, Use};
use super::digest::Digest;
use super::disk::{self, Scratch};
use super::error::ImageError;
use super::room;
use super::store::Inner;

impl Inner {
    pub(super) fn record(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join("index")
            .join(format!("{}.json", digest.hex()))
    }

    pub(super) fn read_books(&self) -> Result<(), ImageError> {
        let mut books = self.books();
        for (path, image) in read_all::<Image>(&self.dir.join("index"))? {
            let whole = image
                .diff_ids()
                .is_ok_and(|ids| ids.iter().all(|id| self.layers.marker(id).is_some()));
            match image.digest() {
                Ok(digest) if whole => {
                    drop(books.enter(&digest, image));
                    books.used(&digest, last_change(&path));
                }
                _ => {
                    tracing::warn!(image = %image.pin.digest, "image is not complete: forgotten");
                    unrecord(&path)?;
                }
            }
        }
        for (path, held) in read_all::<Use>(&self.dir.join("uses"))? {
            if held.instance.exists() {
                books.begin_use(held);
            } else {
                disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
            }
        }
        Ok(())
    }

    /// Keeps an image's documents and records it as held under its name.
    pub(super) fn keep(
        &self,
        image: &Image,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<Arc<Image>, ImageError> {
        let digest = image.digest()?;
        for bytes in [manifest, config] {
            disk::replace(&self.tmp(), &self.blob(&Digest::of(bytes)), bytes)?;
        }
        fail::fail_point!("image::documents_kept");
        let _recording = self.recording();
        // On disk first: what is in the books may be used at once.
        self.write_record(&digest, image)?;
        fail::fail_point!("image::recorded");
        let changed = {
            let mut books = self.books();
            let changed = books.enter(&digest, image.clone());
            books.used(&digest, room::now());
            changed
        };
        self.health.is_whole(&digest);
        self.record_all(&digest, changed, Some(image))
    }

    pub(super) fn also_known_as(
        &self,
        digest: &Digest,
        name: String,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let _recording = self.recording();
        let changed = {
            let mut books = self.books();
            let Some(held) = books.image(digest) else {
                return Ok(None);
            };
            let mut image = Image::clone(&held);
            image.names.insert(name);
            books.enter(digest, image)
        };
        self.record_all(digest, changed, None).map(Some)
    }

    /// From now on these documents, which are in `blobs/`, lie beside an image under a name; none take
    /// away what did.
    pub(super) fn attach(
        &self,
        digest: &Digest,
        name: &str,
        documents: Vec<String>,
    ) -> Result<(), ImageError> {
        let _recording = self.recording();
        let changed = {
            let mut books = self.books();
            let Some(held) = books.image(digest) else {
                let digest = digest.to_string();
                return Err(ImageError::NotHeld { digest });
            };
            let mut image = Image::clone(&held);
            image.attached.insert(name.to_owned(), documents);
            books.enter(digest, image)
        };
        self.record_all(digest, changed, None).map(drop)
    }

    /// Writes the records of changed images and returns the one they changed for. What is on disk
    /// as it is now is not written again: a disk that is full by then must not refuse it.
    fn record_all(
        &self,
        digest: &Digest,
        changed: Vec<(Digest, Arc<Image>)>,
        written: Option<&Image>,
    ) -> Result<Arc<Image>, ImageError> {
        let mut wanted = None;
        for (other, image) in changed {
            if written != Some(&*image) {
                self.write_record(&other, &image)?;
            }
            if other == *digest {
                wanted = Some(image);
            }
        }
        wanted.ok_or_else(|| ImageError::NotHeld {
            digest: digest.to_string(),
        })
    }

    fn write_record(&self, digest: &Digest, image: &Image) -> Result<(), ImageError> {
        let bytes = serde_json::to_vec(image).map_err(|e| ImageError::malformed("record", e))?;
        disk::replace(&self.tmp(), &self.record(digest), &bytes)
    }

    pub(super) fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let recording = self.recording();
        self.books().strike(digest)?;
        self.bury(digest, recording)
    }

    /// Removes an image unless it was used since `seen`; says whether it is gone.
    pub(super) fn remove_idle(&self, digest: &Digest, seen: u64) -> Result<bool, ImageError> {
        let recording = self.recording();
        if !self.books().strike_idle(digest, seen)? {
            return Ok(false);
        }
        self.bury(digest, recording)?;
        Ok(true)
    }

    /// Deletes what is on disk of an image struck from the books.
    fn bury(&self, digest: &Digest, recording: MutexGuard<'_, ()>) -> Result<(), ImageError> {
        fail::fail_point!("image::struck");
        unrecord(&self.record(digest))?;
        fail::fail_point!("image::unrecorded");
        self.health.forget(digest);
        self.forget_proof(digest)?;
        let graves = self.sweep()?;
        fail::fail_point!("image::buried");
        // The slow part, with the records open to others again.
        drop(recording);
        drop(graves);
        fail::fail_point!("image::removed");
        Ok(())
    }

    /// Takes away what nothing needs. Dropping what is returned deletes it.
    pub(super) fn sweep(&self) -> Result<Vec<Scratch>, ImageError> {
        // With the books in hand, so that nobody comes to count on a layer that is on its way out.
        let books = self.books();
        let needed = books.needed()?;
        let mut graves = Vec::new();
        for diff_id in self.layers.all()? {
            if !needed.layers.contains(&diff_id) {
                graves.extend(self.layers.take_away(&diff_id)?);
                self.health.forget(&diff_id);
                fail::fail_point!("image::layer_buried");
            }
        }
        let blobs = self.dir.join("blobs/sha256");
        if let Some(needed) = needed.blobs {
            for name in disk::names(&blobs)?
                .iter()
                .filter(|name| !needed.contains(*name))
            {
                let path = blobs.join(name);
                disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
            }
        }
        drop(books);
        Ok(graves)
    }
}

/// Takes a record away for good: were it back after a power cut, so would an image be that somebody
/// was told is gone, and that may have lost layers since.
fn unrecord(record: &Path) -> Result<(), ImageError> {
    disk::remove_all(record).map_err(|e| ImageError::disk("remove", record, e))?;
    record.parent().map_or(Ok(()), disk::sync_dir)
}

/// When a file was last written to, in seconds of the wall clock.
fn last_change(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let seconds = std::fs::metadata(path).map_or(0, |meta| meta.mtime());
    u64::try_from(seconds).unwrap_or(0)
}

/// Every JSON file of a folder. One that cannot be read is told and left out: it describes
/// something that can be had again.
pub(super) fn read_all<T: serde::de::DeserializeOwned>(
    dir: &Path,
) -> Result<Vec<(PathBuf, T)>, ImageError> {
    let mut found = Vec::new();
    let names = disk::names(dir)?;
    for name in names {
        let path = dir.join(name);
        // Layers that arrive lie beside the records of their images.
        if path.extension().is_none_or(|kind| kind != "json") {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|e| ImageError::disk("read", &path, e))?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => found.push((path, value)),
            Err(e) => tracing::warn!(path = %path.display(), error = %e, "unreadable: left out"),
        }
    }
    Ok(found)
}
