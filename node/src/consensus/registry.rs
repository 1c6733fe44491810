//! The facade: opens this node's part of the registry, owns its tasks, says how it stands.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::error::{Fatal, InitializeError, RaftError};
use openraft::{EmptyNode, SnapshotPolicy};
use scheduler::model::{NodeId, NodeIdentity, UnixMs};
use scheduler::registry::{Action, ClusterMeta, Command, Refusal, Reply, State};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::batch::{self, Pending};
use super::candidacy;
use super::feed::{self, FeedSource, FeedStream, Follower};
use super::follow_file::{FileError, FollowFile};
use super::inbox::Newcomer;
use super::membership;
use super::network::{Carrier, Network};
use super::propose::ProposeError;
use super::store::{LogStore, Machine, Store, StoreError};
use super::types::Raft;
use super::view::{RING_CHANGES, View};

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
/// Feeds served at once by one node; others are turned away and try their next source.
const FEEDS: usize = 256;
/// The commit mark reaches the disk by then when no write carries it there.
const COMMIT_FLUSH_PAUSE: Duration = Duration::from_millis(500);
/// To become leader of a cluster of one and commit its first command.
const FOUND_DEADLINE: Duration = Duration::from_secs(20);
const TASK_END_DEADLINE: Duration = Duration::from_secs(5);

/// What this node's part of the registry needs to know of the node.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeId,
    pub cluster_id: String,
    /// `DATA/registry`.
    pub dir: PathBuf,
    pub tuning: Tuning,
}

/// Sizes that only tests change.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Entries between snapshots: bounds the log and the replay at boot.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for voters that were away for a moment.
    pub log_kept: u64,
    /// Changes kept for followers that were away for a moment.
    pub ring: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            snapshot_every: 1000,
            log_kept: 200,
            ring: RING_CHANGES,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the registry on disk is of cluster {found}, this node is of {expected}")]
    ForeignCluster { found: String, expected: String },
    #[error("consensus cannot start: {0}")]
    Raft(#[source] Box<Fatal<u64>>),
    #[error("consensus cannot run with these sizes: {0}")]
    Tuning(#[source] Box<openraft::ConfigError>),
    #[error("a cluster of one cannot begin: {0}")]
    Initialize(#[source] Box<RaftError<u64, InitializeError<u64, EmptyNode>>>),
    #[error("the cluster could not be founded: {0}")]
    Found(#[from] ProposeError),
    #[error("the cluster could not be founded: {0}")]
    FoundRefused(Refusal),
}

/// This node's part of the registry. Clones share it.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    config: Config,
    carrier: Arc<dyn Carrier>,
    view: Arc<View>,
    voter: Option<Voter>,
    source: Option<Arc<dyn FeedSource>>,
    feeds: Semaphore,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What only voters have.
pub(super) struct Voter {
    pub raft: Raft,
    pub store: Store,
    pub batches: mpsc::Sender<Pending>,
    pub newcomer: Newcomer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Registry {
    /// Opens a voter: one that was a member before, or one that the leader will add.
    pub async fn open_voter(config: Config, carrier: Arc<dyn Carrier>) -> Result<Self, OpenError> {
        let (dir, node) = (config.dir.clone(), config.node.0);
        let store = tokio::task::spawn_blocking(move || Store::open(&dir, node));
        let store = store.await.map_err(|_| StoreError::Stopping)??;
        Self::voter_on(store, config, carrier).await
    }

    /// A voter whose memory is `store`.
    pub(super) async fn voter_on(
        store: Store,
        config: Config,
        carrier: Arc<dyn Carrier>,
    ) -> Result<Self, OpenError> {
        let node = config.node.0;
        store.resign(node).await?;
        let view = Arc::new(View::new(config.tuning.ring));
        let machine = Machine::load(store.clone(), view.clone())?;
        let newcomer = Newcomer::new(store.is_newcomer()?);
        let raft = Raft::new(
            node,
            Arc::new(raft_config(&config)?),
            Network(carrier.clone()),
            LogStore(store.clone()),
            machine,
        )
        .await
        .map_err(|error| OpenError::Raft(Box::new(error)))?;
        check_cluster(&view, &config)?;
        let (batches, queue) = mpsc::channel(batch::QUEUE);
        let tasks = vec![
            tokio::spawn(batch::run(raft.clone(), queue)),
            tokio::spawn(membership::drive(
                raft.clone(),
                view.clone(),
                carrier.clone(),
            )),
            tokio::spawn(flush_commits(raft.clone(), store.clone())),
            tokio::spawn(candidacy::watch(
                raft.clone(),
                store.clone(),
                view.clone(),
                carrier.clone(),
            )),
        ];
        let voter = Voter {
            raft,
            store,
            batches,
            newcomer,
        };
        Ok(Self::assemble(
            config,
            carrier,
            view,
            Some(voter),
            None,
            tasks,
        ))
    }

    /// Founds a cluster of one. Safe to repeat when it was interrupted.
    pub async fn found(
        config: Config,
        carrier: Arc<dyn Carrier>,
        cluster: ClusterMeta,
        founder: NodeIdentity,
        at: UnixMs,
    ) -> Result<Self, OpenError> {
        let registry = Self::open_voter(config, carrier).await?;
        registry.begin(cluster, founder, at).await?;
        Ok(registry)
    }

    /// Makes this voter the first of a new cluster.
    pub(super) async fn begin(
        &self,
        cluster: ClusterMeta,
        founder: NodeIdentity,
        at: UnixMs,
    ) -> Result<(), OpenError> {
        let voter = self.voter().ok_or(StoreError::Stopping)?;
        let known = voter.raft.is_initialized().await;
        if !known.map_err(|error| OpenError::Raft(Box::new(error)))? {
            voter.store.settle().await?;
            voter.newcomer.settled();
            let members = std::collections::BTreeSet::from([self.node().0]);
            let begun = voter.raft.initialize(members).await;
            begun.map_err(|error| OpenError::Initialize(Box::new(error)))?;
        }
        let command = Command {
            at,
            action: Action::FoundCluster { cluster, founder },
        };
        match self.propose(&command, FOUND_DEADLINE).await? {
            Reply::Done { .. } | Reply::Refused(Refusal::AlreadyFounded) => Ok(()),
            Reply::Refused(refusal) => Err(OpenError::FoundRefused(refusal)),
        }
    }

    /// Opens a follower: serves its last state at once, and follows the feed from `source`.
    pub async fn open_follower(
        config: Config,
        carrier: Arc<dyn Carrier>,
        source: Arc<dyn FeedSource>,
    ) -> Result<Self, OpenError> {
        let file = Arc::new(FollowFile::new(&config.dir));
        let loading = file.clone();
        let loaded = tokio::task::spawn_blocking(move || loading.load());
        let loaded = loaded.await.map_err(|_| StoreError::Stopping)??;
        Self::follower_on(file, loaded, config, carrier, source)
    }

    /// A follower that starts with what it had `loaded` from `file`.
    pub(super) fn follower_on(
        file: Arc<FollowFile>,
        loaded: Option<State>,
        config: Config,
        carrier: Arc<dyn Carrier>,
        source: Arc<dyn FeedSource>,
    ) -> Result<Self, OpenError> {
        let view = Arc::new(View::new(config.tuning.ring));
        if let Some(state) = loaded {
            view.reset(Arc::new(state));
        }
        check_cluster(&view, &config)?;
        let stored = view.index();
        let follower = Follower {
            node: config.node,
            cluster: config.cluster_id.clone(),
            view: view.clone(),
            source: source.clone(),
        };
        let registry = Self::assemble(config, carrier, view, None, Some(source), Vec::new());
        let stop = registry.0.stop.clone();
        registry.spawn(feed::follow(follower, stop.clone()));
        registry.spawn(feed::keep(registry.0.view.clone(), file, stored, stop));
        Ok(registry)
    }

    fn assemble(
        config: Config,
        carrier: Arc<dyn Carrier>,
        view: Arc<View>,
        voter: Option<Voter>,
        source: Option<Arc<dyn FeedSource>>,
        tasks: Vec<JoinHandle<()>>,
    ) -> Self {
        Self(Arc::new(Inner {
            config,
            carrier,
            view,
            voter,
            source,
            feeds: Semaphore::new(FEEDS),
            stop: CancellationToken::new(),
            tasks: Mutex::new(tasks),
        }))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(tokio::spawn(task));
    }

    /// Gives the feed to one follower until it goes away.
    pub async fn serve_feed<S: FeedStream>(&self, from: NodeId, stream: S) {
        let Ok(_permit) = self.0.feeds.try_acquire() else {
            tracing::warn!(node = %from, "too many registry feeds are served from here");
            return;
        };
        if let Err(error) = feed::serve(self, stream).await {
            tracing::debug!(node = %from, %error, "a served registry feed ended");
        }
    }

    /// What this node knows of the registry.
    pub fn view(&self) -> &Arc<View> {
        &self.0.view
    }

    /// Ends everything and writes what is still to be written. Others fail over by themselves.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        if let Some(voter) = self.voter() {
            if voter.raft.shutdown().await.is_err() {
                tracing::warn!("consensus did not end cleanly");
            }
            if let Err(error) = voter.store.flush_committed().await {
                tracing::warn!(%error, "cannot write the commit mark");
            }
        }
        let tasks = {
            let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        for mut task in tasks {
            // Followers' tasks end by themselves, after a last write.
            if self.voter().is_some()
                || tokio::time::timeout(TASK_END_DEADLINE, &mut task)
                    .await
                    .is_err()
            {
                task.abort();
                let _ = task.await;
            }
        }
    }

    pub(super) async fn stopped(&self) {
        self.0.stop.cancelled().await;
    }

    pub(super) fn node(&self) -> NodeId {
        self.0.config.node
    }

    pub(super) fn cluster_id(&self) -> &str {
        &self.0.config.cluster_id
    }

    pub(super) fn carrier(&self) -> &dyn Carrier {
        &*self.0.carrier
    }

    pub(super) fn voter(&self) -> Option<&Voter> {
        self.0.voter.as_ref()
    }

    /// Nodes to ask when the registry names none yet.
    pub(super) fn near_nodes(&self) -> Vec<NodeId> {
        self.0
            .source
            .as_ref()
            .map(|source| source.pick())
            .unwrap_or_default()
    }
}

fn raft_config(config: &Config) -> Result<openraft::Config, OpenError> {
    openraft::Config {
        cluster_name: "selvedge".to_owned(),
        heartbeat_interval: HEARTBEAT_MILLIS,
        election_timeout_min: ELECTION_MIN_MILLIS,
        election_timeout_max: ELECTION_MAX_MILLIS,
        install_snapshot_timeout: CHUNK_DEADLINE_MILLIS,
        snapshot_max_chunk_size: CHUNK_BYTES,
        max_payload_entries: ENTRIES_PER_APPEND,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.tuning.snapshot_every),
        max_in_snapshot_log_to_keep: config.tuning.log_kept,
        // `candidacy` opens and shuts the door to elections.
        enable_elect: false,
        // Whoever misses more than a snapshot's worth of entries gets the snapshot.
        replication_lag_threshold: 2 * config.tuning.snapshot_every,
        purge_batch_size: 1,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| OpenError::Tuning(Box::new(error)))
}

fn check_cluster(view: &View, config: &Config) -> Result<(), OpenError> {
    match &view.state().cluster {
        Some(cluster) if cluster.id != config.cluster_id => Err(OpenError::ForeignCluster {
            found: cluster.id.clone(),
            expected: config.cluster_id.clone(),
        }),
        _ => Ok(()),
    }
}

/// Brings the commit mark to disk a moment after things went quiet, so that a voter that boots
/// alone shows what was acknowledged long before.
async fn flush_commits(raft: Raft, store: Store) {
    let mut metrics = raft.data_metrics();
    while metrics.changed().await.is_ok() {
        tokio::time::sleep(COMMIT_FLUSH_PAUSE).await;
        if let Err(error) = store.flush_committed().await {
            tracing::warn!(%error, "cannot write the commit mark");
            return;
        }
    }
}
