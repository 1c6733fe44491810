//! What the door counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::histogram::{Distribution, Histogram};
use super::problem::{CODES, Code};
use super::workers;

/// The steps of a start, in order.
pub const PHASES: [&str; 5] = ["place", "pull", "create", "start", "ready"];

#[derive(Debug)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    /// What every request counts, by the door's workers.
    parts: Box<[Part]>,
    problems: [AtomicU64; CODES.len()],
    pub(super) cold: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) replays: AtomicU64,
    pub(super) starts: AtomicU64,
    pub(super) starts_failed: AtomicU64,
    pub(super) sent_to_peers: AtomicU64,
    pub(super) served_for_peers: AtomicU64,
    pub(super) tunnels: AtomicU64,
    /// TLS handshakes that ended well, those of them that resumed a session, those that did not,
    /// and those for a name that has no certificate here.
    pub(super) handshakes: AtomicU64,
    pub(super) handshakes_resumed: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) unknown_names: AtomicU64,
    /// Whole requests that had to wait for room, until their answer began.
    pub(super) cold_starts: Histogram,
    phases: [Histogram; PHASES.len()],
}

/// One worker's counts.
#[derive(Debug, Default)]
#[repr(align(128))] // Two cache lines, so that no neighbour's writes slow it down.
struct Part {
    requests: AtomicU64,
    /// Answers by the hundreds of their status, 1xx first.
    classes: [AtomicU64; 5],
}

/// The door's counts at a moment. All but the last four only rise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub connections: u64,
    pub requests: u64,
    /// Answers by the hundreds of their status, 1xx first.
    pub classes: [u64; 5],
    /// Answers of the door's own, by code.
    pub problems: Vec<(String, u64)>,
    /// Requests that waited for room.
    pub cold: u64,
    pub retries: u64,
    /// Requests that instances had sent elsewhere.
    pub replays: u64,
    pub starts: u64,
    pub starts_failed: u64,
    pub sent_to_peers: u64,
    pub served_for_peers: u64,
    pub tunnels: u64,
    pub handshakes: u64,
    /// Of those, the ones that resumed a session.
    pub handshakes_resumed: u64,
    pub handshakes_failed: u64,
    /// Handshakes for a name that has no certificate here.
    pub unknown_names: u64,
    /// How long requests that waited for room took, until their answer began.
    pub cold_starts: Distribution,
    /// How long the steps of starts took, by [`PHASES`].
    pub phases: [Distribution; PHASES.len()],
    /// Connections and flows that passed unread, and the bytes they carried to containers and back.
    pub passages: u64,
    pub passage_bytes: [u64; 2],
    /// Datagrams that found no room.
    pub datagrams_dropped: u64,
    pub open_connections: u64,
    pub open_passages: u64,
    pub open_tunnels: u64,
    /// Requests waiting for room now.
    pub held: u64,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            connections: AtomicU64::default(),
            parts: (0..workers::parts()).map(|_| Part::default()).collect(),
            problems: Default::default(),
            cold: AtomicU64::default(),
            retries: AtomicU64::default(),
            replays: AtomicU64::default(),
            starts: AtomicU64::default(),
            starts_failed: AtomicU64::default(),
            sent_to_peers: AtomicU64::default(),
            served_for_peers: AtomicU64::default(),
            tunnels: AtomicU64::default(),
            handshakes: AtomicU64::default(),
            handshakes_resumed: AtomicU64::default(),
            handshakes_failed: AtomicU64::default(),
            unknown_names: AtomicU64::default(),
            cold_starts: Histogram::default(),
            phases: Default::default(),
        }
    }

    pub(super) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.here().classes[class].fetch_add(1, Ordering::Relaxed);
    }

    /// A request came.
    pub(super) fn asked(&self) {
        self.here().requests.fetch_add(1, Ordering::Relaxed);
    }

    fn here(&self) -> &Part {
        &self.parts[workers::here() % self.parts.len()]
    }

    pub(super) fn problem(&self, code: Code) {
        self.problems[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A step of a start is done. One of another name is another node's invention.
    pub(super) fn phase(&self, name: &str, micros: u64) {
        if let Some(at) = PHASES.iter().position(|phase| *phase == name) {
            self.phases[at].note_micros(micros);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let read = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let problems = CODES.iter().zip(&self.problems);
        Counts {
            connections: read(&self.connections),
            requests: self.parts.iter().map(|p| read(&p.requests)).sum(),
            classes: std::array::from_fn(|i| self.parts.iter().map(|p| read(&p.classes[i])).sum()),
            problems: problems.map(|(c, n)| (c.1.to_owned(), read(n))).collect(),
            cold: read(&self.cold),
            retries: read(&self.retries),
            replays: read(&self.replays),
            starts: read(&self.starts),
            starts_failed: read(&self.starts_failed),
            sent_to_peers: read(&self.sent_to_peers),
            served_for_peers: read(&self.served_for_peers),
            tunnels: read(&self.tunnels),
            handshakes: read(&self.handshakes),
            handshakes_resumed: read(&self.handshakes_resumed),
            handshakes_failed: read(&self.handshakes_failed),
            unknown_names: read(&self.unknown_names),
            cold_starts: self.cold_starts.distribution(),
            phases: std::array::from_fn(|at| self.phases[at].distribution()),
            ..Counts::default()
        }
    }
}
