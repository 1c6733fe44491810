//! A layer's packed bytes on a thread of their own: received, digested, decoded, and digested again
//! ahead of the unpacker, which cuts the raw bytes and writes files meanwhile. Two threads, because
//! on a small node a layer costs about as much to inflate as to cut and write, and a digest more
//! on this side makes both sides alike. Bytes that are not packed are digested once: they are the
//! same on both sides of a decoder that does nothing. What the bytes mean is not its business. Blocking.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;

use super::budget::{Bounded, Budget, Counted};
use super::digest::{Digest, Digesting, State};
use super::error::ImageError;
use super::manifest::Packing;

/// Packed bytes are taken in such pieces.
const PACKED_BUFFER: usize = 128 * 1024;
/// Raw bytes are handed over in such pieces: large enough that a hand-over costs nothing beside
/// them, small enough that they are still in the cache when they are digested and written.
const RAW_BUFFER: usize = 256 * 1024;
/// Raw pieces that wait for the unpacker. A layer holds two more: one on each side.
const RAW_AHEAD: usize = 4;

/// The packed side after the last byte was decoded, or after nobody wanted more.
pub(super) struct Rest<R> {
    packed: Counted<Digesting<R>>,
    /// `None` where they are the packed ones.
    raw: Option<(Digest, u64)>,
}

impl<R: Read> Rest<R> {
    /// Reads what the decoder left, so that the digest covers all of it.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.packed, &mut io::sink()).map(drop)
    }

    /// The digests of the packed and of the raw bytes, each with their number. The raw ones are all
    /// of them when the unpacker has read to the end.
    pub(super) fn finish(self) -> [(Digest, u64); 2] {
        let packed = self.packed.into_inner().finish();
        let raw = self.raw.unwrap_or_else(|| packed.clone());
        [packed, raw]
    }
}

/// Runs `take` on the raw bytes while another thread decodes `packed`. When `take` returns early
/// the other thread stops at its next piece.
pub(super) fn run<R: Read + Send, T>(
    packed: R,
    packing: Packing,
    budget: &Budget,
    take: impl FnOnce(Raw) -> T,
) -> Result<(T, Rest<R>), ImageError> {
    let (filled, pieces) = sync_channel(RAW_AHEAD);
    let (emptied, spare) = sync_channel(RAW_AHEAD + 2);
    thread::scope(|scope| {
        let ahead = move || decode(packed, packing, budget, &filled, &spare);
        let decoder = thread::Builder::new()
            .name("image-decode".to_owned())
            .spawn_scoped(scope, ahead)
            .map_err(|e| ImageError::io("start a thread that decodes a layer", e))?;
        let taken = take(Raw::new(pieces, emptied));
        match decoder.join() {
            Ok(rest) => Ok((taken, rest?)),
            // Our own fault, not the image's: as if it had happened on this thread.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

type Piece = io::Result<Vec<u8>>;

fn decode<R: Read>(
    packed: R,
    packing: Packing,
    budget: &Budget,
    filled: &SyncSender<Piece>,
    spare: &Receiver<Vec<u8>>,
) -> Result<Rest<R>, ImageError> {
    let (counted, count) = Counted::new(Digesting::new(packed));
    let decoder =
        Decoder::new(packing, counted).map_err(|e| ImageError::io("start the decoder", e))?;
    let mut bounded = Bounded::new(decoder, budget, count);
    let mut raw = (packing != Packing::Plain).then(State::default);
    loop {
        let mut buffer = spare.try_recv().unwrap_or_default();
        buffer.resize(RAW_BUFFER, 0);
        let (length, end) = fill(&mut bounded, &mut buffer);
        buffer.truncate(length);
        if let Some(raw) = &mut raw {
            raw.add(&buffer);
        }
        // An unpacker that wants no more has its reason and tells it.
        let wanted = buffer.is_empty() || filled.send(Ok(buffer)).is_ok();
        match end {
            _ if !wanted => break,
            None => {}
            Some(Ok(())) => break,
            Some(Err(e)) => {
                let _ = filled.send(Err(e));
                break;
            }
        }
    }
    Ok(Rest {
        packed: bounded.into_inner().into_inner(),
        raw: raw.map(State::finish),
    })
}

/// Fills `buffer` as far as the stream goes; says how far, and how the stream ended if it did.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<io::Result<()>>) {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => return (length, Some(Ok(()))),
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (length, Some(Err(e))),
        }
    }
    (length, None)
}

/// The raw bytes, in the order of the stream.
pub(super) struct Raw {
    pieces: Receiver<Piece>,
    emptied: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Raw {
    fn new(pieces: Receiver<Piece>, emptied: SyncSender<Vec<u8>>) -> Self {
        let (current, at) = (Vec::new(), 0);
        Self {
            pieces,
            emptied,
            current,
            at,
        }
    }
}

impl Read for Raw {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            // The other thread hangs up when the stream is at its end; before that it says why.
            let Ok(piece) = self.pieces.recv() else {
                return Ok(0);
            };
            let used = std::mem::replace(&mut self.current, piece?);
            self.at = 0;
            let _ = self.emptied.try_send(used);
        }
        let n = buf.len().min(self.current.len() - self.at);
        buf[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// The three packings, one reader.
enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    fn new(packing: Packing, packed: R) -> io::Result<Self> {
        let packed = BufReader::with_capacity(PACKED_BUFFER, packed);
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::Limits;
    use super::super::testing::gzip;
    use super::*;

    fn noise(length: u32) -> Vec<u8> {
        let words = (0..length / 4).map(|n| n.wrapping_mul(2_654_435_761));
        words.flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn every_packing_gives_the_raw_bytes_and_both_digests() {
        let raw = noise(3_000_000);
        let zstd = zstd::encode_all(&raw[..], 1).unwrap();
        let cases = [
            (Packing::Plain, raw.clone()),
            (Packing::Gzip, gzip(&raw)),
            (Packing::Zstd, zstd),
        ];
        for (packing, packed) in cases {
            let budget = Budget::new(Limits::default());
            let take = |mut bytes: Raw| {
                let mut all = Vec::new();
                bytes.read_to_end(&mut all).map(|_| all)
            };
            let (got, mut rest) = run(Cursor::new(&packed), packing, &budget, take).unwrap();
            assert_eq!(got.unwrap(), raw);
            rest.drain().unwrap();
            let of = |bytes: &[u8]| (Digest::of(bytes), bytes.len() as u64);
            assert_eq!(rest.finish(), [of(&packed), of(&raw)]);
        }
    }

    #[test]
    fn a_damaged_stream_is_an_error_after_what_was_sound() {
        let raw = noise(3_000_000);
        let packed = gzip(&raw);
        let budget = Budget::new(Limits::default());
        let cut = &packed[..packed.len() / 2];
        let take = |mut bytes: Raw| {
            let mut all = Vec::new();
            (bytes.read_to_end(&mut all), all)
        };
        let ((end, all), _) = run(cut, Packing::Gzip, &budget, take).unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(!all.is_empty() && raw.starts_with(&all));
    }

    #[test]
    fn an_unpacker_that_stops_early_ends_the_decoding() {
        let endless = io::repeat(7).take(u64::from(u32::MAX));
        let budget = Budget::new(Limits::default());
        let take = |mut bytes: Raw| bytes.read_exact(&mut [0; 512]);
        let (taken, rest) = run(endless, Packing::Plain, &budget, take).unwrap();
        taken.unwrap();
        let most = (RAW_BUFFER * (RAW_AHEAD + 3)) as u64;
        let [(_, read), _] = rest.finish();
        assert!(read <= most, "{read}");
    }
}
