//! Which connections and dials there are. Plain bookkeeping behind one lock, without I/O.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scheduler::model::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{TransportError, code};
use crate::identity::Peer;

/// After a dial failed, asks within this time get the same error at once.
const BACK_OFF: Duration = Duration::from_millis(200);
/// The same after a dial that nobody answered: each costs its caller the whole deadline.
const BACK_OFF_SILENT: Duration = Duration::from_secs(1);
/// Connections kept with one peer. Two is usual when both dial at once; more come from a peer
/// that restarts faster than its old connections die.
const LINKS_PER_PEER: usize = 4;
/// Connections that a peer's branches have with this node: one for each of its door's workers, and those of a
/// process that died.
const BRANCHES_PER_PEER: usize = 48;
/// Streams that are through and not told of.
const THROUGH_MAX: usize = 16;
/// Dials under way or just failed.
const DIALS_MAX: usize = 1024;
/// Marks a link nobody doubts.
const TRUSTED: u64 = u64::MAX;

/// A live connection with a peer, dialled by either side.
pub(super) struct Link {
    pub conn: quinn::Connection,
    pub peer: Peer,
    pub remote: SocketAddr,
    /// The address that was dialled, when this side did.
    pub dialled: Option<SocketAddr>,
    /// How many datagrams had come when a call on it went unanswered: until more come, it is
    /// taken for dead.
    doubted_at: AtomicU64,
    /// Streams that are through, and whose end the peer need not hear of before the next one begins: alone it would
    /// be a packet more for each. `None` where nobody waits with it.
    through: Option<Mutex<Vec<Ends>>>,
}

/// Both ends of a stream.
pub(super) type Ends = (quinn::SendStream, quinn::RecvStream);

impl Link {
    pub fn new(conn: quinn::Connection, peer: Peer, dialled: Option<SocketAddr>) -> Self {
        let remote = super::canonical(conn.remote_address());
        Self {
            conn,
            peer,
            remote,
            dialled,
            doubted_at: AtomicU64::new(TRUSTED),
            through: None,
        }
    }

    /// One whose streams are many and short.
    pub fn busy(self) -> Self {
        Self {
            through: Some(Mutex::default()),
            ..self
        }
    }

    /// Takes a stream that is through.
    pub fn put_by(&self, ends: Ends) {
        if let Some(through) = &self.through {
            let mut through = super::lock(through);
            through.push(ends);
            if through.len() >= THROUGH_MAX {
                through.clear();
            }
        }
    }

    /// Tells of those that are through, with what is sent next.
    pub fn tell_through(&self) {
        if let Some(through) = &self.through {
            super::lock(through).clear();
        }
    }

    pub fn received(&self) -> u64 {
        self.conn.stats().udp_rx.datagrams
    }

    /// Nothing has come since `received` was read, though something should have.
    pub fn doubt(&self, received: u64) {
        if self.received() == received {
            self.doubted_at.store(received, Ordering::Relaxed);
        }
    }

    pub fn is_usable(&self) -> bool {
        if self.conn.close_reason().is_some() {
            return false;
        }
        let doubted_at = self.doubted_at.load(Ordering::Relaxed);
        if doubted_at == TRUSTED {
            return true;
        }
        let alive = self.received() > doubted_at;
        if alive {
            self.doubted_at.store(TRUSTED, Ordering::Relaxed);
        }
        alive
    }
}

pub(super) type DialResult = Result<Arc<Link>, TransportError>;
type DialWatch = watch::Receiver<Option<DialResult>>;
type DialReport = watch::Sender<Option<DialResult>>;

enum Dial {
    Running(DialWatch),
    Failed {
        until: Instant,
        error: TransportError,
    },
}

#[derive(Default)]
pub(super) struct Pool {
    addrs: BTreeMap<NodeId, SocketAddr>,
    /// Newest last.
    links: BTreeMap<NodeId, Vec<Arc<Link>>>,
    /// Peers' own, which this side opens no streams on.
    branches: BTreeMap<NodeId, Vec<Arc<Link>>>,
    dials: BTreeMap<SocketAddr, Dial>,
}

impl Pool {
    pub fn set_addr(&mut self, node: NodeId, addr: SocketAddr) {
        self.addrs.insert(node, addr);
    }

    pub fn addr(&self, node: NodeId) -> Option<SocketAddr> {
        self.addrs.get(&node).copied()
    }

    /// The newest live connection with a node: an older one may lead to a process that is gone.
    pub fn link(&mut self, node: NodeId) -> Option<Arc<Link>> {
        self.links
            .get(&node)?
            .iter()
            .rev()
            .find(|link| link.is_usable())
            .cloned()
    }

    /// A live connection with whoever is at `addr`.
    pub fn link_at(&mut self, addr: SocketAddr) -> Option<Arc<Link>> {
        let at = |link: &&Arc<Link>| link.remote == addr || link.dialled == Some(addr);
        self.links
            .values()
            .rev()
            .flatten()
            .rev()
            .filter(at)
            .find(|link| link.is_usable())
            .cloned()
    }

    /// The newest live connection with each node.
    pub fn links(&self) -> Vec<Arc<Link>> {
        let newest = |links: &Vec<Arc<Link>>| {
            let mut links = links.iter().rev();
            links.find(|link| link.is_usable()).cloned()
        };
        self.links.values().filter_map(newest).collect()
    }

    pub fn connected(&self) -> Vec<NodeId> {
        let live = |links: &[Arc<Link>]| links.iter().any(|link| link.is_usable());
        self.links
            .iter()
            .filter(|(_, links)| live(links))
            .map(|(node, _)| *node)
            .collect()
    }

    pub fn add(&mut self, link: Arc<Link>) {
        let node = link.peer.node;
        // Better than nothing, until someone who knows says where the node is.
        self.addrs
            .entry(node)
            .or_insert(link.dialled.unwrap_or(link.remote));
        push(self.links.entry(node).or_default(), LINKS_PER_PEER, link);
    }

    /// One that a peer's branch made.
    pub fn add_branch(&mut self, link: Arc<Link>) {
        let branches = self.branches.entry(link.peer.node).or_default();
        push(branches, BRANCHES_PER_PEER, link);
    }

    pub fn remove(&mut self, link: &Arc<Link>) {
        for all in [&mut self.links, &mut self.branches] {
            if let Some(links) = all.get_mut(&link.peer.node) {
                links.retain(|other| !Arc::ptr_eq(other, link));
                if links.is_empty() {
                    all.remove(&link.peer.node);
                }
            }
        }
    }

    /// Takes out all a node's connections, for the caller to close.
    pub fn drop_node(&mut self, node: NodeId) -> Vec<Arc<Link>> {
        let all = [&mut self.links, &mut self.branches];
        all.into_iter()
            .filter_map(|links| links.remove(&node))
            .flatten()
            .collect()
    }

    /// The dial to `addr` to wait for. When it comes with a report, the caller must dial and then
    /// fill it in.
    pub fn dial(
        &mut self,
        addr: SocketAddr,
    ) -> Result<(DialWatch, Option<DialReport>), TransportError> {
        match self.dials.get(&addr) {
            Some(Dial::Running(result)) => return Ok((result.clone(), None)),
            Some(Dial::Failed { until, error }) if Instant::now() < *until => {
                return Err(error.clone());
            }
            _ => {}
        }
        if self.dials.len() >= DIALS_MAX {
            self.dials
                .retain(|_, dial| matches!(dial, Dial::Running(_)));
            if self.dials.len() >= DIALS_MAX {
                return Err(TransportError::Busy);
            }
        }
        let (report, result) = watch::channel(None);
        self.dials.insert(addr, Dial::Running(result.clone()));
        Ok((result, Some(report)))
    }

    pub fn dialled(&mut self, addr: SocketAddr, result: &DialResult) {
        match result {
            Ok(_) => {
                self.dials.remove(&addr);
            }
            Err(error) => {
                let silent = matches!(error, TransportError::Unreachable { .. });
                let pause = if silent { BACK_OFF_SILENT } else { BACK_OFF };
                let failed = Dial::Failed {
                    until: Instant::now() + pause,
                    error: error.clone(),
                };
                self.dials.insert(addr, failed);
            }
        }
    }

    #[cfg(test)]
    pub fn links_with(&self, node: NodeId) -> usize {
        self.links.get(&node).map_or(0, Vec::len)
    }

    #[cfg(test)]
    pub fn branches_of(&self, node: NodeId) -> usize {
        self.branches.get(&node).map_or(0, Vec::len)
    }
}

/// Adds one in the place of the oldest, where there are as many as there may be.
fn push(links: &mut Vec<Arc<Link>>, most: usize, link: Arc<Link>) {
    if links.len() >= most {
        links.remove(0).conn.close(code::SUPERSEDED, b"superseded");
    }
    links.push(link);
}
