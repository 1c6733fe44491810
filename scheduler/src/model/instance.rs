//! One placed copy of a revision, as its node reports it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{InstanceId, NodeId, RevisionKey, ServiceKey, UnixMs};

/// On the wire a state is its place in this list: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InstanceState {
    /// A container with all but its program running. It is no endpoint and nobody's capacity.
    Parked,
    Starting,
    Ready,
    Draining,
    Stopped,
    Failed,
    /// Ready, and held still while nobody asks it anything; the next request thaws it.
    Frozen,
}

impl InstanceState {
    /// Requests may be sent to it.
    #[must_use]
    pub const fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::Frozen)
    }

    /// It serves or will: what counts as an instance of its service.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Frozen)
    }

    /// Nothing runs of it any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Parked => "Parked",
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Draining => "Draining",
            Self::Stopped => "Stopped",
            Self::Failed => "Failed",
            Self::Frozen => "Frozen",
        })
    }
}

/// What a node gossips about one of its instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReport {
    pub id: InstanceId,
    pub service: ServiceKey,
    pub revision: RevisionKey,
    pub state: InstanceState,
    pub since: UnixMs,
    /// Requests in it now.
    pub in_flight: u32,
    /// Requests in it on average over the last second, times 1000.
    pub concurrency_milli: u32,
    pub failure: Option<FailReason>,
    /// The steward that ordered it; none where a door did.
    #[serde(default)]
    pub steward: Option<NodeId>,
    #[serde(default)]
    pub activity: Activity,
}

/// What an instance does beside its requests, as far as others decide by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// Leases by which its programs say that they work although nobody asks them anything.
    pub leases: u32,
    /// What its service is scaled by, where that is not the number of requests.
    pub used: Option<Used>,
}

/// An amount by which a service may be scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Used {
    /// 1000 is one core.
    CpuMillis(u32),
    MemoryMib(u32),
    /// Requests a second times 1000.
    MilliRequests(u32),
}

/// Why an instance failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailReason {
    /// A code word: `ImagePull`, `CreateContainer`, `Exited`, `OOMKilled`, `ShimLost`,
    /// `NeverReady`, `Unhealthy`, `CrashLoopBackOff`, …
    pub code: String,
    /// For people: what happened, with the last log lines where that helps.
    pub message: String,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// The exit code, or 128 + signal.
    pub code: i32,
    pub signal: Option<i32>,
    pub oom: bool,
    /// Its shim was gone first and the container was ended with it: our doing, not the program's.
    #[serde(default)]
    pub lost: bool,
    pub at: UnixMs,
}
