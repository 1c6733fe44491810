//! Distances and cuts between hosts. Everything that crosses the network asks here how long it takes
//! and whether it arrives.

use std::collections::BTreeMap;

use super::queue::Millis;

/// A peer that says nothing for so long is given up (`netfabric::transport::liveness`).
pub(super) const SILENCE: Millis = 2_000;
/// One way within a zone, and between zones of a region, in microseconds.
const ZONE_MICROS: u64 = 150;
const REGION_MICROS: u64 = 600;

#[derive(Debug, Default)]
pub(super) struct Network {
    /// Round trips between regions, in microseconds.
    pub between: Vec<Vec<u64>>,
    /// Added to every round trip between regions.
    pub delay_micros: u64,
    /// Of a thousand gossiped records, so many are lost each time they are passed on.
    pub loss_permille: u32,
    /// Hosts in groups that do not reach each other; 0 where nothing is said.
    groups: BTreeMap<usize, u32>,
}

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub region: usize,
    pub zone: usize,
}

impl Network {
    pub fn rtt_micros(&self, a: Spot, b: Spot) -> u64 {
        if a == b {
            2 * ZONE_MICROS
        } else if a.region == b.region {
            2 * REGION_MICROS
        } else {
            self.between[a.region][b.region] + self.delay_micros
        }
    }

    /// One way, in the simulation's milliseconds; at least one.
    pub fn one_way(&self, a: Spot, b: Spot) -> Millis {
        self.rtt_micros(a, b).div_ceil(2_000).max(1)
    }

    pub fn reaches(&self, a: usize, b: usize) -> bool {
        self.groups.is_empty() || self.group(a) == self.group(b)
    }

    pub fn group(&self, host: usize) -> u32 {
        self.groups.get(&host).copied().unwrap_or(0)
    }

    pub fn cut_off(&mut self, hosts: impl IntoIterator<Item = usize>, group: u32) {
        self.groups
            .extend(hosts.into_iter().map(|host| (host, group)));
    }

    pub fn heal(&mut self) {
        self.groups.clear();
        self.delay_micros = 0;
        self.loss_permille = 0;
    }
}
