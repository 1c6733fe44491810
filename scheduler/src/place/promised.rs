//! Starts that were ordered and that no node's record shows yet. Placement counts them in, or the
//! next would be placed as if they were not.

use std::collections::BTreeMap;

use crate::model::{NodeId, Resources, RevisionKey};

/// By node. One is made for each round of orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promised(BTreeMap<NodeId, Promise>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Promise {
    taken: Resources,
    of: BTreeMap<RevisionKey, u32>,
}

impl Promised {
    /// One instance of `revision` will be on `node`.
    pub fn add(&mut self, node: NodeId, revision: &RevisionKey, needs: &Resources) {
        let promise = self.0.entry(node).or_default();
        let taken = &mut promise.taken;
        taken.cpu_millis = taken.cpu_millis.saturating_add(needs.cpu_millis);
        taken.memory_bytes = taken.memory_bytes.saturating_add(needs.memory_bytes);
        taken.instances = taken.instances.saturating_add(needs.instances);
        *promise.of.entry(revision.clone()).or_default() += 1;
    }

    /// What of `free` is left on `node`.
    pub(super) fn left(&self, node: NodeId, free: &Resources) -> Resources {
        let Some(Promise { taken, .. }) = self.0.get(&node) else {
            return *free;
        };
        Resources {
            cpu_millis: free.cpu_millis.saturating_sub(taken.cpu_millis),
            memory_bytes: free.memory_bytes.saturating_sub(taken.memory_bytes),
            instances: free.instances.saturating_sub(taken.instances),
        }
    }

    /// The nodes with promises.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.keys().copied()
    }

    /// Where instances of `revision` will be, and how many.
    pub(super) fn of<'a>(
        &'a self,
        revision: &'a RevisionKey,
    ) -> impl Iterator<Item = (NodeId, u32)> + 'a {
        let promises = self.0.iter();
        promises.filter_map(|(node, promise)| Some((*node, *promise.of.get(revision)?)))
    }
}
