//! What a service may ask of the sandbox its container runs in, beyond CPU, memory and processes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How much a container may do with the node's data disk; 0 anywhere is no limit. What it reads
/// and writes in memory (tmpfs, the page cache) is not counted here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IoLimits {
    /// Its share against other containers, 1 to 1000; where nothing is said all have 100.
    pub weight: u16,
    /// Bytes a second.
    pub read_bps: u64,
    pub write_bps: u64,
    /// Operations a second.
    pub read_iops: u64,
    pub write_iops: u64,
}

/// A bound on one process, as `ulimit` sets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ulimit {
    /// `nofile`, `nproc`, …: one of [`Ulimit::KINDS`].
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

impl Ulimit {
    /// What may be bounded, with the least and the most a service may ask for. Less than the least
    /// would end the container while it is being set up.
    pub const KINDS: [(&'static str, u64, u64); 7] = [
        ("core", 0, 4 << 30),
        ("memlock", 0, 64 << 30),
        ("msgqueue", 0, 64 << 20),
        ("nofile", 64, 1 << 20),
        ("nproc", 1, 65_536),
        ("sigpending", 16, 65_536),
        ("stack", 64 << 10, 1 << 30),
    ];
}

/// A folder in memory, empty at each start. Its contents count as the container's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tmpfs {
    pub path: String,
    /// 0 is 64 MiB.
    pub size_bytes: u64,
}

/// Names for an address, for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostAlias {
    pub ip: IpAddr,
    pub names: Vec<String>,
}

/// What `/etc/resolv.conf` says in place of the platform's own; an empty list leaves the
/// platform's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    pub servers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}
