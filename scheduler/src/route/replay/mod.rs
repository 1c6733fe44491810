//! Requests that an instance sends on in the place of answering them: what its order says, which
//! endpoints that means, and who may not be meant.

mod order;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{RevisionRoute, Routes, ServiceRoute, Unrouted};
use crate::fleet::Fleet;
use crate::model::{InstanceId, Name, NodeId, RevisionKey, ServiceKey};

pub use order::{Fallback, Malformed, ORDER_BYTES, Order, Wanted};

/// Replays of one request at most: who sends it in a circle is told.
pub const MAX_REPLAYS: u32 = 5;

/// Who gives an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Giver<'a> {
    pub service: &'a ServiceKey,
    pub revision: &'a RevisionKey,
    pub instance: Option<&'a InstanceId>,
    /// The request is a container's of this service, by the way inside.
    pub caller: Option<&'a ServiceKey>,
}

/// Which of a revision's endpoints a request may go to; all of them unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Aim {
    /// Only nodes of these.
    pub nodes: Option<BTreeSet<NodeId>>,
    /// Only this one.
    pub only: Option<InstanceId>,
    /// Not this one.
    pub not: Option<InstanceId>,
}

/// Where an order leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub revision: Arc<RevisionRoute>,
    pub aim: Aim,
}

/// Why an order leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nowhere {
    #[error("there is no service `{0}` in the namespace")]
    NoService(Name),
    #[error("{0} does not let this caller in")]
    NotLetIn(ServiceKey),
    #[error(transparent)]
    Unrouted(#[from] Unrouted),
    #[error("{service} has no ready instance `{instance}`")]
    NoInstance {
        service: ServiceKey,
        instance: InstanceId,
    },
    #[error("there is no node in {0}")]
    NoRegion(String),
}

impl Aim {
    /// Whether all endpoints may be gone to.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn takes_node(&self, node: NodeId) -> bool {
        self.nodes
            .as_ref()
            .is_none_or(|nodes| nodes.contains(&node))
    }

    #[must_use]
    pub fn takes(&self, instance: &InstanceId) -> bool {
        self.only.as_ref().is_none_or(|only| only == instance)
            && self.not.as_ref() != Some(instance)
    }

    /// The revision as far as it is aimed at.
    #[must_use]
    pub fn narrow(&self, route: &Arc<RevisionRoute>) -> Arc<RevisionRoute> {
        if self.is_open() {
            return Arc::clone(route);
        }
        let mut narrow = RevisionRoute::clone(route);
        narrow.away.retain_mut(|away| {
            away.instances.retain(|instance| self.takes(instance));
            self.takes_node(away.node) && !away.instances.is_empty()
        });
        Arc::new(narrow)
    }
}

/// What is ready, by all that is known at one door.
struct Ready<'a, H> {
    routes: &'a Routes,
    fleet: &'a Fleet,
    here: &'a H,
}

impl<H: Fn(&RevisionKey) -> Vec<InstanceId>> Ready<'_, H> {
    /// Whether there is anything to aim at.
    fn has(&self, revision: &RevisionRoute, aim: &Aim) -> bool {
        let takes = |instances: &[InstanceId]| instances.iter().any(|i| aim.takes(i));
        let here = aim.takes_node(self.routes.me) && takes(&(self.here)(&revision.key));
        let mut away = revision.away.iter().filter(|a| a.alive);
        here || away.any(|a| aim.takes_node(a.node) && takes(&a.instances))
    }

    /// The revision that has this instance, of all that the service routes to.
    fn revision_with(
        &self,
        service: &ServiceRoute,
        instance: &InstanceId,
    ) -> Option<Arc<RevisionRoute>> {
        let aim = Aim {
            only: Some(instance.clone()),
            ..Aim::default()
        };
        let shares = service.shares.iter().map(|(_, revision)| revision);
        let mut revisions = shares.chain(service.tags.values());
        revisions.find(|r| self.has(r, &aim)).cloned()
    }

    fn nodes_in(&self, region: &Wanted) -> Option<BTreeSet<NodeId>> {
        if *region == Wanted::Any {
            return None;
        }
        let members = self.fleet.members.iter();
        let there = members.filter(|(_, m)| m.is_reachable() && region.is(&m.record.region));
        Some(there.map(|(node, _)| *node).collect())
    }
}

impl Order {
    /// Where it leads. `here` are the instances of a revision on this node that take requests; `draw`
    /// is any number, for the split of another service. Of several regions the first with something
    /// ready; when there is none, the first that there are nodes in, for something to be started there.
    ///
    /// # Errors
    /// [`Nowhere`] says what is missing.
    pub fn target<H: Fn(&RevisionKey) -> Vec<InstanceId>>(
        &self,
        (routes, fleet): (&Routes, &Fleet),
        giver: &Giver<'_>,
        draw: u32,
        here: &H,
    ) -> Result<Target, Nowhere> {
        let ready = Ready {
            routes,
            fleet,
            here,
        };
        let service = self.service(routes, giver)?;
        let key = || service.key.clone();
        if let Some(instance) = &self.instance {
            let found = ready.revision_with(service, instance);
            let missing = || Nowhere::NoInstance {
                service: key(),
                instance: instance.clone(),
            };
            return Ok(at(found.ok_or_else(missing)?, instance));
        }
        if let Some(instance) = &self.preferred
            && let Some(found) = ready.revision_with(service, instance)
        {
            return Ok(at(found, instance));
        }
        let own = service.key == *giver.service;
        let same = routes.revision(giver.revision).filter(|_| own);
        let revision = match same {
            Some(revision) => revision,
            None => service.pick_revision(draw, None)?,
        };
        let not = giver.instance.filter(|_| self.elsewhere && own).cloned();
        let revision = Arc::clone(revision);
        if self.regions.is_empty() {
            let aim = Aim {
                not,
                ..Aim::default()
            };
            return Ok(Target { revision, aim });
        }
        let aims = self.regions.iter().map(|region| Aim {
            nodes: ready.nodes_in(region),
            not: not.clone(),
            ..Aim::default()
        });
        let mut aims: Vec<Aim> = aims.collect();
        aims.retain(|aim| aim.nodes.as_ref().is_none_or(|nodes| !nodes.is_empty()));
        let at = aims.iter().position(|aim| ready.has(&revision, aim));
        if aims.is_empty() {
            let regions: Vec<String> = self.regions.iter().map(Wanted::to_string).collect();
            return Err(Nowhere::NoRegion(regions.join(", ")));
        }
        let aim = aims.swap_remove(at.unwrap_or(0));
        Ok(Target { revision, aim })
    }

    /// Whose endpoints are meant: of the giver's namespace, always. Who came by the way inside must be
    /// let in there as well.
    fn service<'r>(
        &self,
        routes: &'r Routes,
        giver: &Giver<'_>,
    ) -> Result<&'r Arc<ServiceRoute>, Nowhere> {
        let name = self.app.as_ref().unwrap_or(&giver.service.name);
        let key = ServiceKey {
            namespace: giver.service.namespace.clone(),
            name: name.clone(),
        };
        let service = routes.service(&key);
        let service = service.ok_or_else(|| Nowhere::NoService(name.clone()))?;
        if giver.caller.is_some_and(|caller| !service.admits(caller)) {
            return Err(Nowhere::NotLetIn(key));
        }
        Ok(service)
    }
}

fn at(revision: Arc<RevisionRoute>, instance: &InstanceId) -> Target {
    let aim = Aim {
        only: Some(instance.clone()),
        ..Aim::default()
    };
    Target { revision, aim }
}
