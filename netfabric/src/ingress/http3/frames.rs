//! Frames of HTTP/3 (RFC 9114, 7), read along before the library reads them. It takes in every frame but
//! one of data whole, however long it says it is; takes one that ends early for whole, or breaks an
//! assertion on it; and takes an empty one for the end of the body. None of these gets there.

use bytes::{Buf, Bytes};
use h3::error::Code;

use crate::ingress::door::MAX_HEAD_BYTES;

const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
/// Frames with a meaning of their own: heads, what belongs to connections, and what HTTP/2 had there,
/// which is an error. All others have none, and are left out.
const KNOWN: [u64; 10] = [HEADERS, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0xd];
/// Frames that are no heads carry a few numbers.
const MAX_OTHER: u64 = 4 * 1024;

/// Types of streams that go one way (RFC 9114, 6.2).
const CONTROL: u64 = 0x0;
const PUSH: u64 = 0x1;

/// A field section that is far smaller than what it stands for, which is more than the library may take
/// in: the field without a name costs a byte here, and 32 there.
const FIELD: u8 = 0xc0;
const FIELDS: usize = MAX_HEAD_BYTES / 32 + 1;

/// What a client said wrong, and what its connection is closed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("a frame ends early")]
    Cut,
    #[error("a frame is too long")]
    Long,
    #[error("clients push nothing")]
    Push,
}

impl Fault {
    pub(super) fn code(self) -> Code {
        match self {
            Self::Cut => Code::H3_FRAME_ERROR,
            Self::Long => Code::H3_EXCESSIVE_LOAD,
            Self::Push => Code::H3_STREAM_CREATION_ERROR,
        }
    }
}

/// What goes on of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// In the place of a request's head that is too long to be read: the library answers 431 to it. Nothing
    /// follows.
    TooLarge(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The type of a stream.
    Type,
    /// What stands before a frame.
    Head,
    Pass(u64),
    Skip(u64),
    /// Nothing that is ours to judge.
    Beyond,
}

/// One stream's reader.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    head: Vec<u8>,
    /// The request's head has not begun.
    fresh: bool,
}

impl Frames {
    /// Of a request.
    pub(super) fn request() -> Self {
        Self {
            at: At::Head,
            head: Vec::new(),
            fresh: true,
        }
    }

    /// Of a stream that goes one way.
    pub(super) fn one_way() -> Self {
        Self {
            at: At::Type,
            head: Vec::new(),
            fresh: false,
        }
    }

    /// The next piece of `chunk` that goes on, never an empty one; `None` when there is no more in it.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Piece>, Fault> {
        while !chunk.is_empty() {
            match self.at {
                At::Beyond => return Ok(Some(Piece::Bytes(chunk.split_off(0)))),
                At::Pass(left) => {
                    let step = reach(left, chunk);
                    self.at = after(left, step, At::Pass);
                    return Ok(Some(Piece::Bytes(chunk.split_to(step))));
                }
                At::Skip(left) => {
                    let step = reach(left, chunk);
                    self.at = after(left, step, At::Skip);
                    chunk.advance(step);
                }
                At::Type | At::Head => {
                    self.head.push(chunk.get_u8());
                    let begun = if self.at == At::Type {
                        self.stream()?
                    } else {
                        self.frame()?
                    };
                    if begun.is_some() {
                        return Ok(begun);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The stream ends here. Other ones than requests may end before they said what they are.
    pub(super) fn end(&self) -> Result<(), Fault> {
        match self.at {
            At::Head if self.head.is_empty() => Ok(()),
            At::Type | At::Beyond => Ok(()),
            At::Head | At::Pass(_) | At::Skip(_) => Err(Fault::Cut),
        }
    }

    /// Looks whether a stream has said what it is.
    fn stream(&mut self) -> Result<Option<Piece>, Fault> {
        let Some((kind, _)) = number(&self.head) else {
            return Ok(None);
        };
        self.at = match kind {
            CONTROL => At::Head,
            PUSH => return Err(Fault::Push),
            _ => At::Beyond,
        };
        Ok(Some(Piece::Bytes(self.said())))
    }

    /// Looks whether what stands before a frame is whole, and what is to be done with it.
    fn frame(&mut self) -> Result<Option<Piece>, Fault> {
        let Some((kind, read)) = number(&self.head) else {
            return Ok(None);
        };
        let Some((length, _)) = number(&self.head[read..]) else {
            return Ok(None);
        };
        let first = self.fresh;
        self.fresh &= kind != HEADERS;
        let most = match kind {
            DATA => u64::MAX,
            HEADERS => MAX_HEAD_BYTES as u64,
            _ => MAX_OTHER,
        };
        if (kind == DATA && length == 0 && !first) || !(kind == DATA || KNOWN.contains(&kind)) {
            self.head.clear();
            self.at = after(length, 0, At::Skip);
            return Ok(None);
        }
        if length <= most {
            self.at = after(length, 0, At::Pass);
            return Ok(Some(Piece::Bytes(self.said())));
        }
        if kind == HEADERS && first {
            self.at = At::Beyond;
            return Ok(Some(Piece::TooLarge(too_large())));
        }
        Err(Fault::Long)
    }

    fn said(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.head))
    }
}

/// How much of what is left is in `chunk`.
fn reach(left: u64, chunk: &Bytes) -> usize {
    usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()))
}

fn after(left: u64, step: usize, at: fn(u64) -> At) -> At {
    match left - step as u64 {
        0 => At::Head,
        left => at(left),
    }
}

/// The number at the beginning of `bytes`, and its length (RFC 9000, 16); `None` when it is not whole.
fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = |so_far: u64, byte: &u8| so_far << 8 | u64::from(*byte);
    Some((rest.iter().fold(u64::from(first & 0x3f), value), length))
}

/// A head of which the library says that it is too large.
fn too_large() -> Bytes {
    let section = 2 + FIELDS;
    // In the form of four bytes.
    let length = u32::try_from(section).unwrap_or(0) | 0x8000_0000;
    let mut frame = vec![u8::try_from(HEADERS).unwrap_or(0)];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.resize(frame.len() + FIELDS, FIELD);
    Bytes::from(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on of `bytes` that come in steps, and what is said at their end.
    fn read(mut frames: Frames, bytes: &[u8], step: usize) -> Result<Vec<u8>, Fault> {
        let mut passed = Vec::new();
        for part in bytes.chunks(step) {
            let mut chunk = Bytes::copy_from_slice(part);
            while let Some(piece) = frames.next(&mut chunk)? {
                match piece {
                    Piece::Bytes(bytes) => {
                        assert!(!bytes.is_empty());
                        passed.extend_from_slice(&bytes);
                    }
                    Piece::TooLarge(_) => return Ok(b"431".to_vec()),
                }
            }
        }
        frames.end().map(|()| passed)
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap() | 0x4000;
        [&[kind], &length.to_be_bytes()[..], payload].concat()
    }

    #[test]
    fn numbers_are_read_as_the_rfc_writes_them() {
        let table: &[(&[u8], u64)] = &[
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
        ];
        for (bytes, want) in table {
            assert_eq!(number(bytes), Some((*want, bytes.len())));
            assert_eq!(number(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn what_has_no_meaning_is_left_out() {
        let (head, data) = (frame(1, b"section"), frame(0, b"body"));
        let trailers = frame(1, b"trailers");
        let noise = frame(0x21, &[7; 1000]);
        let empty = frame(0, b"");
        let sent = [
            &noise, &head, &noise, &data, &empty, &data, &trailers, &noise,
        ];
        let sent: Vec<u8> = sent.into_iter().flatten().copied().collect();
        let want = [&head[..], &data, &data, &trailers].concat();
        for step in 1..=sent.len() {
            let passed = read(Frames::request(), &sent, step);
            assert_eq!(passed.as_ref(), Ok(&want), "by {step}");
        }
    }

    #[test]
    fn what_would_break_the_library_does_not_reach_it() {
        type Want = Result<Vec<u8>, Fault>;
        let long = [&[0x01, 0x80, 0x01, 0x00, 0x01][..], &[0; 64]].concat();
        let head = frame(1, b"section");
        let again = [&head[..], &long].concat();
        let push = [0x05, 0xbf, 0xff, 0xff, 0xff];
        let cut = [&head[..], &frame(0, b"body")[..5]].concat();
        let requests: &[(&[u8], Want)] = &[
            (&long, Ok(b"431".to_vec())),
            (&again, Err(Fault::Long)),
            (&push, Err(Fault::Long)),
            (&cut, Err(Fault::Cut)),
            (&[0x01], Err(Fault::Cut)),
            (&[0x21, 0x05, 0x00], Err(Fault::Cut)),
            (&frame(0, b""), Ok(frame(0, b""))),
            (&[], Ok(vec![])),
        ];
        for (bytes, want) in requests {
            for step in [1, bytes.len().max(1)] {
                assert_eq!(read(Frames::request(), bytes, step), *want, "{bytes:?}");
            }
        }
        let settings = [&[0][..], &frame(4, b"")].concat();
        let long = [0x00, 0x04, 0xbf, 0xff, 0xff, 0xff];
        let streams: &[(&[u8], Want)] = &[
            (&settings, Ok(settings.clone())),
            (&long, Err(Fault::Long)),
            (&[1, 2, 3], Err(Fault::Push)),
            (&[0x02, 0xff, 0xff], Ok(vec![0x02, 0xff, 0xff])),
            (&[0x40], Ok(vec![])),
            (&[], Ok(vec![])),
        ];
        for (bytes, want) in streams {
            assert_eq!(read(Frames::one_way(), bytes, 1), *want, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whole_or_in_pieces_it_is_the_same(bytes: Vec<u8>, step in 1_usize..9) {
            for one_way in [false, true] {
                let frames = || if one_way { Frames::one_way() } else { Frames::request() };
                let whole = read(frames(), &bytes, bytes.len().max(1));
                proptest::prop_assert_eq!(whole, read(frames(), &bytes, step));
            }
        }
    }
}
