//! How a door asks another node's for bytes or datagrams to an instance there: one wish and one
//! answer as frames, then what is carried. Datagrams follow as a length of two bytes and as many.

use scheduler::model::{InstanceId, RevisionKey};
use serde::{Deserialize, Serialize};

/// Both are a few hundred bytes.
pub const FRAME_LIMIT: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPassage {
    pub revision: RevisionKey,
    /// The container's port; 0 is the one it serves requests on.
    pub port: u16,
    /// Datagrams instead of bytes.
    pub udp: bool,
    /// How long nothing may move.
    pub idle_seconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PassageAnswer {
    /// The instance is connected to.
    Open(InstanceId),
    /// Instances are here, none with room.
    Full,
    NotHere,
    /// Instances are here, and nobody in them listens on that port.
    Closed,
}
