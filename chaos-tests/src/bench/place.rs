//! Placement decisions: how long one takes in fleets of 10 to 10,000 nodes with 10 to 100,000
//! services, what keeping the index costs, and how far from the best node the chosen one is. The
//! peer is the same rules without the index, which look at every node.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use scheduler::fleet::{Fleet, Index, Member};
use scheduler::model::{
    Container, ImagePin, InstanceId, InstanceReport, InstanceState, Name, NodeId, NodeRecord,
    Resources, Revision, RevisionKey, RevisionSpec, RevisionState, ServiceKey, UnixMs,
};
use scheduler::place::{Ask, Receipt, place};

use super::board::{Metric, OURS};
use super::stats::float;
use super::{Board, Plan};

/// Looks at every node.
const ALL_NODES: &str = "every-node";
const SIZES: [u64; 3] = [10, 1_000, 10_000];
const SERVICES: [u64; 3] = [10, 1_000, 100_000];
/// Nodes of a region, and zones in it.
const REGION: u64 = 200;
const ZONES: u64 = 3;
/// Nodes that hold the image of a service; one service in a hundred is on every third node.
const HOLDERS: u64 = 3;
/// Images in one record, as the product names them.
const MOST_IMAGES: usize = 256;
/// How long one case is measured in a round, at most.
const BUDGET: Duration = Duration::from_millis(700);
/// Decisions compared with the best there is.
const COMPARED: u64 = 50;

const DECISIONS: Metric = Metric::new("decisions_per_s", "1/s");
const P50: Metric = Metric::new("p50_us", "us");
const P99: Metric = Metric::new("p99_us", "us");
const UPDATE: Metric = Metric::new("update_us", "us");
/// The worst of those compared.
const REGRET: Metric = Metric::new("worse_than_best_pct", "%");

pub(super) fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("place");
    for nodes in SIZES {
        for services in SERVICES {
            let world = World::new(nodes, services);
            let case = format!("{nodes} nodes, {services} services");
            for round in 0..plan.rounds {
                let seed = u64::try_from(round)?;
                world.measure(&mut board, &case, round, seed)?;
            }
        }
    }
    Ok(board)
}

struct World {
    plain: Fleet,
    indexed: Fleet,
    services: u64,
}

impl World {
    fn new(nodes: u64, services: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(nodes ^ services);
        let mut members: BTreeMap<NodeId, Member> = (1..=nodes)
            .map(|id| (NodeId(id), member(id, &mut rng)))
            .collect();
        for service in 0..services {
            let popular = service % 100 == 0;
            let holders = if popular { nodes / 3 } else { HOLDERS };
            for copy in 0..holders.clamp(1, nodes) {
                let node = NodeId(rng.random_range(1..=nodes));
                let Some(member) = members.get_mut(&node) else {
                    continue;
                };
                let mut record = member.record.edit();
                if record.images.len() < MOST_IMAGES {
                    record.images.push(digest(service));
                    if copy == 0 && record.instances.len() < 64 {
                        record.instances.push(instance(service));
                    }
                }
            }
        }
        let plain = Fleet {
            me: NodeId(1),
            members,
            ..Fleet::default()
        };
        Self {
            indexed: plain.clone().indexed(),
            plain,
            services,
        }
    }

    fn measure(&self, board: &mut Board, case: &str, round: usize, seed: u64) -> Result<()> {
        for (system, fleet) in [(OURS, &self.indexed), (ALL_NODES, &self.plain)] {
            let mut times = self.decide(fleet, seed)?;
            times.sort_unstable();
            let at = |percent: usize| -> Result<f64> {
                let time = times
                    .get(times.len() * percent / 100)
                    .context("no decision")?;
                Ok(time.as_secs_f64() * 1e6)
            };
            let sum: Duration = times.iter().sum();
            let count = float(u64::try_from(times.len())?);
            board.add(case, system, round, DECISIONS.of(count / sum.as_secs_f64()));
            board.add(case, system, round, P50.of(at(50)?));
            board.add(case, system, round, P99.of(at(99)?));
        }
        board.add(case, OURS, round, UPDATE.of(self.update(seed)?));
        board.add(case, OURS, round, REGRET.of(self.regret(seed)?));
        Ok(())
    }

    /// What each decision took. A decision's revision is made before it and its receipt is read.
    fn decide(&self, fleet: &Fleet, seed: u64) -> Result<Vec<Duration>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut times = Vec::new();
        let ask = Ask {
            from: fleet.me,
            cause: "request".to_owned(),
            ..Ask::default()
        };
        let until = Instant::now() + BUDGET;
        while Instant::now() < until {
            let revision = revision(rng.random_range(0..self.services));
            let began = Instant::now();
            let receipt = place(fleet, &revision, &ask);
            times.push(began.elapsed());
            ensure!(receipt.ranked().next().is_some(), "nobody can take it");
        }
        Ok(times)
    }

    /// What taking in a record costs the index, where the node's load and one instance changed.
    fn update(&self, seed: u64) -> Result<f64> {
        const UPDATES: u64 = 2_000;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut index = Index::of(&self.plain);
        let mut members = self.plain.members.clone();
        let nodes = u64::try_from(members.len())?;
        let mut spent = Duration::ZERO;
        for _ in 0..UPDATES {
            let node = NodeId(rng.random_range(1..=nodes));
            let member = members.get_mut(&node).context("a node")?;
            let mut record = member.record.edit();
            let free = record.free.cpu_millis.max(1);
            record.free.cpu_millis = rng.random_range(0..free) + 500;
            record.instances.pop();
            let service = rng.random_range(0..self.services);
            record.instances.push(instance(service));
            drop(record);
            let began = Instant::now();
            index.set(member);
            spent += began.elapsed();
        }
        Ok(spent.as_secs_f64() * 1e6 / float(UPDATES))
    }

    fn regret(&self, seed: u64) -> Result<f64> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xbe57);
        let ask = Ask {
            from: self.plain.me,
            ..Ask::default()
        };
        let cost = |receipt: &Receipt| receipt.ranked().next().map(|(_, c)| float(c.cost_micros));
        let mut worst = 0.0_f64;
        for _ in 0..COMPARED {
            let revision = revision(rng.random_range(0..self.services));
            let best = cost(&place(&self.plain, &revision, &ask)).context("a best")?;
            let own = cost(&place(&self.indexed, &revision, &ask)).context("a choice")?;
            worst = worst.max((own / best - 1.0) * 100.0);
        }
        Ok(worst)
    }
}

pub(super) fn member(id: u64, rng: &mut StdRng) -> Member {
    let region = id / REGION;
    let capacity = Resources {
        cpu_millis: 16_000,
        memory_bytes: 64 << 30,
        instances: 1_000,
    };
    let rtt = match region {
        0 => rng.random_range(200..2_000),
        far => 5_000 * u32::try_from(far).unwrap_or(1) + rng.random_range(0..1_500),
    };
    let record = NodeRecord {
        node: NodeId(id),
        name: name(&format!("node-{id}")),
        region: name(&format!("region-{region}")),
        zone: name(&format!("zone-{}", id % ZONES)),
        labels: BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: String::new(),
        mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 8422)),
        ingress: Vec::new(),
        serving: true,
        // A few are full or taken out of service.
        cordoned: rng.random_range(0..100) == 0 && id > 1,
        capacity,
        free: Resources {
            cpu_millis: rng.random_range(0..16_000),
            memory_bytes: rng.random_range(0..64) << 30,
            instances: 900,
        },
        registry_index: 1,
        instances: Vec::new(),
        demand: Vec::new(),
        starts: Vec::new(),
        images: Vec::new(),
    };
    Member::new(record, true, Some(if id == 1 { 0 } else { rtt }))
}

pub(super) fn key(service: u64) -> (ServiceKey, RevisionKey) {
    let (namespace, name) = (Name::default_namespace(), format!("service-{service}"));
    let revision = self::name(&format!("{name}-00001"));
    let service = ServiceKey {
        namespace: namespace.clone(),
        name: self::name(&name),
    };
    let revision = RevisionKey {
        namespace,
        name: revision,
    };
    (service, revision)
}

pub(super) fn instance(service: u64) -> InstanceReport {
    let (service, revision) = key(service);
    InstanceReport {
        id: InstanceId(format!("{}-a", revision.name)),
        service,
        revision,
        state: InstanceState::Ready,
        since: UnixMs(0),
        in_flight: 1,
        concurrency_milli: 1_000,
        failure: None,
        steward: None,
        activity: scheduler::model::Activity::default(),
    }
}

pub(super) fn revision(service: u64) -> Revision {
    let (key, revision) = key(service);
    let container = Container {
        cpu_millis: 250,
        memory_bytes: 256 << 20,
        ..Container::default()
    };
    Revision {
        key: revision,
        service: key,
        generation: 1,
        created: UnixMs(0),
        spec: RevisionSpec {
            containers: vec![container],
            ..RevisionSpec::default()
        },
        image: ImagePin {
            reference: "r/app:1".to_owned(),
            digest: digest(service),
        },
        state: RevisionState::Ready,
    }
}

fn digest(service: u64) -> String {
    format!(
        "sha256:{:064x}",
        service.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    )
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap_or_else(|_| Name::default_namespace())
}
