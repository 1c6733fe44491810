//! What the DNS server answers with: routes and fleet, asked at every query.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use netfabric::dns::{Answers, Client};
use scheduler::fleet::Fleet;
use scheduler::model::Name;
use scheduler::route::{Resolution, Routes, Subnet, resolve};
use tokio::sync::watch;

/// Name servers named in the zone; more would not fit a small answer.
const MAX_NAME_SERVERS: usize = 6;

pub struct Names {
    pub origin: String,
    pub routes: Arc<ArcSwap<Routes>>,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Which region client networks are near to.
    pub regions: Vec<(Subnet, Name)>,
}

impl Names {
    fn fqdn(&self, name: &str) -> String {
        format!("{name}.{}", self.origin)
    }
}

impl Answers for Names {
    fn service_exists(&self, name: &str) -> bool {
        self.routes.load().lookup(&self.fqdn(name)).is_some()
    }

    fn nearest(&self, name: &str, client: &Client) -> Vec<IpAddr> {
        let (routes, fleet) = (self.routes.load(), self.fleet.borrow().clone());
        match resolve(
            &routes,
            &fleet,
            &self.regions,
            &self.fqdn(name),
            client.subnet,
        ) {
            Resolution::Service(addresses) | Resolution::Origin(addresses) => {
                let v4 = addresses.v4.into_iter().map(IpAddr::from);
                v4.chain(addresses.v6.into_iter().map(IpAddr::from))
                    .collect()
            }
            Resolution::Unknown | Resolution::Foreign => Vec::new(),
        }
    }

    fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)> {
        let fleet = self.fleet.borrow().clone();
        let nodes = fleet.nearest().into_iter().take(MAX_NAME_SERVERS);
        nodes
            .map(|m| (format!("{}.ns", m.record.name), m.record.ingress.clone()))
            .collect()
    }

    fn serial(&self) -> u64 {
        self.fleet
            .borrow()
            .members
            .values()
            .map(|m| m.record.registry_index)
            .max()
            .unwrap_or(0)
    }
}
