//! A small cluster to print: three nodes, one service, three instances.

use std::collections::BTreeMap;

use netfabric::wire::api::*;
use netfabric::wire::decision::{Decision, Deed};
use netfabric::wire::usage::*;
use scheduler::model::*;
use scheduler::place::{Candidate, Inputs, Parts, Passed, Receipt, Rejection, Verdict};

pub const NOW: UnixMs = UnixMs(1_700_000_600_000);

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn revision_key() -> RevisionKey {
    RevisionKey {
        namespace: name("default"),
        name: name("web-00002"),
    }
}

fn service_key() -> ServiceKey {
    ServiceKey {
        namespace: name("default"),
        name: name("web"),
    }
}

fn spec() -> RevisionSpec {
    let env = |n: &str, v: &str| EnvVar {
        name: n.into(),
        value: v.into(),
        ..EnvVar::default()
    };
    let container = Container {
        name: "user-container".into(),
        image: "10.9.0.1:5000/web:1.4".into(),
        cpu_millis: 500,
        memory_bytes: 256 << 20,
        env: vec![env("LOG", "info"), env("MODE", "edge")],
        ..Container::default()
    };
    let place = PlacementRules {
        regions: vec!["par".into(), "fra".into()],
        spread: Spread::Region,
        require: BTreeMap::from([("disk".into(), "nvme".into())]),
        ..PlacementRules::default()
    };
    RevisionSpec {
        containers: vec![container],
        place,
        ..RevisionSpec::default()
    }
}

pub fn service() -> ServiceView {
    let meta = Meta {
        uid: "u".into(),
        generation: 2,
        resource_version: 14,
        created: UnixMs(1_700_000_000_000),
        labels: BTreeMap::from([("team".into(), "edge".into())]),
        annotations: BTreeMap::new(),
        address: None,
    };
    let status = ServiceStatus {
        latest_created: Some(revision_key()),
        latest_ready: None,
    };
    let scale = Scale {
        max: 10,
        ..Scale::default()
    };
    let service = Service {
        key: service_key(),
        meta,
        spec: spec(),
        scale,
        traffic: Vec::new(),
        status,
    };
    ServiceView {
        service,
        url: "http://web.edge.internal".into(),
        instances: InstanceCounts {
            ready: 1,
            starting: 1,
            failed: 1,
            ..Default::default()
        },
        condition: Condition {
            ready: "False".into(),
            reason: "OOMKilled".into(),
            message: "web-00002-c on lis-1 ran out of memory".into(),
        },
    }
}

pub fn revisions() -> Vec<Revision> {
    let revision = |number: u64, state| Revision {
        key: RevisionKey::of(&service_key(), number).unwrap(),
        service: service_key(),
        generation: number,
        created: UnixMs(1_700_000_000_000 + number * 60_000),
        spec: spec(),
        image: ImagePin {
            reference: "10.9.0.1:5000/web:1.4".into(),
            digest: format!("sha256:{}", "ab".repeat(32)),
        },
        state,
    };
    let failed = RevisionState::Failed {
        reason: "NeverReady".into(),
        message: "nothing listened on port 8080\n| starting\n| oops".into(),
    };
    vec![revision(1, failed), revision(2, RevisionState::Ready)]
}

pub fn instances() -> Vec<InstanceView> {
    let instance = |id: &str, node: u64, at: &str, state, failure| InstanceView {
        id: InstanceId(id.into()),
        namespace: name("default"),
        service: name("web"),
        revision: name("web-00002"),
        node: NodeId(node),
        node_name: name(&format!("{at}-1")),
        region: name(at),
        state,
        since: UnixMs(1_700_000_590_000),
        in_flight: 3,
        leases: 0,
        failure,
        alive: node != 3,
    };
    let oom = FailReason {
        code: "OOMKilled".into(),
        message: "used 256Mi of 256Mi\n| heap".into(),
    };
    vec![
        instance("web-00002-a", 1, "par", InstanceState::Ready, None),
        instance("web-00002-b", 2, "fra", InstanceState::Starting, None),
        instance("web-00002-c", 3, "lis", InstanceState::Failed, Some(oom)),
    ]
}

pub fn nodes() -> Vec<NodeStatus> {
    let node = |id: u64, at: &str, rtt| NodeStatus {
        id: NodeId(id),
        name: name(&format!("{at}-1")),
        region: name(at),
        zone: name(&format!("{at}-a")),
        role: if id < 3 { Role::Voter } else { Role::Follower },
        alive: id != 3,
        serving: true,
        cordoned: id == 2,
        draining: false,
        rtt_micros: rtt,
        mesh: format!("10.9.0.1{id}:8422").parse().unwrap(),
        ingress: vec![format!("10.9.0.1{id}").parse().unwrap()],
        capacity: Resources {
            cpu_millis: 2000,
            memory_bytes: 4 << 30,
            instances: 500,
        },
        free: Resources {
            cpu_millis: 1500,
            memory_bytes: 3 << 30,
            instances: 499,
        },
        registry_index: 14,
        version: "0.1.0".into(),
        instances: 1,
        labels: BTreeMap::from([("disk".into(), "nvme".into())]),
    };
    vec![
        node(1, "par", Some(0)),
        node(2, "fra", Some(9200)),
        node(3, "lis", None),
    ]
}

pub fn images() -> Vec<ImageView> {
    vec![ImageView {
        reference: "10.9.0.1:5000/web:1.4".into(),
        digest: format!("sha256:{}", "ab".repeat(32)),
        bytes: 31 << 20,
        nodes: vec!["par-1".into(), "fra-1".into()],
        own_bytes: 5 << 20,
        last_used: Some(UnixMs(NOW.0 - 90_000)),
        services: vec!["default/web".into()],
    }]
}

pub fn status() -> Status {
    Status {
        cluster: ClusterView {
            id: "5f0c2a".into(),
        },
        node: NodeRef {
            id: NodeId(1),
            name: name("par-1"),
            region: name("par"),
            zone: name("a"),
        },
        registry: RegistryView {
            index: 14,
            leader: Some(NodeId(2)),
            voters: vec![NodeId(1), NodeId(2), NodeId(9)],
            quorum: true,
            role: Role::Voter,
            failed: None,
        },
        nodes: nodes(),
        services: 1,
        instances: InstanceCounts {
            ready: 1,
            starting: 1,
            ..Default::default()
        },
    }
}

pub fn receipt() -> Receipt {
    let verdict = |node: u64, at: &str, outcome| Verdict {
        node: NodeId(node),
        name: name(&format!("{at}-1")),
        region: name(at),
        record: (1, 7),
        outcome,
    };
    let candidate = |cost, rtt, image| Candidate {
        cost_micros: cost,
        rtt_micros: rtt,
        image_present: image,
        same_revision: 0,
        free_cpu_millis: 1500,
        free_memory_bytes: 3 << 30,
        parts: Parts::default(),
    };
    let near = Candidate {
        parts: Parts {
            round_trip: 9_200,
            start: 150_000,
            crowding: 13_200,
            beside: 40_000,
            ..Parts::default()
        },
        ..candidate(212_400, Some(9200), true)
    };
    Receipt {
        revision: revision_key(),
        decided_by: NodeId(1),
        cause: "request".into(),
        displaces: None,
        why: String::new(),
        verdicts: vec![
            verdict(2, "fra", Ok(near)),
            verdict(1, "par", Ok(candidate(1_250_000, Some(0), false))),
            verdict(
                3,
                "lis",
                Err(Rejection::Memory {
                    want: 256 << 20,
                    free: 17 << 20,
                }),
            ),
            verdict(
                4,
                "nyc",
                Err(Rejection::Region {
                    want: "par, fra".into(),
                    have: "nyc".into(),
                }),
            ),
        ],
        inputs: Inputs {
            nodes: 211,
            fleet_version: 9_000,
        },
        passed: Passed {
            closed: 2,
            refused: 0,
            unseen: 205,
            regret_micros: 800,
        },
    }
}

/// Of an instance that came, and of a time when there was no room.
pub fn decisions() -> Vec<Decision> {
    let decision = |at: u64, deed, instance: Option<&str>, why: &str| Decision {
        at: UnixMs(1_700_000_000_123 + at),
        node: NodeId(1),
        node_name: name("par-1"),
        deed,
        service: service_key(),
        revision: revision_key(),
        instance: instance.map(|id| InstanceId(id.to_owned())),
        why: why.to_owned(),
        receipt: None,
        unwritten: 0,
    };
    let refused = decision(1_000, Deed::Refused, None, "no room: 0.2 cores free");
    vec![
        decision(0, Deed::Placed, Some("web-00002-a"), "request"),
        Decision {
            unwritten: 7,
            ..refused
        },
        decision(
            9_000,
            Deed::Retired,
            Some("web-00002-a"),
            "scale 1 to 0: idle",
        ),
    ]
}

pub fn bill() -> Bill {
    let phase = |name: &str, micros| Phase {
        name: name.into(),
        micros,
    };
    Bill {
        request: RequestId("01ARZ3NDEKTSV4RRFFQ69G5FAV".into()),
        service: service_key(),
        revision: revision_key(),
        instance: Some(InstanceId("web-00002-a".into())),
        node: Some(NodeId(1)),
        phases: vec![
            phase("queue", 40),
            phase("place", 310),
            phase("pull", 120_400),
            phase("create", 48_000),
            phase("start", 0),
            phase("ready", 61_000),
            phase("proxy", 2_300),
        ],
        status: 200,
        at: UnixMs(1_700_000_000_123),
        problem: None,
        total_micros: 232_050,
    }
}

/// `n` times what a small instance uses in ten seconds.
pub fn amounts(n: u64) -> Amounts {
    Amounts {
        instances: n,
        cpu_micros: n * 2_500_000,
        throttled_micros: n * 1_200_000,
        memory_byte_seconds: n * (640 << 20),
        limit_byte_seconds: n * (2560 << 20),
        io_read_bytes: n * (20 << 20),
        net_in_bytes: n * 120_000,
        net_out_bytes: n * (15 << 20),
        requests: n * 1234,
        request_micros: n * 61_700_000,
        state_millis: BTreeMap::from([(InstanceState::Ready, n * 10_000)]),
        ..Amounts::default()
    }
}

/// Two instances of one service on two nodes, and what was there before.
pub fn usage() -> UsageView {
    let instance = |id: &str, node: u64, at: &str, n| InstanceUsage {
        instance: InstanceId(id.into()),
        namespace: name("default"),
        service: name("web"),
        revision: name("web-00002"),
        node: NodeId(node),
        node_name: name(&format!("{at}-1")),
        state: InstanceState::Ready,
        memory_bytes: n * (64 << 20),
        memory_limit_bytes: 256 << 20,
        memory_peak_bytes: 200 << 20,
        pids: 3,
        window_millis: 10_000,
        window: amounts(n),
        total: amounts(n * 2),
    };
    let revision = |number: u64, node: u64, at: &str, n| RevisionUsage {
        namespace: name("default"),
        service: name("web"),
        revision: Some(name(&format!("web-{number:05}"))),
        node: NodeId(node),
        node_name: name(&format!("{at}-1")),
        total: amounts(n),
    };
    UsageView {
        instances: vec![
            instance("web-00002-a", 1, "par", 1),
            instance("web-00002-b", 2, "fra", 2),
        ],
        revisions: vec![
            revision(2, 1, "par", 2),
            revision(2, 2, "fra", 4),
            revision(1, 2, "fra", 6),
        ],
        missing: vec![name("lis-1")],
    }
}
