//! What a steward's look at everything costs: one node of a cell of 200, with thousands of services. It
//! looks once a second, and whenever something changes.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use scheduler::fleet::Fleet;
use scheduler::model::{InstanceId, InstanceState, NodeId, Now, Scale, ServiceKey, UnixMs};
use scheduler::registry::{Action, Command, PutService, Reply, State};
use scheduler::steward::Steward;

use super::board::{Metric, OURS};
use super::place::{instance, key, member, revision};
use super::{Board, Plan};

const NODES: u64 = 200;
const SERVICES: [u64; 3] = [100, 1_000, 10_000];
/// Of so many services one runs, on three nodes.
const RUNNING: u64 = 10;
const TICKS: u64 = 20;

const TICK: Metric = Metric::new("tick_ms", "ms");
/// The first, or the one after a node came or went: what it is to each revision is found anew.
const ANEW: Metric = Metric::new("tick_anew_ms", "ms");

pub(super) fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("steward-tick");
    for services in SERVICES {
        let (state, fleet) = (registry(services)?, fleet(services));
        for round in 0..plan.rounds {
            let mut steward = Steward::new();
            let mut took = Vec::new();
            for tick in 0..=TICKS {
                let began = Instant::now();
                let orders = steward.tick(Now(1_000 * tick), UnixMs(0), &state, &fleet);
                took.push(began.elapsed().as_secs_f64() * 1e3);
                ensure!(
                    orders.is_empty() || tick == 0,
                    "an idle fleet wants nothing: {orders:?}"
                );
            }
            let case = format!("{NODES} nodes, {services} services");
            board.add(&case, OURS, round, ANEW.of(took.remove(0)));
            took.sort_by(f64::total_cmp);
            board.add(&case, OURS, round, TICK.of(took[took.len() / 2]));
        }
    }
    Ok(board)
}

fn registry(services: u64) -> Result<State> {
    let mut state = State::default();
    for number in 0..services {
        let (service, key) = key(number);
        let revision = revision(number);
        put(&mut state, &service, &revision)?;
        let ready = Action::MarkReady { revision: key };
        apply(&mut state, ready)?;
    }
    Ok(state)
}

fn put(state: &mut State, key: &ServiceKey, revision: &scheduler::model::Revision) -> Result<()> {
    let mut spec = revision.spec.clone();
    for container in &mut spec.containers {
        "app:1".clone_into(&mut container.image);
    }
    apply(
        state,
        Action::PutService(Box::new(PutService {
            key: key.clone(),
            spec,
            image: revision.image.clone(),
            scale: Scale::default(),
            traffic: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            uid: "u".to_owned(),
            if_version: None,
        })),
    )
}

fn apply(state: &mut State, action: Action) -> Result<()> {
    let at = UnixMs(0);
    let (reply, _) = state.apply(&Command { at, action });
    ensure!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    Ok(())
}

fn fleet(services: u64) -> Fleet {
    use rand::SeedableRng as _;
    let mut rng = rand::rngs::StdRng::seed_from_u64(services);
    let mut members: BTreeMap<NodeId, _> = (1..NODES)
        .map(|id| (NodeId(id), member(id, &mut rng)))
        .collect();
    for service in (0..services).step_by(usize::try_from(RUNNING).unwrap_or(1)) {
        for copy in 0..3 {
            let node = NodeId(1 + (service * 7 + copy * 61) % (NODES - 1));
            if let Some(member) = members.get_mut(&node) {
                let mut report = instance(service);
                report.id = InstanceId(format!("{}-{copy}", report.id));
                report.state = InstanceState::Ready;
                // Each carries about what it is meant to.
                (report.in_flight, report.concurrency_milli) = (60, 60_000);
                member.record.edit().instances.push(report);
            }
        }
    }
    Fleet {
        me: NodeId(1),
        members,
        ..Fleet::default()
    }
    .indexed()
}
