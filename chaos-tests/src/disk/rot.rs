//! Files damaged while nobody has them open: rows D6 and D7, on any disk. Each takes a place in the
//! file, says what was there, and shows by reading back that the damage holds.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// A byte turned over; `heal` turns it back.
#[derive(Debug)]
pub struct Flipped {
    file: File,
    at: u64,
    was: u8,
}

impl Flipped {
    pub fn heal(self) -> Result<()> {
        self.file.write_all_at(&[self.was], self.at)?;
        self.file.sync_all()?;
        Ok(())
    }
}

/// Turns over every bit of one byte.
pub fn flip(path: &Path, at: u64) -> Result<Flipped> {
    let (file, length) = open(path)?;
    ensure!(at < length, "{} has {length} bytes", path.display());
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    let was = byte[0];
    file.write_all_at(&[!was], at)?;
    file.sync_all()?;
    file.read_exact_at(&mut byte, at)?;
    ensure!(byte[0] == !was, "the byte did not turn");
    Ok(Flipped { file, at, was })
}

/// Cuts the last `bytes` off, as when a length was written later than it should have been.
pub fn truncate(path: &Path, bytes: u64) -> Result<()> {
    let (file, length) = open(path)?;
    let left = length.checked_sub(bytes);
    let left = left.with_context(|| format!("{} has {length} bytes", path.display()))?;
    file.set_len(left)?;
    file.sync_all()?;
    ensure!(file.metadata()?.len() == left, "the file kept its length");
    Ok(())
}

/// Zeroes the last `bytes`, as when a length was written before what it counts.
pub fn zero_tail(path: &Path, bytes: u64) -> Result<()> {
    let (_, length) = open(path)?;
    truncate(path, bytes)?;
    let (file, _) = open(path)?;
    // A file grows by zeroes.
    file.set_len(length)?;
    file.sync_all()?;
    ensure!(file.metadata()?.len() == length, "the file did not grow");
    Ok(())
}

fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.with_context(|| path.display().to_string())?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damage_is_what_it_says() -> Result<()> {
        let home = tempfile::tempdir()?;
        let path = home.path().join("file");
        std::fs::write(&path, [1, 2, 3, 4])?;
        let flipped = flip(&path, 1)?;
        ensure!(std::fs::read(&path)? == [1, !2, 3, 4]);
        flipped.heal()?;
        zero_tail(&path, 2)?;
        ensure!(std::fs::read(&path)? == [1, 2, 0, 0]);
        truncate(&path, 3)?;
        ensure!(std::fs::read(&path)? == [1]);
        ensure!(truncate(&path, 2).is_err() && flip(&path, 1).is_err());
        Ok(())
    }
}
