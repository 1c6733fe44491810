//! The containers' network on this node: a bridge, namespaces with an address each, kept ready
//! before they are needed, and the firewall around them.
//!
//! Lives in the network namespace the daemon runs in, which need not be the machine's first. Knows
//! instances by name only; what runs in a namespace is the runtime's business.

mod addresses;
mod firewall;
mod netns;
mod pace;
mod pool;
pub(crate) mod resolvers;
mod rules;
mod traffic;

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use scheduler::model::{Egress, InstanceId};
use serde::{Deserialize, Serialize};

use crate::userns::{Block, Owner};

pub use addresses::{Subnet, SubnetError};
pub use pool::Network;
pub use traffic::Traffic;

#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Those of a daemon before this one that stay open: containers are led to them from the first
    /// moment, and wait there.
    pub inward: Option<Inward>,
    /// At most 15 characters.
    pub bridge: String,
    /// The nftables tables' name; two nodes in one network namespace need two.
    pub table: String,
    pub subnet: Subnet,
    /// Holds `netns/` and `leases/`. Made when missing.
    pub run: PathBuf,
    /// Namespaces kept ready.
    pub pool: usize,
    /// Who needs a network waits in line for as long as none took longer than this to become ready.
    pub patience: Duration,
    /// Networks closed to containers besides the private ones.
    pub deny: Vec<Subnet>,
    /// Ports closed to containers on every host: the nodes' own.
    pub deny_ports: Vec<u16>,
    /// Whether each namespace belongs to a user namespace of its own.
    pub user_namespaces: bool,
}

/// Making one takes tens of milliseconds; a machine under load, seconds.
const PATIENCE: Duration = Duration::from_secs(10);

impl NetworkConfig {
    /// The defaults of a node by its name.
    #[must_use]
    pub fn of(node: &str, run: impl Into<PathBuf>) -> Self {
        Self {
            inward: None,
            bridge: format!("sv{}", tag(node)),
            table: "selvedge".to_owned(),
            subnet: "10.201.0.0/16".parse().expect("a literal network"),
            run: run.into(),
            pool: 4,
            patience: PATIENCE,
            deny: Vec::new(),
            deny_ports: Vec::new(),
            user_namespaces: false,
        }
    }

    /// What the names of this bridge's ports begin with; a number follows, 15 characters in all.
    fn port_prefix(&self) -> String {
        format!("v{}x", tag(&self.bridge))
    }

    fn slot(&self, number: u32) -> Slot {
        let address = self.subnet.address(number);
        Slot {
            number,
            port: format!("{}{number:x}", self.port_prefix()),
            mac: netns::mac(address),
            address,
            netns: self.run.join("netns").join(number.to_string()),
            ids: Block::number(number).filter(|_| self.user_namespaces),
            egress: Vec::new(),
        }
    }
}

/// Ports of the node's on the bridge, for its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inward {
    /// Where services are called.
    pub door: u16,
    /// Where names are asked for.
    pub dns: u16,
}

/// Six characters that tell names apart where there is no room for them (FNV-1a, folded).
fn tag(name: &str) -> String {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{:06x}", (hash >> 24) ^ (hash & 0x00ff_ffff))
}

/// One prepared network: everything follows from its number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    number: u32,
    /// Its veth end on the bridge.
    port: String,
    mac: [u8; 6],
    address: Ipv4Addr,
    netns: PathBuf,
    /// The ids of the user namespace that the network namespace belongs to.
    ids: Option<Block>,
    /// Closed networks it is let into.
    egress: Vec<Egress>,
}

/// A network an instance has until it is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    pub instance: InstanceId,
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// The user ids its container has; `None` when it has the host's.
    #[serde(default)]
    pub ids: Option<Block>,
    /// Closed networks its service is let into.
    #[serde(default)]
    pub egress: Vec<Egress>,
    number: u32,
}

impl Lease {
    /// The user namespace of this network, to show files by.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn owner(&self) -> Result<Option<Owner>, NetworkError> {
        let opened = self.ids.map(|block| Owner::of(block, &self.netns));
        opened.transpose().map_err(|source| NetworkError::Io {
            what: "the user namespace",
            source,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error("{what}: {source}")]
    Netlink {
        what: &'static str,
        source: rtnetlink::Error,
    },
    #[error("nft cannot be run: {0}")]
    Nft(#[source] io::Error),
    #[error("nft refused the rules: {0}")]
    Rules(String),
    #[error("the bridge or a link is gone, removed by someone else")]
    NoBridge,
    #[error("`{0}` is no name for a bridge or a table")]
    BadName(String),
    #[error("all places in {0} are taken")]
    Full(Subnet),
    #[error("{0} has no network")]
    NoLease(InstanceId),
    #[error("no network became ready in time{}", .last.as_deref().map(|l| format!(": {l}")).unwrap_or_default())]
    NotReady { last: Option<String> },
    #[error("the network is closing")]
    Closing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface() {
        let config = NetworkConfig::of("a-node-with-a-very-long-name-indeed", "/run/x");
        assert!(config.bridge.len() <= 15);
        assert!(config.slot((1 << 24) - 2).port.len() <= 15);
        assert_ne!(tag("par-1"), tag("fra-1"));
    }
}
