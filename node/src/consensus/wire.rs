//! What registry nodes say to each other over the carrier: one request, one answer. Owns the
//! bytes; openraft's types travel as JSON so that fields can be added, a snapshot's bytes as they
//! are.

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use scheduler::registry::Reply;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{LogId, SnapshotMeta, TypeConfig, Vote};

const VERSION: u8 = 1;
/// Far above the largest honest message (one entry of one 1 MiB command, escaped).
pub const MAX_MESSAGE: usize = 8 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    /// The chunk's bytes follow the header.
    Snapshot(SnapshotChunk),
    /// Commands for the leader, each as JSON. Never forwarded further.
    Propose {
        commands: Vec<String>,
        patience_millis: u64,
    },
    /// The registry index a linearizable read must have reached.
    ReadIndex {
        patience_millis: u64,
    },
    /// Is a voter's store open there, ready to be added?
    Hello,
    /// Would you elect a node whose log ends so? Binds nobody.
    Canvass {
        last: Option<LogId>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotChunk {
    vote: Vote,
    meta: SnapshotMeta,
    offset: u64,
    done: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>),
    Proposed {
        replies: Vec<Reply>,
    },
    Index(u64),
    Hello,
    Canvass {
        favoured: bool,
    },
    /// Nothing was done: ask this one.
    NotLeader {
        leader: Option<u64>,
    },
    /// Nothing was done.
    NoQuorum,
    /// Nothing was done: too much is waiting.
    Busy,
    /// It was submitted, and its outcome is not known.
    Unknown,
    /// The request was not acted on.
    Refused {
        message: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("{0} bytes are more than a message may have")]
    TooLarge(usize),
    #[error("the message ends too early")]
    Cut,
    #[error("version {0} of the message is not known here")]
    Version(u8),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl SnapshotChunk {
    pub fn split(request: InstallSnapshotRequest<TypeConfig>) -> (Self, Vec<u8>) {
        let InstallSnapshotRequest {
            vote,
            meta,
            offset,
            data,
            done,
        } = request;
        (
            Self {
                vote,
                meta,
                offset,
                done,
            },
            data,
        )
    }

    pub fn join(self, data: Vec<u8>) -> InstallSnapshotRequest<TypeConfig> {
        let Self {
            vote,
            meta,
            offset,
            done,
        } = self;
        InstallSnapshotRequest {
            vote,
            meta,
            offset,
            data,
            done,
        }
    }
}

/// `version, u32 length of the header, header, tail`.
pub(super) fn encode<T: Serialize>(head: &T, tail: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![VERSION, 0, 0, 0, 0];
    serde_json::to_writer(&mut bytes, head)?;
    let head = bytes.len() - 5;
    let total = bytes.len() + tail.len();
    if total > MAX_MESSAGE {
        return Err(WireError::TooLarge(total));
    }
    let length = u32::try_from(head).map_err(|_| WireError::TooLarge(head))?;
    bytes[1..5].copy_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(tail);
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::TooLarge(bytes.len()));
    }
    let (version, rest) = bytes.split_first().ok_or(WireError::Cut)?;
    if *version != VERSION {
        return Err(WireError::Version(*version));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(WireError::Cut)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| WireError::Cut)?;
    let (head, tail) = rest.split_at_checked(length).ok_or(WireError::Cut)?;
    Ok((serde_json::from_slice(head)?, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::types::{Batch, Entry};

    #[test]
    fn an_append_survives() {
        let entry = Entry {
            log_id: openraft::LogId::new(openraft::CommittedLeaderId::new(3, 1), 7),
            payload: openraft::EntryPayload::Normal(Batch(vec!["{\"at\":0}".into()])),
        };
        let request = Request::Append(AppendEntriesRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: None,
            entries: vec![entry],
            leader_commit: None,
        });
        let bytes = encode(&request, b"tail").unwrap();
        let (decoded, tail) = decode::<Request>(&bytes).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{request:?}"));
        assert_eq!(tail, b"tail");
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let whole = encode(&Request::Hello, &[]).unwrap();
        for cut in 0..whole.len() {
            assert!(decode::<Request>(&whole[..cut]).is_err(), "{cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x80;
            assert!(decode::<Request>(&flipped).is_err(), "{at}");
        }
    }
}
