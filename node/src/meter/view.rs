//! The books as others see them: of one service, of a namespace, or of all.

use netfabric::wire::usage::{InstanceUsage, RevisionUsage, UsageView};
use scheduler::model::{InstanceState, Name, NodeId, ServiceKey};
use serde::{Deserialize, Serialize};

use super::Meter;

/// Whose usage someone wants to know. `None` is everybody's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageQuery {
    pub namespace: Option<Name>,
    pub service: Option<Name>,
}

impl UsageQuery {
    fn wants(&self, key: &ServiceKey) -> bool {
        self.namespace.as_ref().is_none_or(|n| *n == key.namespace)
            && self.service.as_ref().is_none_or(|s| *s == key.name)
    }
}

impl Meter {
    /// What is known on this node. A parked container is nobody's instance yet.
    #[must_use]
    pub fn view(&self, query: &UsageQuery, node: NodeId, node_name: &Name) -> UsageView {
        let ledger = self.ledger();
        let wanted = ledger.book.live.iter();
        let wanted = wanted.filter(|(_, live)| query.wants(&live.owner.service));
        let wanted = wanted.filter(|(_, live)| live.state != InstanceState::Parked);
        let instances = wanted.map(|(id, live)| InstanceUsage {
            instance: id.clone(),
            namespace: live.owner.service.namespace.clone(),
            service: live.owner.service.name.clone(),
            revision: live.owner.revision.clone(),
            node,
            node_name: node_name.clone(),
            state: live.state,
            memory_bytes: live.usage.memory_bytes,
            memory_limit_bytes: live.owner.limit_bytes,
            memory_peak_bytes: live.usage.memory_peak_bytes,
            pids: live.usage.pids,
            window_millis: live.window.millis,
            window: live.window.amounts.clone(),
            total: live.total.clone(),
        });
        let instances = instances.collect();
        let totals = ledger.totals().into_iter();
        let wanted = totals.filter(|((service, _), _)| query.wants(service));
        let revisions = wanted.map(|((service, revision), total)| RevisionUsage {
            namespace: service.namespace,
            service: service.name,
            revision,
            node,
            node_name: node_name.clone(),
            total,
        });
        UsageView {
            instances,
            revisions: revisions.collect(),
            missing: Vec::new(),
        }
    }
}
