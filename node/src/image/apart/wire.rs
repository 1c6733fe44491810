//! What the daemon and the process that unpacks say to each other: the order on the command line,
//! and lines of JSON back. What comes back is from a process that may have been taken over: every
//! line is bounded, and text is only ever shown.

use std::io::{self, BufRead, Read as _, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::image::budget::{Budget, Limits, Spent};
use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::layer::Marker;
use crate::image::manifest::{LayerPlan, Packing};

/// A verdict names one entry, and says what is wrong with it.
const MAX_LINE: u64 = 64 * 1024;
const MAX_TEXT: usize = 8 * 1024;

/// What to unpack, and what is left to spend on it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Order {
    digest: String,
    size: u64,
    packing: Packing,
    diff_id: String,
    pub limits: Limits,
    pub spent: Spent,
}

impl Order {
    pub(super) fn new(plan: &LayerPlan, budget: &Budget) -> Self {
        Self {
            digest: plan.digest.to_string(),
            size: plan.size,
            packing: plan.packing,
            diff_id: plan.diff_id.to_string(),
            limits: *budget.limits(),
            spent: budget.spent(),
        }
    }

    pub(super) fn plan(&self) -> Result<LayerPlan, ImageError> {
        Ok(LayerPlan {
            digest: self.digest.parse()?,
            size: self.size,
            packing: self.packing,
            diff_id: self.diff_id.parse()?,
        })
    }

    pub(super) fn encode(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    pub(super) fn decode(text: &str) -> io::Result<Self> {
        Ok(serde_json::from_str(text)?)
    }
}

/// One line of what comes back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Word {
    /// Since the last such word.
    Spent(Spent),
    Done(Marker),
    Failed(Failure),
}

impl Word {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)
    }

    /// The next line; `None` at the end.
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = Vec::new();
        from.take(MAX_LINE).read_until(b'\n', &mut line)?;
        match line.pop() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line has no end",
            )),
        }
    }
}

/// The errors of unpacking that a caller tells apart; of all others, the text.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Failure {
    Digest {
        what: String,
        expected: String,
        got: String,
    },
    Size {
        what: String,
        expected: u64,
        got: u64,
    },
    Malformed {
        what: String,
        detail: String,
    },
    TooLarge {
        what: String,
        limit: u64,
    },
    Unsafe {
        layer: String,
        entry: String,
        reason: String,
    },
    Io {
        what: String,
        errno: Option<i32>,
        detail: String,
    },
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::DigestMismatch {
                what,
                expected,
                got,
            } => Self::Digest {
                what,
                expected: expected.to_string(),
                got: got.to_string(),
            },
            ImageError::SizeMismatch {
                what,
                expected,
                got,
            } => Self::Size {
                what,
                expected,
                got,
            },
            ImageError::Malformed { what, detail } => Self::Malformed { what, detail },
            ImageError::TooLarge { what, limit } => Self::TooLarge { what, limit },
            ImageError::UnsafeLayer {
                layer,
                entry,
                reason,
            } => Self::Unsafe {
                layer,
                entry,
                reason,
            },
            ImageError::Io { what, source } => Self::Io {
                what,
                errno: source.raw_os_error(),
                detail: source.to_string(),
            },
            other => Self::Io {
                what: "unpack a layer".to_owned(),
                errno: None,
                detail: other.to_string(),
            },
        }
    }
}

impl From<Failure> for ImageError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Digest {
                what,
                expected,
                got,
            } => match (expected.parse::<Digest>(), got.parse::<Digest>()) {
                (Ok(expected), Ok(got)) => Self::DigestMismatch {
                    what: shown(&what),
                    expected,
                    got,
                },
                (Err(error), _) | (_, Err(error)) => error,
            },
            Failure::Size {
                what,
                expected,
                got,
            } => Self::SizeMismatch {
                what: shown(&what),
                expected,
                got,
            },
            Failure::Malformed { what, detail } => Self::Malformed {
                what: shown(&what),
                detail: shown(&detail),
            },
            Failure::TooLarge { what, limit } => Self::TooLarge {
                what: shown(&what),
                limit,
            },
            Failure::Unsafe {
                layer,
                entry,
                reason,
            } => Self::UnsafeLayer {
                layer: shown(&layer),
                entry: shown(&entry),
                reason: shown(&reason),
            },
            Failure::Io {
                what,
                errno,
                detail,
            } => Self::Io {
                what: shown(&what),
                source: Arc::new(errno.map_or_else(
                    || io::Error::other(shown(&detail)),
                    io::Error::from_raw_os_error,
                )),
            },
        }
    }
}

/// Names in it are escaped already where they were found; nothing else may steer a terminal either.
fn shown(text: &str) -> String {
    let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(safe).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_as_it_was() {
        let table = [
            ImageError::DigestMismatch {
                what: "layer a".into(),
                expected: Digest::of(b"a"),
                got: Digest::of(b"b"),
            },
            ImageError::SizeMismatch {
                what: "layer a".into(),
                expected: 1,
                got: 2,
            },
            ImageError::malformed("layer a", "torn"),
            ImageError::TooLarge {
                what: "layer a".into(),
                limit: 3,
            },
            ImageError::UnsafeLayer {
                layer: "a".into(),
                entry: "../x".into(),
                reason: "its name holds `..`".into(),
            },
            ImageError::io("write", io::Error::from_raw_os_error(28)),
        ];
        for error in table {
            let mut line = Vec::new();
            let word = Word::Failed(error.clone().into());
            word.write(&mut line).expect("memory");
            let Some(Word::Failed(back)) = Word::read(&mut &line[..]).expect("a word") else {
                panic!("{error}");
            };
            let back = ImageError::from(back);
            assert_eq!(back.to_string(), error.to_string());
            assert_eq!(back.code(), error.code());
            assert_eq!(back.is_full_disk(), error.is_full_disk());
        }
    }

    #[test]
    fn what_is_no_word_is_an_error() {
        let long = [b"{\"spent\":".to_vec(), vec![b' '; 70_000], b"}\n".to_vec()].concat();
        let table: [&[u8]; 4] = [b"{}\n", b"{\"spent\":{}}\n", b"{\"spent\"", &long];
        for mut line in table {
            assert!(Word::read(&mut line).is_err());
        }
        assert_eq!(Word::read(&mut &b""[..]).expect("an end"), None);
        assert_eq!(shown("a\x1b[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
    }
}
