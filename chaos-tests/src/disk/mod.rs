//! The disks a host can have: plain, too small, cut from power, or failing call by call. A disk is
//! mounted at a folder, which then is the folder a node works in, and goes when it is dropped. Also
//! the faults beside the disk that a process on a host meets: time, system calls, limits. Owns how
//! a fault is put in, taken out and shown to hold; not when, which is a scenario's business.
//!
//! Everything here needs root. Nothing outlives a killed test: a disk keeps its files beside its
//! folder, where the world's reaper unmounts and removes them, loop devices free themselves at the
//! unmount, and the process behind a faulty disk ends with its parent.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! # let dir = std::path::Path::new("/tmp/world/par-1");
//! use chaos_tests::disk::{Disk, Effect, Op, Rule};
//! let small = Disk::small(dir, 64 << 20, 4096)?; // Small::{fill, free, check}
//! let mut powered = Disk::powered(dir)?; // Powered::{power_cut, power_on}
//! powered.power_cut()?;
//! powered.power_on()?;
//! let faulty = Disk::faulty(&dir.join("registry"))?; // Faulty::{inject, counts, heal}
//! faulty.inject(&[Rule::new(Op::Fsync, Effect::Eio).after(2).times(1)])?;
//! # Ok(())
//! # }
//! ```

pub mod clock;
mod failing;
mod faulty;
mod fuse;
pub mod limits;
mod mount;
mod powered;
mod prefix;
pub mod rot;
mod rule;
mod shutdown;
mod small;
pub mod strace;

use std::path::Path;

use anyhow::Result;

pub use failing::Failing;
pub use faulty::Faulty;
pub use fuse::serve;
pub use powered::Powered;
pub use prefix::Prefix;
pub use rule::{Count, Effect, Op, Rule};
pub use small::Small;

/// The disk below a node's folder.
#[derive(Debug)]
pub enum Disk {
    /// The machine's own.
    Plain,
    /// Has few bytes and few inodes: rows D1 and D2.
    Small(Small),
    /// Loses what was not synced when its power is cut: D8.
    Powered(Powered),
    /// Its device fails: D4.
    Failing(Failing),
    /// Fails, delays or tears the calls that rules name: D3, D5, D6.
    Faulty(Faulty),
}

impl Disk {
    /// A memory disk of this many bytes and inodes.
    pub fn small(dir: &Path, bytes: u64, inodes: u64) -> Result<Small> {
        Small::mount(dir, bytes, inodes)
    }

    /// An ext4 of its own on a loop device.
    pub fn powered(dir: &Path) -> Result<Powered> {
        Powered::mount(dir)
    }

    /// An ext4 of its own on a device that can fail.
    pub fn failing(dir: &Path) -> Result<Failing> {
        Failing::mount(dir)
    }

    /// A file system in user space over what the folder holds.
    pub fn faulty(dir: &Path) -> Result<Faulty> {
        Faulty::mount(dir)
    }

    /// As after a boot: mounted, also when something unmounted it or ended its process. A memory
    /// disk comes back empty.
    pub fn power_on(&mut self) -> Result<()> {
        match self {
            Self::Plain => Ok(()),
            Self::Small(small) => small.power_on(),
            Self::Powered(powered) => powered.power_on(),
            Self::Failing(failing) => failing.power_on(),
            Self::Faulty(faulty) => faulty.power_on(),
        }
    }
}

impl From<Small> for Disk {
    fn from(disk: Small) -> Self {
        Self::Small(disk)
    }
}

impl From<Powered> for Disk {
    fn from(disk: Powered) -> Self {
        Self::Powered(disk)
    }
}

impl From<Failing> for Disk {
    fn from(disk: Failing) -> Self {
        Self::Failing(disk)
    }
}

impl From<Faulty> for Disk {
    fn from(disk: Faulty) -> Self {
        Self::Faulty(disk)
    }
}
