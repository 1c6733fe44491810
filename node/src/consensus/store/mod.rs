//! The voter's durable memory: one redb file with vote, log, purge mark, commit mark and the last
//! snapshot. Owns the file's layout, its checksums and its fsync; what the entries mean is the
//! state machine's matter.

mod file;
mod log;
mod machine;
mod record;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub(super) use self::log::LogStore;
pub(super) use self::machine::Machine;
use self::record::{decode_entry, encode, seal, unseal};
#[cfg(test)]
use super::sim::SimFile;
use super::types::{Entry, LogId, SnapshotMeta, Vote};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");

const FORMAT: &str = "format";
const NODE: &str = "node";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT_META: &str = "snapshot.meta";
const SNAPSHOT_DATA: &str = "snapshot.data";
/// Present until this store has caught up with a leader for the first time.
const NEWCOMER: &str = "newcomer";

/// Rises when the file's layout changes in a way an older daemon cannot read.
const FORMAT_VERSION: u32 = 1;

/// Why the store cannot be opened or used. None of them is ever healed by starting empty: an empty
/// voter could help to elect a leader that lacks acknowledged writes.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the registry file failed: {0}")]
    Database(#[source] Box<redb::Error>),
    #[error("the registry file is damaged at {what}: {why}")]
    Corrupt { what: String, why: String },
    #[error("the registry file belongs to node n{found}, this is node n{expected}")]
    ForeignNode { found: u64, expected: u64 },
    #[error("the registry file has format {found}, this daemon reads {FORMAT_VERSION}")]
    Format { found: u32 },
    #[error("the daemon is stopping")]
    Stopping,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

fn corrupt(what: impl Display, why: impl Display) -> StoreError {
    StoreError::Corrupt {
        what: what.to_string(),
        why: why.to_string(),
    }
}

/// The open file. Clones share it.
#[derive(Clone)]
pub(super) struct Store(Arc<Inner>);

struct Inner {
    db: Database,
    lane: Lane,
    committed: Mutex<Committed>,
    /// Whether a leader's snapshot is on its way to the disk.
    arriving: watch::Sender<bool>,
}

/// Where a transaction may block.
enum Lane {
    /// On a thread for that.
    Threads,
    /// Right here and in virtual time, so that a seed always gives the same order.
    #[cfg(test)]
    Simulated(SimFile),
}

/// The commit mark is a hint for the next boot, so it rides on the next durable write, or is
/// flushed by itself once things are quiet.
#[derive(Default)]
struct Committed {
    mark: Option<LogId>,
    dirty: bool,
}

/// The tables of one write transaction.
struct Tables<'txn> {
    meta: Table<'txn, &'static str, &'static [u8]>,
    log: Table<'txn, u64, &'static [u8]>,
}

impl Store {
    /// Opens `dir/registry.redb`, or makes it, and checks every record in it.
    pub fn open(dir: &Path, node: u64) -> Result<Self, StoreError> {
        Self::checked(file::open(dir, node)?, Lane::Threads, node)
    }

    /// The same on a simulated disk.
    #[cfg(test)]
    pub fn open_on(file: &SimFile, node: u64) -> Result<Self, StoreError> {
        let db = file::open_simulated(file, node)?;
        Self::checked(db, Lane::Simulated(file.clone()), node)
    }

    fn checked(db: Database, lane: Lane, node: u64) -> Result<Self, StoreError> {
        let store = Self(Arc::new(Inner {
            db,
            lane,
            committed: Mutex::default(),
            arriving: watch::Sender::new(false),
        }));
        store.check_owner(node)?;
        store.check_log()?;
        store.read_snapshot()?;
        if store.read_purged()? > store.snapshot_end()? {
            return Err(corrupt("log", "entries are purged that no snapshot has"));
        }
        store.read_vote()?;
        let mark = store.get(COMMITTED)?;
        store.committed_mut().mark = store.believable(mark)?;
        Ok(store)
    }

    fn check_owner(&self, node: u64) -> Result<(), StoreError> {
        let missing = || corrupt("header", "no format or node");
        let format: u32 = self.get(FORMAT)?.ok_or_else(missing)?;
        if format != FORMAT_VERSION {
            return Err(StoreError::Format { found: format });
        }
        let found: u64 = self.get(NODE)?.ok_or_else(missing)?;
        if found != node {
            return Err(StoreError::ForeignNode {
                found,
                expected: node,
            });
        }
        Ok(())
    }

    /// Every entry decodes, carries its own index, and follows the one before.
    fn check_log(&self) -> Result<(), StoreError> {
        let purged = self.read_purged()?;
        let mut expected = purged.map(|id| id.index + 1);
        let txn = self.0.db.begin_read()?;
        for item in txn.open_table(LOG)?.range::<u64>(..)? {
            let (key, value) = item?;
            let index = key.value();
            if expected.is_some_and(|expected| expected != index) {
                return Err(corrupt(
                    format!("log {index}"),
                    "entries are missing before it",
                ));
            }
            decode_entry(index, value.value())?;
            expected = Some(index + 1);
        }
        Ok(())
    }

    pub fn read_vote(&self) -> Result<Option<Vote>, StoreError> {
        self.get(VOTE)
    }

    pub fn read_purged(&self) -> Result<Option<LogId>, StoreError> {
        self.get(PURGED)
    }

    pub fn is_newcomer(&self) -> Result<bool, StoreError> {
        Ok(self.get::<bool>(NEWCOMER)?.unwrap_or(false))
    }

    /// Gives up a leadership that this voter had when its process ended. openraft would resume it,
    /// and answer reads from a commit mark that may be older than what it had acknowledged.
    pub async fn resign(&self, node: u64) -> Result<(), StoreError> {
        match self.read_vote()? {
            Some(vote) if vote.committed && vote.leader_id().voted_for() == Some(node) => {
                self.save_vote(&Vote::new(vote.leader_id().term, node))
                    .await
            }
            _ => Ok(()),
        }
    }

    async fn save_vote(&self, vote: &Vote) -> Result<(), StoreError> {
        let vote = encode(VOTE, vote)?;
        self.write(move |tables| Ok(tables.meta.insert(VOTE, vote.as_slice()).map(drop)?))
            .await
    }

    /// From here on this voter's memory counts.
    pub async fn settle(&self) -> Result<(), StoreError> {
        self.write(|tables| Ok(tables.meta.remove(NEWCOMER).map(drop)?))
            .await
    }

    /// The commit mark, if the log has the entry it names: it may have reached the disk before a
    /// snapshot that brings that entry did.
    fn believable(&self, mark: Option<LogId>) -> Result<Option<LogId>, StoreError> {
        let Some(mark) = mark else {
            return Ok(None);
        };
        let found = self.entries(mark.index..=mark.index, 0)?;
        let known = found
            .first()
            .map(|entry| entry.log_id)
            .or(self.read_purged()?);
        Ok(known.filter(|known| *known == mark))
    }

    pub fn committed(&self) -> Option<LogId> {
        self.committed_mut().mark
    }

    pub fn note_committed(&self, mark: Option<LogId>) {
        let mut committed = self.committed_mut();
        committed.dirty |= committed.mark != mark;
        committed.mark = mark;
    }

    /// Writes the commit mark when it is not on disk yet.
    pub async fn flush_committed(&self) -> Result<(), StoreError> {
        if self.committed_mut().dirty {
            self.write(|_| Ok(())).await
        } else {
            Ok(())
        }
    }

    pub fn read_snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StoreError> {
        let Some(meta) = self.get::<SnapshotMeta>(SNAPSHOT_META)? else {
            return Ok(None);
        };
        let txn = self.0.db.begin_read()?;
        let table = txn.open_table(META)?;
        let data = table
            .get(SNAPSHOT_DATA)?
            .ok_or_else(|| corrupt("snapshot", "no data"))?;
        Ok(Some((meta, unseal(SNAPSHOT_DATA, data.value())?.to_vec())))
    }

    /// The last entry that the snapshot on disk has.
    fn snapshot_end(&self) -> Result<Option<LogId>, StoreError> {
        let meta = self.get::<SnapshotMeta>(SNAPSHOT_META)?;
        Ok(meta.and_then(|meta| meta.last_log_id))
    }

    /// A leader's snapshot begins to arrive, or was written or given up.
    pub fn snapshot_arrives(&self, arriving: bool) {
        self.0.arriving.send_replace(arriving);
    }

    /// Forgets the log up to `log_id`. openraft asks for it as soon as it has decided to install a
    /// snapshot: the snapshot has to be on disk first, or a crash would leave neither.
    async fn purge(&self, log_id: LogId) -> Result<(), StoreError> {
        let mut arriving = self.0.arriving.subscribe();
        let mut waited = false;
        while self.snapshot_end()? < Some(log_id) && *arriving.borrow_and_update() {
            waited = true;
            let _ = arriving.changed().await;
        }
        if waited && self.snapshot_end()? < Some(log_id) {
            return Err(corrupt("snapshot", "it was to be installed and was not"));
        }
        let mark = encode(PURGED, &log_id)?;
        self.write(move |tables| {
            tables.meta.insert(PURGED, mark.as_slice())?;
            Ok(tables.log.retain_in(..=log_id.index, |_, _| false)?)
        })
        .await
    }

    pub async fn write_snapshot(&self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StoreError> {
        let (meta, data) = (encode(SNAPSHOT_META, meta)?, seal(data));
        self.write(move |tables| {
            tables.meta.insert(SNAPSHOT_META, meta.as_slice())?;
            tables.meta.insert(SNAPSHOT_DATA, data.as_slice())?;
            Ok(())
        })
        .await
    }

    fn get<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        let txn = self.0.db.begin_read()?;
        let table = txn.open_table(META)?;
        let Some(value) = table.get(key)? else {
            return Ok(None);
        };
        let text = unseal(key, value.value())?;
        serde_json::from_slice(text)
            .map(Some)
            .map_err(|why| corrupt(key, why))
    }

    /// Entries of `range`, in order, until they hold more than `budget` bytes; the first is always
    /// among them.
    pub fn entries(
        &self,
        range: impl RangeBounds<u64>,
        budget: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let txn = self.0.db.begin_read()?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for item in txn.open_table(LOG)?.range::<u64>(range)? {
            let (key, value) = item?;
            bytes += value.value().len();
            if bytes > budget && !entries.is_empty() {
                break;
            }
            entries.push(decode_entry(key.value(), value.value())?);
        }
        Ok(entries)
    }

    /// Where the log ends, purged entries included.
    pub fn last_log_id(&self) -> Result<Option<LogId>, StoreError> {
        let last = self.last_entry()?.map(|entry| entry.log_id);
        if last.is_some() {
            Ok(last)
        } else {
            self.read_purged()
        }
    }

    fn last_entry(&self) -> Result<Option<Entry>, StoreError> {
        let txn = self.0.db.begin_read()?;
        let table = txn.open_table(LOG)?;
        let Some((key, value)) = table.last()? else {
            return Ok(None);
        };
        decode_entry(key.value(), value.value()).map(Some)
    }

    /// Appends sealed entries under their indexes.
    async fn append(&self, rows: Vec<(u64, Vec<u8>)>) -> Result<(), StoreError> {
        self.write(move |tables| {
            for (index, row) in &rows {
                tables.log.insert(index, row.as_slice())?;
            }
            Ok(())
        })
        .await
    }

    /// Runs `work` in one transaction that is on disk when this returns.
    async fn write<F>(&self, work: F) -> Result<(), StoreError>
    where
        F: FnOnce(&mut Tables<'_>) -> Result<(), StoreError> + Send + 'static,
    {
        let store = self.clone();
        match &self.0.lane {
            Lane::Threads => tokio::task::spawn_blocking(move || store.write_now(work))
                .await
                .map_err(|_| StoreError::Stopping)?,
            #[cfg(test)]
            Lane::Simulated(file) => {
                let (before, after) = file.waits();
                tokio::time::sleep(before).await;
                let written = store.write_now(work);
                tokio::time::sleep(after).await;
                written
            }
        }
    }

    fn write_now<F>(&self, work: F) -> Result<(), StoreError>
    where
        F: FnOnce(&mut Tables<'_>) -> Result<(), StoreError>,
    {
        let committed = {
            let mut committed = self.committed_mut();
            std::mem::take(&mut committed.dirty).then_some(committed.mark)
        };
        file::transact(&self.0.db, |tables| {
            work(tables)?;
            if let Some(mark) = committed {
                tables
                    .meta
                    .insert(COMMITTED, encode(COMMITTED, &mark)?.as_slice())?;
            }
            Ok(())
        })
    }

    fn committed_mut(&self) -> MutexGuard<'_, Committed> {
        self.0
            .committed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
