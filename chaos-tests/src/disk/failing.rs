//! A disk whose device fails: an ext4 on a loop device whose file lies in a memory too small for it.
//! From then on the block layer answers new blocks with an error of its own, below every file
//! system call: row D4. Owns the memory; the ext4 is a [`Powered`] one.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::mount::beside;
use super::{Powered, Small};
use crate::world::until;

/// The device takes so much before it could fail by itself.
const MEMORY: u64 = 128 << 20;
/// The file of the device, and ballast.
const INODES: u64 = 16;
/// More than the device has blocks for by chance.
const PROBE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Failing {
    // Goes before what it lies on.
    disk: Powered,
    memory: Small,
}

impl Failing {
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        let memory = Small::mount(&beside(dir, "device"), MEMORY, INODES)?;
        let disk = Powered::mount_on(dir, memory.dir().join("blocks"))?;
        Ok(Self { disk, memory })
    }

    pub fn dir(&self) -> &Path {
        self.disk.dir()
    }

    /// From now on the device has no block for what was never written. ext4 gives up the file
    /// system when its journal meets that.
    pub fn fail(&self) -> Result<()> {
        self.memory.fill(0)?;
        self.check()
    }

    /// Shows that the device fails: bytes that a file took are not kept.
    pub fn check(&self) -> Result<()> {
        until("the device fails", PATIENCE, || match self.probe() {
            Ok(()) => Ok(None),
            Err(error) if is_of_the_device(&error) => Ok(Some(())),
            Err(error) => Err(error).context("a device that fails says so"),
        })
    }

    /// Another device in the place of the failed one, with all that it held. Nothing may have files
    /// open on the disk: see [`Powered::power_on`].
    pub fn power_on(&mut self) -> Result<()> {
        self.memory.free()?;
        self.disk.power_on()?;
        match self.probe() {
            Ok(()) => Ok(()),
            Err(error) => bail!("the device still fails: {error}"),
        }
    }

    fn probe(&self) -> std::io::Result<()> {
        let path = self.dir().join(".probe");
        let mut file = File::create(&path)?;
        file.write_all(&vec![1; PROBE])?;
        file.sync_all()?;
        drop(file);
        fs::remove_file(path)
    }
}

/// As the block layer says it, and as ext4 does once it has given up.
fn is_of_the_device(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errnos = [Errno::IO, Errno::NOSPC, Errno::ROFS].map(Errno::raw_os_error);
    error
        .raw_os_error()
        .is_some_and(|raw| errnos.contains(&raw))
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::super::Disk;
    use super::*;

    #[test]
    fn a_failed_device_keeps_what_was_synced_and_takes_nothing_more() -> Result<()> {
        let home = tempfile::tempdir()?;
        let mut disk = Disk::failing(&home.path().join("disk"))?;
        let kept = disk.dir().join("kept");
        let mut file = File::create(&kept)?;
        file.write_all(b"kept")?;
        file.sync_all()?;
        drop(file);
        disk.fail()?;
        ensure!(fs::read_to_string(&kept)? == "kept");
        disk.power_on()?;
        ensure!(fs::read_to_string(&kept)? == "kept");
        drop(disk);
        ensure!(fs::read_dir(home.path().join("disk"))?.next().is_none());
        Ok(())
    }
}
