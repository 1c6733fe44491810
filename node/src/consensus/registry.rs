//! The facade: opens this node's part of the registry, owns its tasks, says how it stands.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::EmptyNode;
use openraft::error::{Fatal, InitializeError, RaftError};
use scheduler::model::{NodeId, NodeIdentity, UnixMs};
use scheduler::registry::{Action, ClusterMeta, Command, Refusal, Reply, State};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::feed::{self, FeedSource, FeedStream, Follower};
use super::follow_file::{FileError, FollowFile};
use super::keeper::{Medium, Outage, Seat};
use super::network::Carrier;
use super::propose::ProposeError;
use super::store::StoreError;
use super::view::{RING_CHANGES, View};
use super::voter::Voter;

/// Feeds served at once by one node; others are turned away and try their next source.
const FEEDS: usize = 256;
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
    home: Arc<Home>,
    /// What only voters have.
    seat: Option<Arc<Seat>>,
    feeds: Semaphore,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What every part of the registry on this node works with.
pub(super) struct Home {
    pub config: Config,
    pub carrier: Arc<dyn Carrier>,
    pub view: Arc<View>,
    /// Where the feed comes from, for whoever does not vote.
    pub source: Option<Arc<dyn FeedSource>>,
}

impl Home {
    fn new(
        config: Config,
        carrier: Arc<dyn Carrier>,
        source: Option<Arc<dyn FeedSource>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            view: Arc::new(View::new(config.tuning.ring)),
            config,
            carrier,
            source,
        })
    }
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
    /// Opens a voter: one that was a member before, or one that the leader will add. It follows
    /// the feed from `source` while its store fails.
    pub async fn open_voter(
        config: Config,
        carrier: Arc<dyn Carrier>,
        source: Arc<dyn FeedSource>,
    ) -> Result<Self, OpenError> {
        let home = Home::new(config, carrier, Some(source));
        Self::voter_from(Medium::Folder, home).await
    }

    async fn voter_from(medium: Medium, home: Arc<Home>) -> Result<Self, OpenError> {
        let seat = Seat::take(home.clone(), medium).await?;
        let registry = Self::assemble(home, Some(seat.clone()));
        registry.spawn(seat.keep(registry.0.stop.clone()));
        Ok(registry)
    }

    /// A voter on a simulated disk.
    #[cfg(test)]
    pub(super) async fn voter_on_disk(
        file: super::sim::SimFile,
        config: Config,
        carrier: Arc<dyn Carrier>,
        source: Arc<dyn FeedSource>,
    ) -> Result<Self, OpenError> {
        let home = Home::new(config, carrier, Some(source));
        Self::voter_from(Medium::Simulated(file), home).await
    }

    /// Founds a cluster of one. Safe to repeat when it was interrupted.
    pub async fn found(
        config: Config,
        carrier: Arc<dyn Carrier>,
        source: Arc<dyn FeedSource>,
        cluster: ClusterMeta,
        founder: NodeIdentity,
        at: UnixMs,
    ) -> Result<Self, OpenError> {
        let registry = Self::open_voter(config, carrier, source).await?;
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
        let home = Home::new(config, carrier, Some(source.clone()));
        let view = home.view.clone();
        if let Some(state) = loaded {
            view.reset(Arc::new(state));
        }
        check_cluster(&view, &home.config)?;
        let stored = view.index();
        let follower = Follower {
            node: home.config.node,
            cluster: home.config.cluster_id.clone(),
            view: view.clone(),
            source,
        };
        let registry = Self::assemble(home, None);
        let stop = registry.0.stop.clone();
        registry.spawn(feed::follow(follower, stop.clone()));
        registry.spawn(feed::keep(view, file, stored, stop));
        Ok(registry)
    }

    fn assemble(home: Arc<Home>, seat: Option<Arc<Seat>>) -> Self {
        Self(Arc::new(Inner {
            home,
            seat,
            feeds: Semaphore::new(FEEDS),
            stop: CancellationToken::new(),
            tasks: Mutex::default(),
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
        &self.0.home.view
    }

    /// Ends everything and writes what is still to be written. Others fail over by themselves.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        let tasks = {
            let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        for mut task in tasks {
            // They end by themselves, after a last write.
            let ended = tokio::time::timeout(TASK_END_DEADLINE, &mut task).await;
            if ended.is_err() {
                task.abort();
                let _ = task.await;
            }
        }
    }

    pub(super) async fn stopped(&self) {
        self.0.stop.cancelled().await;
    }

    pub(super) fn node(&self) -> NodeId {
        self.0.home.config.node
    }

    pub(super) fn cluster_id(&self) -> &str {
        &self.0.home.config.cluster_id
    }

    pub(super) fn carrier(&self) -> &dyn Carrier {
        &*self.0.home.carrier
    }

    /// The voter here, while its store works.
    pub(super) fn voter(&self) -> Option<Arc<Voter>> {
        self.0.seat.as_ref()?.voter()
    }

    /// Why the voter here takes no part.
    pub(super) fn outage(&self) -> Option<Arc<Outage>> {
        self.0.seat.as_ref()?.outage()
    }

    /// Nodes for a follower to ask when the registry names none yet.
    pub(super) fn near_nodes(&self) -> Vec<NodeId> {
        match (&self.0.seat, &self.0.home.source) {
            (None, Some(source)) => source.pick(),
            _ => Vec::new(),
        }
    }
}

pub(super) fn check_cluster(view: &View, config: &Config) -> Result<(), OpenError> {
    match &view.state().cluster {
        Some(cluster) if cluster.id != config.cluster_id => Err(OpenError::ForeignCluster {
            found: cluster.id.clone(),
            expected: config.cluster_id.clone(),
        }),
        _ => Ok(()),
    }
}
