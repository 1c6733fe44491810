//! Layers at rest: read again before anything runs from them, and again from time to time, because
//! disks change bytes. Owns what is known of their soundness in this life of the daemon, and the
//! mending of those that are not; fetching them anew is the pull's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, Timespec, Timestamps};

use super::books::Image;
use super::budget::Budget;
use super::chunks::ChunkList;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::layer::{Layers, Marker};
use super::manifest::LayerPlan;
use super::recipe::Segment;
use super::record::{self, Raw};
use super::store::{Inner, Store};
use super::tree;

/// Disks lose bytes over months, not hours.
const SCRUB_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Reading in the background rests this many times as long as it works.
const REST: u32 = 4;
/// How much is read between two rests.
const STRETCH: u64 = 4 * 1024 * 1024;
/// People need to know where to look, not all of it.
const MAX_FILES: usize = 20;

/// What is wrong with a layer on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Files of which bytes have changed, or which share a chunk with one.
    pub files: BTreeSet<String>,
    pub chunks: usize,
}

impl Damage {
    fn add(&mut self, files: Vec<String>) {
        self.chunks += 1;
        let room = MAX_FILES.saturating_sub(self.files.len());
        self.files.extend(files.into_iter().take(room));
    }

    /// Not of the tree but of what lies beside it.
    fn of_record(why: &ImageError) -> Self {
        let files = BTreeSet::from([format!("the layer's own record ({why})")]);
        Self { files, chunks: 0 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    Whole,
    /// Nothing to compare it with: see `record.rs`.
    Unrecorded,
    Damaged(Damage),
}

/// A layer's tree being compared with its chunk list, stretch by stretch.
struct Reading {
    list: ChunkList,
    raw: Raw,
    next: usize,
    damage: Damage,
}

impl Reading {
    /// Reads on; the finding at the end.
    fn step(&mut self) -> Option<Finding> {
        let (mut bytes, mut read) = (Vec::new(), 0);
        while let Some(chunk) = self.list.chunks.get(self.next) {
            // A file that is gone or short is damage as well; so is a sector that cannot be read.
            let here = self.raw.read_at(chunk.offset, chunk.len, &mut bytes);
            if here.is_err() || !chunk.holds(&bytes) {
                self.damage.add(self.raw.files(chunk));
            }
            self.next += 1;
            read += u64::from(chunk.len);
            if read >= STRETCH {
                return None;
            }
        }
        Some(if self.damage.chunks == 0 {
            Finding::Whole
        } else {
            Finding::Damaged(std::mem::take(&mut self.damage))
        })
    }
}

impl Layers {
    /// Reads a layer's tree and compares it with its chunk list.
    pub(super) fn verify(&self, diff_id: &Digest) -> Finding {
        match self.reading(diff_id) {
            Ok(mut reading) => loop {
                if let Some(finding) = reading.step() {
                    return finding;
                }
            },
            Err(finding) => finding,
        }
    }

    /// Begins to read a layer, or says at once what is the matter with it.
    fn reading(&self, diff_id: &Digest) -> Result<Reading, Finding> {
        let record = |why| Finding::Damaged(Damage::of_record(&why));
        let disagree = || record(ImageError::malformed("its two files", "they disagree"));
        let list = self.chunk_list(diff_id).map_err(record)?;
        let raw = self.raw(diff_id).map_err(record)?;
        let raw_bytes = self.marker(diff_id).map(|marker| marker.raw);
        match (list, raw) {
            (None, None) => Err(Finding::Unrecorded),
            (Some(list), Some(raw))
                if list.raw == raw.recipe().raw() && raw_bytes == Some(list.raw) =>
            {
                Ok(Reading {
                    list,
                    raw,
                    next: 0,
                    damage: Damage::default(),
                })
            }
            _ => Err(disagree()),
        }
    }

    /// Puts the contents of a fresh copy in the place of a damaged one's, file by file and without
    /// giving any file a new inode: running instances see the right bytes, by every name.
    fn mend(&self, diff_id: &Digest, fresh: &std::path::Path) -> Result<(), ImageError> {
        let content = self.content(diff_id);
        let damaged = |e| ImageError::disk("mend", &content, e);
        let (good, bad) = (
            tree::open_root(&fresh.join("fs")),
            tree::open_root(&content),
        );
        let (good, bad) = (good.map_err(damaged)?, bad.map_err(damaged)?);
        record::replace(fresh, &self.folder(diff_id))?;
        let Some(recipe) = self.recipe(diff_id)? else {
            return Ok(());
        };
        for segment in &recipe.segments {
            let Segment::File { path, .. } = segment else {
                continue;
            };
            mend_file(&good, &bad, path).map_err(|e| {
                let path = String::from_utf8_lossy(path).escape_debug().to_string();
                ImageError::io(format!("mend `{path}` of layer {}", diff_id.short()), e)
            })?;
        }
        disk::sync_filesystem(&content)
    }
}

fn mend_file(
    good: &std::os::fd::OwnedFd,
    bad: &std::os::fd::OwnedFd,
    path: &[u8],
) -> io::Result<()> {
    let mut from = tree::open_file(good, path, OFlags::RDONLY)?;
    let same = tree::open_file(bad, path, OFlags::RDONLY).is_ok_and(|old| same(&from, old));
    if same {
        return Ok(());
    }
    let stat = rustix::fs::fstat(&from)?;
    io::Seek::rewind(&mut from)?;
    let mut to = tree::open_file(bad, path, OFlags::WRONLY)?;
    let written = io::copy(&mut from, &mut to)?;
    to.set_len(written)?;
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::futimens(&to, &times)?)
}

/// Whether two files have the same bytes. One that cannot be read has not.
fn same(mut one: &std::fs::File, mut other: std::fs::File) -> bool {
    let (mut a, mut b) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let (Ok(n), Ok(m)) = (fill(&mut one, &mut a), fill(&mut other, &mut b)) else {
            return false;
        };
        if a[..n] != b[..m] {
            return false;
        }
        if n == 0 {
            return true;
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// What is known of the layers here. Nothing is known of a layer not yet read in this life.
#[derive(Default)]
pub(super) struct Health {
    known: Mutex<BTreeMap<Digest, Option<Damage>>>,
}

impl Health {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Digest, Option<Damage>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_sound(&self, diff_id: &Digest) -> bool {
        matches!(self.known().get(diff_id), Some(None))
    }

    fn is_damaged(&self, diff_id: &Digest) -> bool {
        matches!(self.known().get(diff_id), Some(Some(_)))
    }

    fn note(&self, diff_id: &Digest, damage: Option<Damage>) {
        self.known().insert(diff_id.clone(), damage);
    }

    /// A layer that left the disk takes what was known of it along.
    pub(super) fn forget(&self, diff_id: &Digest) {
        self.known().remove(diff_id);
    }
}

impl Inner {
    /// The marker of a layer that is complete and, as far as is known, sound.
    pub(super) fn usable(&self, diff_id: &Digest) -> Option<Marker> {
        if self.health.is_damaged(diff_id) {
            return None;
        }
        self.layers.marker(diff_id)
    }

    /// Unpacks and keeps a layer. Where a damaged copy lies, it is replaced, or mended when
    /// instances run from it.
    pub(super) fn take_in(
        &self,
        packed: impl Read,
        plan: &LayerPlan,
        budget: &Budget,
    ) -> Result<Marker, ImageError> {
        let diff_id = &plan.diff_id;
        if !self.health.is_damaged(diff_id) {
            let marker = self.layers.bring_in(packed, plan, budget)?;
            // Digested on its way in.
            self.health.note(diff_id, None);
            return Ok(marker);
        }
        let (fresh, marker) = self.layers.unpack_aside(packed, plan, budget)?;
        if self.layer_in_use(diff_id) {
            self.layers.mend(diff_id, fresh.path())?;
            let finding = self.layers.verify(diff_id);
            self.judge(diff_id, finding)?;
        } else {
            drop(self.layers.take_away(diff_id)?);
            self.layers.keep(&fresh, diff_id)?;
            self.health.note(diff_id, None);
        }
        tracing::info!(layer = %diff_id, "damaged layer is whole again");
        Ok(marker)
    }

    fn judge(&self, diff_id: &Digest, finding: Finding) -> Result<(), ImageError> {
        let Finding::Damaged(damage) = finding else {
            self.health.note(diff_id, None);
            return Ok(());
        };
        let (layer, files) = (diff_id.short().to_owned(), damage.files.clone());
        let error = ImageError::Damaged { layer, files };
        tracing::error!(chunks = damage.chunks, %error, "no instance starts from it");
        self.health.note(diff_id, Some(damage));
        Err(error)
    }

    /// Reads one layer unless it is known to be sound.
    fn check(&self, diff_id: &Digest) -> Result<(), ImageError> {
        if self.health.is_sound(diff_id) {
            return Ok(());
        }
        let finding = self.layers.verify(diff_id);
        self.judge(diff_id, finding)
    }
}

impl Store {
    /// Returns when every layer of an image was read whole in this life of the daemon. The first to
    /// ask waits for the disk, and all who ask meanwhile wait with it.
    pub(super) async fn verified(&self, image: &Image) -> Result<(), ImageError> {
        for diff_id in image.diff_ids()? {
            if self.inner.health.is_sound(&diff_id) {
                continue;
            }
            let (store, key) = (self.clone(), diff_id.to_string());
            let read = async move { store.blocking(move |inner| inner.check(&diff_id)).await };
            self.inner.verify_flights.join(&key, read).await?;
        }
        Ok(())
    }

    /// Reads all layers here at leisure: after the start those nobody has asked for yet, and once a
    /// day all of them. Never ends.
    pub async fn keep_verified(self) {
        loop {
            let layers = self.blocking(|inner| inner.layers.all()).await;
            for diff_id in layers.unwrap_or_default() {
                // What it finds it has logged.
                let _ = self.scrub(diff_id).await;
            }
            tokio::time::sleep(SCRUB_EVERY).await;
        }
    }

    /// Reads one layer, resting in between: at no time does the daemon's end wait for it for long.
    async fn scrub(&self, diff_id: Digest) -> Result<(), ImageError> {
        let id = diff_id.clone();
        let begun = self
            .blocking(move |inner| Ok(inner.layers.reading(&id)))
            .await?;
        let finding = match begun {
            Err(finding) => finding,
            Ok(mut reading) => loop {
                let begun = Instant::now();
                let step = move |_: &Inner| {
                    let finding = reading.step();
                    Ok((reading, finding))
                };
                let (read, finding) = self.blocking(step).await?;
                if let Some(finding) = finding {
                    break finding;
                }
                reading = read;
                tokio::time::sleep(begun.elapsed() * REST).await;
            },
        };
        self.blocking(move |inner| match inner.layers.marker(&diff_id) {
            Some(_) => inner.judge(&diff_id, finding),
            // Deleted while it was read: what was found says nothing.
            None => Ok(()),
        })
        .await
    }
}
