//! Mounts at a folder: made, asked for, taken away. Owns the folder and no file in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

/// A folder that something is mounted at, until this is dropped.
#[derive(Debug)]
pub(super) struct Mount {
    dir: PathBuf,
}

impl Mount {
    /// Makes the folder, which must hold nothing: a mount hides what is below it.
    pub fn prepare(dir: &Path) -> Result<Self> {
        require_root()?;
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        // As in /proc/self/mountinfo, whatever links lead here.
        let dir = dir.canonicalize()?;
        ensure!(!mounted(&dir), "{} has a disk already", dir.display());
        let empty = fs::read_dir(&dir)?.next().is_none();
        ensure!(empty, "{} is not empty", dir.display());
        Ok(Self { dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn stands(&self) -> bool {
        mounted(&self.dir)
    }

    /// Takes it out of the tree at once; what still has files open there keeps them.
    pub fn detach(&self) -> Result<()> {
        if mounted(&self.dir) {
            unmount(&self.dir, UnmountFlags::DETACH)
                .with_context(|| format!("unmounting {}", self.dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("{error:#}");
        }
    }
}

/// A file or folder of a disk's own, beside its folder.
pub(super) fn beside(dir: &Path, what: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    dir.with_file_name(name)
}

pub(super) fn require_root() -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    ensure!(root, "disks are mounted by root alone: run this as root");
    Ok(())
}

fn mounted(dir: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|at| Path::new(at) == dir)
}
