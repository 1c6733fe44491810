//! Group commit: everything proposed on the leader while one entry is on its way goes into the
//! next one, so that a write costs a fraction of a round trip and of an fsync.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use openraft::ServerState;
use openraft::error::{ClientWriteError, RaftError};
use scheduler::model::NodeId;
use scheduler::registry::Reply;
use tokio::sync::{mpsc, oneshot};

use super::types::{Batch, Metrics, Raft};

/// Proposals waiting for the entry before them.
pub(super) const QUEUE: usize = 1024;
/// Commands in one entry: bounds how long applying one may take.
pub(super) const COMMANDS_PER_ENTRY: usize = 256;
/// Bytes of commands in one entry, except that one proposal always fits: an entry must cross a
/// slow link within a heartbeat.
const BYTES_PER_ENTRY: usize = 96 << 10;
/// Without a majority's word for this long a leader takes nothing in: it could not say what
/// became of it. Seven heartbeats, and (with the 375 ms by which openraft's metrics may lag) less
/// than the 2.25 s after which the others may have elected another one.
pub(super) const QUORUM_SILENCE: Duration = Duration::from_millis(1750);
/// After this the batcher no longer waits for an entry (every proposer has long given up): openraft
/// drops the answer of an entry that a snapshot stepped over.
const ENTRY_PATIENCE: Duration = Duration::from_secs(15);

/// Why there are no replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Undone {
    /// Nothing was submitted.
    NotLeader(Option<NodeId>),
    NoQuorum,
    Busy,
    /// Submitted; it may hold or come to hold.
    Unknown,
}

pub(super) type Outcome = Result<Vec<Reply>, Undone>;

const WAITING: u8 = 0;
const SUBMITTED: u8 = 1;
const ABANDONED: u8 = 2;

/// Decides between the batcher and an impatient proposer which of them was first.
#[derive(Default)]
struct Claim(AtomicU8);

impl Claim {
    fn take(&self, as_what: u8) -> bool {
        self.0
            .compare_exchange(WAITING, as_what, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

pub(super) struct Pending {
    commands: Vec<String>,
    claim: Arc<Claim>,
    answer: oneshot::Sender<Outcome>,
}

impl Pending {
    fn bytes(&self) -> usize {
        self.commands.iter().map(String::len).sum()
    }
}

/// Queues `commands` for the next entry and waits for its outcome, at most `patience`.
pub(super) async fn submit(
    queue: &mpsc::Sender<Pending>,
    commands: Vec<String>,
    patience: Duration,
) -> Outcome {
    let claim = Arc::new(Claim::default());
    let (answer, outcome) = oneshot::channel();
    let pending = Pending {
        commands,
        claim: claim.clone(),
        answer,
    };
    queue.try_send(pending).map_err(|_| Undone::Busy)?;
    match tokio::time::timeout(patience, outcome).await {
        Ok(Ok(outcome)) => outcome,
        // The batcher ended, or time is up.
        _ if claim.take(ABANDONED) => Err(Undone::NoQuorum),
        _ => Err(Undone::Unknown),
    }
}

/// The batcher: one entry at a time, until every sender is gone.
pub(super) async fn run(raft: Raft, mut queue: mpsc::Receiver<Pending>) {
    let mut held = None;
    loop {
        let first = match held.take() {
            Some(pending) => pending,
            None => match queue.recv().await {
                Some(pending) => pending,
                None => return,
            },
        };
        let (batch, rest) = collect(first, &mut queue);
        held = rest;
        settle(&raft, batch).await;
    }
}

/// What goes into the next entry, and the proposal that did not fit any more.
fn collect(first: Pending, queue: &mut mpsc::Receiver<Pending>) -> (Vec<Pending>, Option<Pending>) {
    let (mut commands, mut bytes) = (first.commands.len(), first.bytes());
    let mut batch = vec![first];
    while let Ok(next) = queue.try_recv() {
        commands += next.commands.len();
        bytes += next.bytes();
        if commands > COMMANDS_PER_ENTRY || bytes > BYTES_PER_ENTRY {
            return (batch, Some(next));
        }
        batch.push(next);
    }
    (batch, None)
}

async fn settle(raft: &Raft, mut batch: Vec<Pending>) {
    if let Err(undone) = may_submit(raft).await {
        for pending in batch {
            let _ = pending.answer.send(Err(undone.clone()));
        }
        return;
    }
    // Whoever went away before this moment has been told that nothing was done.
    batch.retain(|pending| !pending.answer.is_closed() && pending.claim.take(SUBMITTED));
    if batch.is_empty() {
        return;
    }
    let mut commands = Vec::new();
    let mut shares = Vec::new();
    for pending in batch {
        shares.push((pending.commands.len(), pending.answer));
        commands.extend(pending.commands);
    }
    let total = commands.len();
    fail::fail_point!("consensus::proposed");
    match write(raft, Batch(commands)).await {
        Some(replies) if replies.len() == total => {
            fail::fail_point!("consensus::agreed");
            let mut replies = replies.into_iter();
            for (share, answer) in shares {
                let _ = answer.send(Ok(replies.by_ref().take(share).collect()));
            }
        }
        _ => {
            for (_, answer) in shares {
                let _ = answer.send(Err(Undone::Unknown));
            }
        }
    }
}

/// Asked inside openraft's core, so that a refusal is certain: once an entry was handed in, an
/// error no longer tells whether it will hold.
async fn may_submit(raft: &Raft) -> Result<(), Undone> {
    let leads = raft
        .with_raft_state(|state| state.server_state == ServerState::Leader)
        .await;
    let metrics = raft.metrics().borrow().clone();
    if !matches!(leads, Ok(true)) {
        return Err(Undone::NotLeader(other_leader(&metrics)));
    }
    if has_quorum(&metrics) {
        Ok(())
    } else {
        Err(Undone::NoQuorum)
    }
}

pub(super) fn other_leader(metrics: &Metrics) -> Option<NodeId> {
    metrics
        .current_leader
        .filter(|leader| *leader != metrics.id)
        .map(NodeId)
}

/// Whether a leader has its majority's word. One that just came to lead has not yet: it gets the
/// benefit of the doubt, its proposers wait at most their patience.
pub(super) fn has_quorum(metrics: &Metrics) -> bool {
    let alone = metrics
        .membership_config
        .voter_ids()
        .all(|id| id == metrics.id);
    let silence = metrics.millis_since_quorum_ack.map(Duration::from_millis);
    alone || silence.is_none_or(|silence| silence < QUORUM_SILENCE)
}

/// The replies, or nothing when the outcome is not known.
async fn write(raft: &Raft, batch: Batch) -> Option<Vec<Reply>> {
    match tokio::time::timeout(ENTRY_PATIENCE, raft.client_write(batch)).await {
        Ok(Ok(response)) => Some(response.data.0),
        // It stopped leading meanwhile, or time is up.
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) | Err(_) => None,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a registry entry failed");
            None
        }
    }
}
