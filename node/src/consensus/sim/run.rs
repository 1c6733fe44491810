//! One seed from its plan to its verdict: the cluster, its clients, its troubles, and the peace
//! after them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use scheduler::model::{Name, NodeId, NodeIdentity, Role, UnixMs};
use scheduler::registry::{Action, Command, Outcome, Reply};
use tokio::time::Instant;

use super::disk::Faults;
use super::plan::{Fault, Plan, VOTERS};
use super::trace::{self, broken, note};
use super::world::{World, until};
use crate::consensus::tests::world::{create_token, identity, token};
use crate::consensus::{ProposeError, Registry};

/// What a client waits for one answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// To form the cluster in peace.
const BEGINNING: Duration = Duration::from_mins(1);
/// After all is healed, everything works again and agrees by then.
const PEACE: Duration = Duration::from_mins(1);
/// A supervisor starts what is down about this long after it ended.
const RESTART_MILLIS: u64 = 3000;
const LOOK: Duration = Duration::from_millis(50);

/// How a seed ended.
pub(super) struct Verdict {
    pub digest: String,
    pub lines: Vec<String>,
    pub broken: Option<String>,
    pub acked: usize,
    pub virtual_time: Duration,
}

/// Serials of clients' changes; those of tokens that enrol are apart from them.
static SERIAL: AtomicU64 = AtomicU64::new(0);
const ENROLMENTS: u64 = 1 << 40;

pub(super) async fn run(plan: Plan) -> Verdict {
    trace::begin();
    let began = Instant::now();
    let world = World::new(plan);
    let stop = Arc::new(AtomicBool::new(false));
    if form(&world).await {
        let supervisor = tokio::spawn(supervise(world.clone()));
        let clients: Vec<_> = (0..=VOTERS)
            .map(|n| tokio::spawn(client(world.clone(), n, stop.clone())))
            .collect();
        trouble(&world).await;
        world.heal();
        if trace::first_broken().is_none() {
            peace(&world).await;
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let _ = client.await;
        }
        if trace::first_broken().is_none() {
            agree(&world).await;
        }
        supervisor.abort();
    }
    let broken = trace::first_broken();
    if broken.is_some() {
        world.describe();
    }
    let (digest, lines) = trace::end();
    let acked = world.oracle().acked.len();
    Verdict {
        digest,
        lines,
        broken,
        acked,
        virtual_time: began.elapsed(),
    }
}

pub(super) async fn propose(at: &Registry, action: Action) -> Result<Reply, ProposeError> {
    let at_time = UnixMs(2);
    at.propose(
        &Command {
            at: at_time,
            action,
        },
        PATIENCE,
    )
    .await
}

/// What a new host says of itself.
fn newcomer(number: u64) -> NodeIdentity {
    NodeIdentity {
        name: Name::new(format!("node-{number}")).unwrap(),
        mesh: SocketAddr::from(([127, 0, 1, 1], u16::try_from(number).unwrap())),
        public_key: number.to_le_bytes().repeat(4),
        ..identity(1)
    }
}

/// Enrols one more host and starts it.
async fn enrol(world: &Arc<World>, at: &Registry, number: u64) -> Option<u64> {
    let hash = token(ENROLMENTS + number);
    propose(at, create_token(&hash)).await.ok()?;
    let action = Action::Enroll {
        token_hash: hash,
        node: newcomer(number),
    };
    let Ok(Reply::Done {
        outcome: Outcome::Enrolled(node),
        ..
    }) = propose(at, action).await
    else {
        return None;
    };
    let follower = node.role != Role::Voter;
    world.add_host(node.id.0, follower);
    world.start(node.id.0).await;
    Some(node.id.0)
}

pub(super) async fn form(world: &Arc<World>) -> bool {
    world.found().await;
    let founder = world.registry(1).unwrap();
    for number in 2..=VOTERS + 1 {
        enrol(world, &founder, number).await;
    }
    let formed = || {
        let voters = usize::try_from(VOTERS).unwrap();
        world.ids().into_iter().all(|id| {
            let registry = world.registry(id);
            registry.is_some_and(|registry| registry.status().voters.len() == voters)
        })
    };
    until("the cluster to form", BEGINNING, formed).await
}

/// Starts what is down, as an init system would.
async fn supervise(world: Arc<World>) {
    let mut rng = StdRng::seed_from_u64(world.plan.seed ^ 0x22);
    loop {
        tokio::time::sleep(LOOK).await;
        world.look();
        for id in world.down() {
            if rng.random_ratio(1, u32::try_from(RESTART_MILLIS / 50).unwrap()) {
                world.start(id).await;
            }
        }
    }
}

/// Changes and reads at the n-th host, one at a time.
async fn client(world: Arc<World>, n: u64, stop: Arc<AtomicBool>) {
    let mut rng = StdRng::seed_from_u64(world.plan.seed ^ (0x33 + n));
    while !stop.load(Ordering::Relaxed) {
        let pause = world.plan.pause.mul_f64(rng.random_range(0.1..1.0));
        tokio::time::sleep(pause).await;
        let ids = world.ids();
        let id = ids[usize::try_from(n).unwrap() % ids.len()];
        let both = (world.process(id), world.registry(id));
        let (Some(process), Some(registry)) = both else {
            continue;
        };
        if rng.random_ratio(2, 3) {
            change(&world, id, process, &registry).await;
        } else {
            read(&world, id, process, &registry).await;
        }
    }
}

/// In words that are the same in every run: an error's folder is not.
fn told(answer: &Result<Reply, ProposeError>) -> String {
    match answer {
        Ok(reply) => format!("{reply:?}"),
        Err(error) => error.to_string(),
    }
}

async fn change(world: &World, id: u64, process: u64, registry: &Registry) {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let answer = propose(registry, create_token(&token(serial))).await;
    note(format_args!("n{id} change {serial}: {}", told(&answer)));
    if world.process(id) != Some(process) {
        return;
    }
    if let Ok(Reply::Done { index, .. }) = answer {
        world.oracle().acked(serial, index);
    }
}

async fn read(world: &World, id: u64, process: u64, registry: &Registry) {
    let (acked, floor) = {
        let oracle = world.oracle();
        (oracle.acked.len(), oracle.floor)
    };
    let answer = registry.read_index(PATIENCE).await;
    note(format_args!("n{id} read: {answer:?}"));
    if let (Ok(index), true) = (answer, world.process(id) == Some(process)) {
        world.oracle().read(id, registry, index, acked, floor);
    }
}

async fn trouble(world: &Arc<World>) {
    let began = Instant::now();
    for (number, (at, fault)) in world.plan.faults.iter().enumerate() {
        tokio::time::sleep_until(began + *at).await;
        if trace::first_broken().is_some() {
            return;
        }
        note(format_args!("fault {fault:?}"));
        inflict(world, number, fault).await;
    }
}

fn at(ids: &[u64], place: usize) -> u64 {
    ids[place % ids.len()]
}

/// Cuts ways that end in, or begin at, one host.
fn cut(world: &World, id: u64, hears: bool, is_heard: bool) {
    let others = world.ids();
    let mut ways = world.ways();
    for other in others.into_iter().filter(|other| *other != id) {
        if !hears {
            ways.cut.insert((other, id));
        }
        if !is_heard {
            ways.cut.insert((id, other));
        }
    }
}

async fn inflict(world: &Arc<World>, number: usize, fault: &Fault) {
    let (ids, voters) = (world.ids(), world.voters());
    let arm = |place: usize, arm: &dyn Fn(&mut Faults)| {
        if let Some(disk) = world.disk(at(&voters, place)) {
            disk.faults(arm);
        }
    };
    match fault {
        Fault::End(place, how) => world.end(at(&ids, *place), *how),
        Fault::EndAll(how) => ids.iter().for_each(|id| world.end(*id, *how)),
        Fault::PowerCutAfter(place, count) => {
            arm(*place, &|faults| faults.power_fails_after = Some(*count));
        }
        Fault::CutOff(place) => cut(world, at(&ids, *place), false, false),
        Fault::Deafen(place) => cut(world, at(&ids, *place), false, true),
        Fault::Silence(place) => cut(world, at(&ids, *place), true, false),
        Fault::CutWay(from, to) => {
            let way = (at(&voters, *from), at(&ids, *to));
            world.ways().cut.insert(way);
        }
        Fault::Mend => world.ways().cut.clear(),
        Fault::Noise { loss, twice } => {
            let mut ways = world.ways();
            (ways.loss, ways.twice) = (*loss, *twice);
        }
        Fault::SyncFails(place, count) => {
            arm(*place, &|faults| faults.sync_fails_after = Some(*count));
        }
        Fault::WriteFails(place, count) => {
            arm(*place, &|faults| faults.write_fails_after = Some(*count));
        }
        Fault::ReadFails(place, count) => {
            arm(*place, &|faults| faults.read_fails_after = Some(*count));
        }
        Fault::Full(place) => arm(*place, &|faults| faults.full = true),
        Fault::Slow(place, slow) => arm(*place, &|faults| faults.slow = *slow),
        Fault::DisksWork => {
            (0..voters.len()).for_each(|place| arm(place, &|faults| *faults = Faults::default()));
        }
        Fault::Rot(place, bits, how) => world.rot(at(&voters, *place), *bits, *how),
        Fault::LoseDisk(place) => world.lose_disk(at(&voters, *place)),
        Fault::Replace(place) => replace(world, at(&voters, *place), number as u64).await,
    }
}

/// The operator takes one voter out and brings another one in, when all is well enough for it.
async fn replace(world: &Arc<World>, leaving: u64, number: u64) {
    let mut others = world.voters().into_iter().filter(|id| *id != leaving);
    let Some(at) = others.find_map(|id| world.registry(id)) else {
        return;
    };
    let node = NodeId(leaving);
    if !world.all_whole() {
        return;
    }
    world.leaves(leaving);
    if propose(&at, Action::RemoveNode { node }).await.is_err() {
        return;
    }
    note(format_args!("n{leaving} is removed"));
    // It may be needed for the change that lets it go.
    let gone = || !at.status().voters.contains(&node);
    let end = Instant::now() + PATIENCE;
    while !gone() && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
    world.retire(leaving);
    while Instant::now() < end {
        if enrol(world, &at, 1000 + number).await.is_some() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every host takes a change again.
async fn peace(world: &Arc<World>) {
    let end = Instant::now() + PEACE;
    for id in world.members() {
        // A removal that nobody was told of may come to hold only now.
        while world.members().contains(&id) {
            if let Some(registry) = world.registry(id) {
                let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
                let answer = propose(&registry, create_token(&token(serial))).await;
                note(format_args!(
                    "peace n{id} change {serial}: {}",
                    told(&answer)
                ));
                if answer.is_ok() {
                    break;
                }
            }
            if Instant::now() > end {
                broken(format_args!(
                    "n{id} takes no change {PEACE:?} after all was healed"
                ));
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// At the end all replicas hold the same, and everything that was acknowledged.
async fn agree(world: &Arc<World>) {
    let registries = || {
        let ids = world.members().into_iter();
        ids.filter_map(|id| Some((id, world.registry(id)?)))
            .collect::<Vec<_>>()
    };
    let equal = || {
        let mut indexes = registries()
            .into_iter()
            .map(|(_, registry)| registry.view().index());
        let first = indexes.next();
        !world.down().iter().any(|id| world.members().contains(id))
            && indexes.all(|index| Some(index) == first)
    };
    if !until("equal replicas", PEACE, equal).await {
        return;
    }
    world.look();
    let registries = registries();
    let state = registries[0].1.view().state();
    let oracle = world.oracle();
    let count = oracle.acked.len();
    for (id, registry) in &registries {
        if registry.view().state() != state {
            broken(format_args!("n{id} holds another state at the same index"));
        }
        oracle.has_all(*id, registry, count);
    }
}
