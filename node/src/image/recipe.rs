//! How a layer's tar is put together again from its tree: which bytes are the content of which
//! file, and all the others (headers, padding, links) as they were. Owns the form on disk and on
//! the wire. A recipe may come from a stranger: decoding is bounded, and a path is checked.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use super::entry::Inside;
use super::error::ImageError;

const VERSION: u8 = 1;
const INLINE: u8 = 0;
const FILE: u8 = 1;
const END: u8 = 2;
/// Inline bytes are written in pieces of this size at most, so that a reader can bound them.
const PIECE: usize = 64 * 1024;
/// Headers of some hundred thousand files. A layer with more has no recipe.
const MAX_INLINE: u64 = 256 * 1024 * 1024;
const MAX_SEGMENTS: usize = 1_200_000;
/// File contents in one recipe; far above every limit of an image.
const MAX_RAW: u64 = 1 << 40;
const MAX_PATH: u64 = 4095;
/// The same for all: a recipe is refused where its tar would have been.
const MAX_DEPTH: usize = 1024;
const WINDOW_LOG: u32 = 23;
const LEVEL: i32 = 1;

/// A stretch of the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    Inline(Vec<u8>),
    /// So many bytes of a regular file of the layer's tree.
    File {
        path: Vec<u8>,
        offset: u64,
        len: u64,
    },
}

impl Segment {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

/// The whole tar, in its order. No segment is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Recipe {
    pub segments: Vec<Segment>,
    /// Where in the tar each of them ends.
    ends: Vec<u64>,
}

impl Recipe {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        let mut end = 0u64;
        let ends = segments.iter().map(|segment| {
            end = end.saturating_add(segment.len());
            end
        });
        let ends = ends.collect();
        Self { segments, ends }
    }

    /// The tar's size.
    pub(super) fn raw(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// The segments that hold `offset .. offset + len`, each with the part of it that is meant.
    pub(super) fn range(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (&Segment, u64, u64)> {
        let until = offset.saturating_add(len).min(self.raw());
        let first = self.ends.partition_point(|end| *end <= offset);
        let within = self.segments[first..].iter().zip(&self.ends[first..]);
        within.map_while(move |(segment, end)| {
            let begin = end - segment.len();
            let (from, to) = (begin.max(offset), (*end).min(until));
            (from < to).then(|| (segment, from - begin, to - from))
        })
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, ImageError> {
        let failed = |e| ImageError::io("encode a recipe", e);
        let mut writer = Writer::new(Vec::new()).map_err(failed)?;
        for segment in &self.segments {
            match segment {
                Segment::Inline(bytes) => writer.inline(bytes).map_err(failed)?,
                Segment::File { path, offset, len } => {
                    writer.file(path, *offset, *len).map_err(failed)?;
                }
            }
        }
        writer.finish().map_err(failed)
    }

    pub(super) fn decode(bytes: impl Read) -> Result<Self, ImageError> {
        read(bytes).map_err(|e| ImageError::malformed("a layer's recipe", e))
    }
}

/// Writes a recipe piece by piece, compressed, holding none of it.
struct Writer<W: Write> {
    out: zstd::Encoder<'static, W>,
    raw: u64,
}

impl<W: Write> Writer<W> {
    fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&[VERSION])?;
        let mut out = zstd::Encoder::new(out, LEVEL)?;
        // The recipe is not covered by the hashes of the chunks it leads to.
        out.include_checksum(true)?;
        Ok(Self { out, raw: 0 })
    }

    fn inline(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            self.out.write_all(&[INLINE])?;
            put_number(&mut self.out, piece.len() as u64)?;
            self.out.write_all(piece)?;
            self.raw += piece.len() as u64;
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], offset: u64, len: u64) -> io::Result<()> {
        self.out.write_all(&[FILE])?;
        put_number(&mut self.out, path.len() as u64)?;
        self.out.write_all(path)?;
        put_number(&mut self.out, offset)?;
        put_number(&mut self.out, len)?;
        self.raw += len;
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[END])?;
        put_number(&mut self.out, self.raw)?;
        self.out.finish()
    }
}

fn read(mut bytes: impl Read) -> io::Result<Recipe> {
    let mut version = [0];
    bytes.read_exact(&mut version)?;
    if version != [VERSION] {
        return Err(damaged("of an unknown version"));
    }
    let mut decoder = zstd::Decoder::new(bytes)?;
    decoder.window_log_max(WINDOW_LOG)?;
    let mut from = io::BufReader::with_capacity(PIECE, decoder);
    let (mut segments, mut inline, mut raw) = (Vec::new(), 0u64, 0u64);
    loop {
        let mut tag = [0];
        from.read_exact(&mut tag)?;
        let segment = match tag[0] {
            INLINE => {
                let bytes = take(&mut from, PIECE as u64)?;
                inline += bytes.len() as u64;
                Segment::Inline(bytes)
            }
            FILE => {
                let path = take(&mut from, MAX_PATH)?;
                let inside = Inside::new(&path, MAX_DEPTH);
                if !inside.is_ok_and(|inside| inside.bytes() == path && !inside.is_root()) {
                    return Err(damaged("a path is not one"));
                }
                let (offset, len) = (number(&mut from)?, number(&mut from)?);
                Segment::File { path, offset, len }
            }
            END if number(&mut from)? == raw => break,
            _ => return Err(damaged("a segment is not one")),
        };
        raw = raw.saturating_add(segment.len());
        if segment.len() == 0 || raw > MAX_RAW || inline > MAX_INLINE {
            return Err(damaged("a size is out of bounds"));
        }
        if segments.len() == MAX_SEGMENTS {
            return Err(damaged("it has too many segments"));
        }
        segments.push(segment);
    }
    // Only reading on to the end checks the checksum.
    if from.read(&mut [0])? != 0 {
        return Err(damaged("something follows its end"));
    }
    Ok(Recipe::new(segments))
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn take(from: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let len = number(from)?;
    if len > limit {
        return Err(damaged("a length is out of bounds"));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Seven bits a byte, the lowest first.
pub(super) fn put_number(to: &mut impl Write, mut number: u64) -> io::Result<()> {
    let mut bytes = [0u8; 10];
    let mut used = 0;
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        bytes[used] = if number == 0 { low } else { low | 0x80 };
        used += 1;
        if number == 0 {
            return to.write_all(&bytes[..used]);
        }
    }
}

pub(super) fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(damaged("a number is out of bounds"))
}

/// Takes the recipe down while a layer is unpacked. Shared by the reader that sees the bytes and
/// the unpacker that knows whose they are; both in one thread.
pub(super) struct Recorder<W: Write> {
    state: RefCell<State<W>>,
}

struct State<W: Write> {
    writer: Writer<W>,
    pending: Vec<u8>,
    inline: u64,
    file: Option<(Vec<u8>, u64)>,
    segments: usize,
    outcome: Outcome,
}

enum Outcome {
    Good,
    /// The tree cannot give the tar back.
    Lost,
    Failed(io::Error),
}

/// What the unpacker says while somebody may be recording.
pub(super) trait Notes {
    /// From here on the bytes read are the content of the file at `path`.
    fn begin_file(&self, path: &[u8]);
    /// From here on they are not.
    fn end_file(&self);
    /// The tree no longer has all the content it was given.
    fn lose(&self);
}

/// Nobody is.
impl Notes for () {
    fn begin_file(&self, _: &[u8]) {}
    fn end_file(&self) {}
    fn lose(&self) {}
}

impl<W: Write> Recorder<W> {
    pub(super) fn new(out: W) -> io::Result<Self> {
        let state = State {
            writer: Writer::new(out)?,
            pending: Vec::with_capacity(PIECE),
            inline: 0,
            file: None,
            segments: 0,
            outcome: Outcome::Good,
        };
        Ok(Self {
            state: RefCell::new(state),
        })
    }

    /// Everything the unpacker reads must come through this.
    pub(super) fn listen<R: Read>(&self, inner: R) -> Listening<'_, R, W> {
        Listening {
            inner,
            recorder: self,
        }
    }

    /// What was written to, if it is a recipe of the whole tar.
    pub(super) fn finish(self) -> io::Result<Option<W>> {
        let mut state = self.state.into_inner();
        state.flush();
        match state.outcome {
            Outcome::Good => state.writer.finish().map(Some),
            Outcome::Lost => Ok(None),
            Outcome::Failed(e) => Err(e),
        }
    }
}

impl<W: Write> Notes for Recorder<W> {
    fn begin_file(&self, path: &[u8]) {
        let mut state = self.state.borrow_mut();
        state.flush();
        state.file = Some((path.to_vec(), 0));
    }

    fn end_file(&self) {
        let mut state = self.state.borrow_mut();
        if let Some((path, len)) = state.file.take()
            && len > 0
        {
            state.note(|writer| writer.file(&path, 0, len));
        }
    }

    fn lose(&self) {
        self.state.borrow_mut().outcome = Outcome::Lost;
    }
}

impl<W: Write> State<W> {
    fn saw(&mut self, bytes: &[u8]) {
        if let Some((_, len)) = &mut self.file {
            *len += bytes.len() as u64;
            return;
        }
        self.inline += bytes.len() as u64;
        if self.inline > MAX_INLINE {
            self.outcome = Outcome::Lost;
        }
        if self.pending.len() + bytes.len() > PIECE {
            self.flush();
        }
        if bytes.len() > PIECE {
            self.note(|writer| writer.inline(bytes));
        } else {
            self.pending.extend_from_slice(bytes);
        }
    }

    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            self.note(|writer| writer.inline(&pending));
        }
        pending.clear();
        self.pending = pending;
    }

    fn note(&mut self, write: impl FnOnce(&mut Writer<W>) -> io::Result<()>) {
        self.segments += 1;
        if self.segments > MAX_SEGMENTS / 2 {
            self.outcome = Outcome::Lost;
        }
        if matches!(self.outcome, Outcome::Good)
            && let Err(e) = write(&mut self.writer)
        {
            self.outcome = Outcome::Failed(e);
        }
    }
}

/// A reader whose bytes a [`Recorder`] sees.
pub(super) struct Listening<'a, R, W: Write> {
    inner: R,
    recorder: &'a Recorder<W>,
}

impl<R: Read, W: Write> Read for Listening<'_, R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.recorder.state.borrow_mut().saw(&buf[..n]);
        Ok(n)
    }
}
