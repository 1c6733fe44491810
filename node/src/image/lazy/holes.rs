//! A tar of which only the recipe is here, read as if all of it were. The content of files is holes,
//! and what a reader gets of them means nothing.

use std::io::{self, Read};

use super::super::recipe::{Recipe, Segment};

/// A header that a recipe left out reads as none: the archive's end.
const HEADER: usize = 512;

/// Reads segments one after another.
pub(in super::super) struct Holes<'a> {
    segments: &'a [Segment],
    /// Already read of the first.
    read: u64,
}

impl<'a> Holes<'a> {
    pub(in super::super) fn new(recipe: &'a Recipe) -> Self {
        let segments = &recipe.segments;
        Self { segments, read: 0 }
    }
}

impl Read for Holes<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some((segment, rest)) = self.segments.split_first() {
            let n = match segment {
                Segment::Inline(bytes) => {
                    let at = usize::try_from(self.read).unwrap_or(usize::MAX);
                    let mut left = bytes.get(at..).unwrap_or_default();
                    left.read(buf)?
                }
                Segment::File { len, .. } => {
                    let left = len.saturating_sub(self.read);
                    let n = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    // Not all of it: half a gigabyte of zeros takes longer than all headers.
                    buf[..n.min(HEADER)].fill(0);
                    n
                }
            };
            if n > 0 || buf.is_empty() {
                self.read += n as u64;
                return Ok(n);
            }
            (self.segments, self.read) = (rest, 0);
        }
        Ok(0)
    }
}
