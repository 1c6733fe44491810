//! A tar of which only the headers are here, read as if all of it were. The content of files is holes:
//! a reader gets whatever its buffer held, and must not look.

use std::io::{self, Read};

/// A piece of a tar, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Here(Vec<u8>),
    /// So many bytes of a file's content.
    Hole(u64),
}

/// Reads pieces one after another.
pub(super) struct Holes<'a> {
    pieces: &'a [Piece],
    /// Already read of the first.
    read: u64,
}

impl<'a> Holes<'a> {
    pub(super) fn new(pieces: &'a [Piece]) -> Self {
        Self { pieces, read: 0 }
    }
}

impl Read for Holes<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some((piece, rest)) = self.pieces.split_first() {
            let n = match piece {
                Piece::Here(bytes) => {
                    let at = usize::try_from(self.read).unwrap_or(usize::MAX);
                    let mut left = bytes.get(at..).unwrap_or_default();
                    left.read(buf)?
                }
                Piece::Hole(length) => {
                    let left = length.saturating_sub(self.read);
                    buf.len().min(usize::try_from(left).unwrap_or(usize::MAX))
                }
            };
            if n > 0 || buf.is_empty() {
                self.read += n as u64;
                return Ok(n);
            }
            (self.pieces, self.read) = (rest, 0);
        }
        Ok(0)
    }
}
