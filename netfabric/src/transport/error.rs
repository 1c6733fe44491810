//! What can go wrong between nodes. Clonable, because one failed dial is told to all who wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use scheduler::model::NodeId;

use super::{Kind, code};
use crate::identity::IdentityError;
use crate::wire::codec::CodecError;
use crate::wire::frame::FrameError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    #[error("cannot open UDP port {addr}: {source}")]
    Bind {
        addr: SocketAddr,
        source: Arc<io::Error>,
    },
    #[error("{0}")]
    Identity(Arc<IdentityError>),
    #[error("no address is known for {0}")]
    UnknownAddress(NodeId),
    #[error("cannot dial {addr}: {source}")]
    Dial {
        addr: SocketAddr,
        source: quinn::ConnectError,
    },
    #[error("nobody answers at {addr}")]
    Unreachable { addr: SocketAddr },
    #[error("connecting to {addr}: {source}")]
    Connect {
        addr: SocketAddr,
        source: quinn::ConnectionError,
    },
    /// One of both sides does not accept the other: no certificate of this cluster, or revoked.
    #[error("this node and the one at {addr} do not admit each other")]
    NotAdmitted { addr: SocketAddr },
    #[error("{found} answers at {addr}, where {wanted} was expected")]
    WrongPeer {
        addr: SocketAddr,
        wanted: NodeId,
        found: NodeId,
    },
    #[error("too many dials at once")]
    Busy,
    #[error("the deadline passed while {0}")]
    Deadline(&'static str),
    #[error("the connection was lost: {0}")]
    Lost(#[from] quinn::ConnectionError),
    #[error("the peer serves no {0:?} streams")]
    Unserved(Kind),
    #[error("the peer could not make sense of the request")]
    Malformed,
    #[error("the peer is busy or gave up")]
    Aborted,
    #[error("{0}")]
    Frame(Arc<FrameError>),
    #[error("this node's mesh is closed")]
    Closed,
}

impl TransportError {
    /// A dial that a connection error ended.
    pub(super) fn connect(addr: SocketAddr, source: quinn::ConnectionError) -> Self {
        match &source {
            quinn::ConnectionError::ApplicationClosed(close)
                if close.error_code == code::NOT_ADMITTED =>
            {
                Self::NotAdmitted { addr }
            }
            quinn::ConnectionError::TimedOut => Self::Unreachable { addr },
            quinn::ConnectionError::LocallyClosed => Self::Closed,
            _ => Self::Connect { addr, source },
        }
    }

    /// What a failed read or write of a frame on a stream of `kind` means.
    pub(super) fn frame(kind: Kind, error: FrameError) -> Self {
        if let FrameError::Io(io) = &error {
            if let Some(code) = reset_code(io) {
                return match code {
                    code::UNSERVED => Self::Unserved(kind),
                    code::MALFORMED => Self::Malformed,
                    _ => Self::Aborted,
                };
            }
            if let Some(lost) = lost(io) {
                return Self::Lost(lost);
            }
        }
        Self::Frame(Arc::new(error))
    }
}

/// What the library said, also of an error that was given another kind.
fn cause(error: &io::Error) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
    let source = error.get_ref()?;
    match source.downcast_ref::<io::Error>() {
        Some(inner) => cause(inner),
        None => Some(source),
    }
}

/// The code with which the peer reset or stopped the stream.
fn reset_code(error: &io::Error) -> Option<quinn::VarInt> {
    let source = cause(error)?;
    if let Some(quinn::ReadError::Reset(code)) = source.downcast_ref() {
        return Some(*code);
    }
    match source.downcast_ref() {
        Some(quinn::WriteError::Stopped(code)) => Some(*code),
        _ => None,
    }
}

/// Whether the peer took nothing of what came on the stream: it serves none of its kind, has no room, or
/// left when nobody was in any more.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    if let Some(code) = reset_code(error) {
        return code == code::UNSERVED || code == code::BUSY;
    }
    matches!(lost(error), Some(quinn::ConnectionError::ApplicationClosed(close))
        if close.error_code == code::LEFT)
}

fn lost(error: &io::Error) -> Option<quinn::ConnectionError> {
    let source = cause(error)?;
    if let Some(quinn::ReadError::ConnectionLost(lost)) = source.downcast_ref() {
        return Some(lost.clone());
    }
    match source.downcast_ref() {
        Some(quinn::WriteError::ConnectionLost(lost)) => Some(lost.clone()),
        _ => None,
    }
}

impl From<IdentityError> for TransportError {
    fn from(error: IdentityError) -> Self {
        Self::Identity(Arc::new(error))
    }
}

impl From<CodecError> for TransportError {
    fn from(error: CodecError) -> Self {
        Self::Frame(Arc::new(FrameError::Codec(error)))
    }
}
