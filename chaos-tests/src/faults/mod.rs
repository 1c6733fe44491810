//! The catalogue of faults by their names. A fault is plain data, so that a seed can be told as the
//! faults it meant; injecting one returns only after it was seen to hold, and healing it undoes it.

mod announcing;
mod catalogue;
mod machine;
mod network;
mod process;
mod storage;

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub use catalogue::{CATALOGUE, Place, Row};

use crate::disk::{Effect, Op};
use crate::world::World;

/// Something that goes wrong while a world lives and can be made good again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Fault {
    /// N1: these nodes and all others do not hear each other.
    Partition { side: Vec<String> },
    /// N2: this node hears no other node, and is heard.
    Deaf { node: String },
    /// N3: these two do not hear each other; both hear all others.
    Apart { one: String, other: String },
    /// N4: this share of the packets between nodes is lost.
    Loss { ratio: f64 },
    /// N5: packets between nodes take so long, more or less.
    Delay { delay: Duration, jitter: Duration },
    /// N6: this share of the packets overtakes others, which are on their way for `delay`.
    Reorder { ratio: f64, delay: Duration },
    /// N7: this share of the packets arrives twice.
    Duplicate { ratio: f64 },
    /// N8: this share of the packets arrives with a bit flipped.
    Corrupt { ratio: f64 },
    /// N9: so many bits a second between any two nodes.
    Narrow { bits_per_second: u64 },
    /// N10: packets larger than this between nodes vanish.
    BlackHole { mtu: u32 },
    /// N11: this node's link goes down and up again, for half the period each.
    Flap { node: String, period: Duration },
    /// N12: a NAT before this node gives its mesh another port; healed, it gets its own back.
    Rebind { node: String },
    /// N14, the session: what announces this node and the router do not hear each other.
    SessionLost { node: String },
    /// N14, BIRD: what announces this node is killed; healed by a start.
    BirdKilled { node: String },
    /// N14, BIRD: what announces this node stands still.
    BirdHangs { node: String },
    /// P1, P2: the daemon, and the front door in it, is killed; healed by a start.
    Kill { node: String },
    /// P3: every shim of this node is killed.
    KillShims { node: String },
    /// P3: the first process of every container of this node is killed.
    KillContainers { node: String },
    /// P4: the daemon stands still.
    Pause { node: String },
    /// P5: the daemon gets so many hundredths of one processor.
    Starve { node: String, hundredths: u64 },
    /// P8: one thread of the daemon hangs at its next system call.
    HangThread { node: String },
    /// P7: the daemon is ended as for an upgrade; healed by a start.
    Restart { node: String },
    /// D1: this node's disk is full.
    DiskFull { node: String },
    /// D2: no file more can be made on this node's disk.
    NoInodes { node: String },
    /// D3: the next fsync of the registry's file fails, once.
    FailedSync { node: String },
    /// D4: the device below this node's disk fails; healed by another one and a boot.
    DeviceFails { node: String },
    /// D6: the next write to the registry's file is done by half and fails.
    TornWrite { node: String },
    /// D8: these nodes lose their power at once; healed by booting them.
    PowerCut { nodes: Vec<String> },
    /// D9: this node's copy of the registry is gone while it is away.
    DiskLost { node: String },
    /// T1: the wall clock of this node's daemon jumps.
    ClockJump { node: String, seconds: i64 },
    /// T2: every clock of this node's daemon runs so many times as fast.
    ClockRate { node: String, times: f64 },
    /// T3: the monotonic clock of this node's daemon is so many seconds ahead of the others'.
    ClockAhead { node: String, seconds: u32 },
    /// D5: every fsync of the daemon takes so long.
    SlowDisk { node: String, delay: Duration },
    /// M2: the daemon is out of memory, and the kernel ends it; healed by a start.
    OutOfMemory { node: String },
    /// M5: this host has two ports for connections that it opens.
    NoPorts { node: String },
    /// M4: the daemon may open no file more.
    NoFiles { node: String },
    /// C4: the registry of images answers nobody.
    NoImages,
}

/// A fault that holds, and what undoes it.
#[must_use = "a fault that is not healed stays"]
pub struct Active {
    fault: Fault,
    undo: Undo,
}

type Undo = Box<dyn FnOnce(&World) -> Result<()> + Send>;

fn undo(with: impl FnOnce(&World) -> Result<()> + Send + 'static) -> Undo {
    Box::new(with)
}

/// For a fault to be seen, on a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

impl Fault {
    /// The catalogue's name for it.
    #[must_use]
    pub fn row(&self) -> &'static str {
        match self {
            Self::Partition { .. } => "N1",
            Self::Deaf { .. } => "N2",
            Self::Apart { .. } => "N3",
            Self::Loss { .. } => "N4",
            Self::Delay { .. } => "N5",
            Self::Reorder { .. } => "N6",
            Self::Duplicate { .. } => "N7",
            Self::Corrupt { .. } => "N8",
            Self::Narrow { .. } => "N9",
            Self::BlackHole { .. } => "N10",
            Self::Flap { .. } => "N11",
            Self::Rebind { .. } => "N12",
            Self::SessionLost { .. } | Self::BirdKilled { .. } | Self::BirdHangs { .. } => "N14",
            Self::Kill { .. } => "P1",
            Self::KillShims { .. } | Self::KillContainers { .. } => "P3",
            Self::Pause { .. } => "P4",
            Self::Starve { .. } => "P5",
            Self::Restart { .. } => "P7",
            Self::HangThread { .. } => "P8",
            Self::DiskFull { .. } => "D1",
            Self::NoInodes { .. } => "D2",
            Self::FailedSync { .. } => "D3",
            Self::DeviceFails { .. } => "D4",
            Self::SlowDisk { .. } => "D5",
            Self::TornWrite { .. } => "D6",
            Self::PowerCut { .. } => "D8",
            Self::DiskLost { .. } => "D9",
            Self::ClockJump { .. } => "T1",
            Self::ClockRate { .. } => "T2",
            Self::ClockAhead { .. } => "T3",
            Self::OutOfMemory { .. } => "M2",
            Self::NoPorts { .. } => "M5",
            Self::NoFiles { .. } => "M4",
            Self::NoImages => "C4",
        }
    }

    /// The node whose daemon or containers it strikes; nothing for one of the network.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Kill { node }
            | Self::KillShims { node }
            | Self::KillContainers { node }
            | Self::Pause { node }
            | Self::Starve { node, .. }
            | Self::Restart { node }
            | Self::SlowDisk { node, .. }
            | Self::HangThread { node }
            | Self::DiskFull { node }
            | Self::NoInodes { node }
            | Self::FailedSync { node }
            | Self::DeviceFails { node }
            | Self::TornWrite { node }
            | Self::DiskLost { node }
            | Self::ClockJump { node, .. }
            | Self::ClockRate { node, .. }
            | Self::ClockAhead { node, .. }
            | Self::OutOfMemory { node }
            | Self::NoPorts { node }
            | Self::NoFiles { node } => Some(node),
            _ => None,
        }
    }

    /// Whether nodes do not reach each other by it.
    #[must_use]
    pub fn cuts(&self) -> bool {
        matches!(
            self,
            Self::Partition { .. } | Self::Deaf { .. } | Self::Apart { .. } | Self::Flap { .. }
        )
    }

    /// Whether lines that instances wrote may be lost by it.
    #[must_use]
    pub fn loses_logs(&self) -> bool {
        matches!(
            self,
            Self::KillShims { .. }
                | Self::DiskFull { .. }
                | Self::NoInodes { .. }
                | Self::DeviceFails { .. }
                | Self::PowerCut { .. }
        )
    }

    /// Whether there is anything for it to strike: a node may have no container just now.
    #[must_use]
    pub fn finds_something(&self, world: &World) -> bool {
        match self {
            Self::KillShims { node } | Self::KillContainers { node } => {
                !world[node.as_str()].containers().is_empty()
            }
            _ => true,
        }
    }

    /// Makes it happen; returns when it was seen to hold.
    pub fn inject(&self, world: &World) -> Result<Active> {
        let undo = match self {
            Self::Partition { side } => network::partition(world, side),
            Self::Deaf { node } => network::deaf(world, node),
            Self::Apart { one, other } => network::apart(world, one, other),
            Self::Flap { node, period } => network::flap(world, node, *period),
            Self::Loss { .. }
            | Self::Delay { .. }
            | Self::Reorder { .. }
            | Self::Duplicate { .. }
            | Self::Corrupt { .. }
            | Self::Narrow { .. }
            | Self::BlackHole { .. } => network::worsen(world, self),
            Self::Kill { node } => process::kill(world, node),
            Self::KillShims { node } => process::kill_shims(world, node),
            Self::KillContainers { node } => process::kill_containers(world, node),
            Self::Pause { node } => process::pause(world, node),
            Self::Restart { node } => process::restart(world, node),
            Self::NoImages => process::no_images(world),
            Self::DiskFull { node } => storage::full(world, node),
            Self::NoInodes { node } => storage::no_inodes(world, node),
            Self::FailedSync { node } => storage::failing(world, node, Op::Fsync, Effect::Eio),
            Self::TornWrite { node } => storage::failing(world, node, Op::Write, Effect::Torn),
            Self::DeviceFails { node } => storage::device_fails(world, node),
            Self::PowerCut { nodes } => storage::power_cut(world, nodes),
            Self::DiskLost { node } => storage::lost(world, node),
            Self::ClockJump { node, seconds } => process::clock_jump(world, node, *seconds),
            Self::ClockRate { node, times } => process::clock_rate(world, node, *times),
            Self::ClockAhead { node, seconds } => process::clock_ahead(world, node, *seconds),
            Self::Starve { node, hundredths } => machine::starve(world, node, *hundredths),
            Self::SlowDisk { node, delay } => machine::slow_disk(world, node, *delay),
            Self::NoFiles { node } => machine::no_files(world, node),
            Self::HangThread { node } => machine::hang_thread(world, node),
            Self::OutOfMemory { node } => machine::out_of_memory(world, node),
            Self::NoPorts { node } => machine::no_ports(world, node),
            Self::Rebind { node } => network::rebind(world, node),
            Self::SessionLost { node } => announcing::session_lost(world, node),
            Self::BirdKilled { node } => announcing::bird_killed(world, node),
            Self::BirdHangs { node } => announcing::bird_hangs(world, node),
        };
        Ok(Active {
            undo: undo.with_context(|| format!("injecting {self}"))?,
            fault: self.clone(),
        })
    }
}

impl Active {
    /// Undoes it.
    pub fn heal(self, world: &World) -> Result<()> {
        (self.undo)(world).with_context(|| format!("healing {}", self.fault))
    }

    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self:?}", self.row())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_is_where_it_says() {
        let names: BTreeSet<_> = CATALOGUE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        let source = include_str!("mod.rs");
        for row in CATALOGUE {
            let (name, place) = (row.name, row.place);
            match place {
                Place::Fault => {
                    let doc = [
                        format!("/// {name}: "),
                        format!("/// {name}, "),
                        format!(", {name}: "),
                    ];
                    assert!(doc.iter().any(|d| source.contains(d)), "no fault is {name}");
                }
                Place::Scenario(module) => {
                    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
                    let file = tests.join(module).with_extension("rs");
                    assert!(file.exists(), "{name}: no {}", file.display());
                }
                Place::Room(_) => {}
            }
        }
    }
}
