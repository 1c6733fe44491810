//! The replicated state: commands in, replies and changes out. Deterministic: equal states and
//! equal commands give equal results on every replica. It owns what a command means; it does not
//! own how commands are agreed on, stored or carried.

mod addresses;
mod apply;
mod certificates;
mod command;
mod members;
mod objects;
mod size;
mod validate;
mod validate_container;
mod validate_domains;
mod validate_listen;
mod validate_probe;
mod validate_sandbox;

#[cfg(test)]
mod certificates_tests;
#[cfg(test)]
mod members_tests;
#[cfg(test)]
mod objects_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod validate_sandbox_tests;
#[cfg(test)]
mod validate_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use addresses::BLOCK as SERVICE_BLOCK;
pub use certificates::{Hosts, ISSUER, limits as certificate_limits};
pub use command::{
    Action, Change, ClusterMeta, Command, Outcome, PutService, Refusal, Reply, Token,
};
pub use objects::limits as object_limits;
pub use validate::{limits, validate};

use crate::model::{
    AcmeAccount, Certificate, Config, Lease, LocalVolume, NodeId, NodeIdentity, ObjectKey, Order,
    Revision, RevisionKey, Secret, Service, ServiceKey,
};

/// How many deleted services' last generations are remembered.
const MAX_RETIRED: usize = 10_000;

/// Everything people decided and nodes agreed on. Maps serialize as lists of pairs where their
/// keys are no strings, so that JSON can hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Rises by one with every applied command that changed something.
    pub index: u64,
    pub cluster: Option<ClusterMeta>,
    #[serde(with = "pairs")]
    pub nodes: BTreeMap<NodeId, NodeIdentity>,
    pub next_node: u64,
    pub tokens: BTreeMap<String, Token>,
    #[serde(with = "pairs")]
    pub services: BTreeMap<ServiceKey, Service>,
    #[serde(with = "pairs")]
    pub revisions: BTreeMap<RevisionKey, Revision>,
    /// Deleted services. One that is created anew continues their count of generations: otherwise
    /// an instance of the old `web-00001` that still runs would pass for one of the new.
    #[serde(with = "pairs", default)]
    pub retired: BTreeMap<ServiceKey, Retired>,
    #[serde(with = "pairs", default)]
    pub configs: BTreeMap<ObjectKey, Config>,
    #[serde(with = "pairs", default)]
    pub secrets: BTreeMap<ObjectKey, Secret>,
    #[serde(with = "pairs", default)]
    pub volumes: BTreeMap<ObjectKey, LocalVolume>,
    /// Addresses that services have.
    #[serde(default)]
    pub addresses: BTreeSet<Ipv4Addr>,
    /// By name.
    #[serde(default)]
    pub certificates: BTreeMap<String, Certificate>,
    /// By host.
    #[serde(default)]
    pub orders: BTreeMap<String, Order>,
    /// By the authority's directory.
    #[serde(default)]
    pub accounts: BTreeMap<String, AcmeAccount>,
    #[serde(default)]
    pub leases: BTreeMap<String, Lease>,
}

/// What is remembered of a deleted service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Its last generation.
    pub generation: u64,
    /// The registry index of its deletion.
    pub index: u64,
}

impl State {
    /// Applies one command: the reply to its proposer and the changes followers are told.
    /// A refused command changes nothing, the index included; nor does one that asks for what is
    /// already so, which is answered with the present index.
    pub fn apply(&mut self, command: &Command) -> (Reply, Vec<Change>) {
        let plan = match apply::plan(self, command) {
            Ok(plan) => plan,
            Err(refusal) => return (Reply::Refused(refusal), Vec::new()),
        };
        if !plan.changes.is_empty() {
            // Applying is following one's own changes: the leader and a follower of the feed
            // cannot come to differ.
            self.follow(self.index + 1, &plan.changes);
        }
        let reply = Reply::Done {
            index: self.index,
            outcome: plan.outcome,
        };
        (reply, plan.changes)
    }

    /// Applies a change from the feed, bringing the state to `index`. Changes of an index that
    /// lies behind are ignored; those of the present index may come again.
    pub fn follow(&mut self, index: u64, changes: &[Change]) {
        if index < self.index {
            return;
        }
        self.index = index;
        for change in changes {
            self.absorb(change);
        }
    }

    fn absorb(&mut self, change: &Change) {
        match change {
            Change::Cluster(cluster) => self.cluster = Some(cluster.clone()),
            Change::Service(service) => {
                self.retired.remove(&service.key);
                self.addresses.extend(service.meta.address);
                self.services
                    .insert(service.key.clone(), (**service).clone());
            }
            Change::ServiceGone(key) => self.retire(key),
            Change::Revision(revision) => {
                self.revisions
                    .insert(revision.key.clone(), (**revision).clone());
            }
            Change::RevisionGone(key) => {
                self.revisions.remove(key);
            }
            Change::Node(node) => {
                self.next_node = self.next_node.max(node.id.0 + 1);
                self.nodes.insert(node.id, node.clone());
            }
            Change::Token { hash, token } => {
                self.tokens.insert(hash.clone(), token.clone());
            }
            Change::TokenGone { hash } => {
                self.tokens.remove(hash);
            }
            other => self.absorb_object(other),
        }
    }

    fn absorb_object(&mut self, change: &Change) {
        match change {
            Change::Config(config) => {
                self.configs.insert(config.key.clone(), (**config).clone());
            }
            Change::ConfigGone(key) => {
                self.configs.remove(key);
            }
            Change::Secret(secret) => {
                self.secrets.insert(secret.key.clone(), (**secret).clone());
            }
            Change::SecretGone(key) => {
                self.secrets.remove(key);
            }
            Change::Volume(volume) => {
                self.volumes.insert(volume.key.clone(), volume.clone());
            }
            Change::VolumeGone(key) => {
                self.volumes.remove(key);
            }
            other => self.absorb_certificate(other),
        }
    }

    fn absorb_certificate(&mut self, change: &Change) {
        match change {
            Change::Certificate(certificate) => {
                let name = certificate.name.clone();
                self.certificates.insert(name, (**certificate).clone());
            }
            Change::CertificateGone(name) => {
                self.certificates.remove(name);
            }
            Change::Order(order) => {
                self.orders.insert(order.host.clone(), (**order).clone());
            }
            Change::OrderGone(host) => {
                self.orders.remove(host);
            }
            Change::Account(account) => {
                let directory = account.directory.clone();
                self.accounts.insert(directory, (**account).clone());
            }
            Change::Lease(lease) => {
                self.leases.insert(lease.name.clone(), lease.clone());
            }
            // The others' are `absorb`'s.
            _ => {}
        }
    }

    fn retire(&mut self, key: &ServiceKey) {
        let Some(service) = self.services.remove(key) else {
            return;
        };
        if let Some(address) = service.meta.address {
            self.addresses.remove(&address);
        }
        let retired = Retired {
            generation: service.meta.generation,
            index: self.index,
        };
        self.retired.insert(key.clone(), retired);
        if self.retired.len() > MAX_RETIRED {
            let oldest = self.retired.iter().min_by_key(|(_, r)| r.index);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.retired.remove(&oldest);
            }
        }
    }

    /// A service's revisions, in the order of their keys.
    pub fn revisions_of(&self, service: &ServiceKey) -> impl Iterator<Item = &Revision> {
        self.revisions
            .values()
            .filter(move |r| r.service == *service)
    }

    /// The node of that name whose identity is valid.
    pub fn node_named(&self, name: &str) -> Option<&NodeIdentity> {
        self.nodes
            .values()
            .find(|n| !n.revoked && n.name.as_str() == name)
    }
}

impl Service {
    /// The revisions that requests are sent to: those its traffic names, by share or by tag, and
    /// the latest ready one where it names that or nothing at all.
    #[must_use]
    pub fn routed(&self) -> BTreeSet<RevisionKey> {
        let of = |name: &Option<crate::model::Name>| match name {
            Some(name) => Some(RevisionKey {
                namespace: self.key.namespace.clone(),
                name: name.clone(),
            }),
            None => self.status.latest_ready.clone(),
        };
        if self.traffic.is_empty() {
            return of(&None).into_iter().collect();
        }
        let live = self
            .traffic
            .iter()
            .filter(|t| t.percent > 0 || t.tag.is_some());
        live.filter_map(|t| of(&t.revision)).collect()
    }
}

mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter())
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}
