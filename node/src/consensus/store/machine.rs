//! The state machine: applies committed entries to the registry's state in memory and tells the
//! view. Durable are its snapshots; what came after is replayed from the log at boot.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, StorageIOError,
};
use scheduler::registry::{Change, Command, Reply, State};
use serde::{Deserialize, Serialize};

use super::log::failed;
use super::{Store, StoreError, corrupt};
use crate::consensus::types::{Batch, Entry, LogId, Membership, Replies, SnapshotMeta, TypeConfig};
use crate::consensus::view::View;

type StorageError = openraft::StorageError<u64>;

const BODY_FORMAT: u32 = 1;

/// A snapshot's content, as JSON.
#[derive(Deserialize)]
struct Body {
    format: u32,
    state: State,
}

#[derive(Serialize)]
struct BodyRef<'a> {
    format: u32,
    state: &'a State,
}

pub(in crate::consensus) struct Machine {
    store: Store,
    view: Arc<View>,
    state: Arc<State>,
    applied: Option<LogId>,
    membership: Membership,
}

impl Machine {
    /// Starts from the last snapshot; openraft replays the committed log after it.
    pub fn load(store: Store, view: Arc<View>) -> Result<Self, StoreError> {
        let mut machine = Self {
            store,
            view,
            state: Arc::default(),
            applied: None,
            membership: Membership::default(),
        };
        if let Some((meta, data)) = machine.store.read_snapshot()? {
            machine.replace(&meta, &data)?;
        }
        Ok(machine)
    }

    fn replace(&mut self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), StoreError> {
        let body: Body =
            serde_json::from_slice(data).map_err(|why| corrupt("snapshot content", why))?;
        if body.format != BODY_FORMAT {
            return Err(StoreError::Format { found: body.format });
        }
        self.state = Arc::new(body.state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.view.reset(self.state.clone());
        Ok(())
    }
}

/// One entry's commands in order: their replies, and what changed under which index.
fn apply_batch(
    state: &mut State,
    batch: &Batch,
    changes: &mut Vec<(u64, Vec<Change>)>,
) -> Result<Vec<Reply>, serde_json::Error> {
    // All are decoded before the first is applied: an entry is applied whole or not at all.
    let commands: Vec<Command> = batch
        .0
        .iter()
        .map(|text| serde_json::from_str(text))
        .collect::<Result<_, _>>()?;
    let apply = |command| {
        let (reply, step) = state.apply(command);
        if !step.is_empty() {
            changes.push((state.index, step));
        }
        reply
    };
    Ok(commands.iter().map(apply).collect())
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Replies>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        let mut changes = Vec::new();
        for entry in entries {
            let replies = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    self.membership = Membership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
                // The view holds the last state, so this copies once per call of `apply`.
                EntryPayload::Normal(batch) => apply_batch(
                    Arc::make_mut(&mut self.state),
                    &batch,
                    &mut changes,
                )
                .map_err(|error| {
                    tracing::error!(%error, index = entry.log_id.index, "undecodable entry");
                    StorageIOError::apply(entry.log_id, openraft::AnyError::new(&error))
                })?,
            };
            self.applied = Some(entry.log_id);
            answers.push(Replies(replies));
        }
        if !changes.is_empty() {
            fail::fail_point!("consensus::applied");
            self.view.publish(self.state.clone(), changes);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            store: self.store.clone(),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        self.store.snapshot_arrives(true);
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let install = async {
            // Decoded first: what cannot be read must not replace what can.
            self.replace(meta, snapshot.get_ref())?;
            self.store.write_snapshot(meta, snapshot.get_ref()).await
        };
        let installed = install.await;
        self.store.snapshot_arrives(false);
        let subject = ErrorSubject::Snapshot(Some(meta.signature()));
        installed.map_err(failed(subject, ErrorVerb::Write))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let stored = self
            .store
            .read_snapshot()
            .map_err(failed(ErrorSubject::Snapshot(None), ErrorVerb::Read))?;
        Ok(stored.map(|(meta, data)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        }))
    }
}

/// Writes a snapshot of the state as it was when asked, while entries go on being applied.
pub(in crate::consensus) struct Builder {
    store: Store,
    state: Arc<State>,
    applied: Option<LogId>,
    membership: Membership,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let at = self
            .applied
            .map_or_else(|| "empty".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            // Random, because chunks of equally named snapshots may be mixed by a receiver.
            snapshot_id: format!("{at}-{:016x}", rand::random::<u64>()),
        };
        let build = async {
            let data = serde_json::to_vec(&BodyRef {
                format: BODY_FORMAT,
                state: &self.state,
            })
            .map_err(|why| corrupt("snapshot content", why))?;
            fail::fail_point!("consensus::snapshot_built");
            self.store.write_snapshot(&meta, &data).await?;
            fail::fail_point!("consensus::snapshot_written");
            Ok(data)
        };
        let data = build
            .await
            .map_err(failed(ErrorSubject::Snapshot(None), ErrorVerb::Write))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        })
    }
}
