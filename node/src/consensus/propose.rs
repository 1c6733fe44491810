//! How any node changes and reads the registry: on the leader directly, elsewhere by asking the
//! leader, one hop. Owns the deadlines and the distinction between "not done" and "not known".

use std::time::Duration;

use scheduler::model::{NodeId, Role};
use scheduler::registry::{Command, Reply};
use tokio::time::Instant;

use super::batch::{self, COMMANDS_PER_ENTRY, Outcome, Undone};
use super::keeper::Outage;
use super::network::{self, CallError, CarrierError};
use super::registry::Registry;
use super::wire::{Request, Response, WireError};

/// One command's JSON; a service's spec is a few kilobytes.
pub(super) const COMMAND_BYTES: usize = 1 << 20;
/// Between two tries while there is no leader, jittered up to twice of it.
const RETRY_PAUSE_MILLIS: u64 = 60;
/// What the leader's patience is shorter than the asker's, so that its answer is heard.
const ANSWER_MARGIN: Duration = Duration::from_millis(150);
/// One try at asking for the read index; asking again does no harm.
const READ_TRY: Duration = Duration::from_millis(1500);

/// A change that was not, or maybe not, made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not done, and safe to try again later.
    #[error("the registry has no leader in reach")]
    NoQuorum,
    /// Not done, and safe to try again later: this node is a voter that cannot keep it, and no
    /// other one leads.
    #[error("{0}, and no other voter leads")]
    StoreFailed(Box<Outage>),
    /// Not done, and safe to try again later.
    #[error("too many changes are waiting")]
    Busy,
    /// It was handed in and no answer came: look whether it holds before trying again.
    #[error("the change was handed in, but its outcome is not known")]
    Unknown,
    /// Not done.
    #[error("a change may have {COMMAND_BYTES} bytes and {COMMANDS_PER_ENTRY} parts")]
    TooLarge,
    /// Not done: the leader does not understand it (an older version?).
    #[error("the leader refused the request: {0}")]
    Refused(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the registry has no leader in reach")]
    NoQuorum,
    /// The leader answered, this node has not caught up to it in time.
    #[error("this node has not caught up to index {wanted} yet")]
    Behind { wanted: u64 },
}

impl Registry {
    /// Proposes one command from any node. Returns within `deadline`.
    pub async fn propose(
        &self,
        command: &Command,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        let replies = self
            .propose_all(std::slice::from_ref(command), deadline)
            .await?;
        replies.into_iter().next().ok_or(ProposeError::Unknown)
    }

    /// Proposes commands that are applied together, in order; each has its own reply.
    pub async fn propose_all(
        &self,
        commands: &[Command],
        deadline: Duration,
    ) -> Result<Vec<Reply>, ProposeError> {
        let encoded: Result<Vec<_>, _> = commands.iter().map(serde_json::to_string).collect();
        let commands = encoded.map_err(|error| ProposeError::Refused(error.to_string()))?;
        check_size(&commands)?;
        let until = Instant::now() + deadline;
        let mut hint = None;
        let mut turn = 0;
        loop {
            match self.propose_once(&commands, until, hint, turn).await {
                Ok(replies) if replies.len() == commands.len() => return Ok(replies),
                Ok(_) => return Err(ProposeError::Unknown),
                Err(Try::Final(error)) => return Err(error),
                Err(Try::Again(leader)) => hint = leader,
            }
            turn += 1;
            if !pause(until).await {
                return Err(match self.outage() {
                    Some(outage) => ProposeError::StoreFailed(Box::new((*outage).clone())),
                    None => ProposeError::NoQuorum,
                });
            }
        }
    }

    async fn propose_once(
        &self,
        commands: &[String],
        until: Instant,
        hint: Option<NodeId>,
        turn: usize,
    ) -> Result<Vec<Reply>, Try> {
        let patience = until.saturating_duration_since(Instant::now());
        let Some(leader) = self.leader_to_ask(hint, turn) else {
            return Err(Try::Again(None));
        };
        if leader == self.node() {
            return self
                .propose_here(commands.to_vec(), patience)
                .await
                .map_err(Try::from);
        }
        let patience_millis = millis(patience.saturating_sub(ANSWER_MARGIN));
        let request = Request::Propose {
            commands: commands.to_vec(),
            patience_millis,
        };
        match network::call(self.carrier(), leader, &request, &[], patience).await {
            Ok(response) => proposed(response),
            Err(CallError::Carrier(CarrierError::Unreachable(_))) => Err(Try::Again(None)),
            Err(CallError::Wire(WireError::TooLarge(_))) => Err(Try::Final(ProposeError::TooLarge)),
            Err(CallError::Refused(message)) => Err(Try::Final(ProposeError::Refused(message))),
            // A damaged answer says as little as none.
            Err(CallError::Carrier(CarrierError::Lost(_)) | CallError::Wire(_)) => {
                Err(Try::Final(ProposeError::Unknown))
            }
        }
    }

    /// Puts commands into this voter's next entry.
    pub(super) async fn propose_here(&self, commands: Vec<String>, patience: Duration) -> Outcome {
        match self.voter() {
            Some(voter) => batch::submit(&voter.batches, commands, patience).await,
            None => Err(Undone::NotLeader(self.other_leader())),
        }
    }

    /// Waits until this node's view holds everything that was acknowledged, to anyone, before the
    /// call; returns the index that took. Read [`Registry::view`] after it.
    pub async fn read_index(&self, deadline: Duration) -> Result<u64, ReadError> {
        let until = Instant::now() + deadline;
        let mut hint = None;
        let mut turn = 0;
        let wanted = loop {
            match self.ask_index(until, hint, turn).await {
                Ok(index) => break index,
                Err(leader) => hint = leader,
            }
            turn += 1;
            if !pause(until).await {
                return Err(ReadError::NoQuorum);
            }
        };
        tokio::time::timeout_at(until, self.view().reached(wanted))
            .await
            .map(|()| wanted)
            .map_err(|_| ReadError::Behind { wanted })
    }

    async fn ask_index(
        &self,
        until: Instant,
        hint: Option<NodeId>,
        turn: usize,
    ) -> Result<u64, Option<NodeId>> {
        let patience = until
            .saturating_duration_since(Instant::now())
            .min(READ_TRY);
        let leader = self.leader_to_ask(hint, turn).ok_or(None)?;
        if leader == self.node() {
            return self.index_here(patience).await;
        }
        let request = Request::ReadIndex {
            patience_millis: millis(patience),
        };
        match network::call(self.carrier(), leader, &request, &[], patience).await {
            Ok(Response::Index(index)) => Ok(index),
            Ok(Response::NotLeader { leader }) => Err(leader.map(NodeId)),
            _ => Err(None),
        }
    }

    /// The leader's read barrier: a majority confirms that it still leads, and it has applied
    /// everything committed until now.
    pub(super) async fn index_here(&self, patience: Duration) -> Result<u64, Option<NodeId>> {
        let voter = self.voter().ok_or_else(|| self.other_leader())?;
        match tokio::time::timeout(patience, voter.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(self.view().index()),
            Ok(Err(error)) => {
                let forward = error.forward_to_leader::<openraft::EmptyNode>();
                Err(forward.and_then(|forward| forward.leader_id).map(NodeId))
            }
            Err(_) => Err(None),
        }
    }

    /// Who leads as this node was told. It may have led itself until its store failed.
    fn other_leader(&self) -> Option<NodeId> {
        self.view().leader().filter(|leader| *leader != self.node())
    }

    /// Who leads as far as is known here; a follower that knows nothing asks the voters by turns
    /// (any of them knows better).
    fn leader_to_ask(&self, hint: Option<NodeId>, turn: usize) -> Option<NodeId> {
        let known = match self.voter() {
            Some(voter) => {
                let metrics = voter.raft.metrics();
                let metrics = metrics.borrow();
                // A voter whose disk failed remembers a leader that may be itself.
                let leader = metrics.current_leader.map(NodeId);
                leader.filter(|_| metrics.running_state.is_ok())
            }
            None => self.other_leader().filter(|_| turn == 0),
        };
        let out = self.outage().is_some();
        let hint = hint.filter(|leader| !out || *leader != self.node());
        let state = self.view().state();
        let voters = || {
            let is_voter = |node: &&scheduler::model::NodeIdentity| {
                node.role == Role::Voter && !node.revoked && node.id != self.node()
            };
            state
                .nodes
                .values()
                .filter(is_voter)
                .map(|node| node.id)
                .collect::<Vec<_>>()
        };
        hint.or(known).or_else(|| {
            let mut ask = voters();
            if ask.is_empty() {
                ask = self.near_nodes();
            }
            (!ask.is_empty()).then(|| ask[turn % ask.len()])
        })
    }
}

/// How one try ended without replies.
enum Try {
    Again(Option<NodeId>),
    Final(ProposeError),
}

impl From<Undone> for Try {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::NotLeader(leader) => Self::Again(leader),
            Undone::NoQuorum => Self::Again(None),
            Undone::Busy => Self::Final(ProposeError::Busy),
            Undone::Unknown => Self::Final(ProposeError::Unknown),
        }
    }
}

fn proposed(response: Response) -> Result<Vec<Reply>, Try> {
    match response {
        Response::Proposed { replies } => Ok(replies),
        Response::NotLeader { leader } => Err(Try::Again(leader.map(NodeId))),
        Response::NoQuorum => Err(Try::Again(None)),
        Response::Busy => Err(Try::Final(ProposeError::Busy)),
        _ => Err(Try::Final(ProposeError::Unknown)),
    }
}

pub(super) fn check_size(commands: &[String]) -> Result<(), ProposeError> {
    let bytes: usize = commands.iter().map(String::len).sum();
    if commands.is_empty() || commands.len() > COMMANDS_PER_ENTRY || bytes > COMMAND_BYTES {
        return Err(ProposeError::TooLarge);
    }
    Ok(())
}

/// False when `until` would pass meanwhile.
async fn pause(until: Instant) -> bool {
    let millis = rand::random_range(RETRY_PAUSE_MILLIS..2 * RETRY_PAUSE_MILLIS);
    let next = Instant::now() + Duration::from_millis(millis);
    tokio::time::sleep_until(next.min(until)).await;
    next < until
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
