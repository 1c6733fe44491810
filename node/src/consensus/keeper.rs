//! Keeps this node's seat among the voters taken. When the store fails, the voter ends at once and
//! acknowledges nothing more: what the disk holds is not known. Then the store is opened anew, with
//! every check of a boot, until the disk works again, and a new life begins on what it holds. A
//! store that is found damaged stays out for good: people have to look.
//!
//! Meanwhile the node is a follower: it follows the others' feed and passes on what it is asked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::feed::{self, Follower};
use super::registry::{Home, OpenError};
#[cfg(test)]
use super::sim::SimFile;
use super::store::{Store, StoreError};
use super::voter::Voter;

/// Pauses before the store is opened again. The last one is well below the 10 s in which a voter
/// is to be back once its disk works.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// Who lived this long does not count as a failed try.
const STEADY: Duration = Duration::from_secs(30);
/// Must be free before a voter begins on a disk again, or its first change would end it: the
/// largest change (1 MiB) and what redb copies to write it.
const ROOM: u64 = 4 << 20;

/// The store's file in the node's folder.
const FILE: &str = "registry.redb";

/// Where the store lies.
pub(super) enum Medium {
    /// In the node's folder.
    Folder,
    #[cfg(test)]
    Simulated(SimFile),
}

/// One voter's place, for as long as its node runs.
pub(super) struct Seat {
    home: Arc<Home>,
    medium: Medium,
    standing: RwLock<Standing>,
}

#[derive(Clone)]
enum Standing {
    Working(Arc<Voter>),
    Out(Arc<Outage>),
}

/// Why a voter takes no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node's registry store failed: {why}")]
pub struct Outage {
    pub why: String,
    /// Where the store lies.
    pub dir: PathBuf,
    /// The store is damaged or not ours: it is not tried again.
    pub for_good: bool,
}

impl Seat {
    /// Opens the voter for the first time, making its store if there is none.
    pub async fn take(home: Arc<Home>, medium: Medium) -> Result<Arc<Self>, OpenError> {
        let store = medium.open(&home, false).await?;
        let voter = Arc::new(Voter::start(store, &home).await?);
        Ok(Arc::new(Self {
            home,
            medium,
            standing: RwLock::new(Standing::Working(voter)),
        }))
    }

    fn standing(&self) -> Standing {
        let standing = self.standing.read();
        standing.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stand(&self, standing: Standing) {
        *self
            .standing
            .write()
            .unwrap_or_else(PoisonError::into_inner) = standing;
    }

    pub fn voter(&self) -> Option<Arc<Voter>> {
        match self.standing() {
            Standing::Working(voter) => Some(voter),
            Standing::Out(_) => None,
        }
    }

    pub fn outage(&self) -> Option<Arc<Outage>> {
        match self.standing() {
            Standing::Working(_) => None,
            Standing::Out(outage) => Some(outage),
        }
    }

    fn is_out(&self, why: String, for_good: bool) {
        let dir = self.home.config.dir.clone();
        self.stand(Standing::Out(Arc::new(Outage { why, dir, for_good })));
    }

    /// Begins one life after the other until stopped; then the last one is ended in order.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        while let Some(voter) = self.voter() {
            let began = Instant::now();
            let why = tokio::select! {
                // A disk that fails while the node stops is no news.
                biased;
                () = stop.cancelled() => return retire(&voter).await,
                why = voter.failure() => why,
            };
            tracing::error!(
                %why,
                "the registry's store failed: this voter is out until its disk works again"
            );
            self.is_out(why, false);
            voter.end().await;
            drop(voter);
            if began.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            let following = self.follow(&stop);
            pause = self.come_back(pause, &stop).await;
            following.stop().await;
        }
        // Out for good: what the others agree on is still followed.
        let following = self.follow(&stop);
        stop.cancelled().await;
        following.stop().await;
    }

    /// Tries until a new life has begun, or none ever will. Returns the pause before the next try,
    /// for a voter that falls again soon: short pauses are for those that stay up.
    async fn come_back(&self, mut pause: Duration, stop: &CancellationToken) -> Duration {
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return pause,
            }
            pause = (pause * 2).min(LAST_PAUSE);
            match self.try_again().await {
                Ok(voter) => {
                    tracing::info!("the registry's store works again: this voter is back");
                    self.stand(Standing::Working(Arc::new(voter)));
                    return pause;
                }
                Err(error) if is_for_good(&error) => {
                    tracing::error!(%error, "this voter stays out: its store is not tried again");
                    self.is_out(error.to_string(), true);
                    return pause;
                }
                // The old life's last task is about to let go of the file.
                Err(error) if is_still_open(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, next = ?pause, "the registry's store still fails");
                    self.is_out(error.to_string(), false);
                }
            }
        }
    }

    async fn try_again(&self) -> Result<Voter, OpenError> {
        let store = self.medium.open(&self.home, true).await?;
        prove(&store).await?;
        Voter::start(store, &self.home).await
    }

    /// The view goes on by the others' feed, which only carries what they agreed on.
    fn follow(&self, stop: &CancellationToken) -> Following {
        let stop = stop.child_token();
        let task = self.home.source.clone().map(|source| {
            let follower = Follower {
                node: self.home.config.node,
                cluster: self.home.config.cluster_id.clone(),
                view: self.home.view.clone(),
                source,
            };
            tokio::spawn(feed::follow(follower, stop.clone()))
        });
        Following { stop, task }
    }
}

/// The feed of a voter that is out.
struct Following {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Following {
    async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

/// The keeper may be aborted: its feed ends with it.
impl Drop for Following {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn retire(voter: &Voter) {
    voter.end().await;
    if let Err(error) = voter.store.flush_committed().await {
        tracing::warn!(%error, "cannot write the commit mark");
    }
}

impl Medium {
    /// Opens the store; the first time it is made if it is not there.
    async fn open(&self, home: &Home, again: bool) -> Result<Store, StoreError> {
        let node = home.config.node.0;
        match self {
            Self::Folder => {
                let dir = home.config.dir.clone();
                let open = move || {
                    if again {
                        is_worth_it(&dir)?;
                    }
                    Store::open(&dir, node)
                };
                let opened = tokio::task::spawn_blocking(open).await;
                opened.map_err(|error| ended(&error))?
            }
            #[cfg(test)]
            Self::Simulated(file) if again && !file.exists() => Err(StoreError::Stopping),
            #[cfg(test)]
            Self::Simulated(file) => Store::open_on(file, node),
        }
    }
}

fn ended(opening: &JoinError) -> StoreError {
    if opening.is_panic() {
        // redb panics at some kinds of damage.
        StoreError::Corrupt {
            what: "an unknown place".to_owned(),
            why: "reading it panicked".to_owned(),
        }
    } else {
        StoreError::Stopping
    }
}

/// There is a file to open, and room for it to grow. A missing one is never made anew, as at a
/// first boot: it may be on a disk that is not mounted.
fn is_worth_it(dir: &Path) -> Result<(), StoreError> {
    let found = std::fs::metadata(dir.join(FILE)).map(drop);
    let room = found.and_then(|()| Ok(rustix::fs::statvfs(dir)?));
    room.and_then(|room| {
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        // Some file systems do not tell.
        if free >= ROOM || room.f_blocks == 0 {
            Ok(())
        } else {
            Err(rustix::io::Errno::NOSPC.into())
        }
    })
    .map_err(|source: io::Error| StoreError::Io {
        path: dir.to_owned(),
        source,
    })
}

/// One durable write, of what is there already: a disk that only reads shows it here, and not by
/// a voter that comes and goes.
async fn prove(store: &Store) -> Result<(), StoreError> {
    let mark = store.committed();
    store.note_committed(None);
    store.note_committed(mark);
    store.flush_committed().await
}

/// Damage does not go away, and trying again could make it worse.
fn is_for_good(error: &OpenError) -> bool {
    match error {
        OpenError::Store(StoreError::Database(error)) => matches!(
            **error,
            redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_)
        ),
        OpenError::Store(StoreError::Io { .. } | StoreError::Stopping) | OpenError::Raft(_) => {
            false
        }
        _ => true,
    }
}

fn is_still_open(error: &OpenError) -> bool {
    matches!(error, OpenError::Store(StoreError::Database(error))
        if matches!(**error, redb::Error::DatabaseAlreadyOpen))
}
