//! What the daemon and a process that shows a layer say to each other. The process says first which
//! layer it shows and for whom, then which chunks are waited for or will be. The daemon says what became
//! of chunks. Either in frames of a word and a run. No wait is told twice on one connection, and on a
//! new one all of them are told again.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A word and a run.
pub(super) const FRAME: usize = RUN + 1;
const RUN: usize = 8;
/// Two paths and a digest at most.
pub(super) const MAX_HELLO: usize = 16 * 1024;

const WANTED: u8 = 0;
const AHEAD: u8 = 1;

const HERE: u8 = 0;
const FAILED: u8 = 1;
const VOID: u8 = 2;
const DONE: u8 = 3;

/// The first words of a process, in JSON, after their length in two bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The diff id.
    pub layer: String,
    /// The folder of the instance that reads it.
    pub instance: std::path::PathBuf,
}

impl Hello {
    pub(super) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let text = serde_json::to_vec(self)?;
        let length = u16::try_from(text.len()).map_err(std::io::Error::other)?;
        Ok([&length.to_le_bytes()[..], &text].concat())
    }
}

/// What a process would have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// A read waits for these.
    Wanted(Range<usize>),
    /// Whoever reads will come to these.
    Ahead(Range<usize>),
}

impl Ask {
    pub(super) fn encode(&self) -> [u8; FRAME] {
        match self {
            Self::Wanted(run) => frame(WANTED, run),
            Self::Ahead(run) => frame(AHEAD, run),
        }
    }

    /// `None` when it asks for nothing that a list this long has.
    pub(super) fn decode(frame: [u8; FRAME], chunks: usize) -> Option<Self> {
        let (word, run) = words(frame);
        match word {
            WANTED => Some(Self::Wanted(decode(run, chunks)?)),
            AHEAD => Some(Self::Ahead(decode(run, chunks)?)),
            _ => None,
        }
    }
}

/// What became of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// These are in the layer's file.
    Here(Range<usize>),
    /// Nobody can give what is waited for now.
    Failed,
    /// The layer is not what was said of it: nothing of it is to be read any more.
    Void,
    /// Nothing more comes: what is in the file is found by its hash.
    Done,
}

impl News {
    pub(super) fn encode(&self) -> [u8; FRAME] {
        match self {
            Self::Here(run) => frame(HERE, run),
            Self::Failed => frame(FAILED, &(0..0)),
            Self::Void => frame(VOID, &(0..0)),
            Self::Done => frame(DONE, &(0..0)),
        }
    }

    /// `None` when it is no news of a list this long.
    pub(super) fn decode(frame: [u8; FRAME], chunks: usize) -> Option<Self> {
        let (word, run) = words(frame);
        match word {
            HERE => Some(Self::Here(decode(run, chunks)?)),
            FAILED => Some(Self::Failed),
            VOID => Some(Self::Void),
            DONE => Some(Self::Done),
            _ => None,
        }
    }
}

/// A word and a run of chunks, by their places in the list.
fn frame(word: u8, run: &Range<usize>) -> [u8; FRAME] {
    // No list has more chunks than a u32 counts.
    let place = |place: usize| u32::try_from(place).unwrap_or(u32::MAX).to_le_bytes();
    let mut frame = [word; FRAME];
    frame[1..5].copy_from_slice(&place(run.start));
    frame[5..].copy_from_slice(&place(run.end));
    frame
}

fn words([word, run @ ..]: [u8; FRAME]) -> (u8, [u8; RUN]) {
    (word, run)
}

/// `None` when it is no run of a list this long.
fn decode(run: [u8; RUN], chunks: usize) -> Option<Range<usize>> {
    let ([start, end], _) = run.as_chunks() else {
        return None;
    };
    let place = |bytes: &[u8; 4]| usize::try_from(u32::from_le_bytes(*bytes)).ok();
    let run = place(start)?..place(end)?;
    (run.start < run.end && run.end <= chunks).then_some(run)
}
