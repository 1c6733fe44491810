//! What this door knows of one revision: its instances here, requests of ours elsewhere, what
//! nodes just said of it, and how many wait for room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use scheduler::model::{InstanceId, NodeId};
use scheduler::route::RevisionRoute;
use tokio::sync::Notify;

use super::local::{Slot, lock};
use super::recent::Recent;

/// How long a node that just started an instance counts as having it, before gossip shows it.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// How long a node that said it has none is believed over gossip: two rounds of it.
const BARE_FOR: Duration = Duration::from_secs(2);
/// How long it is told that requests were sent to other regions: stewards look back a few seconds, and a door
/// that told of every revision ever would have a record without bound.
const AWAY_FOR: Duration = Duration::from_mins(1);
/// How long a full node is given before it is asked again.
const FULL_FOR: Duration = Duration::from_millis(200);

/// What is known of one revision at this door: its instances here, requests sent elsewhere, and
/// how many wait for room.
#[derive(Debug, Default)]
pub(super) struct Bench {
    slots: ArcSwap<Vec<Arc<Slot>>>,
    sent: Mutex<HashMap<NodeId, u32>>,
    /// Requests that were ever sent to other nodes, and when the last was.
    ever: Mutex<HashMap<NodeId, (u64, Instant)>>,
    /// Instances that other nodes just started for this door.
    fresh: Recent<(NodeId, InstanceId)>,
    /// Nodes that just said they have none, or none with room.
    pub(super) bare: Recent<NodeId>,
    waiting: AtomicUsize,
    /// Rung when room may have appeared while requests wait.
    pub(super) room: Notify,
}

/// A request under way at another node.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) node: NodeId,
    pub(super) since: Instant,
    bench: Arc<Bench>,
}

/// A request that waits for room.
#[derive(Debug)]
pub(super) struct Waiting {
    bench: Arc<Bench>,
}

impl Bench {
    pub(super) fn slots(&self) -> Arc<Vec<Arc<Slot>>> {
        self.slots.load_full()
    }

    /// Instances here that admit requests.
    pub(super) fn open_here(&self) -> usize {
        let open = |s: &&Arc<Slot>| s.load().is_some();
        self.slots.load().iter().filter(open).count()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting {
            bench: Arc::clone(self),
        }
    }

    pub(super) fn sent(&self, node: NodeId) -> u32 {
        lock(&self.sent).get(&node).copied().unwrap_or(0)
    }

    pub(super) fn send(self: &Arc<Self>, node: NodeId) -> Sent {
        *lock(&self.sent).entry(node).or_default() += 1;
        let since = Instant::now();
        let mut ever = lock(&self.ever);
        let (count, last) = ever.entry(node).or_insert((0, since));
        (*count, *last) = (*count + 1, since);
        Sent {
            node,
            since,
            bench: Arc::clone(self),
        }
    }

    /// Requests that were ever sent to nodes for which `far` says so; none when the last of them is a while
    /// ago, and says nothing any more.
    pub(super) fn sent_away(&self, now: Instant, far: impl Fn(NodeId) -> bool) -> u64 {
        let ever = lock(&self.ever);
        let away = || {
            ever.iter()
                .filter(|(node, _)| far(**node))
                .map(|(_, sent)| sent)
        };
        let lately = away().any(|(_, last)| now.duration_since(*last) < AWAY_FOR);
        if lately {
            away().map(|(count, _)| count).sum()
        } else {
            0
        }
    }

    /// A node just started an instance: it counts although gossip does not show it yet.
    pub(super) fn add_fresh(&self, node: NodeId, instance: InstanceId) {
        self.bare.remove(|n| *n == node);
        self.fresh.add((node, instance), FRESH_FOR);
        self.ring();
    }

    /// Nodes with fresh instances that `route` does not show, and how many.
    pub(super) fn fresh(&self, route: &RevisionRoute) -> Vec<(NodeId, u32)> {
        let mut nodes: Vec<(NodeId, u32)> = Vec::new();
        for (node, instance) in self.fresh.list() {
            let shown = route.away.iter().any(|a| a.instances.contains(&instance));
            match nodes.iter_mut().find(|(n, _)| *n == node) {
                _ if shown => {}
                Some((_, count)) => *count += 1,
                None => nodes.push((node, 1)),
            }
        }
        nodes
    }

    /// Ready instances, by all that is known.
    pub(super) fn ready(&self, route: &RevisionRoute) -> u32 {
        let shown = route
            .away
            .iter()
            .filter(|a| a.alive)
            .map(|a| a.instances.len());
        let known = u32::try_from(self.open_here() + shown.sum::<usize>()).unwrap_or(u32::MAX);
        let fresh = self.fresh(route).into_iter().map(|(_, count)| count);
        fresh.fold(known, u32::saturating_add)
    }

    /// A node refused a request: it is not asked again for a moment, whatever gossip shows.
    pub(super) fn refused_by(&self, node: NodeId, full: bool) {
        if full {
            self.bare.add(node, FULL_FOR);
        } else {
            self.fresh.remove(|(n, _)| *n == node);
            self.bare.add(node, BARE_FOR);
        }
    }

    /// A node began anew: what it said before is no more.
    pub(super) fn began_anew(&self, node: NodeId) {
        self.bare.remove(|n| *n == node);
        self.ring();
    }

    pub(super) fn change(&self, change: impl Fn(&mut Vec<Arc<Slot>>)) {
        self.slots.rcu(|list| {
            let mut list = Vec::clone(list);
            change(&mut list);
            list
        });
    }

    pub(super) fn ring(&self) {
        if self.waiting() > 0 {
            self.room.notify_one();
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut sent = lock(&self.bench.sent);
        if let Some(count) = sent.get_mut(&self.node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sent.remove(&self.node);
            }
        }
        drop(sent);
        self.bench.ring();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bench.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_away_is_told_for_a_while() {
        let bench = Arc::new(Bench::default());
        let far = |node| node == NodeId(2);
        let now = Instant::now;
        drop(bench.send(NodeId(1)));
        assert_eq!(bench.sent_away(now(), far), 0, "nobody far");
        drop(bench.send(NodeId(2)));
        drop(bench.send(NodeId(2)));
        assert_eq!(bench.sent_away(now(), far), 2);
        assert_eq!(bench.sent_away(now() + AWAY_FOR, far), 0, "a while ago");
        drop(bench.send(NodeId(2)));
        assert_eq!(bench.sent_away(now(), far), 3, "it is counted on");
    }

    #[test]
    fn what_nodes_say_replaces_what_they_said_before() {
        let bench = Arc::new(Bench::default());
        let node = NodeId(3);
        let id = |name: &str| InstanceId(name.to_owned());
        bench.add_fresh(node, id("a"));
        bench.add_fresh(node, id("b"));
        assert_eq!(bench.fresh.list().len(), 2);
        bench.refused_by(node, true);
        assert_eq!(
            (bench.fresh.list().len(), bench.bare.list()),
            (2, vec![node])
        );
        bench.refused_by(node, false);
        assert_eq!(
            (bench.fresh.list().len(), bench.bare.list()),
            (0, vec![node])
        );
        bench.add_fresh(node, id("c"));
        assert_eq!((bench.fresh.list().len(), bench.bare.list()), (1, vec![]));
        let sent = bench.send(node);
        assert_eq!(bench.sent(node), 1);
        drop(sent);
        assert_eq!(bench.sent(node), 0);
    }
}
