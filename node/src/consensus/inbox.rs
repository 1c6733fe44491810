//! What other nodes ask of this one. Everything here comes from outside: it is checked against
//! who sent it, and nothing of it panics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::error::RaftError;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use scheduler::model::NodeId;
use scheduler::registry::Command;

use super::batch::Undone;
use super::candidacy;
use super::propose::check_size;
use super::registry::Registry;
use super::types::{TypeConfig, Vote};
use super::voter::Voter;
use super::wire::{self, Request, Response};

/// No one is waited for longer, whatever patience a request claims.
const PATIENCE_LIMIT: Duration = Duration::from_secs(10);

/// Keeps a voter with an empty memory (new, or its disk was lost) from voting until it has
/// everything that a leader had committed when they met. A voter that forgot entries could
/// otherwise help to elect a leader without them.
pub(super) struct Newcomer(Mutex<Option<Goal>>);

/// The log index to be applied, once a leader has told its commit mark.
#[derive(Default)]
struct Goal(Option<u64>);

impl Newcomer {
    pub fn new(is_newcomer: bool) -> Self {
        Self(Mutex::new(is_newcomer.then(Goal::default)))
    }

    fn is(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Only a mark of the leader's own term covers everything committed before it.
    fn meet(&self, request: &AppendEntriesRequest<TypeConfig>) {
        let mut goal = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(goal), Some(mark)) = (goal.as_mut(), request.leader_commit)
            && mark.leader_id == *request.vote.leader_id()
        {
            goal.0.get_or_insert(mark.index);
        }
    }

    fn has_caught_up(&self, applied: Option<u64>) -> bool {
        let goal = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goal = goal.as_ref().and_then(|goal| goal.0);
        goal.is_some_and(|goal| applied.is_some_and(|applied| applied >= goal))
    }

    pub fn settled(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Registry {
    /// Answers one message of the carrier. `from` is the authenticated sender.
    pub async fn on_message(&self, from: NodeId, bytes: &[u8]) -> Vec<u8> {
        let response = match wire::decode::<Request>(bytes) {
            Ok((request, tail)) => self.on_request(from, request, tail).await,
            Err(error) => refused(error),
        };
        wire::encode(&response, &[])
            .or_else(|error| wire::encode(&refused(error), &[]))
            .unwrap_or_default()
    }

    async fn on_request(&self, from: NodeId, request: Request, tail: &[u8]) -> Response {
        match request {
            Request::Propose {
                commands,
                patience_millis,
            } => self.on_propose(commands, patience(patience_millis)).await,
            Request::ReadIndex { patience_millis } => {
                match self.index_here(patience(patience_millis)).await {
                    Ok(index) => Response::Index(index),
                    Err(leader) => Response::NotLeader {
                        leader: leader.map(|leader| leader.0),
                    },
                }
            }
            _ => match self.voter() {
                Some(voter) => self.on_raft(&voter, from, request, tail).await,
                None => self.not_now(from, &request),
            },
        }
    }

    /// What other voters hear of one that has no store to vote with.
    fn not_now(&self, from: NodeId, request: &Request) -> Response {
        let Some(outage) = self.outage() else {
            return refused("this node is no voter");
        };
        // Not taken in, but a sign of life: changes can be sent there.
        if let Request::Append(append) = request
            && append.vote.committed
            && is_from(from, &append.vote)
        {
            self.view().heard(Some(from), Some(Duration::ZERO));
        }
        refused(format_args!(
            "not now, this voter's store failed: {}",
            outage.why
        ))
    }

    async fn on_propose(&self, commands: Vec<String>, patience: Duration) -> Response {
        if let Err(error) = check_size(&commands) {
            return refused(error);
        }
        // What cannot be applied must never get into the log: it would stop every voter.
        let understood: Result<Vec<Command>, _> = commands
            .iter()
            .map(|text| serde_json::from_str(text))
            .collect();
        if let Err(error) = understood {
            return refused(error);
        }
        match self.propose_here(commands, patience).await {
            Ok(replies) => Response::Proposed { replies },
            Err(Undone::NotLeader(leader)) => Response::NotLeader {
                leader: leader.map(|leader| leader.0),
            },
            Err(Undone::NoQuorum) => Response::NoQuorum,
            Err(Undone::Busy) => Response::Busy,
            Err(Undone::Unknown) => Response::Unknown,
        }
    }

    async fn on_raft(
        &self,
        voter: &Voter,
        from: NodeId,
        request: Request,
        tail: &[u8],
    ) -> Response {
        match request {
            Request::Append(request) if is_from(from, &request.vote) => {
                self.on_append(voter, from, request).await
            }
            Request::Vote(request) if is_from(from, &request.vote) => {
                on_vote(voter, from, request).await
            }
            Request::Snapshot(chunk) => {
                let request = chunk.join(tail.to_vec());
                if !is_from(from, &request.vote) {
                    return refused("the sender speaks for another node");
                }
                match voter.raft.install_snapshot(request).await {
                    Err(RaftError::Fatal(error)) => refused(error),
                    answer => Response::Snapshot(answer),
                }
            }
            Request::Hello => Response::Hello,
            Request::Canvass { last } => {
                let favoured = candidacy::favours(voter, self.view(), last);
                Response::Canvass {
                    favoured: !voter.newcomer.is() && favoured,
                }
            }
            _ => refused("the sender speaks for another node"),
        }
    }

    async fn on_append(
        &self,
        voter: &Voter,
        from: NodeId,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Response {
        voter.newcomer.meet(&request);
        match voter.raft.append_entries(request).await {
            Ok(answer) => {
                if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                    self.view().heard(Some(from), Some(Duration::ZERO));
                }
                welcome(voter).await;
                Response::Append(answer)
            }
            Err(error) => refused(error),
        }
    }
}

async fn on_vote(voter: &Voter, from: NodeId, request: VoteRequest<u64>) -> Response {
    let member = {
        let metrics = voter.raft.metrics();
        let metrics = metrics.borrow();
        metrics
            .membership_config
            .membership()
            .get_node(&from.0)
            .is_some()
    };
    // Dropped, not denied: a denial would tell a stranger our term, and a vote that was looked at
    // could raise it.
    if !member {
        return refused("the candidate is no member");
    }
    if voter.newcomer.is() {
        return refused("this voter has not caught up yet");
    }
    match voter.raft.vote(request).await {
        Ok(answer) => Response::Vote(answer),
        Err(error) => refused(error),
    }
}

/// Ends the newcomer's time once it has caught up.
async fn welcome(voter: &Voter) {
    let applied = voter
        .raft
        .metrics()
        .borrow()
        .last_applied
        .map(|id| id.index);
    if voter.newcomer.has_caught_up(applied) {
        match voter.store.settle().await {
            Ok(()) => voter.newcomer.settled(),
            Err(error) => voter.alarm.raise(&error),
        }
    }
}

fn is_from(from: NodeId, vote: &Vote) -> bool {
    vote.leader_id().voted_for() == Some(from.0)
}

fn patience(millis: u64) -> Duration {
    Duration::from_millis(millis).min(PATIENCE_LIMIT)
}

fn refused(why: impl std::fmt::Display) -> Response {
    Response::Refused {
        message: why.to_string(),
    }
}
