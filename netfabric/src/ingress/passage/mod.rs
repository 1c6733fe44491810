//! What passes through the door unread: connections on ports of services' own, TLS that only the
//! container can read, datagrams. They wake a service from zero, wait, are placed and counted as
//! requests are (`dispatch::Quest`), and count as one request in their instance while they last.
//!
//! A connection's way: `listen` (sockets that follow the routes) -> `hello` (TLS: the name asked for)
//! -> `carry` (an endpoint, here or through a peer) -> `relay` (bytes both ways). `far` is the same
//! door's side for other nodes; `datagrams` is UDP's own `listen` and `relay`; `heirs` goes on with what
//! the daemon before this one carried.

mod carry;
mod datagrams;
mod far;
mod heirs;
pub(super) mod hello;
mod listen;
mod packets;
mod relay;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use scheduler::model::{ServiceKey, Socket};
use tokio::sync::Semaphore;
use tokio::time::sleep;

pub(super) use carry::carry;
pub(super) use heirs::go_on;
pub(super) use listen::{divert, follow};

use super::local::lock;
use crate::places::{LOOK_WHO_IS_IN, Places};

/// Connections at once, from clients and peers; each holds two buffers.
const OUTSIDE: usize = 10_000;
/// A load balancer before the nodes is one address too.
const OUTSIDE_OF_ONE: usize = 5_000;
/// The same of containers.
const INSIDE: usize = 5_000;
const INSIDE_OF_ONE: usize = 1_000;
/// Flows of datagrams at once, from clients and peers. Senders can be forged: a flood of them must
/// not keep connections out.
const FLOWS: usize = 10_000;
const FLOWS_OF_ONE: usize = 1_000;
/// Datagrams that wait, of all flows together.
const WAITING_BYTES: usize = 32 << 20;

/// A connection's or flow's wish.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) service: ServiceKey,
    /// The service's port it came to.
    pub(super) socket: Socket,
    pub(super) client: SocketAddr,
    /// Where the client meant to go.
    pub(super) server: SocketAddr,
    /// What was read of it already.
    pub(super) seen: Vec<u8>,
}

/// What the door knows of passages.
#[derive(Debug)]
pub(super) struct Passages {
    /// Connections of clients, and of peers' clients.
    pub(super) outside: Arc<Places>,
    pub(super) flows: Arc<Places>,
    /// Containers have places of their own, which nobody outside can take.
    pub(super) inside: Arc<Places>,
    /// Their calls over HTTP, which end after an answer.
    pub(super) calls: Arc<Places>,
    /// Ports that cannot be listened on, and why.
    closed: Mutex<BTreeMap<Socket, String>>,
    /// All that were let in, and the bytes they carried: to containers, and from them.
    pub(super) opened: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    /// Datagrams that found no room, and the room in bytes.
    pub(super) dropped: AtomicU64,
    pub(super) waiting: Arc<Semaphore>,
    /// Connections that the next daemon can go on with.
    heritable: AtomicUsize,
}

impl Default for Passages {
    fn default() -> Self {
        Self {
            outside: Places::new(OUTSIDE, OUTSIDE_OF_ONE),
            flows: Places::new(FLOWS, FLOWS_OF_ONE),
            inside: Places::new(INSIDE, INSIDE_OF_ONE),
            calls: Places::new(INSIDE, INSIDE_OF_ONE),
            closed: Mutex::default(),
            opened: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: Arc::new(Semaphore::new(WAITING_BYTES)),
            heritable: AtomicUsize::new(0),
        }
    }
}

impl Passages {
    pub(super) fn closed(&self) -> BTreeMap<Socket, String> {
        lock(&self.closed).clone()
    }

    /// Returns when no connection is in but those that the next daemon can go on with.
    pub(super) async fn rest_is_heritable(&self) {
        let rest = || self.inside.taken() + self.outside.taken();
        while rest() > self.heritable.load(Ordering::SeqCst) {
            sleep(LOOK_WHO_IS_IN).await;
        }
    }

    /// Returns when they are left to it.
    pub(super) async fn inherited(&self) {
        while self.heritable.load(Ordering::SeqCst) > 0 {
            sleep(LOOK_WHO_IS_IN).await;
        }
    }

    /// How many are in.
    pub(super) fn taken(&self) -> usize {
        let all = [&self.outside, &self.inside, &self.calls, &self.flows];
        all.into_iter().map(|places| places.taken()).sum()
    }
}
