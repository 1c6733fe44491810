//! A disk in memory for redb that behaves as badly as real ones, by seed: what was not synced may
//! be lost, whole or in sectors, when the power goes; a failed sync leaves pages that look written
//! and are not; reads, writes and syncs fail; space runs out; bits rot; syncs take long.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;

use super::trace::{note, short};

/// What a disk writes whole.
const SECTOR: usize = 512;
/// An ordinary sync takes up to this.
const SYNC_MILLIS: u64 = 6;

/// One change of the file.
#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What is armed to go wrong; counts are operations from now.
#[derive(Debug, Clone, Default)]
pub(in crate::consensus) struct Faults {
    pub sync_fails_after: Option<u32>,
    pub write_fails_after: Option<u32>,
    pub read_fails_after: Option<u32>,
    pub power_fails_after: Option<u32>,
    pub full: bool,
    pub slow: Duration,
}

/// The medium and the kernel's page cache above it. It outlives the processes that use it.
struct Platter {
    node: u64,
    rng: StdRng,
    /// What is there after a power cut, apart from what of `unsynced` made it.
    durable: Vec<u8>,
    /// What reads see.
    cache: Vec<u8>,
    /// Dirty, in order.
    unsynced: Vec<Change>,
    exists: bool,
    faults: Faults,
    /// An operation failed since it was asked last.
    failed: bool,
    /// Whose file handle works: each process has a number, and a dead one's fails.
    process: Option<u32>,
    processes: u32,
}

#[derive(Clone)]
pub(in crate::consensus) struct Disk(Arc<Mutex<Platter>>);

/// One process's open file.
#[derive(Clone)]
pub(in crate::consensus) struct SimFile {
    disk: Disk,
    process: u32,
}

impl std::fmt::Debug for SimFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimFile({})", self.process)
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length, 0),
        Change::Write(at, data) => {
            let end = at + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(data);
        }
    }
}

/// The part of a write that reached the medium: some of its sectors.
fn torn(rng: &mut StdRng, at: usize, data: &[u8]) -> Vec<Change> {
    let mut kept = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let end = ((at + start) / SECTOR * SECTOR + SECTOR - at).min(data.len());
        if rng.random_bool(0.5) {
            kept.push(Change::Write(at + start, data[start..end].to_vec()));
        }
        start = end;
    }
    kept
}

impl Platter {
    /// What of the dirty pages reached the medium when nobody waited for it.
    fn settle_by_draw(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match (self.rng.random_range(0..3), &change) {
                (0, _) => {}
                (1, Change::Write(at, data)) => {
                    for part in torn(&mut self.rng, *at, data) {
                        apply(&mut self.durable, &part);
                    }
                }
                _ => apply(&mut self.durable, &change),
            }
        }
    }

    fn fails(&mut self, what: &str) -> io::Error {
        note(format_args!("n{} {what} fails", self.node));
        self.failed = true;
        eio()
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.cache, &change);
        self.unsynced.push(change);
    }

    fn cut_power(&mut self) {
        self.process = None;
        self.settle_by_draw();
        self.cache = self.durable.clone();
        self.faults = Faults::default();
    }
}

/// Counts down; true when it is time.
fn due(after: &mut Option<u32>) -> bool {
    match after {
        Some(0) => {
            *after = None;
            true
        }
        Some(count) => {
            *count -= 1;
            false
        }
        None => false,
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Disk {
    pub fn new(node: u64, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            node,
            rng: StdRng::seed_from_u64(seed),
            durable: Vec::new(),
            cache: Vec::new(),
            unsynced: Vec::new(),
            exists: false,
            faults: Faults::default(),
            failed: false,
            process: None,
            processes: 0,
        })))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new process opens the file; the handles of the ones before are dead.
    pub fn open(&self) -> SimFile {
        let mut platter = self.platter();
        platter.processes += 1;
        platter.process = Some(platter.processes);
        SimFile {
            disk: self.clone(),
            process: platter.processes,
        }
    }

    /// The process is gone; the kernel keeps what it has.
    pub fn kill(&self) {
        self.platter().process = None;
    }

    pub fn cut_power(&self) {
        self.platter().cut_power();
    }

    pub fn has_power(&self) -> bool {
        self.platter().process.is_some()
    }

    /// Whether an operation failed since this was asked last.
    pub fn take_failed(&self) -> bool {
        std::mem::take(&mut self.platter().failed)
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&self) {
        let mut platter = self.platter();
        platter.cut_power();
        platter.exists = false;
        platter.durable.clear();
        platter.cache.clear();
    }

    /// Flips `count` bits on the medium.
    pub fn rot(&self, count: usize) {
        let mut platter = self.platter();
        let length = platter.durable.len();
        for _ in 0..count {
            let (at, bit) = (
                platter.rng.random_range(0..length),
                platter.rng.random_range(0..8),
            );
            platter.durable[at] ^= 1 << bit;
        }
        platter.cache = platter.durable.clone();
        platter.unsynced.clear();
    }

    pub fn faults(&self, arm: impl FnOnce(&mut Faults)) {
        arm(&mut self.platter().faults);
    }

    /// A disk of its own with the same content, and nothing wrong with it.
    pub fn copy(&self) -> Self {
        let mut platter = self.platter();
        let copy = Self::new(platter.node, platter.rng.random());
        let mut of = copy.platter();
        of.durable = platter.cache.clone();
        of.cache = platter.cache.clone();
        of.exists = platter.exists;
        drop(of);
        copy
    }
}

impl SimFile {
    pub fn exists(&self) -> bool {
        self.disk.platter().exists
    }

    /// A file of its own that takes this one's place with [`SimFile::rename`].
    pub fn unfinished(&self) -> Self {
        Disk::new(self.disk.platter().node, 0).open()
    }

    pub fn rename(&self, unfinished: &Self) {
        let content = unfinished.disk.platter().durable.clone();
        let mut platter = self.disk.platter();
        platter.cache = content.clone();
        platter.durable = content;
        platter.exists = true;
    }

    /// As `posix_fadvise(DONTNEED)`: clean pages go, and the next reads ask the medium.
    pub fn forget_clean(&self) {
        let mut platter = self.disk.platter();
        let mut cache = platter.durable.clone();
        for change in &platter.unsynced {
            apply(&mut cache, change);
        }
        platter.cache = cache;
    }

    /// How long the next transaction waits before and after it is worked on.
    pub fn waits(&self) -> (Duration, Duration) {
        let mut platter = self.disk.platter();
        let ordinary = platter.rng.random_range(0..=SYNC_MILLIS * 1000);
        let before = platter.rng.random_range(0..=ordinary);
        let slow = platter.faults.slow;
        (
            Duration::from_micros(before) + slow / 2,
            Duration::from_micros(ordinary - before) + slow / 2,
        )
    }

    /// The medium, if this process lives and the power holds during this operation.
    fn powered(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.disk.platter();
        if platter.process != Some(self.process) {
            return Err(eio());
        }
        if due(&mut platter.faults.power_fails_after) {
            note(format_args!("n{} power fails", platter.node));
            platter.cut_power();
            return Err(eio());
        }
        Ok(platter)
    }
}

impl StorageBackend for SimFile {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.powered()?.cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let mut platter = self.powered()?;
        if due(&mut platter.faults.read_fails_after) {
            return Err(platter.fails("read"));
        }
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let found = platter.cache.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut platter = self.powered()?;
        let length = usize::try_from(len).map_err(io::Error::other)?;
        if platter.faults.full && length > platter.cache.len() {
            platter.fails("growing");
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.change(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut platter = self.powered()?;
        if due(&mut platter.faults.sync_fails_after) {
            // As Linux has it: the pages are clean now, whether they were written or not.
            platter.settle_by_draw();
            return Err(platter.fails("sync"));
        }
        let mut medium = std::mem::take(&mut platter.durable);
        for change in std::mem::take(&mut platter.unsynced) {
            apply(&mut medium, &change);
        }
        platter.durable = medium;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut platter = self.powered()?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        if due(&mut platter.faults.write_fails_after) || platter.faults.full {
            let platter = &mut *platter;
            for part in torn(&mut platter.rng, at, data) {
                platter.change(part);
            }
            return Err(platter.fails("write"));
        }
        note(format_args!("n{} w {at} {}", platter.node, short(data)));
        platter.change(Change::Write(at, data.to_vec()));
        Ok(())
    }
}
