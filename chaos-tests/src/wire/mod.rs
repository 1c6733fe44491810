//! A user-space switch between the hosts of a world: one process, a TAP device for every host, and
//! for every ordered pair of hosts a one-way link that can be slow, lossy, narrow or cut.
//!
//! This room owns frames on their way and what a link does to them. It does not know namespaces or
//! addresses: the world makes its hosts and plugs them in.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use chaos_tests::{wire::{Link, Preset}, world::World};
//! let world = World::with(&["par-1", "fra-1", "lis-1"], Preset::Regions)?;
//! let wire = world.wire();
//! wire.set("par-1", "fra-1", Link { loss: 0.1, jitter: 5.0, ..wire.get("par-1", "fra-1")? })?;
//! wire.cut(&["lis-1"], &["par-1", "fra-1"])?;
//! wire.reset()?;
//! # Ok(())
//! # }
//! ```

mod client;
mod control;
mod driver;
mod line;
mod presets;
mod switch;
#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

pub use client::{Stats, Wire};
pub use control::{Entry, LinkStats, Request};
pub use driver::{Settings, run};
pub use line::{Counts, Dropped};
pub use presets::{Preset, mobile_down, mobile_up};

/// Longest delay and jitter of a link: frames on their way are held in memory.
const MAX_MS: f64 = 60_000.0;

/// What one direction between two ports does to frames. The default does nothing to them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// Milliseconds a frame travels.
    pub delay: f64,
    /// Milliseconds a frame travels more or less, drawn evenly for each. Frames stay in order, so
    /// that a dense flow travels near the longest draw.
    pub jitter: f64,
    /// Share of frames that are lost, 0 to 1.
    pub loss: f64,
    /// Share of frames that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// Share of IP packets that arrive with one wrong bit behind the Ethernet header, 0 to 1.
    pub corrupt: f64,
    /// Share of frames that skip the delay and so overtake those on their way, 0 to 1.
    pub reorder: f64,
    /// Bits that leave in a second; nothing for no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait to leave when there is a rate; what comes on top is dropped.
    pub queue: u32,
    /// The largest IP packet in bytes; larger ones vanish without a word. Nothing for no limit.
    pub mtu: Option<u32>,
    /// Whether anything passes at all.
    pub up: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: 0.0,
            jitter: 0.0,
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            rate: None,
            queue: 128 << 10,
            mtu: None,
            up: true,
        }
    }
}

impl Link {
    /// A link that only delays, by this many milliseconds.
    pub fn slow(delay: f64) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<()> {
        for (name, ms) in [("delay", self.delay), ("jitter", self.jitter)] {
            let fits = (0.0..=MAX_MS).contains(&ms);
            ensure!(fits, "a {name} of {ms} ms is not within 0 to {MAX_MS}");
        }
        for (name, share) in [
            ("loss", self.loss),
            ("duplicate", self.duplicate),
            ("corrupt", self.corrupt),
            ("reorder", self.reorder),
        ] {
            let fits = (0.0..=1.0).contains(&share);
            ensure!(fits, "a {name} of {share} is not within 0 to 1");
        }
        ensure!(self.rate != Some(0), "a rate of 0: cut the link instead");
        Ok(())
    }
}
