//! SHA-256 digests in their text form, and a reader that digests what flows through it.
//! SHA-512 is legal in the image specification but nobody publishes with it: it is refused.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::error::ImageError;

/// `sha256:` and 64 lower-case hex digits. The text is checked when the value is made, so a digest
/// can be a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

const PREFIX: &str = "sha256:";

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(format!("{PREFIX}{}", hex::encode(Sha256::digest(bytes))))
    }

    /// The 64 hex digits: the name of its file or folder.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// Enough of it for people to tell two apart.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn from_sha256(hash: &[u8; 32]) -> Self {
        Self(format!("{PREFIX}{}", hex::encode(hash)))
    }

    pub(super) fn from_hex(hex: &str) -> Option<Self> {
        format!("{PREFIX}{hex}").parse().ok()
    }
}

impl FromStr for Digest {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let hex = text.strip_prefix(PREFIX).unwrap_or_default();
        let valid = hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageError::BadDigest {
                text: text.chars().take(100).collect(),
            })
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A digest in the making, and how many bytes it is of.
#[derive(Default)]
pub(super) struct State {
    hash: Sha256,
    count: u64,
}

impl State {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.count += bytes.len() as u64;
    }

    pub(super) fn finish(self) -> (Digest, u64) {
        let digest = Digest::from_sha256(&self.hash.finalize().into());
        (digest, self.count)
    }
}

/// Digests and counts everything read through it.
pub(super) struct Digesting<R> {
    inner: R,
    state: State,
}

impl<R: Read> Digesting<R> {
    pub(super) fn new(inner: R) -> Self {
        let state = State::default();
        Self { inner, state }
    }

    /// The digest of the bytes read so far, and their number.
    pub(super) fn finish(self) -> (Digest, u64) {
        self.state.finish()
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.state.add(&buf[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_sha256_and_64_lower_case_hex_digits() {
        let of_empty = Digest::of(b"");
        assert_eq!(of_empty.short(), "e3b0c44298fc");
        assert_eq!(
            of_empty.as_str().parse::<Digest>().expect("own text"),
            of_empty
        );
        let upper = of_empty.as_str().to_uppercase();
        for bad in ["", "sha256:", "sha256:../../etc", "sha512:00", &upper] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digesting_reader_counts_and_digests() {
        let mut reader = Digesting::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).expect("memory");
        assert_eq!(reader.finish(), (Digest::of(b"abc"), 3));
    }
}
