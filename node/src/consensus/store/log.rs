//! The log as openraft wants it. An entry is acknowledged only after its transaction was fsynced.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError};

use super::{Store, StoreError, encode};
use crate::consensus::types::{Entry, LogId, TypeConfig, Vote};

type StorageError = openraft::StorageError<u64>;

/// What one append message may carry, except that a single entry always fits: it has to pass
/// within a heartbeat (250 ms), also through a few Mbit/s.
const READ_BUDGET: usize = 128 << 10;

/// Handle of openraft's core and of its replication tasks.
#[derive(Clone)]
pub(in crate::consensus) struct LogStore(pub(in crate::consensus) Store);

pub(super) fn failed(
    subject: ErrorSubject<u64>,
    verb: ErrorVerb,
) -> impl FnOnce(StoreError) -> StorageError {
    move |error| {
        tracing::error!(%error, "the registry's store failed; this voter stops voting");
        StorageIOError::new(subject, verb, openraft::AnyError::new(&error)).into()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0
            .entries(range, usize::MAX)
            .map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.0
            .entries(start..end, READ_BUDGET)
            .map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let state = || -> Result<_, StoreError> {
            let last_purged_log_id = self.0.read_purged()?;
            Ok(LogState {
                last_purged_log_id,
                last_log_id: self.0.last_log_id()?,
            })
        };
        state().map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = self.0.save_vote(vote).await;
        fail::fail_point!("consensus::voted");
        saved.map_err(failed(ErrorSubject::Vote, ErrorVerb::Write))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.0
            .read_vote()
            .map_err(failed(ErrorSubject::Vote, ErrorVerb::Read))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.0.note_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.0.committed())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows: Result<Vec<_>, StoreError> = entries
            .into_iter()
            .map(|entry| Ok((entry.log_id.index, encode("an entry", &entry)?)))
            .collect();
        fail::fail_point!("consensus::appending");
        let written = match rows {
            Ok(rows) => self.0.append(rows).await,
            Err(error) => Err(error),
        };
        fail::fail_point!("consensus::appended");
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(failed(ErrorSubject::Logs, ErrorVerb::Write)(error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.0
            .write(move |tables| Ok(tables.log.retain_in(log_id.index.., |_, _| false)?))
            .await
            .map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        fail::fail_point!("consensus::purging");
        let purged = self.0.purge(log_id).await;
        fail::fail_point!("consensus::purged");
        purged.map_err(failed(ErrorSubject::Logs, ErrorVerb::Delete))
    }
}
