//! Every fault there is a name for, and where it is made to happen here. A row without a place says
//! why it has none: nothing is passed over in silence.

/// Where a fault of the catalogue is made to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A [`super::Fault`]: injected and healed while a world lives.
    Fault,
    /// A scenario or end-to-end test that builds it from faults; the name of its module.
    Scenario(&'static str),
    /// Tests of another room, closer to the code that must hold.
    Room(&'static str),
}

/// One row: its name, what happens, and where.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub place: Place,
}

const fn row(name: &'static str, what: &'static str, place: Place) -> Row {
    Row { name, what, place }
}

use Place::{Fault, Room, Scenario};

/// N: network. P: processes. D: disks. T: time. M: machine. C: clients and what they ask.
pub const CATALOGUE: [Row; 58] = [
    row("N1", "a partition, both ways", Fault),
    row("N2", "one node hears nobody and is heard", Fault),
    row(
        "N3",
        "two nodes do not reach each other, a third reaches both",
        Fault,
    ),
    row("N4", "loss", Fault),
    row("N5", "delay and jitter", Fault),
    row("N6", "reordering", Fault),
    row("N7", "duplication", Fault),
    row("N8", "corruption", Fault),
    row("N9", "little bandwidth and a long queue", Fault),
    row("N10", "large packets vanish", Fault),
    row("N11", "a link that flaps", Fault),
    row("N12", "a NAT that forgets its mapping", Fault),
    row("N13", "a DNS server is gone", Scenario("death")),
    row(
        "N14",
        "BGP: the session lost, BIRD killed or hanging",
        Fault,
    ),
    row("N15", "half of the nodes at once", Scenario("death")),
    row(
        "N16",
        "a region away, back with what it knew then",
        Scenario("scenarios"),
    ),
    row("P1", "the daemon killed while containers run", Fault),
    row("P2", "the front door killed", Fault),
    row(
        "P3",
        "a shim, or the first process of a container, killed",
        Fault,
    ),
    row("P4", "the daemon stands still and goes on", Fault),
    row("P5", "hardly any processor for the daemon", Fault),
    row(
        "P6",
        "a crash at every step of an instance's life",
        Scenario("crashes"),
    ),
    row("P7", "another build of the daemon", Fault),
    row("P8", "a thread that hangs", Fault),
    row("D1", "the disk is full", Fault),
    row("D2", "no inodes are left", Fault),
    row("D3", "fsync fails once", Fault),
    row("D4", "the device fails", Fault),
    row("D5", "fsync is slow", Fault),
    row("D6", "a write is torn", Fault),
    row("D7", "a bit flips at rest", Scenario("disks")),
    row("D8", "the power is cut", Fault),
    row("D9", "a voter's disk is lost", Fault),
    row("T1", "the wall clock jumps", Fault),
    row("T2", "a clock runs at another rate", Fault),
    row("T3", "monotonic clocks begin at different times", Fault),
    row("M1", "a container out of memory", Scenario("neighbours")),
    row("M2", "the daemon out of memory", Fault),
    row("M3", "a fork bomb in a container", Scenario("neighbours")),
    row("M4", "no file descriptor is left to the daemon", Fault),
    row("M5", "no port is left", Fault),
    row(
        "M6",
        "a neighbour that takes processor and disk",
        Scenario("neighbours"),
    ),
    row("C1", "the quorum lost and found", Scenario("death")),
    row("C2", "two clusters of one name", Scenario("trust")),
    row(
        "C3",
        "members change while nodes crash",
        Room("node::consensus, simulated network"),
    ),
    row("C4", "the registry of images is gone", Fault),
    row("C5", "a herd wakes one service", Scenario("serving")),
    row("C6", "many services are woken at once", Scenario("zero")),
    row("C7", "an instance ends under load", Scenario("accounting")),
    row(
        "C8",
        "a request meets a service that goes to zero",
        Scenario("zero"),
    ),
    row(
        "C9",
        "certificates out of date, revoked, foreign",
        Scenario("trust"),
    ),
    row(
        "C10",
        "slow clients, idle connections",
        Room("netfabric::ingress"),
    ),
    row("C11", "floods of HTTP/2 frames", Scenario("harm")),
    row("C12", "smuggled requests", Scenario("harm")),
    row(
        "C13",
        "decompression bombs, endless tars",
        Room("node::image"),
    ),
    row(
        "C14",
        "manifests, specs and bodies too large",
        Room("node::image, scheduler::registry, netfabric::wire"),
    ),
    row(
        "C15",
        "gossip by a hostile member",
        Room("netfabric::gossip"),
    ),
    row("C16", "DNS used for amplification", Scenario("harm")),
];
