//! When this voter may stand for election. openraft 0.9 has no pre-vote: a voter that hears nobody
//! would raise its term again and again and unseat a healthy leader as soon as it is heard. So the
//! door is shut until a majority says that it misses a leader too.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use openraft::ServerState;
use scheduler::model::NodeId;

use super::batch;
use super::network::{self, Carrier};
use super::store::{Store, StoreError};
use super::types::{LogId, Metrics, Raft};
use super::view::View;
use super::voter::{Alarm, ELECTION_MAX_MILLIS, Voter};
use super::wire::{Request, Response};

/// A leader not heard for this long is missed: its lease, after which openraft too starts to count.
const MISSED: Duration = Duration::from_millis(ELECTION_MAX_MILLIS);
/// Between two looks; well below the 750 ms that openraft waits at least after the lease.
const LOOK: Duration = Duration::from_millis(250);
/// For the others to answer.
const CANVASS_DEADLINE: Duration = Duration::from_millis(500);

/// Opens and shuts the door until openraft has ended.
pub(super) async fn watch(
    raft: Raft,
    store: Store,
    alarm: Alarm,
    view: Arc<View>,
    carrier: Arc<dyn Carrier>,
) {
    let mut open = false;
    loop {
        let metrics = raft.metrics().borrow().clone();
        if metrics.running_state.is_err() {
            return;
        }
        if is_alone(&metrics) && metrics.state == ServerState::Follower {
            // Nobody has to be waited for.
            let _ = raft.trigger().elect().await;
        }
        let may = match may_stand(&metrics, &store, &view, &*carrier).await {
            Ok(may) => may,
            Err(error) => return alarm.raise(&error),
        };
        if may != open {
            raft.runtime_config().elect(may);
            open = may;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_alone(metrics: &Metrics) -> bool {
    let mut voters = metrics.membership_config.voter_ids();
    voters.next() == Some(metrics.id) && voters.next().is_none()
}

async fn may_stand(
    metrics: &Metrics,
    store: &Store,
    view: &View,
    carrier: &dyn Carrier,
) -> Result<bool, StoreError> {
    let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
    if !voters.contains(&metrics.id) || metrics.state == ServerState::Leader {
        return Ok(false);
    }
    if voters.len() == 1 {
        return Ok(true);
    }
    if !misses_leader(metrics, view) {
        return Ok(false);
    }
    let last = store.last_log_id()?;
    let request = Request::Canvass { last };
    let mut answers: FuturesUnordered<_> = voters
        .iter()
        .filter(|voter| **voter != metrics.id)
        .map(|voter| network::call(carrier, NodeId(*voter), &request, &[], CANVASS_DEADLINE))
        .collect();
    // In a joint configuration this asks for a majority of both halves together; openraft counts
    // properly afterwards.
    let mut missing = voters.len() / 2;
    while let Some(answer) = answers.next().await {
        if matches!(answer, Ok(Response::Canvass { favoured: true })) {
            missing -= 1;
            if missing == 0 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether this voter would elect a node whose log ends at `last`.
pub(super) fn favours(voter: &Voter, view: &View, last: Option<LogId>) -> bool {
    let metrics = voter.raft.metrics().borrow().clone();
    let serves = metrics.state == ServerState::Leader && batch::has_quorum(&metrics);
    if serves || !misses_leader(&metrics, view) {
        return false;
    }
    match voter.store.last_log_id() {
        Ok(mine) => mine <= last,
        Err(error) => {
            voter.alarm.raise(&error);
            false
        }
    }
}

fn misses_leader(metrics: &Metrics, view: &View) -> bool {
    metrics.state == ServerState::Leader || view.staleness().is_none_or(|since| since > MISSED)
}
