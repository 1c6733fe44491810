//! A layer on its way from packed bytes to a directory that may be mounted: digested, unpacked,
//! digested again, synced, and only then given its name. Blocking; where the bytes come from is
//! not its business.

use std::fs;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::apart;
use super::budget::Budget;
use super::chunks::Cutting;
use super::digest::Digest;
use super::disk::{self, Scratch};
use super::error::ImageError;
use super::manifest::LayerPlan;
use super::pipeline;
use super::record::{self, Recording};
use super::tree;
use super::unpack::{self, Stop, Unpacked};

const BUFFER: usize = 128 * 1024;
/// The folder of a layer's content, and the file that says it is all there.
pub(super) const CONTENT: &str = "fs";
pub(super) const MARKER: &str = "complete";
/// What else unpacking leaves in a layer's folder.
pub(super) const BESIDE: [&str; 4] = [
    record::RECIPE,
    record::CHUNKS,
    tree::OPAQUE_LIST,
    tree::IMPLIED_LIST,
];

/// What is known of a complete layer. Written last, so that its presence proves the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Marker {
    pub diff_id: String,
    /// Of the packed bytes it came from.
    pub digest: String,
    pub packed: u64,
    pub raw: u64,
    pub entries: u64,
    pub opaque_root: bool,
}

/// Where complete layers live.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    /// `layers/`
    dir: PathBuf,
    /// `tmp/`, on the same file system.
    tmp: PathBuf,
    /// The program whose `unpack` command unpacks; without one it is done here.
    unpacker: Arc<OnceLock<PathBuf>>,
}

impl Layers {
    pub(super) fn new(dir: PathBuf, tmp: PathBuf) -> Self {
        let unpacker = Arc::default();
        Self { dir, tmp, unpacker }
    }

    /// From now on layers are unpacked by processes of `program`. Only the first call counts.
    pub(super) fn unpack_apart(&self, program: PathBuf) {
        let _ = self.unpacker.set(program);
    }

    /// The folder all of them are below.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything of one layer lies here.
    pub(super) fn folder(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(diff_id.hex())
    }

    /// The directory to mount.
    pub(super) fn content(&self, diff_id: &Digest) -> PathBuf {
        self.folder(diff_id).join(CONTENT)
    }

    /// The marker of a complete layer; a layer without a sound one is not there.
    pub(super) fn marker(&self, diff_id: &Digest) -> Option<Marker> {
        let bytes = fs::read(self.folder(diff_id).join(MARKER)).ok()?;
        let marker: Marker = serde_json::from_slice(&bytes).ok()?;
        let whole = marker.diff_id == diff_id.as_str() && self.content(diff_id).is_dir();
        whole.then_some(marker)
    }

    /// Diff ids of everything in `layers/`, complete or not.
    pub(super) fn all(&self) -> Result<Vec<Digest>, ImageError> {
        let names = disk::names(&self.dir)?;
        Ok(names
            .iter()
            .filter_map(|name| Digest::from_hex(name))
            .collect())
    }

    /// Moves a layer out of sight at once; the caller deletes what it is given, at leisure.
    pub(super) fn take_away(&self, diff_id: &Digest) -> Result<Option<Scratch>, ImageError> {
        let grave = Scratch::reserve(&self.tmp);
        match fs::rename(self.folder(diff_id), grave.path()) {
            Ok(()) => Ok(Some(grave)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ImageError::disk("remove", &self.folder(diff_id), e)),
        }
    }

    /// Unpacks, verifies and keeps one layer that nobody has yet.
    #[cfg(test)]
    pub(super) fn bring_in(
        &self,
        packed: impl Read + Send,
        plan: &LayerPlan,
        budget: &Budget,
    ) -> Result<Marker, ImageError> {
        let (scratch, marker) = self.unpack_aside(packed, plan, budget)?;
        self.keep(&scratch, &plan.diff_id)?;
        Ok(marker)
    }

    /// A layer complete in all but its name.
    pub(super) fn unpack_aside(
        &self,
        packed: impl Read + Send,
        plan: &LayerPlan,
        budget: &Budget,
    ) -> Result<(Scratch, Marker), ImageError> {
        let scratch = Scratch::create(&self.tmp)?;
        let content = scratch.path().join(CONTENT);
        disk::create_dir(&content)?;
        fail::fail_point!("image::layer_begun");
        let marker = match self.unpacker.get() {
            Some(program) => apart::unpack(program, scratch.path(), packed, plan, budget)?,
            None => unpack_verified(packed, plan, &content, budget)?,
        };
        tree::mark_opaque(&content).map_err(|e| ImageError::disk("mark", &content, e))?;
        fail::fail_point!("image::layer_unpacked");
        disk::sync_filesystem(&content)?;
        let bytes = serde_json::to_vec(&marker).map_err(|e| ImageError::malformed(MARKER, e))?;
        disk::write_synced(&scratch.path().join(MARKER), &bytes)?;
        disk::sync_dir(scratch.path())?;
        fail::fail_point!("image::layer_marked");
        Ok((scratch, marker))
    }

    /// Gives a layer its name, unless a whole one has it.
    pub(super) fn keep(&self, scratch: &Scratch, diff_id: &Digest) -> Result<(), ImageError> {
        let folder = self.folder(diff_id);
        let mut kept = fs::rename(scratch.path(), &folder);
        if kept.is_err() && self.marker(diff_id).is_none() {
            // What is there is not whole: out of the way with it.
            let _unsound = self.take_away(diff_id)?;
            kept = fs::rename(scratch.path(), &folder);
        }
        match kept {
            Ok(()) => disk::sync_dir(&self.dir)?,
            Err(_) if self.marker(diff_id).is_some() => {}
            Err(e) => return Err(ImageError::disk("keep", &folder, e)),
        }
        fail::fail_point!("image::layer_named");
        Ok(())
    }

    /// Gives a layer's name to another copy, at no time to none; the old one is deleted with the
    /// scratch.
    pub(super) fn exchange(&self, scratch: &Scratch, diff_id: &Digest) -> Result<(), ImageError> {
        let folder = self.folder(diff_id);
        match renameat_with(CWD, scratch.path(), CWD, &folder, RenameFlags::EXCHANGE) {
            Ok(()) => disk::sync_dir(&self.dir),
            // A file system that cannot: there is a moment without.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let _old = self.take_away(diff_id)?;
                self.keep(scratch, diff_id)
            }
            Err(errno) => Err(ImageError::disk("replace", &folder, errno)),
        }
    }
}

/// Reads, checks and writes, all in this process.
pub(super) fn unpack_verified(
    packed: impl Read + Send,
    plan: &LayerPlan,
    content: &Path,
    budget: &Budget,
) -> Result<Marker, ImageError> {
    // One byte more than promised is enough to notice.
    let packed = packed.take(plan.size.saturating_add(1));
    let recording = Recording::begin(content)?;
    let take = |raw| {
        let mut raw = BufReader::with_capacity(BUFFER, Cutting::new(raw));
        let mut heard = recording.recorder.listen(&mut raw);
        let unpacked = unpack::unpack(&mut heard, content, budget, &recording.recorder);
        let unpacked = unpacked.and_then(|unpacked| {
            // The diff id covers what follows the archive's end.
            io::copy(&mut heard, &mut io::sink()).map_err(Stop::Stream)?;
            Ok(unpacked)
        });
        let (_, chunks) = raw.into_inner().finish();
        (unpacked, chunks)
    };
    let ((unpacked, chunks), mut rest) = pipeline::run(packed, plan.packing, budget, take)?;
    if matches!(
        unpacked,
        Ok(_) | Err(Stop::Stream(_) | Stop::Refused { .. })
    ) {
        rest.drain()
            .map_err(|e| carried(&e).unwrap_or_else(|| ImageError::io("read the layer", e)))?;
    }
    let [(digest, packed_bytes), (diff_id, raw_bytes)] = rest.finish();

    let name = format!("layer {}", plan.diff_id.short());
    let unpacked = judge(unpacked, plan, &name, &digest, packed_bytes)?;
    if diff_id != plan.diff_id {
        let (what, expected) = (format!("{name}, unpacked,"), plan.diff_id.clone());
        return Err(ImageError::DigestMismatch {
            what,
            expected,
            got: diff_id,
        });
    }
    recording.keep(chunks)?;
    Ok(Marker {
        diff_id: diff_id.to_string(),
        digest: digest.to_string(),
        packed: packed_bytes,
        raw: raw_bytes,
        entries: unpacked.entries,
        opaque_root: unpacked.opaque_root,
    })
}

/// Says what is wrong, the deepest cause first: bytes that are not the promised ones explain every
/// error of a decoder.
fn judge(
    unpacked: Result<Unpacked, Stop>,
    plan: &LayerPlan,
    name: &str,
    digest: &Digest,
    bytes: u64,
) -> Result<Unpacked, ImageError> {
    let damage = || {
        let what = name.to_owned();
        if bytes != plan.size {
            let (expected, got) = (plan.size, bytes);
            return Some(ImageError::SizeMismatch {
                what,
                expected,
                got,
            });
        }
        let (expected, got) = (plan.digest.clone(), digest.clone());
        (expected != got).then_some(ImageError::DigestMismatch {
            what,
            expected,
            got,
        })
    };
    match unpacked {
        Ok(unpacked) => damage().map_or(Ok(unpacked), Err),
        Err(Stop::Stream(e)) => Err(carried(&e)
            .map(|error| of_layer(name, error))
            .or_else(damage)
            .unwrap_or_else(|| ImageError::malformed(name, e))),
        Err(Stop::Limit(error)) => Err(of_layer(name, error)),
        Err(Stop::Refused { entry, reason }) => Err(damage().unwrap_or_else(|| {
            let layer = plan.diff_id.short().to_owned();
            ImageError::UnsafeLayer {
                layer,
                entry,
                reason,
            }
        })),
        Err(Stop::Disk { entry, source }) => {
            Err(ImageError::io(format!("write `{entry}` of {name}"), source))
        }
    }
}

/// Limits are shared by an image's layers: says which of them went over one.
pub(super) fn of_layer(name: &str, error: ImageError) -> ImageError {
    match error {
        ImageError::TooLarge { what, limit } => ImageError::TooLarge {
            what: format!("{name}: {what}"),
            limit,
        },
        other => other,
    }
}

/// Our own error, when a reader below passed one up.
pub(super) fn carried(error: &io::Error) -> Option<ImageError> {
    error.get_ref()?.downcast_ref::<ImageError>().cloned()
}
