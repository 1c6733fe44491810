//! The receipt of a placement: inputs, scores and refusals, kept for `selvedge explain`.

use serde::{Deserialize, Serialize};

use crate::model::{Name, NodeId, RevisionKey};

/// Why an instance went where it went, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub revision: RevisionKey,
    /// The node that decided.
    pub decided_by: NodeId,
    pub cause: String,
    /// Every node known to the decider: accepted ones first, best first, then the rejected.
    pub verdicts: Vec<Verdict>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub node: NodeId,
    pub name: Name,
    pub region: Name,
    pub outcome: Result<Candidate, Rejection>,
}

/// An accepted node's score, in expected microseconds until it could answer; lower is better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub cost_micros: u64,
    pub rtt_micros: Option<u32>,
    pub image_present: bool,
    /// Instances of the same revision there already.
    pub same_revision: u32,
    pub free_cpu_millis: u32,
    pub free_memory_bytes: u64,
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
    #[error("has as many instances as it may")]
    Instances,
    #[error("its volume `{volume}` is on {on}")]
    Volume { volume: String, on: String },
}

impl Receipt {
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
