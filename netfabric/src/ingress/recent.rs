//! Nodes something was just learnt about, until gossip tells the same.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use scheduler::model::NodeId;

use super::local::lock;

/// A few nodes, each for a while. Asking costs nothing while there are none.
#[derive(Debug, Default)]
pub(super) struct Recent {
    count: AtomicUsize,
    nodes: Mutex<Vec<(NodeId, Instant)>>,
}

impl Recent {
    pub(super) fn add(&self, node: NodeId, length: Duration) {
        let until = Instant::now() + length;
        self.change(|nodes| {
            nodes.retain(|(n, _)| *n != node);
            nodes.push((node, until));
        });
    }

    pub(super) fn remove(&self, node: NodeId) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|nodes| nodes.retain(|(n, _)| *n != node));
        }
    }

    pub(super) fn list(&self) -> Vec<NodeId> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        self.change(|nodes| nodes.iter().map(|(node, _)| *node).collect())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<(NodeId, Instant)>) -> T) -> T {
        let mut nodes = lock(&self.nodes);
        let now = Instant::now();
        nodes.retain(|(_, until)| *until > now);
        let result = change(&mut nodes);
        self.count.store(nodes.len(), Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_listed_for_a_while() {
        let recent = Recent::default();
        assert_eq!(recent.list(), []);
        recent.add(NodeId(2), Duration::from_secs(9));
        recent.add(NodeId(2), Duration::from_secs(9));
        recent.add(NodeId(3), Duration::from_secs(9));
        recent.add(NodeId(4), Duration::ZERO);
        assert_eq!(recent.list(), [NodeId(2), NodeId(3)]);
        recent.remove(NodeId(2));
        assert_eq!(recent.list(), [NodeId(3)]);
    }
}
