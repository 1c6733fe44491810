//! The types openraft is instantiated with: what a log entry carries and what applying it answers.

use std::io::Cursor;

use scheduler::registry::Reply;
use serde::{Deserialize, Serialize};

/// One log entry: the commands of everyone who proposed while the entry before was on its way.
///
/// Each is the JSON text of a `registry::Command`, kept as it was proposed: a replica of an older
/// version must store and pass on fields it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch(pub Vec<String>);

/// One reply per command of the entry, in order. Never stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replies(pub Vec<Reply>);

openraft::declare_raft_types!(
    /// The registry's Raft. Nodes are numbers: addresses are the carrier's matter.
    pub TypeConfig:
        D = Batch,
        R = Replies,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<u64>;
pub(super) type Vote = openraft::Vote<u64>;
pub(super) type Membership = openraft::StoredMembership<u64, openraft::EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::EmptyNode>;
pub(super) type Metrics = openraft::RaftMetrics<u64, openraft::EmptyNode>;
