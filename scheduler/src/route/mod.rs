//! Registry and fleet joined into what the front door and DNS read: which host is which service,
//! which revision a request goes to, and which nodes have it ready.
//!
//! `Routes` is immutable; what follows it shares all that did not change, so that one service among a
//! hundred thousand costs what it costs alone. It knows nothing of requests in flight: what an
//! endpoint carries this very moment is the door's knowledge and comes into [`pick`] as a view.

mod build;
mod domains;
mod follow;
mod host;
mod inner;
mod near;
mod pick;
pub mod replay;
mod slow;
mod sticky;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;

use crate::model::{
    Caller, Domain, InstanceId, Listen, Name, NodeId, Protocol, Rate, RevisionKey, ServiceKey,
    Socket,
};

pub use host::{host_names, is_under};
pub use near::front_doors;
pub use pick::{LoadView, Pick, last_resort, pick};
pub use slow::stands;
pub use sticky::{Chosen, Keep};

use domains::Mapped;
use sticky::Sticky;

/// Instances a revision may have over the whole fleet when its service sets no bound.
pub const MAX_SCALE: u32 = 1000;

/// Everything the front door needs to send a request on, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// The node that built it.
    pub me: NodeId,
    /// Registry index it was built from.
    pub index: u64,
    /// The domain services live under: lower case, no dot at either end.
    pub origin: String,
    /// What stands before `.ORIGIN` in a host name, in its shortest spelling, to its service.
    hosts: OrdMap<String, Arc<ServiceRoute>>,
    /// The same for names with a tag. Services whose tags spell the same share one, in their order.
    tagged: OrdMap<String, Vec<Tagged>>,
    /// Hosts outside the origin, `*.` for one label, to whose they are: the longest path first.
    domains: OrdMap<String, Vec<Mapped>>,
    services: OrdMap<ServiceKey, Arc<ServiceRoute>>,
    revisions: OrdMap<RevisionKey, Arc<RevisionRoute>>,
    /// How many services each namespace has.
    namespaces: OrdMap<Name, usize>,
    /// Ports that nodes listen on for services, and whose they are.
    sockets: OrdMap<Socket, Vec<ServiceKey>>,
    /// Where containers find services.
    addresses: OrdMap<Ipv4Addr, ServiceKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tagged {
    service: Arc<ServiceRoute>,
    tag: Name,
}

/// A host name that names a service, and the tag in it when it carried one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'a> {
    pub service: &'a Arc<ServiceRoute>,
    pub tag: Option<&'a Name>,
    /// The paths of the host that are the service's begin so; empty for all of them.
    pub path: &'a str,
}

impl<'a> Match<'a> {
    /// A service by itself.
    #[must_use]
    pub fn whole(service: &'a Arc<ServiceRoute>) -> Self {
        Self {
            service,
            tag: None,
            path: "",
        }
    }
}

/// Where a service's requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRoute {
    pub key: ServiceKey,
    /// Revisions that may take requests, with their percent; sums to 100 unless some target's
    /// revision is not ready, whose share the others then take.
    shares: Vec<(u32, Arc<RevisionRoute>)>,
    tags: BTreeMap<Name, Arc<RevisionRoute>>,
    /// Why no revision takes requests, when none does.
    unrouted: Option<Unrouted>,
    /// Where containers find it.
    pub address: Option<Ipv4Addr>,
    /// Who may call it from there, besides itself.
    callers: Vec<Caller>,
    /// Its hosts outside the origin.
    domains: Vec<Domain>,
    /// Clients without TLS stay, also where the host has a certificate.
    pub plain_http: bool,
    /// Clients stay with the revision they met.
    sticky: Option<Sticky>,
}

/// Why a service has no revision for a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unrouted {
    #[error("revision {0} is still being started for the first time")]
    Pending(RevisionKey),
    #[error("revision {revision} never became ready: {reason}: {message}")]
    Failed {
        revision: RevisionKey,
        reason: String,
        message: String,
    },
    #[error("no revision is meant to take requests")]
    NoRevision,
}

/// A revision that takes requests, and who has it ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionRoute {
    pub key: RevisionKey,
    pub service: ServiceKey,
    /// Requests at once an instance admits; 0 is no limit.
    pub hard: u32,
    /// Requests at once an instance is meant to carry, before utilization.
    pub total: u32,
    /// Requests at once the autoscaler aims at per instance: `total` times utilization.
    pub target: u32,
    pub timeout_seconds: u32,
    pub protocol: Protocol,
    /// What it takes besides HTTP.
    pub listens: Vec<Listen>,
    /// How many requests each node's doors take for its service.
    pub rate: Option<Rate>,
    pub max_scale: u32,
    /// In how many seconds the share of an instance grows after it became ready; 0: at once.
    pub slow_start_seconds: u32,
    /// Ready instances on live nodes, this one included.
    pub ready: u32,
    /// Instances on their way to ready on live nodes, this one included.
    pub starting: u32,
    /// Other nodes with ready instances, nearest first; those that have been silent come later, and those not
    /// `alive` last.
    pub away: Vec<Away>,
}

/// Another node's ready instances of a revision, as it last reported them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    pub node: NodeId,
    /// Measured, or reckoned where it is not.
    pub rtt_micros: Option<u32>,
    pub instances: Vec<InstanceId>,
    /// Requests in them, from all doors.
    pub in_flight: u32,
    /// False when the node is thought dead and kept only because everyone is: a last resort.
    pub alive: bool,
}

impl Routes {
    /// The service that a `Host` header (with or without port) names, for a request's target: a path, and
    /// what may follow it.
    #[must_use]
    pub fn lookup(&self, host: &str, target: &str) -> Option<Match<'_>> {
        let Some(label) = host::within(host, &self.origin) else {
            return self.by_domain(host, target);
        };
        if label.bytes().any(|b| b.is_ascii_uppercase()) {
            self.find(&label.to_ascii_lowercase())
        } else {
            self.find(label)
        }
    }

    /// A service's own name wins over a tag that spells the same.
    fn find(&self, name: &str) -> Option<Match<'_>> {
        let name = host::shortest(name);
        if let Some(service) = self.hosts.get(name) {
            return Some(Match::whole(service));
        }
        let last = self.tagged.get(name)?.last()?;
        Some(Match {
            service: &last.service,
            tag: Some(&last.tag),
            path: "",
        })
    }

    /// Whether a name under the origin, in lower case, is a service's or a tag's: `web`,
    /// `web.shop`, `canary-web`.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Whether some service's name ends in `.name`: DNS has such a name exist, without records.
    #[must_use]
    pub fn encloses(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceRoute>> {
        self.services.get(key)
    }

    /// A revision some service routes to.
    #[must_use]
    pub fn revision(&self, key: &RevisionKey) -> Option<&Arc<RevisionRoute>> {
        self.revisions.get(key)
    }
}

impl ServiceRoute {
    /// The revision for a request: the tag's, or by share with `draw` (any number; it is taken
    /// modulo the shares' sum).
    ///
    /// # Errors
    /// [`Unrouted`] when no revision may take it.
    pub fn pick_revision(
        &self,
        draw: u32,
        tag: Option<&Name>,
    ) -> Result<&Arc<RevisionRoute>, Unrouted> {
        let none = || Err(self.unrouted.clone().unwrap_or(Unrouted::NoRevision));
        if let Some(tag) = tag {
            return self.tags.get(tag).map_or_else(none, Ok);
        }
        let sum: u32 = self.shares.iter().map(|(percent, _)| percent).sum();
        if sum == 0 {
            return none();
        }
        let mut left = draw % sum;
        for (percent, revision) in &self.shares {
            if left < *percent {
                return Ok(revision);
            }
            left -= percent;
        }
        none()
    }

    /// Revisions that take a share of the requests.
    pub fn revisions(&self) -> impl Iterator<Item = &Arc<RevisionRoute>> {
        self.shares.iter().map(|(_, revision)| revision)
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
