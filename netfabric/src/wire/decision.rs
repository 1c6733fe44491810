//! What a node decided about an instance, as it is written down and shown. It is kept in files that
//! later versions read, and sent as JSON alone: fields and deeds can be added.

use scheduler::model::{InstanceId, Name, NodeId, RevisionKey, ServiceKey, UnixMs};
use scheduler::place::Receipt;
use serde::{Deserialize, Serialize};

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    pub at: UnixMs,
    /// Who decided, and wrote it down.
    pub node: NodeId,
    pub node_name: Name,
    pub deed: Deed,
    pub service: ServiceKey,
    pub revision: RevisionKey,
    #[serde(default)]
    pub instance: Option<InstanceId>,
    /// A sentence without a full stop.
    pub why: String,
    /// What it was decided from.
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// How often the same was decided since it was last written down.
    #[serde(default)]
    pub unwritten: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Deed {
    /// The node took an instance on.
    Placed,
    /// A steward had one more started, or tried to.
    Scaled,
    /// An instance was to end.
    Retired,
    /// The node did not take one on.
    Refused,
    /// A door or a steward found no node for one.
    Unplaced,
    /// A steward gave the revision up.
    Failed,
    /// Of a later version.
    #[serde(other)]
    Other,
}
