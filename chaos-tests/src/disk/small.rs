//! A disk that can be full: memory, of a given number of bytes and inodes. Owns the ballast that
//! fills it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FallocateFlags, StatVfs, fallocate, statvfs};
use rustix::mount::MountFlags;

use super::mount::Mount;

const BALLAST: &str = ".ballast";
const PROBE: &str = ".probe";
/// What a write takes from the disk at least.
const PAGE: u64 = 4096;

#[derive(Debug)]
pub struct Small {
    mount: Mount,
    bytes: u64,
    inodes: u64,
}

impl Small {
    pub(super) fn mount(dir: &Path, bytes: u64, inodes: u64) -> Result<Self> {
        let mount = Mount::prepare(dir)?;
        let mut small = Self {
            mount,
            bytes,
            inodes,
        };
        small.power_on()?;
        Ok(small)
    }

    pub(super) fn power_on(&mut self) -> Result<()> {
        if self.mount.stands() {
            return Ok(());
        }
        let options = format!("size={},nr_inodes={},mode=755", self.bytes, self.inodes);
        let options = CString::new(options)?;
        let (dir, flags) = (self.mount.dir(), MountFlags::empty());
        rustix::mount::mount("tmpfs", dir, "tmpfs", flags, options.as_c_str())
            .with_context(|| format!("mounting a small disk at {}", dir.display()))
    }

    pub fn dir(&self) -> &Path {
        self.mount.dir()
    }

    /// Takes bytes until no more than `leaving` are left, rounded down to whole pages.
    pub fn fill(&self, leaving: u64) -> Result<()> {
        let leaving = leaving / PAGE * PAGE;
        fs::create_dir_all(self.ballast())?;
        let file = File::create(self.ballast().join("bytes"))?;
        let mut held = 0;
        loop {
            let free = self.free_bytes()?;
            if free <= leaving {
                return Ok(());
            }
            // Others write meanwhile: what did not fit is asked for again, smaller.
            match fallocate(&file, FallocateFlags::empty(), held, free - leaving) {
                Ok(()) => held += free - leaving,
                Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => return Err(error).context("writing ballast"),
            }
        }
    }

    /// Takes inodes until no more than `leaving` are left.
    pub fn fill_inodes(&self, leaving: u64) -> Result<()> {
        fs::create_dir_all(self.ballast())?;
        for number in 0..self.inodes {
            if self.stat()?.f_ffree <= leaving {
                return Ok(());
            }
            match File::create(self.ballast().join(format!("inode-{number}"))) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("making ballast"),
            }
        }
        bail!("{} files did not fill the inodes", self.inodes)
    }

    /// Gives back what the ballast took.
    pub fn free(&self) -> Result<()> {
        if self.ballast().exists() {
            fs::remove_dir_all(self.ballast())?;
        }
        Ok(())
    }

    /// Shows that the disk is full: a write of more than `leaving` bytes is refused for want of
    /// space, and for no other reason. With inodes filled, `leaving` does not matter.
    pub fn check(&self, leaving: u64) -> Result<()> {
        let probe = self.dir().join(PROBE);
        let blank = vec![1; usize::try_from(leaving + PAGE)?];
        let written = File::create(&probe).and_then(|mut file| file.write_all(&blank));
        fs::remove_file(&probe).ok();
        match written {
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(()),
            Err(error) => Err(error).context("a full disk refuses with ENOSPC"),
            Ok(()) => bail!("{} bytes still fit: {}", blank.len(), self.free_bytes()?),
        }
    }

    /// Shows that this many bytes and a file more fit again.
    pub fn check_free(&self, bytes: u64) -> Result<()> {
        let (free, inodes) = (self.free_bytes()?, self.stat()?.f_ffree);
        ensure!(free >= bytes && inodes > 0, "{free} bytes, {inodes} inodes");
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        let stat = self.stat()?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn stat(&self) -> Result<StatVfs> {
        let dir = self.dir();
        statvfs(dir).with_context(|| dir.display().to_string())
    }

    fn ballast(&self) -> PathBuf {
        self.dir().join(BALLAST)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Disk;
    use super::*;

    const SIZE: u64 = 4 << 20;

    #[test]
    fn a_filled_disk_takes_what_was_left_and_no_more() -> Result<()> {
        let home = tempfile::tempdir()?;
        let disk = Disk::small(&home.path().join("disk"), SIZE, 64)?;
        ensure!(disk.check(0).is_err(), "an empty disk is not full");
        disk.fill(64 << 10)?;
        disk.check(64 << 10)?;
        fs::write(disk.dir().join("fits"), vec![1; 60 << 10])?;
        disk.free()?;
        disk.check_free(SIZE / 2)?;
        fs::write(disk.dir().join("fits again"), vec![1; 1 << 20])?;
        Ok(())
    }

    #[test]
    fn a_disk_out_of_inodes_takes_bytes_and_no_file() -> Result<()> {
        let home = tempfile::tempdir()?;
        let disk = Disk::small(&home.path().join("disk"), SIZE, 64)?;
        let old = disk.dir().join("old");
        File::create(&old)?;
        disk.fill_inodes(0)?;
        disk.check(0)?;
        fs::write(&old, vec![1; 1 << 20])?;
        disk.free()?;
        disk.check_free(1)?;
        Ok(())
    }

    #[test]
    fn a_dropped_disk_leaves_no_mount_and_hides_nothing() -> Result<()> {
        let home = tempfile::tempdir()?;
        let dir = home.path().join("disk");
        let disk = Disk::small(&dir, SIZE, 64)?;
        fs::write(disk.dir().join("gone"), "soon")?;
        drop(disk);
        ensure!(fs::read_dir(&dir)?.next().is_none());
        fs::write(dir.join("here"), "first")?;
        ensure!(Disk::small(&dir, SIZE, 64).is_err(), "it would hide a file");
        Ok(())
    }
}
