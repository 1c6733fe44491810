//! What one image may cost this node, shared by its layers while they are unpacked together.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ImageError;

/// Bounds on what an image may be. The defaults are far above images people run.
#[derive(Debug, Clone, Copy)]
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
        }
    }
}

/// A small layer of zeros packs far better than any ratio and harms nobody.
const RATIO_FREE: u64 = 16 * 1024 * 1024;
/// Names are kept in memory until a layer is done.
const MAX_NAME_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    raw: AtomicU64,
    entries: AtomicU64,
    names: AtomicU64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let (raw, entries, names) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self {
            limits,
            raw,
            entries,
            names,
        })
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
        spend(
            &self.entries,
            1,
            self.limits.files,
            "the image's number of files",
        )?;
        spend(
            &self.names,
            name as u64,
            MAX_NAME_BYTES,
            "the size of the image's file names",
        )
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
    if before.saturating_add(more) > limit {
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
