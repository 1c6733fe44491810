//! Small registries and fleets for this room's tests.

use crate::fleet::{Fleet, Member};
use crate::model::{
    ImagePin, InstanceId, InstanceReport, InstanceState, Meta, Name, NodeId, NodeRecord, Resources,
    Revision, RevisionKey, RevisionSpec, RevisionState, Scale, Service, ServiceKey, ServiceStatus,
    TrafficTarget, UnixMs,
};
use crate::registry::State;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn service_key(namespace: &str, service: &str) -> ServiceKey {
    ServiceKey {
        namespace: name(namespace),
        name: name(service),
    }
}

pub fn revision_key(namespace: &str, revision: &str) -> RevisionKey {
    RevisionKey {
        namespace: name(namespace),
        name: name(revision),
    }
}

pub fn target(revision: Option<&str>, percent: u32, tag: Option<&str>) -> TrafficTarget {
    TrafficTarget {
        revision: revision.map(name),
        percent,
        tag: tag.map(name),
    }
}

pub fn failed() -> RevisionState {
    RevisionState::Failed {
        reason: "Exited".into(),
        message: "exit code 1".into(),
    }
}

/// A service with revisions in these states, the last ready one being the latest ready.
pub fn add(
    state: &mut State,
    namespace: &str,
    service: &str,
    states: &[RevisionState],
    traffic: Vec<TrafficTarget>,
) {
    let key = service_key(namespace, service);
    let mut latest = ServiceStatus::default();
    for (generation, revision_state) in (1u64..).zip(states) {
        let revision_key = RevisionKey::of(&key, generation).unwrap();
        latest.latest_created = Some(revision_key.clone());
        if *revision_state == RevisionState::Ready {
            latest.latest_ready = Some(revision_key.clone());
        }
        let revision = Revision {
            key: revision_key.clone(),
            service: key.clone(),
            generation,
            created: UnixMs(0),
            spec: RevisionSpec {
                container_concurrency: 10,
                ..RevisionSpec::default()
            },
            image: ImagePin {
                reference: "registry.test/app:1".into(),
                digest: "sha256:0".into(),
            },
            state: revision_state.clone(),
        };
        state.revisions.insert(revision_key, revision);
    }
    let service = Service {
        key: key.clone(),
        meta: Meta::default(),
        spec: RevisionSpec::default(),
        scale: Scale::default(),
        traffic,
        status: latest,
    };
    state.services.insert(key, service);
}

pub fn member(id: u64, region: &str, rtt_micros: Option<u32>) -> Member {
    let octet = u8::try_from(id).unwrap();
    let record = NodeRecord {
        node: NodeId(id),
        name: name(&format!("node-{id}")),
        region: name(region),
        zone: name(region),
        labels: std::collections::BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: String::new(),
        mesh: "127.0.0.1:1".parse().unwrap(),
        ingress: vec![[10, 0, octet, 1].into()],
        serving: true,
        cordoned: false,
        capacity: Resources::default(),
        free: Resources::default(),
        registry_index: 0,
        instances: Vec::new(),
        demand: Vec::new(),
        starts: Vec::new(),
        images: Vec::new(),
    };
    Member::new(record, true, rtt_micros)
}

/// This node is 1 in region `par`; 2 is near in `fra`, 3 far in `lis`, 4 with 2 in `fra`.
pub fn fleet() -> Fleet {
    let members = [
        member(1, "par", Some(0)),
        member(2, "fra", Some(9_000)),
        member(3, "lis", Some(30_000)),
        member(4, "fra", None),
    ];
    Fleet {
        me: NodeId(1),
        members: members.into_iter().map(|m| (m.record.node, m)).collect(),
        ..Fleet::default()
    }
}

pub fn run(fleet: &mut Fleet, node: u64, revision: &str, state: InstanceState, in_flight: u32) {
    let member = fleet.members.get_mut(&NodeId(node)).unwrap();
    let number = member.record.instances.len();
    member.record.edit().instances.push(InstanceReport {
        id: InstanceId(format!("{revision}-{node}-{number}")),
        service: service_key("default", "web"),
        revision: revision_key("default", revision),
        state,
        since: UnixMs(0),
        in_flight,
        concurrency_milli: 0,
        failure: None,
        steward: None,
        activity: crate::model::Activity::default(),
    });
}
