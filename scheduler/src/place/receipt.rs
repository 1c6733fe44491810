//! The receipt of a placement: inputs, scores and refusals, kept for `selvedge explain`.

use serde::{Deserialize, Serialize};

use super::Displacement;
use crate::model::{Name, NodeId, RevisionKey};

/// Why an instance went where it went, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub revision: RevisionKey,
    /// The node that decided.
    pub decided_by: NodeId,
    pub cause: String,
    /// The cause in full.
    #[serde(default)]
    pub why: String,
    /// The nodes that were looked at: accepted ones first, best first, then the rejected. In a small
    /// fleet, and when no node can take it, these are all nodes known to the decider.
    pub verdicts: Vec<Verdict>,
    #[serde(default)]
    pub inputs: Inputs,
    #[serde(default)]
    pub passed: Passed,
    /// Who goes on the first of the accepted nodes, which has no room otherwise.
    #[serde(default)]
    pub displaces: Option<Displacement>,
}

/// What the decision was made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    /// Nodes the decider knew.
    pub nodes: u32,
    /// How many changes of the fleet it had taken in; 0 where it does not count them.
    pub fleet_version: u64,
}

/// Nodes that were passed over without a verdict of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Passed {
    /// Not reachable, leaving or cordoned.
    pub closed: u32,
    /// Looked at and refused, beyond those the verdicts name.
    pub refused: u32,
    /// Not looked at: farther, fuller, without the image, or where its rules do not allow it.
    pub unseen: u32,
    /// The best of those not looked at is better than the winner by no more than this.
    pub regret_micros: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub node: NodeId,
    pub name: Name,
    pub region: Name,
    /// Incarnation and number of the node's record that it was judged by.
    #[serde(default)]
    pub record: (u64, u64),
    pub outcome: Result<Candidate, Rejection>,
}

/// An accepted node's score, in expected microseconds until it could answer and what the service's wishes
/// are worth in them; lower is better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub cost_micros: u64,
    /// Measured; where it is not, what the round trip is reckoned to be is among the parts.
    pub rtt_micros: Option<u32>,
    pub image_present: bool,
    /// Instances of the same revision there already.
    pub same_revision: u32,
    pub free_cpu_millis: u32,
    pub free_memory_bytes: u64,
    #[serde(default)]
    pub parts: Parts,
}

/// What the cost is made of, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parts {
    pub round_trip: u64,
    pub start: u64,
    pub pull: u64,
    pub crowding: u64,
    pub beside: u64,
    pub spread: u64,
    /// What stays free on it, where nodes are to be filled up.
    #[serde(default)]
    pub slack: u64,
    /// Labels that speak against it, or do not speak for it.
    #[serde(default)]
    pub prefer: u64,
    #[serde(default)]
    pub energy: u64,
    /// What waits there for processors, memory or disk.
    #[serde(default)]
    pub pressure: u64,
    /// For how long nothing was heard of it.
    #[serde(default)]
    pub silence: u64,
}

impl Parts {
    #[must_use]
    pub fn sum(&self) -> u64 {
        let waiting = self.round_trip + self.start + self.pull;
        let company = self.crowding + self.beside + self.spread + self.slack;
        waiting + company + self.prefer + self.energy + self.pressure + self.silence
    }
}

/// Why a node was not considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum Rejection {
    #[error("not reachable")]
    NotAlive,
    #[error("cordoned")]
    Cordoned,
    #[error("leaving")]
    Leaving,
    #[error("refused a moment ago")]
    Avoided,
    #[error("region {have} is not among {want}")]
    Region { want: String, have: String },
    #[error("label {label} is {have}, not {want}")]
    Label {
        label: String,
        want: String,
        have: String,
    },
    #[error("needs {want} mCPU, {free} free")]
    Cpu { want: u32, free: u32 },
    #[error("needs {want} bytes of memory, {free} free")]
    Memory { want: u64, free: u64 },
    /// It is asked for near where the traffic is.
    #[error("is not in {from}, where it is asked for")]
    Far { from: Name },
    #[error("has as many instances as it may")]
    Instances,
    #[error("its volume `{volume}` is on {on}")]
    Volume { volume: String, on: String },
}

/// The cause of what a door asks for, which has a request that waits.
pub const AT_THE_DOOR: &str = "request";

impl Receipt {
    /// The node that decided as a steward; none where it did as a door.
    #[must_use]
    pub fn steward(&self) -> Option<NodeId> {
        (self.cause != AT_THE_DOOR).then_some(self.decided_by)
    }

    /// Nodes to ask, best first.
    pub fn ranked(&self) -> impl Iterator<Item = (NodeId, &Candidate)> {
        self.verdicts
            .iter()
            .filter_map(|v| v.outcome.as_ref().ok().map(|c| (v.node, c)))
    }

    /// `name: reason` for every node that cannot take it.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let refusal = |v: &Verdict| v.outcome.as_ref().err().map(|e| format!("{}: {e}", v.name));
        self.verdicts.iter().filter_map(refusal).collect()
    }
}
