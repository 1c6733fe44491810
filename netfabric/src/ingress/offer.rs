//! Room for one request, now: what the door knows of endpoints, put to `route::pick`.

use std::sync::Arc;

use scheduler::model::NodeId;
use scheduler::route::replay::Aim;
use scheduler::route::{LoadView, Pick, RevisionRoute, last_resort, pick};

use super::bench::Bench;
use super::health::Nodes;
use super::local::Slot;
use super::upstream::Admission;

/// An instance may fill up between the look and the step in; after so many times the request
/// joins the queue.
const LOOKS: usize = 3;

/// Endpoints that a request does not go to: those it was sent to in vain, and those it is not meant for.
#[derive(Debug, Default)]
pub(super) struct Tried {
    slots: Vec<Arc<Slot>>,
    nodes: Vec<NodeId>,
    aimed: Option<Box<Aimed>>,
}

#[derive(Debug)]
struct Aimed {
    aim: Aim,
    /// This node is one that may answer.
    here: bool,
}

impl Tried {
    /// For a request that is meant for some of the endpoints.
    pub(super) fn aimed(aim: Aim, me: NodeId) -> Self {
        let here = aim.takes_node(me);
        let aimed = (!aim.is_open()).then(|| Box::new(Aimed { aim, here }));
        Self {
            aimed,
            ..Self::default()
        }
    }

    pub(super) fn aim(&self) -> Option<&Aim> {
        self.aimed.as_ref().map(|aimed| &aimed.aim)
    }

    /// Whether there is an endpoint that the request may still be sent to, be it full.
    pub(super) fn leaves(&self, route: &RevisionRoute, bench: &Bench) -> bool {
        let open = |slot: &Arc<Slot>| slot.load().is_some() && !self.has(slot);
        let here = bench.slots().iter().any(open);
        let fresh = self.fresh(route, bench);
        let mut there = route.away.iter().map(|a| a.node);
        let left = |node| !self.nodes.contains(&node);
        here || there.any(left) || fresh.into_iter().any(|(node, _)| left(node))
    }

    /// Nodes with instances that `route` does not show yet. Which these are is not said.
    fn fresh(&self, route: &RevisionRoute, bench: &Bench) -> Vec<(NodeId, u32)> {
        let mut fresh = bench.fresh(route);
        if let Some(aim) = self.aim() {
            fresh.retain(|(node, _)| aim.takes_node(*node) && aim.only.is_none());
        }
        fresh
    }

    fn has(&self, slot: &Arc<Slot>) -> bool {
        let meant = |aimed: &Aimed| aimed.here && aimed.aim.takes(&slot.id);
        !self.aimed.as_deref().is_none_or(meant) || self.slots.iter().any(|t| Arc::ptr_eq(t, slot))
    }

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
        if self.tried.has(slot) {
            None
        } else {
            slot.load()
        }
    }

    fn age_millis(&self, instance: usize) -> u64 {
        self.slots[instance].age_millis()
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
        fresh: tried.fresh(route, bench),
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
