//! A small world for tests: nodes, a registry, a steward on each node, and orders carried out.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::fleet::Member;
use crate::model::{
    Container, Demand, FailReason, ImagePin, InstanceReport, InstanceState, Name, NodeIdentity,
    NodeRecord, Resources, RevisionSpec, Role, Scale, ServiceKey, UnixMs,
};
use crate::registry::{Action, Command, PutService, Reply};

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn web() -> ServiceKey {
    ServiceKey {
        namespace: Name::default_namespace(),
        name: name("web"),
    }
}

pub(super) fn rev(generation: u64) -> RevisionKey {
    RevisionKey::of(&web(), generation).unwrap()
}

pub(super) fn record(id: u64) -> NodeRecord {
    let capacity = Resources {
        cpu_millis: 4000,
        memory_bytes: 4 << 30,
        instances: 100,
    };
    NodeRecord {
        node: NodeId(id),
        name: name(&format!("node-{id}")),
        region: name(&format!("region-{id}")),
        zone: name("a"),
        labels: BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: "0.1.0".to_owned(),
        mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 8422)),
        ingress: Vec::new(),
        serving: true,
        cordoned: false,
        capacity,
        free: capacity,
        registry_index: 0,
        instances: Vec::new(),
        demand: Vec::new(),
        starts: Vec::new(),
        images: vec!["sha256:".to_owned() + &"a".repeat(64)],
    }
}

/// Nodes, the registry and a steward on each node. Orders are gathered for the test to look at,
/// and carried out when it says so.
pub(super) struct World {
    pub(super) now: Now,
    pub(super) state: State,
    pub(super) records: BTreeMap<NodeId, NodeRecord>,
    pub(super) dead: BTreeSet<NodeId>,
    pub(super) stewards: BTreeMap<NodeId, Steward>,
    made: u64,
}

impl World {
    pub(super) fn new(nodes: u64) -> Self {
        Self {
            now: Now(1_000_000),
            state: State::default(),
            records: (1..=nodes).map(|id| (NodeId(id), record(id))).collect(),
            dead: BTreeSet::new(),
            stewards: (1..=nodes).map(|id| (NodeId(id), Steward::new())).collect(),
            made: 0,
        }
    }

    pub(super) fn apply(&mut self, action: Action) {
        let at = UnixMs(0);
        let (reply, _) = self.state.apply(&Command { at, action });
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
        for record in self.records.values_mut() {
            record.registry_index = self.state.index;
        }
    }

    /// The node drains, or takes instances again, by the registry and its record.
    pub(super) fn drain(&mut self, node: u64) {
        let record = self.records.get_mut(&NodeId(node)).unwrap();
        record.cordoned = !record.cordoned;
        let identity = NodeIdentity {
            id: record.node,
            name: record.name.clone(),
            region: record.region.clone(),
            zone: record.zone.clone(),
            mesh: record.mesh,
            public_key: Vec::new(),
            role: Role::Follower,
            enrolled: UnixMs(0),
            revoked: false,
            cordoned: record.cordoned,
            draining: record.cordoned,
        };
        self.state.nodes.insert(record.node, identity);
    }

    pub(super) fn deploy(&mut self, scale: Scale) {
        let put = PutService {
            scale,
            ..Self::put_service(self.state.index)
        };
        self.apply(Action::PutService(Box::new(put)));
    }

    pub(super) fn put_service(generation: u64) -> PutService {
        PutService {
            key: web(),
            spec: RevisionSpec {
                containers: vec![Container {
                    image: format!("web:{generation}"),
                    ..Container::default()
                }],
                ..RevisionSpec::default()
            },
            image: ImagePin {
                reference: "r/web:1".to_owned(),
                digest: "sha256:".to_owned() + &"a".repeat(64),
            },
            scale: Scale::default(),
            traffic: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            uid: "u".to_owned(),
            if_version: None,
        }
    }

    pub(super) fn ready(&mut self, generation: u64) {
        let revision = rev(generation);
        self.apply(Action::MarkReady { revision });
        // Its stewards have looked after it for a while.
        self.quiet(1);
        self.now = self.now.plus(100_000);
    }

    pub(super) fn fleet(&self, me: NodeId) -> Fleet {
        let member = |record: &NodeRecord| {
            let alive = !self.dead.contains(&record.node);
            let rtt = if record.node == me { 0 } else { 20_000 };
            Member::new(record.clone(), alive, Some(rtt))
        };
        Fleet {
            me,
            members: self
                .records
                .iter()
                .map(|(id, r)| (*id, member(r)))
                .collect(),
            volumes: self.state.volumes.clone(),
            ..Fleet::default()
        }
    }

    /// A second passes; what every node's steward orders.
    pub(super) fn tick(&mut self) -> Vec<Order> {
        self.now = self.now.plus(1000);
        let mut orders = Vec::new();
        let live: Vec<_> = self
            .records
            .keys()
            .filter(|n| !self.dead.contains(n))
            .copied()
            .collect();
        for node in live {
            let fleet = self.fleet(node);
            let steward = self.stewards.get_mut(&node).unwrap();
            orders.extend(steward.tick(self.now, UnixMs(self.now.0), &self.state, &fleet));
        }
        orders
    }

    pub(super) fn quiet(&mut self, seconds: u32) {
        for second in 0..seconds {
            assert_eq!(self.tick(), [], "second {second}");
        }
    }

    /// Ticks until something is ordered.
    pub(super) fn next(&mut self, seconds: u32) -> (u32, Vec<Order>) {
        for second in 1..=seconds {
            let orders = self.tick();
            if !orders.is_empty() {
                return (second, orders);
            }
        }
        panic!("nothing within {seconds} seconds");
    }

    pub(super) fn put(&mut self, node: u64, generation: u64, state: InstanceState) -> InstanceId {
        self.made += 1;
        let id = InstanceId(format!("{}-{:04}", rev(generation).name, self.made));
        let report = InstanceReport {
            id: id.clone(),
            service: web(),
            revision: rev(generation),
            state,
            since: UnixMs(self.now.0),
            in_flight: 0,
            concurrency_milli: 0,
            failure: (state == InstanceState::Failed).then(|| FailReason {
                code: "Exited".to_owned(),
                message: "exited with 1".to_owned(),
            }),
            steward: None,
            activity: crate::model::Activity::default(),
        };
        self.records
            .get_mut(&NodeId(node))
            .unwrap()
            .instances
            .push(report);
        id
    }

    pub(super) fn reports(&mut self) -> impl Iterator<Item = &mut InstanceReport> {
        self.records.values_mut().flat_map(|r| &mut r.instances)
    }

    pub(super) fn report(&mut self, id: &InstanceId) -> &mut InstanceReport {
        self.reports().find(|i| i.id == *id).unwrap()
    }

    pub(super) fn load(&mut self, id: &InstanceId, requests: u32) {
        let report = self.report(id);
        report.in_flight = requests;
        report.concurrency_milli = requests * 1000;
    }

    pub(super) fn queue(&mut self, node: u64, queued: u32) {
        let demand = Demand {
            revision: rev(1),
            queued,
            away: 0,
        };
        self.records.get_mut(&NodeId(node)).unwrap().demand = vec![demand];
    }

    /// Does what was ordered: starts are ready at once, stopped ones are gone.
    pub(super) fn obey(&mut self, orders: &[Order]) -> Vec<InstanceId> {
        let mut started = Vec::new();
        for order in orders {
            match order {
                Order::Start { revision, receipt } => {
                    let (node, _) = receipt.ranked().next().unwrap();
                    let generation = self.state.revisions[revision].generation;
                    let id = self.put(node.0, generation, InstanceState::Ready);
                    self.report(&id).steward = receipt.steward();
                    started.push(id);
                    for steward in self.stewards.values_mut() {
                        steward.on_start_result(self.now, revision, Ok(()));
                    }
                }
                Order::Stop { instance, node, .. } => {
                    let record = self.records.get_mut(node).unwrap();
                    record.instances.retain(|i| i.id != *instance);
                }
                Order::Ready { revision } => self.apply(Action::MarkReady {
                    revision: revision.clone(),
                }),
                Order::Fail {
                    revision,
                    reason,
                    message,
                } => self.apply(Action::MarkFailed {
                    revision: revision.clone(),
                    reason: reason.clone(),
                    message: message.clone(),
                }),
            }
        }
        started
    }

    pub(super) fn zone(&self, id: u64) -> (Name, Name) {
        let record = &self.records[&NodeId(id)];
        (record.region.clone(), record.zone.clone())
    }
}

/// The node and the cause of every start; there must be nothing else.
pub(super) fn starts(orders: &[Order]) -> Vec<(u64, &str)> {
    let starts = orders.iter().map(|order| match order {
        Order::Start { receipt, .. } => {
            let (node, _) = receipt.ranked().next().unwrap();
            (node.0, receipt.cause.as_str())
        }
        other => panic!("{other:?}"),
    });
    starts.collect()
}

pub(super) fn stops(orders: &[Order]) -> Vec<&InstanceId> {
    let stop = |o: &'_ Order| matches!(o, Order::Stop { .. });
    assert!(orders.iter().all(stop), "{orders:?}");
    let ids = orders.iter().filter_map(|o| match o {
        Order::Stop { instance, .. } => Some(instance),
        _ => None,
    });
    ids.collect()
}

/// One node, its service deployed and ready, nothing running.
pub(super) fn warm(scale: Scale) -> World {
    let mut world = World::new(1);
    world.deploy(scale);
    world.ready(1);
    world
}

pub(super) fn scale(min: u32, max: u32) -> Scale {
    Scale {
        min,
        max,
        ..Scale::default()
    }
}
