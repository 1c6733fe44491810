//! What a node measures: the network around it, its own strain, what starts and pulls take. It goes with the
//! node's record, and is published beside it: it changes oftener, and nodes that do not know a part of it
//! pass it over.

use serde::{Deserialize, Serialize};

use super::{Coordinate, StartHistogram};

/// Revisions and images a node tells of; what comes beyond is not read.
pub const MOST_STARTS: usize = 64;
pub const MOST_IMAGES: usize = 256;
/// No link is faster, in KiB a second: some hundred Gbit/s.
const MOST_RATE: u32 = 16 << 20;
/// No image is larger, in KiB.
const MOST_KIB: u32 = 1 << 30;

/// All of it may be missing: nodes of an earlier version tell nothing, and what cannot be read here is not
/// told either.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    pub coordinate: Option<Coordinate>,
    #[serde(default)]
    pub pressure: Option<Pressure>,
    #[serde(default)]
    pub starts: Vec<StartHistogram>,
    #[serde(default)]
    pub pulls: Pulls,
}

/// Of a thousand moments in the last ten seconds, in how many something waited for it (`some avg10` of
/// pressure stall information). What the kernel does not tell is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pressure {
    pub cpu_permille: u16,
    pub memory_permille: u16,
    pub io_permille: u16,
}

/// What images take to come, and how large those are that are here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pulls {
    /// What of images came here in a second, in KiB of their unpacked size: over the link, with the
    /// unpacking, and with what was here already. None before the first.
    pub kib_per_second: Option<u32>,
    /// The unpacked sizes of images held here, in KiB, by [`crate::fleet::text_hash`] of their digests, in
    /// order.
    pub images: Vec<(u64, u32)>,
}

impl Pressure {
    /// The worst of them, at most a thousand.
    #[must_use]
    pub fn worst_permille(&self) -> u16 {
        let worst = self.cpu_permille.max(self.memory_permille);
        worst.max(self.io_permille).min(1_000)
    }
}

impl Measured {
    /// Without what cannot be true: peers may say anything.
    #[must_use]
    pub fn within_reason(mut self) -> Self {
        self.coordinate = self.coordinate.filter(Coordinate::is_sane);
        self.starts.truncate(MOST_STARTS);
        self.starts.retain(StartHistogram::is_sane);
        let pulls = &mut self.pulls;
        pulls.kib_per_second = pulls.kib_per_second.map(|rate| rate.clamp(1, MOST_RATE));
        pulls.images.truncate(MOST_IMAGES);
        pulls.images.retain(|(_, kib)| *kib <= MOST_KIB);
        pulls.images.sort_unstable();
        self
    }
}
