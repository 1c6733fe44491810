//! What the daemon and a process that shows a layer say to each other: runs of chunks, eight bytes
//! each. From the process: these are waited for. To it: these are in the layer's file. Nothing is
//! asked twice on one connection, and on a new one everything is said again.

use std::ops::Range;

pub(super) const FRAME: usize = 8;

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
pub(super) fn run(places: &Range<usize>) -> Range<u32> {
    // No list has more chunks than a u32 counts.
    let place = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
    place(places.start)..place(places.end)
}
