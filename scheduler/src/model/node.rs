//! Nodes: who they are (registry) and what they say of themselves (gossip).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{InstanceReport, Name, NodeId, RevisionKey, UnixMs};

/// A node's enrolment, as agreed in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeIdentity {
    pub id: NodeId,
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    /// Where peers reach it: its mesh address at enrolment.
    pub mesh: SocketAddr,
    /// Ed25519 public key, 32 bytes; its records and its certificate carry it.
    pub public_key: Vec<u8>,
    pub role: Role,
    pub enrolled: UnixMs,
    /// Its identity is void: peers refuse its certificate and its records.
    pub revoked: bool,
    /// It takes no new instances; those it has go on.
    #[serde(default)]
    pub cordoned: bool,
    /// Cordoned, and those it has leave as others take their place.
    #[serde(default)]
    pub draining: bool,
}

/// A node's part in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Voter,
    Follower,
}

/// An amount of what instances use up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// 1000 is one core.
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub instances: u32,
}

/// What a node says of itself, once a second at most. Only the node itself writes it, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    pub node: NodeId,
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    pub labels: BTreeMap<String, String>,
    /// Rises with every start of the daemon; a higher one replaces all earlier records.
    pub incarnation: u64,
    /// Rises with every record of an incarnation.
    pub seq: u64,
    pub version: String,
    pub mesh: SocketAddr,
    /// Addresses at which clients reach this node's front door.
    pub ingress: Vec<IpAddr>,
    /// Accepting requests; false while the node leaves.
    pub serving: bool,
    /// Takes no new instances.
    pub cordoned: bool,
    pub capacity: Resources,
    pub free: Resources,
    pub registry_index: u64,
    pub instances: Vec<InstanceReport>,
    pub demand: Vec<Demand>,
    /// Manifest digests of images held here.
    pub images: Vec<String>,
    /// What starts here took lately.
    #[serde(default)]
    pub starts: Vec<StartTime>,
}

/// From the wish for an instance of a revision to its first answer, without bringing its image here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartTime {
    pub revision: RevisionKey,
    pub micros: u32,
}

/// What this node's front door is asked for and nothing near it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    pub revision: RevisionKey,
    /// Requests held now, because nothing has room.
    pub queued: u32,
    /// Requests that were sent to another region because nothing nearer had room, counted since the
    /// daemon began.
    #[serde(default)]
    pub away: u64,
}
