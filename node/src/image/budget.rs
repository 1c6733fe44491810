//! What one image may cost this node, shared by its layers while they are unpacked together.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::error::ImageError;

/// Bounds on what an image may be. The defaults are far above images people run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Bytes of all layers as the registry sends them.
    pub compressed: u64,
    /// Bytes of all layers' tars.
    pub raw: u64,
    /// Raw bytes for each compressed byte of a layer.
    pub ratio: u64,
    /// Entries of all layers.
    pub files: u64,
    /// Parts of an entry's name.
    pub depth: usize,
    pub layers: usize,
    /// Bytes of a manifest, an index or a configuration.
    pub document: u64,
    /// Seconds of CPU that a layer's unpacking may take, in a process of its own. A stream of empty
    /// gzip members costs time and gives no byte that another limit would count.
    pub seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self {
            compressed: 2 * GIB,
            raw: 8 * GIB,
            ratio: 200,
            files: 500_000,
            depth: 64,
            layers: 128,
            document: 4 * 1024 * 1024,
            seconds: 300,
        }
    }
}

/// A small layer of zeros packs far better than any ratio and harms nobody.
const RATIO_FREE: u64 = 16 * 1024 * 1024;
/// Names are kept in memory until a layer is done.
const MAX_NAME_BYTES: u64 = 64 * 1024 * 1024;

/// What of an image's budget is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spent {
    pub raw: u64,
    pub entries: u64,
    /// Bytes of names.
    pub names: u64,
}

#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    raw: AtomicU64,
    entries: AtomicU64,
    names: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self::resumed(limits, Spent::default()))
    }

    /// One that was begun elsewhere.
    pub(super) fn resumed(limits: Limits, spent: Spent) -> Self {
        Self {
            limits,
            raw: AtomicU64::new(spent.raw),
            entries: AtomicU64::new(spent.entries),
            names: AtomicU64::new(spent.names),
        }
    }

    pub(super) fn spent(&self) -> Spent {
        Spent {
            raw: self.raw.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
            names: self.names.load(Ordering::Relaxed),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn raw(&self, bytes: u64) -> Result<(), ImageError> {
        spend(
            &self.raw,
            bytes,
            self.limits.raw,
            "the image's unpacked size",
        )
    }

    pub(super) fn entry(&self, name: usize) -> Result<(), ImageError> {
        self.entries(1)?;
        self.names(name as u64)
    }

    fn names(&self, bytes: u64) -> Result<(), ImageError> {
        let what = "the size of the image's file names";
        spend(&self.names, bytes, MAX_NAME_BYTES, what)
    }

    /// What somebody else has spent of it.
    pub(super) fn charge(&self, more: Spent) -> Result<(), ImageError> {
        self.raw(more.raw)?;
        self.entries(more.entries)?;
        self.names(more.names)
    }

    pub(super) fn entries(&self, number: u64) -> Result<(), ImageError> {
        spend(
            &self.entries,
            number,
            self.limits.files,
            "the image's number of files",
        )
    }
}

fn spend(spent: &AtomicU64, more: u64, limit: u64, what: &str) -> Result<(), ImageError> {
    let before = spent.fetch_add(more, Ordering::Relaxed);
    if more > 0 && before.saturating_add(more) > limit {
        return Err(ImageError::TooLarge {
            what: what.to_owned(),
            limit,
        });
    }
    Ok(())
}

/// Counts packed bytes on their way into a decoder.
pub(super) struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Counted<R> {
    pub(super) fn new(inner: R) -> (Self, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        (
            Self {
                inner,
                count: Arc::clone(&count),
            },
            count,
        )
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Stops a decoder that gives out more than the image, or its packed size, allows.
pub(super) struct Bounded<'a, R> {
    inner: R,
    budget: &'a Budget,
    packed: Arc<AtomicU64>,
    given: u64,
}

impl<'a, R: Read> Bounded<'a, R> {
    pub(super) fn new(inner: R, budget: &'a Budget, packed: Arc<AtomicU64>) -> Self {
        Self {
            inner,
            budget,
            packed,
            given: 0,
        }
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.budget.raw(n as u64).map_err(io::Error::other)?;
        self.given += n as u64;
        let ratio = self.budget.limits.ratio;
        let allowed = self
            .packed
            .load(Ordering::Relaxed)
            .saturating_mul(ratio)
            .max(RATIO_FREE);
        if self.given > allowed {
            let what = "a layer's compression ratio".to_owned();
            return Err(io::Error::other(ImageError::TooLarge {
                what,
                limit: ratio,
            }));
        }
        Ok(n)
    }
}
