//! A layer on its way from packed bytes to a directory that may be mounted: digested, unpacked,
//! digested again, synced, and only then given its name. Blocking; where the bytes come from is
//! not its business.

use std::fs;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::budget::{Bounded, Budget, Counted};
use super::chunks::Cutting;
use super::digest::{Digest, Digesting};
use super::disk::{self, Scratch};
use super::error::ImageError;
use super::manifest::{LayerPlan, Packing};
use super::record::Recording;
use super::unpack::{self, Stop, Unpacked};

const BUFFER: usize = 128 * 1024;
/// The folder of a layer's content, and the file that says it is all there.
const CONTENT: &str = "fs";
const MARKER: &str = "complete";

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
}

impl Layers {
    pub(super) fn new(dir: PathBuf, tmp: PathBuf) -> Self {
        Self { dir, tmp }
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

    /// Unpacks, verifies and keeps one layer.
    pub(super) fn bring_in(
        &self,
        packed: impl Read,
        plan: &LayerPlan,
        budget: &Budget,
    ) -> Result<Marker, ImageError> {
        let scratch = Scratch::create(&self.tmp)?;
        let content = scratch.path().join(CONTENT);
        disk::create_dir(&content)?;
        fail::fail_point!("image::layer_begun");
        let marker = unpack_verified(packed, plan, &content, budget)?;
        fail::fail_point!("image::layer_unpacked");
        disk::sync_filesystem(&content)?;
        let bytes = serde_json::to_vec(&marker).map_err(|e| ImageError::malformed(MARKER, e))?;
        disk::write_synced(&scratch.path().join(MARKER), &bytes)?;
        disk::sync_dir(scratch.path())?;
        fail::fail_point!("image::layer_marked");
        let folder = self.folder(&plan.diff_id);
        let mut kept = fs::rename(scratch.path(), &folder);
        if kept.is_err() && self.marker(&plan.diff_id).is_none() {
            // What is there is not whole: out of the way with it.
            let _unsound = self.take_away(&plan.diff_id)?;
            kept = fs::rename(scratch.path(), &folder);
        }
        match kept {
            Ok(()) => disk::sync_dir(&self.dir)?,
            Err(_) if self.marker(&plan.diff_id).is_some() => {}
            Err(e) => return Err(ImageError::disk("keep", &folder, e)),
        }
        fail::fail_point!("image::layer_named");
        Ok(marker)
    }
}

fn unpack_verified(
    packed: impl Read,
    plan: &LayerPlan,
    content: &Path,
    budget: &Budget,
) -> Result<Marker, ImageError> {
    // One byte more than promised is enough to notice.
    let packed = Digesting::new(packed.take(plan.size.saturating_add(1)));
    let (counted, count) = Counted::new(packed);
    let decoder =
        Decoder::new(plan.packing, counted).map_err(|e| ImageError::io("start the decoder", e))?;
    let bounded = Bounded::new(decoder, budget, count);
    let cutting = Cutting::new(Digesting::new(bounded));
    let mut raw = BufReader::with_capacity(BUFFER, cutting);

    let recording = Recording::begin(content)?;
    let mut heard = recording.recorder.listen(&mut raw);
    let unpacked = unpack::unpack(&mut heard, content, budget, &recording.recorder);
    let unpacked = unpacked.and_then(|unpacked| {
        // The diff id covers what follows the archive's end.
        io::copy(&mut heard, &mut io::sink()).map_err(Stop::Stream)?;
        Ok(unpacked)
    });
    let (digesting, chunks) = raw.into_inner().finish();
    let (bounded, diff_id, raw_bytes) = digesting.into_inner_and_digest();
    let mut rest = bounded.into_inner().into_inner();
    if matches!(
        unpacked,
        Ok(_) | Err(Stop::Stream(_) | Stop::Refused { .. })
    ) {
        drain(&mut rest)?;
    }
    let (digest, packed_bytes) = rest.into_inner().finish();

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

/// Reads what a decoder left, so that the digest covers all of it.
fn drain(rest: &mut impl Read) -> Result<(), ImageError> {
    match io::copy(rest, &mut io::sink()) {
        Ok(_) => Ok(()),
        Err(e) => Err(carried(&e).unwrap_or_else(|| ImageError::io("read the layer", e))),
    }
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
            .or_else(damage)
            .unwrap_or_else(|| ImageError::malformed(name, e))),
        Err(Stop::Limit(error)) => Err(error),
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

/// Our own error, when a reader below passed one up.
fn carried(error: &io::Error) -> Option<ImageError> {
    error.get_ref()?.downcast_ref::<ImageError>().cloned()
}

/// The three packings, one reader.
enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    fn new(packing: Packing, packed: R) -> io::Result<Self> {
        let packed = BufReader::with_capacity(BUFFER, packed);
        Ok(match packing {
            Packing::Plain => Self::Plain(packed),
            Packing::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(packed))),
            Packing::Zstd => Self::Zstd(zstd::Decoder::with_buffer(packed)?),
        })
    }

    /// The reader behind. What was read ahead of the decoder's needs is already counted in it.
    fn into_inner(self) -> R {
        match self {
            Self::Plain(reader) => reader.into_inner(),
            Self::Gzip(decoder) => decoder.into_inner().into_inner(),
            Self::Zstd(decoder) => decoder.finish().into_inner(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buf),
            Self::Gzip(decoder) => decoder.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
    }
}
