//! A disk whose power can be cut: an ext4 on a loop device, stopped dead and mounted again. What
//! was synced is there then, what was not is gone. Owns the image file beside the folder.
//!
//! ext4 is mounted as forgetful as it can be: it writes back late, and a rename does not write the
//! renamed file's bytes first. A program that is right here is right on kinder disks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::mount::{Mount, beside};
use super::shutdown::shutdown;
use crate::world::{run, until};

/// Sparse: takes from the real disk what is written to it.
const BYTES: u64 = 256 << 20;
const OPTIONS: &str = "loop,noatime,commit=300,noauto_da_alloc";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Powered {
    mount: Mount,
    image: PathBuf,
}

impl Powered {
    pub(super) fn mount(dir: &Path) -> Result<Self> {
        Self::mount_on(dir, beside(dir, "ext4"))
    }

    /// The same on blocks that lie in this file.
    pub(super) fn mount_on(dir: &Path, image: PathBuf) -> Result<Self> {
        let mount = Mount::prepare(dir)?;
        File::create(&image)?.set_len(BYTES)?;
        let mut powered = Self { mount, image };
        let image = powered.image.to_string_lossy().into_owned();
        let lazily = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        run("mkfs.ext4", ["-q", "-F", "-m", "0", "-E", lazily, &image])?.ok()?;
        powered.power_on()?;
        // What mkfs made is no part of a node's folder.
        fs::remove_dir(powered.dir().join("lost+found"))?;
        File::open(powered.dir())?.sync_all()?;
        Ok(powered)
    }

    pub fn dir(&self) -> &Path {
        self.mount.dir()
    }

    /// Cuts the power: from now on every call on this disk that would touch it fails, and what was
    /// in memory only is lost. The host's processes are the caller's to end.
    pub fn power_cut(&self) -> Result<()> {
        ensure!(self.mount.stands(), "{} has no power", self.dir().display());
        shutdown(File::open(self.dir())?).context("cutting the power")?;
        self.check_cut()
    }

    /// Shows that the power is cut.
    pub fn check_cut(&self) -> Result<()> {
        let probe = File::create(self.dir().join(".probe"));
        let refused = probe.err().and_then(|error| error.raw_os_error());
        let eio = rustix::io::Errno::IO.raw_os_error();
        ensure!(refused == Some(eio), "a cut disk still takes a file");
        Ok(())
    }

    /// Mounts the disk again and replays its journal. Nothing may have files open on the old mount:
    /// two lives of one disk at once would be no power cut.
    pub fn power_on(&mut self) -> Result<()> {
        self.mount.detach()?;
        let image = self.image.to_string_lossy().into_owned();
        until("the loop device is free", PATIENCE, || {
            let held = run("losetup", ["--associated", &image])?.ok()?.out;
            ensure!(held.is_empty(), "something has files open: {held}");
            Ok(Some(()))
        })?;
        // `mount -o loop` marks the loop device to free itself at the unmount.
        let dir = self.mount.dir().to_string_lossy().into_owned();
        run("mount", ["-t", "ext4", "-o", OPTIONS, &image, &dir])?.ok()?;
        Ok(())
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        // The loop device keeps the bytes for as long as something is open on it.
        fs::remove_file(&self.image).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::Disk;
    use super::*;

    fn synced(path: &Path, text: &str) -> Result<()> {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(())
    }

    fn cut_and_on(disk: &mut Powered) -> Result<()> {
        disk.power_cut()?;
        disk.power_on()
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_takes_the_rest() -> Result<()> {
        let home = tempfile::tempdir()?;
        let mut disk = Disk::powered(&home.path().join("disk"))?;
        let (a, b) = (disk.dir().join("a"), disk.dir().join("b"));
        synced(&a, "kept")?;
        fs::write(&b, "lost")?;
        ensure!(fs::read_to_string(&b)? == "lost");
        cut_and_on(&mut disk)?;
        ensure!(fs::read_to_string(&a)? == "kept");
        ensure!(!b.exists(), "what was never synced is gone");
        Ok(())
    }

    #[test]
    fn bytes_added_after_the_last_sync_are_gone() -> Result<()> {
        let home = tempfile::tempdir()?;
        let mut disk = Disk::powered(&home.path().join("disk"))?;
        let log = disk.dir().join("log");
        synced(&log, "one\n")?;
        let mut file = File::options().append(true).open(&log)?;
        file.write_all(b"two\n")?;
        drop(file);
        cut_and_on(&mut disk)?;
        ensure!(fs::read_to_string(&log)? == "one\n");
        Ok(())
    }

    #[test]
    fn a_rename_lasts_only_after_its_folder_was_synced() -> Result<()> {
        let home = tempfile::tempdir()?;
        let mut disk = Disk::powered(&home.path().join("disk"))?;
        for name in ["first", "second"] {
            synced(&disk.dir().join(name), name)?;
            File::open(disk.dir())?.sync_all()?;
        }
        fs::rename(disk.dir().join("first"), disk.dir().join("first.new"))?;
        File::open(disk.dir())?.sync_all()?;
        fs::rename(disk.dir().join("second"), disk.dir().join("second.new"))?;
        cut_and_on(&mut disk)?;
        ensure!(disk.dir().join("first.new").exists());
        ensure!(disk.dir().join("second").exists() && !disk.dir().join("second.new").exists());
        Ok(())
    }

    #[test]
    fn power_does_not_come_back_while_the_old_life_has_files_open() -> Result<()> {
        let home = tempfile::tempdir()?;
        let mut disk = Disk::powered(&home.path().join("disk"))?;
        let image = disk.image.to_string_lossy().into_owned();
        let open = File::create(disk.dir().join("open"))?;
        disk.power_cut()?;
        disk.mount.detach()?;
        let held = run("losetup", ["--associated", &image])?.ok()?.out;
        ensure!(!held.is_empty(), "an open file holds the device");
        drop(open);
        disk.power_on()?;
        drop(disk);
        until("the device frees itself", PATIENCE, || {
            let held = run("losetup", ["--associated", &image])?.ok()?.out;
            Ok(held.is_empty().then_some(()))
        })
    }
}
