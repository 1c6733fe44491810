//! One layer at rest, read again and compared with its chunk list, and its names with its recipe. Owns
//! the reading and what it finds; what follows from it is `health`'s.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::budget::{Budget, Limits};
use super::chunks::ChunkList;
use super::digest::Digest;
use super::error::ImageError;
use super::layer::Layers;
use super::lazy;
use super::likeness;
use super::record::Raw;

/// How much is read in one step.
const STRETCH: u64 = 4 * 1024 * 1024;
/// People need to know where to look, not all of it.
const MAX_FILES: usize = 20;

/// What is wrong with a layer, or with an image's documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Files of which bytes have changed, or which share a chunk with one; or what else it is.
    pub files: BTreeSet<String>,
    pub chunks: usize,
}

impl Damage {
    /// Not of a layer's files but of what lies beside them.
    pub(super) fn of(what: &str, why: &ImageError) -> Self {
        let files = BTreeSet::from([format!("{what} ({why})")]);
        Self { files, chunks: 0 }
    }

    fn add(&mut self, files: impl IntoIterator<Item = String>) {
        let room = MAX_FILES.saturating_sub(self.files.len());
        self.files.extend(files.into_iter().take(room));
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
pub(super) struct Reading {
    list: ChunkList,
    raw: Raw,
    layer: Digest,
    content: PathBuf,
    limits: Limits,
    next: usize,
    damage: Damage,
}

impl Reading {
    /// Reads on; the finding at the end.
    pub(super) fn step(&mut self) -> Option<Finding> {
        let (mut bytes, mut read) = (Vec::new(), 0);
        while let Some(chunk) = self.list.chunks.get(self.next) {
            // A file that is gone or short is damage as well; so is a sector that cannot be read.
            let here = self.raw.read_at(chunk.offset, chunk.len, &mut bytes);
            if here.is_err() || !chunk.holds(&bytes) {
                self.damage.chunks += 1;
                self.damage.add(self.raw.files(chunk));
            }
            self.next += 1;
            read += u64::from(chunk.len);
            if read >= STRETCH {
                return None;
            }
        }
        if self.damage.chunks == 0 {
            // Whose headers are sound by now.
            self.compare_names();
        }
        Some(if self.damage == Damage::default() {
            Finding::Whole
        } else {
            Finding::Damaged(std::mem::take(&mut self.damage))
        })
    }
}

impl Reading {
    fn compare_names(&mut self) {
        let budget = Budget::new(self.limits);
        let outline = lazy::outline(&self.layer, self.raw.recipe(), &budget);
        let compared = outline.map(|outline| {
            let differ = likeness::differences(&outline, &self.content, MAX_FILES);
            differ.map_err(|e| ImageError::disk("compare", &self.content, e))
        });
        match compared {
            Ok(Ok(names)) => self.damage.add(names),
            Ok(Err(why)) | Err(why) => self.damage = Damage::of("its names", &why),
        }
    }
}

impl Layers {
    /// Reads a whole layer.
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
    pub(super) fn reading(&self, diff_id: &Digest) -> Result<Reading, Finding> {
        let damaged = |why: &ImageError| Finding::Damaged(Damage::of("the layer's record", why));
        let list = self.chunk_list(diff_id).map_err(|e| damaged(&e))?;
        let raw = self.raw(diff_id).map_err(|e| damaged(&e))?;
        let size = self.marker(diff_id).map(|marker| marker.raw);
        match (list, raw) {
            (None, None) if size.is_some() => Err(Finding::Unrecorded),
            (Some(list), Some(raw)) if raw.size() == list.raw && size == Some(list.raw) => {
                Ok(Reading {
                    list,
                    raw,
                    layer: diff_id.clone(),
                    content: self.content(diff_id),
                    limits: Limits::default(),
                    next: 0,
                    damage: Damage::default(),
                })
            }
            _ => Err(damaged(&ImageError::malformed("it", "its parts disagree"))),
        }
    }
}
