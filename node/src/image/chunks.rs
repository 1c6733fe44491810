//! A layer's tar cut by content: where a file was not changed, the next version of the image has
//! the same chunks. Owns the cutting and the list's form on disk and on the wire; where the bytes
//! lie is the recipe's. A list may come from a stranger: decoding is bounded.

use std::io::{self, Read};

use fastcdc::v2020::FastCDC;
use sha2::{Digest as _, Sha256};

use super::error::ImageError;
use super::recipe::{number, put_number};

/// Every node must cut alike, or nothing is ever shared: changing these asks for a new version.
const MIN: u32 = 4 * 1024;
const AVERAGE: u32 = 16 * 1024;
pub(super) const MAX: u32 = 64 * 1024;
const VERSION: u8 = 1;
/// The largest image there may be, cut as small as it goes.
const MAX_CHUNKS: u64 = 2 * 1024 * 1024;
/// Cut many chunks before the rest is moved to the front.
const BUFFER: usize = 8 * MAX as usize;
const WINDOW_LOG: u32 = 23;
/// Hashes do not pack; lengths hardly.
const LEVEL: i32 = 1;

/// A stretch of the raw tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub hash: [u8; 32],
    pub offset: u64,
    pub len: u32,
}

impl Chunk {
    pub(super) fn holds(&self, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && <[u8; 32]>::from(Sha256::digest(bytes)) == self.hash
    }
}

/// All chunks of a tar, without gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChunkList {
    pub chunks: Vec<Chunk>,
    /// The tar's size.
    pub raw: u64,
}

impl ChunkList {
    pub(super) fn encode(&self) -> Result<Vec<u8>, ImageError> {
        let write = || -> io::Result<Vec<u8>> {
            let mut out = zstd::Encoder::new(vec![VERSION], LEVEL)?;
            out.include_checksum(true)?;
            put_number(&mut out, self.raw)?;
            put_number(&mut out, self.chunks.len() as u64)?;
            for chunk in &self.chunks {
                put_number(&mut out, chunk.len.into())?;
            }
            for chunk in &self.chunks {
                io::Write::write_all(&mut out, &chunk.hash)?;
            }
            out.finish()
        };
        write().map_err(|e| ImageError::io("encode a chunk list", e))
    }

    pub(super) fn decode(bytes: impl Read) -> Result<Self, ImageError> {
        read(bytes).map_err(|e| ImageError::malformed("a layer's chunk list", e))
    }
}

fn read(mut bytes: impl Read) -> io::Result<ChunkList> {
    let damaged = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut version = [0];
    bytes.read_exact(&mut version)?;
    if version != [VERSION] {
        return Err(damaged("of an unknown version"));
    }
    let mut decoder = zstd::Decoder::new(bytes)?;
    decoder.window_log_max(WINDOW_LOG)?;
    let mut from = io::BufReader::new(decoder);
    let (raw, count) = (number(&mut from)?, number(&mut from)?);
    if count > MAX_CHUNKS {
        return Err(damaged("it has too many chunks"));
    }
    // Grown as the bytes come: a number alone reserves nothing.
    let (mut chunks, mut offset) = (Vec::new(), 0u64);
    for _ in 0..count {
        let len = u32::try_from(number(&mut from)?).unwrap_or(u32::MAX);
        if len == 0 || len > MAX {
            return Err(damaged("a chunk's size is out of bounds"));
        }
        let hash = [0; 32];
        chunks.push(Chunk { hash, offset, len });
        offset += u64::from(len);
    }
    for chunk in &mut chunks {
        from.read_exact(&mut chunk.hash)?;
    }
    // Only reading on to the end checks the checksum.
    if offset != raw || from.read(&mut [0])? != 0 {
        return Err(damaged("its sizes do not add up"));
    }
    Ok(ChunkList { chunks, raw })
}

/// Cuts whatever is read through it.
pub(super) struct Cutting<R> {
    inner: R,
    buffer: Vec<u8>,
    list: ChunkList,
    /// Over the bound: no list, and nothing more is cut.
    too_many: bool,
}

impl<R: Read> Cutting<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: Vec::with_capacity(BUFFER),
            list: ChunkList::default(),
            too_many: false,
        }
    }

    /// The reader behind, and the list of all that came from it; `None` when it is too long.
    pub(super) fn finish(mut self) -> (R, Option<ChunkList>) {
        self.cut(0);
        let list = (!self.too_many).then_some(self.list);
        (self.inner, list)
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.too_many {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                // A cut that sees this much ahead does not change with what comes.
                self.cut(MAX as usize);
            }
        }
    }

    /// Cuts the buffer as long as more than `ahead` bytes are left in it.
    fn cut(&mut self, ahead: usize) {
        let cutter = FastCDC::new(&self.buffer, MIN, AVERAGE, MAX);
        let mut at = 0;
        while self.buffer.len() - at > ahead {
            let (_, end) = cutter.cut(at, self.buffer.len() - at);
            let piece = &self.buffer[at..end];
            let chunk = Chunk {
                hash: Sha256::digest(piece).into(),
                offset: self.list.raw,
                // A piece is no longer than MAX.
                len: u32::try_from(piece.len()).unwrap_or(MAX),
            };
            self.list.chunks.push(chunk);
            self.list.raw += piece.len() as u64;
            at = end;
        }
        self.buffer.drain(..at);
        self.too_many = self.list.chunks.len() as u64 > MAX_CHUNKS;
    }
}

impl<R: Read> Read for Cutting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.push(&buf[..n]);
        Ok(n)
    }
}
