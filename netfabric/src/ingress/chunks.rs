//! The chunked coding, taken apart as it comes in. Extensions and trailers are read over: nobody
//! on this way asked for them.

/// Bytes that are not data: extensions, and the trailers at the end.
const MAX_OTHER: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its chunks are malformed")]
pub(super) struct Malformed;

#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    left: u64,
    digits: u8,
    other: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// The beginning of a line after the last chunk.
    Trailer,
    TrailerLine,
    TrailerEnd,
    LastEnd,
    Over,
}

impl Chunks {
    /// Hands the data in `bytes` on; returns how many bytes belong to the message.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(&[u8]),
    ) -> Result<usize, Malformed> {
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            match self.at {
                At::Over => break,
                At::Data => {
                    let most = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let (now, later) = rest.split_at(most.min(rest.len()));
                    data(now);
                    self.left -= now.len() as u64;
                    rest = later;
                    if self.left == 0 {
                        self.at = At::DataReturn;
                    }
                }
                _ => {
                    self.step(*byte)?;
                    rest = after;
                }
            }
        }
        Ok(bytes.len() - rest.len())
    }

    pub(super) fn is_over(&self) -> bool {
        self.at == At::Over
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.at = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                // Fifteen digits cannot overflow, and nobody sends as much.
                if self.digits >= 15 {
                    return Err(Malformed);
                }
                self.digits += 1;
                self.left = self.left * 16 + u64::from(digit);
                At::Size
            }
            (At::Size, b'\r') if self.digits > 0 => At::SizeEnd,
            (At::Size, b';' | b' ' | b'\t') if self.digits > 0 => At::Extension,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, _) if byte != b'\n' => self.other(At::Extension)?,
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                if self.left == 0 {
                    At::Trailer
                } else {
                    At::Data
                }
            }
            (At::DataReturn, b'\r') => At::DataEnd,
            (At::DataEnd, b'\n') => At::Size,
            (At::Trailer, b'\r') => At::LastEnd,
            (At::TrailerLine, b'\r') => At::TrailerEnd,
            (At::Trailer | At::TrailerLine, _) if byte != b'\n' => self.other(At::TrailerLine)?,
            (At::TrailerEnd, b'\n') => At::Trailer,
            (At::LastEnd, b'\n') => At::Over,
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn other(&mut self, at: At) -> Result<At, Malformed> {
        self.other += 1;
        if self.other > MAX_OTHER {
            return Err(Malformed);
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let mut chunks = Chunks::default();
        let (mut data, mut used) = (Vec::new(), 0);
        for part in bytes.chunks(step) {
            used += chunks.take(part, |d| data.extend_from_slice(d))?;
        }
        Ok((data, used, chunks.is_over()))
    }

    #[test]
    fn data_comes_out_however_it_is_cut() {
        let table: &[(&[u8], &[u8], bool)] = &[
            (b"4\r\nwiki\r\n0\r\n\r\n", b"wiki", true),
            (
                b"1\r\na\r\nA\r\n0123456789\r\n0\r\n\r\n",
                b"a0123456789",
                true,
            ),
            (
                b"4;x=y\r\nwiki\r\n00\r\nx-sum: 4\r\ny: z\r\n\r\n",
                b"wiki",
                true,
            ),
            (b"4  \r\nwiki\r\n0\r\n\r\n", b"wiki", true),
            (b"4\r\nwi", b"wi", false),
            (b"0\r\n\r\n", b"", true),
            (b"", b"", false),
        ];
        for (bytes, data, over) in table {
            for step in 1..=bytes.len().max(1) {
                let want = (data.to_vec(), bytes.len(), *over);
                assert_eq!(take(bytes, step), Ok(want), "{bytes:?} by {step}");
            }
        }
        let (data, used, _) = take(b"0\r\n\r\nHTTP/1.1 200", 64).unwrap();
        assert_eq!((data.len(), used), (0, 5), "what follows is not its own");
    }

    #[test]
    fn what_is_not_chunks_is_refused() {
        let long = [b"1;".as_slice(), &vec![b'x'; MAX_OTHER + 1], b"\r\na\r\n"].concat();
        let table: &[&[u8]] = &[
            b"\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1\na",
            b"1\r\nab",
            b"1\r\na\n",
            b"1\rx",
            b"1;\n",
            b"0\r\n\n",
            b"0\r\nx\n",
            b"ffffffffffffffff\r\n",
            &long,
        ];
        for bytes in table {
            assert!(take(bytes, bytes.len()).is_err(), "{bytes:?}");
            assert!(take(bytes, 1).is_err(), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whole_or_in_pieces_it_is_the_same(bytes: Vec<u8>, chunked: bool, step in 1_usize..9) {
            let bytes = if chunked {
                [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n0\r\n\r\n"].concat()
            } else {
                bytes
            };
            let (whole, pieces) = (take(&bytes, bytes.len().max(1)), take(&bytes, step));
            proptest::prop_assert_eq!(whole.is_ok(), pieces.is_ok());
            proptest::prop_assert_eq!(whole.ok(), pieces.ok());
        }
    }
}
