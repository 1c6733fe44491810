//! The kinds of streams, and the traits of those who stand behind them.

use async_trait::async_trait;
use scheduler::model::NodeId;

use super::MeshStream;

/// What a stream carries: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    Gossip = 1,
    Raft = 2,
    Peer = 3,
    Proxy = 4,
    Feed = 5,
    Logs = 6,
    /// An operator's hand on an instance of another node.
    Touch = 7,
    /// Images and their layers.
    Images = 8,
    /// Bytes or datagrams to an instance, whatever they mean.
    Passage = 9,
    /// Word of a node that left a word unanswered.
    Doubt = 10,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Gossip,
            2 => Self::Raft,
            3 => Self::Peer,
            4 => Self::Proxy,
            5 => Self::Feed,
            6 => Self::Logs,
            7 => Self::Touch,
            8 => Self::Images,
            9 => Self::Passage,
            10 => Self::Doubt,
            _ => return None,
        })
    }

    /// Largest frame on a stream of this kind.
    pub const fn frame_limit(self) -> usize {
        match self {
            // The gossip library's own limit is a UDP datagram.
            Self::Gossip => 65_507,
            // A node's number.
            Self::Doubt => 64,
            // Batches of commands, chunks of a snapshot.
            Self::Raft | Self::Feed => 32 * 1024 * 1024,
            // A manifest whole; chunks in batches.
            Self::Peer | Self::Images => 8 * 1024 * 1024,
            // Proxied bodies are not framed.
            Self::Proxy | Self::Passage => 64 * 1024,
            // The wish and its answer; what follows has frames of its own.
            Self::Logs | Self::Touch => 1024 * 1024,
        }
    }

    /// Whether streams of this kind are mostly short, and wait for no disk.
    pub(super) const fn is_light(self) -> bool {
        matches!(self, Self::Proxy | Self::Doubt)
    }

    /// What keeps the cluster together leaves first when a connection is full.
    pub(super) const fn priority(self) -> i32 {
        match self {
            Self::Raft | Self::Gossip | Self::Doubt => 2,
            Self::Peer => 1,
            Self::Proxy | Self::Passage => 0,
            Self::Feed | Self::Logs | Self::Touch => -1,
            // Bulk: whatever else there is goes first.
            Self::Images => -2,
        }
    }
}

/// Stands behind one kind of stream.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Serves one stream; runs in a task of its own.
    async fn handle(&self, from: NodeId, stream: MeshStream);
}

/// Says which nodes may connect, beyond having a certificate of the cluster.
pub trait Admit: Send + Sync + 'static {
    /// False for a revoked node. Asked at every handshake, so it must be quick.
    fn admits(&self, node: NodeId) -> bool;
}
