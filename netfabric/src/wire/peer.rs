//! What nodes ask of each other, one request and one answer per stream.

use scheduler::model::{Exit, InstanceId, Name, RequestId, RevisionKey, ServiceKey};
use scheduler::place::Receipt;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    Start(Box<StartRequest>),
    /// Drain and stop. Answered at once; the drain goes on.
    Stop {
        instance: InstanceId,
        cause: String,
    },
    /// What only the asked node knows of `instance/ID` (its receipt) or `request/ID` (its bill).
    Explain {
        subject: String,
    },
    /// A joiner's request (`JoinRequest`, encoded) that came to a node without the CA's key.
    Join {
        token_hash: String,
        request: Vec<u8>,
    },
    /// What instances on the asked node used, of one service, of a namespace or of all.
    Usage {
        namespace: Option<Name>,
        service: Option<Name>,
    },
    /// What images take on the asked node's disk.
    ImageUsage,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerResponse {
    Started(Started),
    StartRefused(StartRefusal),
    Stopping,
    UnknownInstance,
    /// The receipt or the bill, as JSON.
    Explained {
        json: Vec<u8>,
    },
    UnknownSubject,
    /// `Result<JoinResponse, JoinRefusal>`, encoded.
    Joined {
        decided: Vec<u8>,
    },
    /// A `UsageView`, as JSON.
    Usage {
        json: Vec<u8>,
    },
    /// The `ImageShare`s of the asked node, as JSON.
    ImageUsage {
        json: Vec<u8>,
    },
}

/// Start one instance here and answer when it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    pub service: ServiceKey,
    pub revision: RevisionKey,
    /// The asker's registry index: the asked node waits a moment until it has caught up.
    pub index: u64,
    /// The request that caused it, when one did.
    pub request: Option<RequestId>,
    pub receipt: Receipt,
    /// Requests waiting at the asker for this instance. With some, the asked node may answer with
    /// an instance that it is starting for another asker; with none it starts a new one.
    pub held: u32,
    /// How long the asker will wait.
    pub patience_millis: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub instance: InstanceId,
    /// The cold-start bill: phase (`pull`, `create`, `start`, `ready`) and its microseconds.
    pub phases: Vec<(String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StartRefusal {
    #[error("no room: {0}")]
    NoRoom(String),
    #[error("the node is cordoned or leaving")]
    NotTaking,
    #[error("revision {0} is not known here")]
    UnknownRevision(RevisionKey),
    #[error("the image is not to be had: {0}")]
    Image(String),
    /// It was tried, and the instance failed.
    #[error("{code}: {message}")]
    Failed {
        code: String,
        message: String,
        exit: Option<Exit>,
    },
    #[error("the node did not answer: {0}")]
    Unreachable(String),
    /// The service's rules do not allow it there, whoever asks.
    #[error("it may not run there: {0}")]
    Misplaced(String),
}
