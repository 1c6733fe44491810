//! What went in and out of containers, read at the node's end of their cables.
//!
//! The kernel's table of interfaces tells of all of them in one read; netlink would move twenty times
//! as much for the same eight numbers each, and is asked for one alone.

use std::collections::BTreeMap;
use std::io;

use scheduler::model::InstanceId;
use serde::{Deserialize, Serialize};

use super::Network;

/// Of the network namespace the asking thread is in.
const TABLE: &str = "/proc/thread-self/net/dev";

/// Counters of an instance's network since it was made, as the instance sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Traffic {
    pub in_bytes: u64,
    pub in_packets: u64,
    pub out_bytes: u64,
    pub out_packets: u64,
}

impl Network {
    /// The counters of every instance that has a network.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub fn traffic(&self) -> io::Result<BTreeMap<InstanceId, Traffic>> {
        let ports = self.ports();
        if ports.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut ports: BTreeMap<String, InstanceId> = ports.into_iter().collect();
        let table = std::fs::read_to_string(TABLE)?;
        let lines = table.lines().filter_map(parse);
        Ok(lines
            .filter_map(|(port, traffic)| Some((ports.remove(port)?, traffic)))
            .collect())
    }
}

/// One line: the name, eight numbers of what the port received, eight of what it sent. What the
/// port receives is what the instance sent.
fn parse(line: &str) -> Option<(&str, Traffic)> {
    let (port, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace().map(str::parse::<u64>);
    let mut at = |skipped: usize| numbers.nth(skipped)?.ok();
    let (out_bytes, out_packets) = (at(0)?, at(0)?);
    let (in_bytes, in_packets) = (at(6)?, at(0)?);
    let traffic = Traffic {
        in_bytes,
        in_packets,
        out_bytes,
        out_packets,
    };
    Some((port.trim(), traffic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_table_is_read_from_the_instance_s_side() {
        let line = "  v1a2: 100 2 0 0 0 0 0 7 3000 40 0 0 0 0 0 0";
        let want = Traffic {
            in_bytes: 3000,
            in_packets: 40,
            out_bytes: 100,
            out_packets: 2,
        };
        assert_eq!(parse(line), Some(("v1a2", want)));
        for other in [
            "Inter-|   Receive                |  Transmit",
            " face |bytes    packets errs drop fifo frame compressed multicast|bytes",
            "v1a2: 100 2 0 0",
            "v1a2: x 2 0 0 0 0 0 7 3000 40",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        let table = std::fs::read_to_string(TABLE).unwrap();
        assert!(
            table
                .lines()
                .filter_map(parse)
                .any(|(port, _)| port == "lo")
        );
    }
}
