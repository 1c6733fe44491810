//! The floor of durable writes: append and fdatasync, in a loop, where the registries have their files too. With
//! several clients all of them share a sync, as they would in the best of all registries.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::load::{Measured, clock};

/// As much as the other systems are given with a write.
pub const PAYLOAD: usize = 512;
/// The file begins anew after as much as an ordinary segment of a log holds.
const SEGMENT: u64 = 64 << 20;

/// Writes for as long, `clients` at a time.
pub fn drive(file: &Path, clients: usize, time: Duration) -> Result<Measured> {
    let mut file = File::create(file)?;
    let payload = vec![b'x'; PAYLOAD * clients];
    let mut latency = Histogram::new(3)?;
    let (cpu, began) = (clock(), Instant::now());
    let (mut answered, mut written) = (0, 0);
    while began.elapsed() < time {
        let asked = Instant::now();
        if written >= SEGMENT {
            file.seek(SeekFrom::Start(0))?;
            written = 0;
        }
        file.write_all(&payload)?;
        file.sync_data()?;
        let took = u64::try_from(asked.elapsed().as_micros())?;
        latency.record_n(took.max(1), clients as u64)?;
        answered += clients as u64;
        written += payload.len() as u64;
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
        let length = std::fs::metadata(file).unwrap().len();
        assert_eq!(length, measured.answered * PAYLOAD as u64);
        assert_eq!(measured.latency.len(), measured.answered);
    }
}
