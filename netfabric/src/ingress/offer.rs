//! Room for one request, now: what the door knows of endpoints, put to `route::pick`.

use std::sync::Arc;

use scheduler::model::NodeId;
use scheduler::route::{LoadView, Pick, RevisionRoute, last_resort, pick};

use super::bench::Bench;
use super::health::Nodes;
use super::local::Slot;
use super::upstream::Admission;

/// An instance may fill up between the look and the step in; after so many times the request
/// joins the queue.
const LOOKS: usize = 3;

/// Endpoints a request was sent to in vain.
#[derive(Debug, Default)]
pub(super) struct Tried {
    slots: Vec<Arc<Slot>>,
    nodes: Vec<NodeId>,
}

impl Tried {
    pub(super) fn add(&mut self, admission: &Admission) {
        match admission {
            Admission::Here(guard) => self.slots.push(Arc::clone(&guard.slot)),
            Admission::There(sent) => self.nodes.push(sent.node),
        }
    }
}

struct Sight<'a> {
    slots: &'a [Arc<Slot>],
    fresh: Vec<(NodeId, u32)>,
    bare: Vec<NodeId>,
    bench: &'a Bench,
    nodes: &'a Nodes,
    tried: &'a Tried,
}

impl LoadView for Sight<'_> {
    fn here(&self) -> usize {
        self.slots.len()
    }

    fn load(&self, instance: usize) -> Option<u32> {
        let slot = &self.slots[instance];
        let tried = self.tried.slots.iter().any(|t| Arc::ptr_eq(t, slot));
        if tried { None } else { slot.load() }
    }

    fn ejected_here(&self, instance: usize) -> bool {
        self.slots[instance].health.is_ejected()
    }

    fn fresh(&self) -> &[(NodeId, u32)] {
        &self.fresh
    }

    fn sent(&self, node: NodeId) -> Option<u32> {
        let vain = self.tried.nodes.contains(&node) || self.bare.contains(&node);
        (!vain).then(|| self.bench.sent(node))
    }

    fn ejected(&self, node: NodeId) -> bool {
        self.nodes.is_ejected(node)
    }
}

/// Admits a request to the best endpoint with room.
pub(super) fn room(
    route: &RevisionRoute,
    bench: &Arc<Bench>,
    nodes: &Nodes,
    tried: &Tried,
) -> Option<Admission> {
    let by = |sight: &Sight<'_>| pick(route, sight, rand::random());
    admit(route, bench, nodes, tried, by)
}

/// Admits a request to any endpoint not tried, however doubtful.
pub(super) fn any(
    route: &RevisionRoute,
    bench: &Arc<Bench>,
    nodes: &Nodes,
    tried: &Tried,
) -> Option<Admission> {
    admit(route, bench, nodes, tried, |sight| {
        last_resort(route, sight)
    })
}

fn admit(
    route: &RevisionRoute,
    bench: &Arc<Bench>,
    nodes: &Nodes,
    tried: &Tried,
    choose: impl Fn(&Sight<'_>) -> Pick,
) -> Option<Admission> {
    let slots = bench.slots();
    let sight = Sight {
        slots: &slots,
        fresh: bench.fresh(route),
        bare: bench.bare.list(),
        bench,
        nodes,
        tried,
    };
    for _ in 0..LOOKS {
        match choose(&sight) {
            Pick::Local(instance) => {
                if let Some(guard) = slots[instance].admit() {
                    return Some(Admission::Here(guard));
                }
            }
            Pick::Remote(node) => return Some(Admission::There(bench.send(node))),
            Pick::None => return None,
        }
    }
    None
}
