//! The taking side of the feed: one source at a time, the next one when it fails, and the state
//! kept on disk as it comes.

use std::sync::Arc;
use std::time::Duration;

use scheduler::model::NodeId;
use scheduler::registry::{Change, State};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BEAT, FRAME_BYTES, FeedError, FeedSource, Hello, Told, VERSION};
use super::{read_frame, write_frame};
use crate::consensus::follow_file::FollowFile;
use crate::consensus::view::{Step, View};

const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Three beats and a bit: the source is gone, whatever the connection thinks.
const SILENCE: Duration = Duration::from_secs(16);
/// A source that has heard of no quorum for this long may sit on the wrong side of a cut.
const STALE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// The state is written at most this often; a change after a quiet spell is written at once.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// Who follows what.
pub(in crate::consensus) struct Follower {
    pub node: NodeId,
    pub cluster: String,
    pub view: Arc<View>,
    pub source: Arc<dyn FeedSource>,
}

/// Follows until stopped.
pub(in crate::consensus) async fn follow(follower: Follower, stop: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let began = Instant::now();
        for node in follower.source.pick() {
            if node == follower.node {
                continue;
            }
            let error = tokio::select! {
                result = follower.follow_one(node) => result,
                () = stop.cancelled() => return,
            };
            tracing::debug!(node = %node, %error, "the registry feed ended");
        }
        // Whoever fed us for a while does not count as a failure.
        pause = if began.elapsed() > SILENCE {
            FIRST_PAUSE
        } else {
            (pause * 2).min(LAST_PAUSE)
        };
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Follower {
    /// Returns why it ended.
    async fn follow_one(&self, node: NodeId) -> FeedError {
        match self.follow_until_error(node).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn follow_until_error(
        &self,
        node: NodeId,
    ) -> Result<std::convert::Infallible, FeedError> {
        let opened = tokio::time::timeout(OPEN_DEADLINE, self.source.open(node, OPEN_DEADLINE));
        let mut stream = opened.await.map_err(|_| FeedError::Deadline)??;
        let (cluster, from) = (self.cluster.clone(), self.view.index());
        write_frame(
            &mut stream,
            &Hello {
                version: VERSION,
                cluster,
                from,
            },
        )
        .await?;
        let began = Instant::now();
        loop {
            let told = tokio::time::timeout(SILENCE, read_frame(&mut stream, FRAME_BYTES));
            match told.await.map_err(|_| FeedError::Deadline)?? {
                Told::Snapshot(state) => self.replace(*state)?,
                Told::Steps(steps) => self.take(steps)?,
                Told::Refused { message } => return Err(FeedError::Refused(message)),
                Told::Beat {
                    leader,
                    quorum_ago_millis,
                } => {
                    let ago = quorum_ago_millis.map(Duration::from_millis);
                    self.view.heard(leader, ago);
                    let stale = ago.is_none_or(|ago| ago > STALE);
                    if stale && began.elapsed() > STALE + BEAT {
                        return Err(FeedError::Stale);
                    }
                }
            }
        }
    }

    /// Only forward, and only of this cluster.
    fn replace(&self, state: State) -> Result<(), FeedError> {
        if state
            .cluster
            .as_ref()
            .is_none_or(|cluster| cluster.id != self.cluster)
        {
            return Err(FeedError::ForeignCluster);
        }
        let have = self.view.index();
        if state.index <= have {
            return Err(FeedError::Gap {
                have,
                got: state.index,
            });
        }
        self.view.reset(Arc::new(state));
        Ok(())
    }

    fn take(&self, steps: Vec<Step>) -> Result<(), FeedError> {
        let mut state = (*self.view.state()).clone();
        let mut taken = Vec::new();
        for (index, changes) in steps {
            if index <= state.index {
                continue;
            }
            if index != state.index + 1 {
                return Err(FeedError::Gap {
                    have: state.index,
                    got: index,
                });
            }
            let foreign =
                |change: &Change| matches!(change, Change::Cluster(c) if c.id != self.cluster);
            if changes.iter().any(foreign) {
                return Err(FeedError::ForeignCluster);
            }
            state.follow(index, &changes);
            taken.push((index, changes));
        }
        if !taken.is_empty() {
            self.view.publish(Arc::new(state), taken);
        }
        Ok(())
    }
}

/// Writes the view's state to the file as it changes, and a last time when stopped. `stored` is
/// the index the file has.
pub(in crate::consensus) async fn keep(
    view: Arc<View>,
    file: Arc<FollowFile>,
    mut stored: u64,
    stop: CancellationToken,
) {
    let mut states = view.watch();
    states.mark_changed();
    let mut ending = false;
    while !ending {
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = stop.cancelled() => ending = true,
        }
        let state = states.borrow_and_update().clone();
        if state.index == stored {
            continue;
        }
        let index = state.index;
        match file.clone().store_aside(state).await {
            Some(Ok(())) => stored = index,
            Some(Err(error)) => tracing::warn!(%error, index, "cannot keep the followed registry"),
            None => return,
        }
        tokio::select! {
            () = tokio::time::sleep(STORE_PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }
}
