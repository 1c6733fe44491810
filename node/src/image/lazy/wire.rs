//! What the daemon and a process that shows a layer say to each other. The process says first which
//! layer it shows and for whom, then which chunks are waited for: runs of them, eight bytes each. The
//! daemon says what became of chunks, nine bytes each. Nothing is asked twice on one connection, and
//! on a new one everything is said again.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A run in a process's mouth.
pub(super) const FRAME: usize = 8;
/// A word and a run.
pub(super) const NEWS: usize = FRAME + 1;
/// Two paths and a digest at most.
pub(super) const MAX_HELLO: usize = 16 * 1024;

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
    pub(super) fn encode(&self) -> [u8; NEWS] {
        let (word, run) = match self {
            Self::Here(run) => (HERE, places(run)),
            Self::Failed => (FAILED, 0..0),
            Self::Void => (VOID, 0..0),
            Self::Done => (DONE, 0..0),
        };
        let mut frame = [word; NEWS];
        frame[1..].copy_from_slice(&encode(&run));
        frame
    }

    /// `None` when it is no news of a list this long.
    pub(super) fn decode(frame: [u8; NEWS], chunks: usize) -> Option<Self> {
        match frame[0] {
            HERE => {
                let run = frame[1..].try_into().ok()?;
                Some(Self::Here(decode(run, chunks)?))
            }
            FAILED => Some(Self::Failed),
            VOID => Some(Self::Void),
            DONE => Some(Self::Done),
            _ => None,
        }
    }
}

/// A run of chunks, by their places in the list.
pub(super) fn encode(run: &Range<u32>) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..4].copy_from_slice(&run.start.to_le_bytes());
    frame[4..].copy_from_slice(&run.end.to_le_bytes());
    frame
}

/// `None` when it is no run of a list this long.
pub(super) fn decode(frame: [u8; FRAME], chunks: usize) -> Option<Range<usize>> {
    let place = |bytes: &[u8]| usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok();
    let run = place(&frame[..4])?..place(&frame[4..])?;
    (run.start < run.end && run.end <= chunks).then_some(run)
}

/// The same, of places that a list has.
pub(super) fn places(run: &Range<usize>) -> Range<u32> {
    // No list has more chunks than a u32 counts.
    let place = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
    place(run.start)..place(run.end)
}
