//! The floor of durable writes: write and fdatasync, in a loop, where the registries have their
//! files too. The file has its full length from the start, as a log with segments has, so that a
//! sync writes data and no metadata. With several clients all of them share a sync, as they would
//! in the best of all registries.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::load::{Measured, clock};

/// As much as the other systems are given with a write.
pub const PAYLOAD: usize = 512;
/// The file begins anew after as much.
const SEGMENT: usize = 8 << 20;

/// Writes for as long, `clients` at a time.
pub fn drive(file: &Path, clients: usize, time: Duration) -> Result<Measured> {
    let mut file = File::create(file)?;
    file.write_all(&vec![0; SEGMENT])?;
    file.sync_all()?;
    let payload = vec![b'x'; PAYLOAD * clients];
    let mut latency = Histogram::new(3)?;
    let (cpu, began) = (clock(), Instant::now());
    let (mut answered, mut written) = (0, SEGMENT);
    while began.elapsed() < time {
        let asked = Instant::now();
        if written + payload.len() > SEGMENT {
            file.seek(SeekFrom::Start(0))?;
            written = 0;
        }
        file.write_all(&payload)?;
        file.sync_data()?;
        let took = u64::try_from(asked.elapsed().as_micros())?;
        latency.record_n(took.max(1), clients as u64)?;
        answered += clients as u64;
        written += payload.len();
    }
    Ok(Measured {
        rate: super::load::rate(answered, began.elapsed()),
        answered,
        latency,
        cpu: clock().saturating_sub(cpu),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_its_payload_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let measured = drive(&file, 3, Duration::from_millis(20)).unwrap();
        let read = std::fs::read(file).unwrap();
        let written = read.iter().rposition(|byte| *byte == b'x').unwrap() as u64 + 1;
        let wanted = measured.answered * PAYLOAD as u64;
        // Less only when it began anew.
        assert_eq!(
            written,
            wanted.min((SEGMENT - SEGMENT % (3 * PAYLOAD)) as u64)
        );
        assert_eq!(measured.latency.len(), measured.answered);
    }
}
