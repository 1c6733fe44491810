//! What a door knows of a revision's endpoints when it picks one.

use std::collections::BTreeMap;

use scheduler::model::{InstanceId, NodeId, RevisionKey};
use scheduler::route::{LoadView, RevisionRoute};

use super::host::{Host, Rumour};

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) enum Choice {
    Here(InstanceId),
    There(NodeId),
}

/// What a door knows of a revision's endpoints.
pub(super) struct Sight<'a> {
    pub slots: Vec<(&'a InstanceId, Option<u32>)>,
    fresh: Vec<(NodeId, u32)>,
    host: &'a Host,
    key: &'a RevisionKey,
    tried: &'a [NodeId],
}

impl<'a> Sight<'a> {
    pub fn new(
        host: &'a Host,
        route: &'a RevisionRoute,
        tried: &'a [NodeId],
        tried_here: &[InstanceId],
    ) -> Self {
        let own = host
            .programs
            .iter()
            .filter(|(_, p)| p.revision.key == route.key);
        let slots = own.map(|(id, program)| {
            let load = u32::try_from(program.inside.len()).ok();
            (
                id,
                load.filter(|_| program.open && !tried_here.contains(id)),
            )
        });
        Self {
            slots: slots.collect(),
            fresh: fresh(host, route),
            host,
            key: &route.key,
            tried,
        }
    }
}

/// Nodes with instances that routes do not show yet.
pub(super) fn fresh(host: &Host, route: &RevisionRoute) -> Vec<(NodeId, u32)> {
    let mut nodes: BTreeMap<NodeId, u32> = BTreeMap::new();
    for rumour in host.fresh.iter().filter(|r| r.revision == route.key) {
        let shown =
            |instance: &InstanceId| route.away.iter().any(|a| a.instances.contains(instance));
        if !rumour.instance.as_ref().is_some_and(shown) {
            *nodes.entry(rumour.node).or_default() += 1;
        }
    }
    nodes.into_iter().collect()
}

impl LoadView for Sight<'_> {
    fn here(&self) -> usize {
        self.slots.len()
    }

    fn load(&self, instance: usize) -> Option<u32> {
        self.slots[instance].1
    }

    fn ejected_here(&self, _: usize) -> bool {
        false
    }

    fn fresh(&self) -> &[(NodeId, u32)] {
        &self.fresh
    }

    fn sent(&self, node: NodeId) -> Option<u32> {
        let bare = |r: &Rumour| r.node == node && r.revision == *self.key;
        let vain = self.tried.contains(&node) || self.host.bare.iter().any(bare);
        let sent = self.host.sent.get(&(self.key.clone(), node)).copied();
        (!vain).then(|| sent.unwrap_or(0))
    }

    fn ejected(&self, node: NodeId) -> bool {
        self.host.ejected.contains_key(&node)
    }
}
