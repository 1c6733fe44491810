//! Indexes that led to images: kept where a name was resolved, and given to peers, so that an image asked
//! for by the digest of its index is found when its registry is gone. An index is what its digest says,
//! whoever gives it. What a tag means is not kept: only a registry knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::books::Image;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::manifest::Document;
use super::reference::Reference;
use super::signature::MAX_INDEX;
use super::store::{Inner, Store};

/// Below `images/`.
pub(super) const FOLDER: &str = "indexes";
/// Those that led here first go first.
const MOST: usize = 256;

impl Store {
    /// Keeps an index that led to an image. Where that fails it is only not known later.
    pub(super) async fn keep_index(&self, digest: &Digest, bytes: &Bytes) {
        let (of, bytes) = (digest.clone(), bytes.clone());
        let kept = self.blocking(move |inner| inner.keep_index(&of, &bytes));
        if let Err(error) = kept.await {
            tracing::debug!(%digest, %error, "an index is not kept");
        }
    }

    /// The image held here that an index leads to, when a reference names that by its digest.
    pub fn find_listed(&self, reference: &Reference) -> Option<Arc<Image>> {
        let bytes = self.inner.index(reference.digest()?).ok()?;
        match Document::parse("an index", &bytes).ok()? {
            Document::Index(index) => {
                let chosen = index.choose(&reference.to_string()).ok()?.digest().ok()?;
                self.inner.image(&chosen)
            }
            Document::Manifest(_) => None,
        }
    }
}

impl Inner {
    fn index_file(&self, digest: &Digest) -> PathBuf {
        self.dir.join(FOLDER).join(digest.hex())
    }

    /// The exact bytes of an index that led to an image, or that was pushed beside one.
    pub(super) fn index(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let kept = [self.index_file(digest), self.blob(digest)];
        let mut read = kept.iter().filter_map(|path| std::fs::read(path).ok());
        read.find(|bytes| Digest::of(bytes) == *digest)
            .ok_or_else(|| ImageError::NotHeld {
                digest: digest.to_string(),
            })
    }

    fn keep_index(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.index_file(digest);
        if bytes.len() > MAX_INDEX || path.exists() {
            return Ok(());
        }
        make_room(&self.dir.join(FOLDER))?;
        disk::replace(&self.tmp(), &path, bytes)
    }
}

/// Removes the oldest until there is room for one more.
fn make_room(folder: &Path) -> Result<(), ImageError> {
    let names = disk::names(folder)?;
    let mut aged: Vec<(SystemTime, PathBuf)> = names
        .into_iter()
        .map(|name| folder.join(name))
        .map(|path| {
            let written = std::fs::metadata(&path).and_then(|meta| meta.modified());
            (written.unwrap_or(SystemTime::UNIX_EPOCH), path)
        })
        .collect();
    aged.sort();
    let over = (aged.len() + 1).saturating_sub(MOST);
    for (_, path) in aged.into_iter().take(over) {
        disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
    }
    Ok(())
}
