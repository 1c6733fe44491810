//! One life of a voter: Raft on an open store, with the tasks that belong to it, from their start
//! to their end. Owns Raft's timing; who begins the next life is the keeper's matter.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::error::Fatal;
use openraft::{SnapshotPolicy, StorageError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::batch::{self, Pending};
use super::candidacy;
use super::inbox::Newcomer;
use super::membership;
use super::network::Network;
use super::registry::{Home, OpenError, Tuning, check_cluster};
use super::store::{LogStore, Machine, Store, StoreError};
use super::types::Raft;

/// Leaders speak this often. openraft gives an append just as long to be answered, so it must be
/// well above the round trips between regions.
const HEARTBEAT_MILLIS: u64 = 250;
/// openraft 0.9 stands for election `ELECTION_MAX` (the leader's lease) plus a time between the
/// two after the last heartbeat: 2.25 to 3 s. That is nine missed heartbeats at least (a busy
/// machine loses a few), and short enough that a write outlives a leader within 4 s.
const ELECTION_MIN_MILLIS: u64 = 750;
pub(super) const ELECTION_MAX_MILLIS: u64 = 1500;
/// One chunk of a snapshot has to be there by then; 128 KiB pass in it at a quarter of a Mbit/s.
const CHUNK_DEADLINE_MILLIS: u64 = 5000;
const CHUNK_BYTES: u64 = 128 << 10;
/// Entries per append; their bytes are bounded by the store's read budget.
const ENTRIES_PER_APPEND: u64 = 64;
/// The commit mark reaches the disk by then when no write carries it there.
const COMMIT_FLUSH_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Voter {
    pub raft: Raft,
    pub store: Store,
    pub batches: mpsc::Sender<Pending>,
    pub newcomer: Newcomer,
    pub alarm: Alarm,
    /// Aborted with the voter.
    tasks: Mutex<JoinSet<()>>,
}

/// Where whoever uses the store says that it failed. (What fails under openraft's own hands ends
/// openraft, which needs no alarm.) One failure is enough: the file has to be opened anew.
#[derive(Clone)]
pub(super) struct Alarm(Arc<watch::Sender<Option<String>>>);

impl Alarm {
    pub fn raise(&self, error: &StoreError) {
        self.0.send_if_modified(|raised| {
            let first = raised.is_none();
            raised.get_or_insert_with(|| error.to_string());
            first
        });
    }
}

impl Voter {
    /// Begins a life: everything it knows comes from `store`.
    pub async fn start(store: Store, home: &Home) -> Result<Self, OpenError> {
        let (node, view) = (home.config.node.0, &home.view);
        store.resign(node).await?;
        let machine = Machine::load(store.clone(), view.clone())?;
        let newcomer = Newcomer::new(store.is_newcomer()?);
        let raft = Raft::new(
            node,
            Arc::new(raft_config(&home.config.tuning)?),
            Network(home.carrier.clone()),
            LogStore(store.clone()),
            machine,
        )
        .await
        .map_err(|error| OpenError::Raft(Box::new(error)))?;
        check_cluster(view, &home.config)?;
        let alarm = Alarm(Arc::new(watch::Sender::new(None)));
        let (batches, queue) = mpsc::channel(batch::QUEUE);
        let mut tasks = JoinSet::new();
        tasks.spawn(batch::run(raft.clone(), queue));
        tasks.spawn(membership::drive(
            raft.clone(),
            view.clone(),
            home.carrier.clone(),
        ));
        tasks.spawn(flush_commits(raft.clone(), store.clone(), alarm.clone()));
        tasks.spawn(candidacy::watch(
            raft.clone(),
            store.clone(),
            alarm.clone(),
            view.clone(),
            home.carrier.clone(),
        ));
        Ok(Self {
            raft,
            store,
            batches,
            newcomer,
            alarm,
            tasks: Mutex::new(tasks),
        })
    }

    /// Waits until this life is over; returns why.
    pub async fn failure(&self) -> String {
        let mut metrics = self.raft.metrics();
        let mut raised = self.alarm.0.subscribe();
        tokio::select! {
            ended = metrics.wait_for(|metrics| metrics.running_state.is_err()) => match ended {
                Ok(metrics) => match &metrics.running_state {
                    Err(fatal) => cause(fatal),
                    Ok(()) => "consensus ended".to_owned(),
                },
                // It could not even say so.
                Err(_) => "consensus panicked".to_owned(),
            },
            raised = raised.wait_for(Option::is_some) => {
                raised.ok().and_then(|why| why.clone()).unwrap_or_default()
            }
        }
    }

    /// Ends Raft and the tasks, and lets go of everything but this handle's store.
    pub async fn end(&self) {
        if self.raft.shutdown().await.is_err() {
            tracing::warn!("consensus did not end cleanly");
        }
        let mut tasks = {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
    }
}

/// What lies under an error of openraft, in the words of whoever met it first.
fn cause(fatal: &Fatal<u64>) -> String {
    let Fatal::StorageError(StorageError::IO { source }) = fatal else {
        return fatal.to_string();
    };
    let mut deepest: &dyn std::error::Error = source;
    while let Some(deeper) = deepest.source() {
        deepest = deeper;
    }
    let text = deepest.to_string();
    // It comes with the name of its Rust type.
    match text.split_once(": ") {
        Some((name, words)) if name.contains("::") => words.to_owned(),
        _ => text,
    }
}

fn raft_config(tuning: &Tuning) -> Result<openraft::Config, OpenError> {
    openraft::Config {
        cluster_name: "selvedge".to_owned(),
        heartbeat_interval: HEARTBEAT_MILLIS,
        election_timeout_min: ELECTION_MIN_MILLIS,
        election_timeout_max: ELECTION_MAX_MILLIS,
        install_snapshot_timeout: CHUNK_DEADLINE_MILLIS,
        snapshot_max_chunk_size: CHUNK_BYTES,
        max_payload_entries: ENTRIES_PER_APPEND,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(tuning.snapshot_every),
        max_in_snapshot_log_to_keep: tuning.log_kept,
        // `candidacy` opens and shuts the door to elections.
        enable_elect: false,
        // Whoever misses more than a snapshot's worth of entries gets the snapshot.
        replication_lag_threshold: 2 * tuning.snapshot_every,
        purge_batch_size: 1,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| OpenError::Tuning(Box::new(error)))
}

/// Brings the commit mark to disk a moment after things went quiet, so that a voter that boots
/// alone shows what was acknowledged long before.
async fn flush_commits(raft: Raft, store: Store, alarm: Alarm) {
    let mut metrics = raft.data_metrics();
    while metrics.changed().await.is_ok() {
        tokio::time::sleep(COMMIT_FLUSH_PAUSE).await;
        if let Err(error) = store.flush_committed().await {
            alarm.raise(&error);
            return;
        }
    }
}
