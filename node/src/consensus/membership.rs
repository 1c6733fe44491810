//! Keeps Raft's membership what the registry says: whoever leads adds the nodes enrolled as
//! voters, once they have caught up, and removes those that were revoked. Silent when they agree.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::{ChangeMembers, EmptyNode, ServerState};
use scheduler::model::{NodeId, Role};
use scheduler::registry::State;

use super::network::{self, Carrier};
use super::types::{Membership, Raft};
use super::view::View;
use super::wire::{Request, Response};

/// For one change of membership to be committed.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// For a new voter to copy log and snapshot. It stays a learner and is tried again after it.
const CATCH_UP_DEADLINE: Duration = Duration::from_mins(1);
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// Pauses after a failed step: quick while a node is booting, gentle when it is gone.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// The one next thing to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A change was interrupted between its two halves.
    Finish(BTreeSet<u64>),
    Add(u64),
    Remove(BTreeSet<u64>),
    /// Learners that are to be nothing.
    Forget(BTreeSet<u64>),
}

fn next_step(state: &State, membership: &Membership) -> Option<Step> {
    let wanted: BTreeSet<u64> = state
        .nodes
        .values()
        .filter(|node| node.role == Role::Voter && !node.revoked)
        .map(|node| node.id.0)
        .collect();
    let configs = membership.membership().get_joint_config();
    let current = configs.last()?;
    // Before the cluster is founded nobody is wanted, and a registry without voters is never.
    if wanted.is_empty() || current.is_empty() {
        return None;
    }
    if configs.len() > 1 {
        return Some(Step::Finish(current.clone()));
    }
    if let Some(id) = wanted.difference(current).next() {
        return Some(Step::Add(*id));
    }
    if !current.is_subset(&wanted) {
        return Some(Step::Remove(current & &wanted));
    }
    let learners: BTreeSet<u64> = membership.membership().learner_ids().collect();
    (!learners.is_empty()).then_some(Step::Forget(learners))
}

/// Runs on every voter until it is aborted; acts only while leading.
pub(super) async fn drive(raft: Raft, view: Arc<View>, carrier: Arc<dyn Carrier>) {
    let mut metrics = raft.server_metrics();
    let mut states = view.watch();
    let mut pause = FIRST_PAUSE;
    loop {
        let leading = metrics
            .wait_for(|metrics| metrics.state == ServerState::Leader)
            .await;
        let Ok(membership) = leading.map(|metrics| metrics.membership_config.clone()) else {
            return;
        };
        metrics.mark_unchanged();
        let state = states.borrow_and_update().clone();
        let step = next_step(&state, &membership);
        let retry = match &step {
            None => None,
            Some(step) => match perform(&raft, &*carrier, step).await {
                Ok(()) => {
                    tracing::info!(?step, "registry voters changed");
                    pause = FIRST_PAUSE;
                    Some(Duration::ZERO)
                }
                Err(error) => {
                    tracing::debug!(?step, %error, "registry voters unchanged for now");
                    pause = (pause * 2).min(LAST_PAUSE);
                    Some(pause)
                }
            },
        };
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            () = sleep(retry) => {}
        }
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("no voter answers at n{0}")]
    NotThere(u64),
    #[error("n{0} has not caught up yet")]
    Behind(u64),
    #[error("not agreed in time")]
    Deadline,
    #[error("{0}")]
    Raft(String),
}

async fn perform(raft: &Raft, carrier: &dyn Carrier, step: &Step) -> Result<(), StepError> {
    match step {
        Step::Finish(voters) | Step::Remove(voters) => {
            change(raft, ChangeMembers::ReplaceAllVoters(voters.clone())).await
        }
        Step::Forget(learners) => change(raft, ChangeMembers::RemoveNodes(learners.clone())).await,
        Step::Add(id) => {
            // Asked first: a learner that does not answer would be called forever.
            let hello = network::call(carrier, NodeId(*id), &Request::Hello, &[], HELLO_DEADLINE);
            let Ok(Response::Hello) = hello.await else {
                return Err(StepError::NotThere(*id));
            };
            let known = raft
                .metrics()
                .borrow()
                .membership_config
                .membership()
                .get_node(id)
                .is_some();
            if !known {
                let learner = [(*id, EmptyNode {})].into();
                change(raft, ChangeMembers::AddNodes(learner)).await?;
            }
            catch_up(raft, *id).await?;
            change(raft, ChangeMembers::AddVoterIds([*id].into())).await
        }
    }
}

async fn change(raft: &Raft, change: ChangeMembers<u64, EmptyNode>) -> Result<(), StepError> {
    // Learners are kept while voters change; what is left over of them is forgotten by itself.
    let retain = !matches!(change, ChangeMembers::ReplaceAllVoters(_));
    match tokio::time::timeout(CHANGE_DEADLINE, raft.change_membership(change, retain)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(StepError::Raft(error.to_string())),
        Err(_) => Err(StepError::Deadline),
    }
}

/// Until the learner holds everything the leader held when asked. (openraft's own blocking
/// `add_learner` would be content with a lag of a thousand entries.)
async fn catch_up(raft: &Raft, id: u64) -> Result<(), StepError> {
    let mut metrics = raft.metrics();
    let goal = metrics.borrow().last_log_index;
    let caught_up = metrics.wait_for(|metrics| {
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|nodes| nodes.get(&id).copied());
        metrics.state != ServerState::Leader
            || matched
                .flatten()
                .is_some_and(|matched| Some(matched.index) >= goal)
    });
    match tokio::time::timeout(CATCH_UP_DEADLINE, caught_up).await {
        Ok(Ok(metrics)) if metrics.state == ServerState::Leader => Ok(()),
        _ => Err(StepError::Behind(id)),
    }
}
