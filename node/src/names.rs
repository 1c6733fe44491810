//! What the DNS servers answer with: routes and fleet, asked at every query.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use netfabric::dns::{Answers, Client};
use netfabric::tls;
use scheduler::fleet::Fleet;
use scheduler::model::ChallengeKind;
use scheduler::registry::State;
use scheduler::route::{Routes, front_doors};
use tokio::sync::watch;

/// Name servers named in the zone; more would not fit a small answer.
const MAX_NAME_SERVERS: usize = 6;

pub struct Names {
    pub routes: Arc<ArcSwap<Routes>>,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub registry: watch::Receiver<Arc<State>>,
}

/// Where a certificate authority looks for what shows that a host is ours.
const CHALLENGE: &str = "_acme-challenge";

impl Answers for Names {
    fn service_exists(&self, name: &str) -> bool {
        self.routes.load().names(name)
    }

    fn encloses(&self, name: &str) -> bool {
        self.routes.load().encloses(name)
    }

    fn nearest(&self, _name: &str, client: &Client) -> Vec<IpAddr> {
        front_doors(&self.fleet.borrow(), client.subnet, client.region.as_ref())
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let Some(below) = name.strip_prefix(CHALLENGE) else {
            return Vec::new();
        };
        let host = match below.strip_prefix('.') {
            Some(label) => format!("{label}.{}", self.routes.load().origin),
            None if below.is_empty() => self.routes.load().origin.clone(),
            None => return Vec::new(),
        };
        let state = self.registry.borrow().clone();
        // What shows a host to be ours, and all names below it.
        let names = [host.clone(), format!("*.{host}")];
        let orders = names.iter().filter_map(|name| state.orders.get(name));
        let challenges = orders.filter_map(|order| order.challenge.as_ref());
        let by_dns = challenges.filter(|c| c.kind == ChallengeKind::Dns);
        by_dns.map(|c| tls::dns_value(&c.authorization)).collect()
    }

    fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)> {
        let fleet = self.fleet.borrow().clone();
        let nodes = fleet.nearest().into_iter().take(MAX_NAME_SERVERS);
        nodes
            .map(|m| (format!("{}.ns", m.record.name), m.record.ingress.clone()))
            .collect()
    }

    fn serial(&self) -> u64 {
        self.routes.load().index
    }
}

/// What containers are told: each service's own address.
pub struct InnerNames {
    pub routes: Arc<ArcSwap<Routes>>,
}

impl Answers for InnerNames {
    fn service_exists(&self, name: &str) -> bool {
        self.routes.load().address_of(name).is_some()
    }

    fn encloses(&self, name: &str) -> bool {
        self.routes.load().encloses(name)
    }

    fn nearest(&self, name: &str, _client: &Client) -> Vec<IpAddr> {
        let address = self.routes.load().address_of(name);
        address.map(IpAddr::from).into_iter().collect()
    }

    fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)> {
        Vec::new()
    }

    fn serial(&self) -> u64 {
        self.routes.load().index
    }
}
