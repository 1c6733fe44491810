//! Two stewards at once, none, and one that comes and goes: what no number of them may do.
//!
//! Starts and stops take their time here: what is ordered shows in the fleet a look or two later, and a
//! node admits by its own truth.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::world::{World, name, rev, web};
use super::*;
use crate::model::{InstanceState, PlacementRules, Scale};
use crate::place::{lacking, misplaced, needs};
use crate::registry::{Action, PutService};

const NODES: u64 = 6;
/// Looks until all that was ordered shows and what was too much is gone.
const SETTLED: u32 = 30;
/// An instance of a node is seen by others after so many looks.
const SEEN_AFTER: u32 = 2;

/// What becomes of the stewards before a look.
#[derive(Debug, Clone)]
enum Turn {
    Calm,
    /// The node hands its duties to others, or takes them back.
    Leaves(u64),
    /// Its daemon begins anew and remembers nothing.
    Restarts(u64),
    /// These do not look at all; nobody else takes over.
    Silent(BTreeSet<u64>),
    /// These take all others for dead, and the others them.
    Apart(BTreeSet<u64>),
    Load(u64, u32),
    /// The node drains, or takes instances again.
    Drains(u64),
}

fn nodes() -> impl Strategy<Value = BTreeSet<u64>> {
    prop::collection::btree_set(1..=NODES, 1..4)
}

/// Stewards that change while all see the same instances.
fn handovers() -> impl Strategy<Value = Turn> {
    prop_oneof![
        3 => Just(Turn::Calm),
        3 => (1..=NODES).prop_map(Turn::Leaves),
        2 => (1..=NODES).prop_map(Turn::Restarts),
        1 => nodes().prop_map(Turn::Silent),
        4 => (1..=NODES, 0_u32..400).prop_map(|(node, load)| Turn::Load(node, load)),
        1 => (1..=NODES).prop_map(Turn::Drains),
    ]
}

/// The same, and parts of the fleet that lose sight of each other.
fn anything() -> impl Strategy<Value = Turn> {
    prop_oneof![3 => handovers(), 1 => nodes().prop_map(Turn::Apart)]
}

struct Rough {
    world: World,
    /// Where starts were ordered, and the looks until they show.
    coming: Vec<(NodeId, NodeId, u32)>,
    silent: BTreeSet<u64>,
    apart: BTreeSet<u64>,
    /// What was ordered, for who reads of a failure.
    log: Vec<String>,
}

impl Rough {
    fn new(scale: Scale) -> Self {
        let mut world = World::new(NODES);
        for (id, record) in &mut world.records {
            record.region = name(&format!("region-{}", id.0 % 3));
        }
        let mut put = PutService {
            scale,
            ..World::put_service(0)
        };
        put.spec.place = PlacementRules {
            regions: vec!["region-1".to_owned(), "region-2".to_owned()],
            ..PlacementRules::default()
        };
        world.apply(Action::PutService(Box::new(put)));
        world.ready(1);
        Self {
            world,
            coming: Vec::new(),
            silent: BTreeSet::new(),
            apart: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    fn begin(&mut self, turn: &Turn) {
        match turn {
            Turn::Calm => {}
            Turn::Leaves(node) => {
                let record = self.world.records.get_mut(&NodeId(*node)).unwrap();
                record.serving = !record.serving;
            }
            Turn::Restarts(node) => {
                let fresh = Steward::new();
                self.world.stewards.insert(NodeId(*node), fresh);
            }
            Turn::Silent(nodes) => self.silent.clone_from(nodes),
            Turn::Apart(nodes) => self.apart.clone_from(nodes),
            Turn::Load(node, load) => self.load(*node, *load),
            Turn::Drains(node) => self.world.drain(*node),
        }
    }

    fn load(&mut self, node: u64, load: u32) {
        let ready = self
            .world
            .reports()
            .filter(|i| i.state == InstanceState::Ready);
        let ids: Vec<InstanceId> = ready.map(|i| i.id.clone()).collect();
        let Some(each) = u32::try_from(ids.len())
            .ok()
            .and_then(|n| load.checked_div(n))
        else {
            return self.world.queue(node, load);
        };
        (1..=NODES).for_each(|node| self.world.queue(node, 0));
        for id in &ids {
            self.world.load(id, each);
        }
    }

    /// A second: each node's steward looks, and what was ordered before comes about.
    fn look(&mut self) {
        self.world.now = self.world.now.plus(1000);
        self.arrive();
        let mut orders = Vec::new();
        for node in self.world.records.keys().copied().collect::<Vec<_>>() {
            if self.silent.contains(&node.0) {
                continue;
            }
            let other = |n: &u64| self.apart.contains(n) != self.apart.contains(&node.0);
            self.world.dead = (1..=NODES).filter(other).map(NodeId).collect();
            let fleet = self.world.fleet(node);
            let steward = self.world.stewards.get_mut(&node).unwrap();
            let orders_of = steward.tick(self.world.now, UnixMs(0), &self.world.state, &fleet);
            orders.extend(orders_of.into_iter().map(|order| (node, order)));
        }
        for (by, order) in orders {
            self.carry_out(by, order);
        }
    }

    fn arrive(&mut self) {
        for report in self.world.reports() {
            if report.state == InstanceState::Starting {
                report.state = InstanceState::Ready;
            }
        }
        for record in self.world.records.values_mut() {
            let gone = |i: &crate::model::InstanceReport| i.state == InstanceState::Draining;
            record.instances.retain(|i| !gone(i));
        }
        let (now, later) = std::mem::take(&mut self.coming)
            .into_iter()
            .map(|(by, node, looks)| (by, node, looks - 1))
            .partition(|(.., looks)| *looks == 0);
        self.coming = later;
        for (by, node, _) in Vec::<(NodeId, NodeId, u32)>::from_iter::<Vec<_>>(now) {
            let id = self.world.put(node.0, 1, InstanceState::Starting);
            self.world.report(&id).steward = Some(by);
            let steward = self.world.stewards.get_mut(&by).unwrap();
            steward.on_start_result(self.world.now, &rev(1), Ok(()));
        }
    }

    fn carry_out(&mut self, by: NodeId, order: Order) {
        match order {
            Order::Start { revision, receipt } => {
                let revision = &self.world.state.revisions[&revision];
                let admits = |node: &NodeId| {
                    let record = &self.world.records[node];
                    let rules = &revision.spec.place;
                    let near = self.apart.contains(&by.0) == self.apart.contains(&node.0);
                    near && misplaced(&record.region, &record.labels, rules).is_none()
                        && lacking(&record.free, &needs(&revision.spec)).is_none()
                };
                let ranked = receipt.ranked().map(|(node, _)| node);
                let node = ranked.into_iter().find(admits);
                let node = node.unwrap_or_else(|| panic!("nobody takes {receipt:?}"));
                let (at, why) = (self.world.now.0, &receipt.why);
                self.log
                    .push(format!("{at}: {by} to {node}: {} ({why})", receipt.cause));
                self.coming.push((by, node, SEEN_AFTER));
            }
            Order::Stop { instance, .. } => {
                let mut reports = self.world.reports();
                if let Some(report) = reports.find(|i| i.id == instance) {
                    report.state = InstanceState::Draining;
                }
            }
            Order::Ready { .. } | Order::Fail { .. } => {}
        }
    }

    /// Live instances, those on their way included.
    fn total(&mut self) -> u32 {
        let live = self.world.reports().filter(|i| i.state.is_live()).count();
        u32::try_from(live + self.coming.len()).unwrap()
    }

    /// None is where the service may not be.
    fn is_at_home(&self) -> bool {
        let mut away = self.world.records.values();
        away.all(|r| r.instances.is_empty() || r.region != name("region-0"))
    }

    /// All serve, take instances, look and see each other again; nobody asks for anything.
    fn heal(&mut self) {
        self.silent.clear();
        self.apart.clear();
        for node in 1..=NODES {
            self.world.queue(node, 0);
        }
        for node in 1..=NODES {
            let record = self.world.records.get_mut(&NodeId(node)).unwrap();
            record.serving = true;
            if record.cordoned {
                self.world.drain(node);
            }
        }
        for report in self.world.reports() {
            (report.in_flight, report.concurrency_milli) = (0, 0);
        }
        for _ in 0..SETTLED {
            self.look();
        }
    }
}

fn bounds() -> impl Strategy<Value = Scale> {
    (0_u32..3, 0_u32..4).prop_map(|(min, more)| Scale {
        min,
        max: min.max(1) + more,
        target: 10,
        utilization_percent: 100,
        ..Scale::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// However often the stewards change: never above the maximum, never outside the residency.
    #[test]
    fn stewards_that_come_and_go_do_no_harm(
        scale in bounds(),
        turns in prop::collection::vec(handovers(), 1..40),
    ) {
        let (min, max) = (scale.min, scale.max);
        let mut rough = Rough::new(scale);
        for turn in &turns {
            rough.begin(turn);
            rough.look();
            let total = rough.total();
            prop_assert!(total <= max, "{total} of at most {max}: {:#?}", rough.log);
            prop_assert!(rough.is_at_home());
        }
        rough.heal();
        let total = rough.total();
        prop_assert!((min..=max).contains(&total), "{total} of {min} to {max} at last");
    }

    /// Parts that lose sight of each other have their own stewards: each keeps the maximum in what it
    /// sees, and together they are back within it soon after.
    #[test]
    fn two_stewards_at_once_do_no_harm(
        scale in bounds(),
        turns in prop::collection::vec(anything(), 1..40),
    ) {
        let (min, max) = (scale.min, scale.max);
        let mut rough = Rough::new(scale);
        for turn in &turns {
            rough.begin(turn);
            rough.look();
            let total = rough.total();
            let parted = turns.iter().filter(|t| matches!(t, Turn::Apart(_))).count();
            let parts = u32::try_from(1 + parted).unwrap();
            prop_assert!(total <= max * parts, "{total} of at most {max} in {parts} parts");
            prop_assert!(rough.is_at_home());
        }
        rough.heal();
        let total = rough.total();
        prop_assert!((min..=max).contains(&total), "{total} of {min} to {max} at last");
    }

    /// Nobody decides: nothing changes. Then somebody does, and the minimum is kept.
    #[test]
    fn no_steward_does_no_harm(scale in bounds(), load in 0_u32..400) {
        let min = scale.min;
        let mut rough = Rough::new(scale);
        rough.heal();
        let before = rough.total();
        rough.begin(&Turn::Silent((1..=NODES).collect()));
        rough.begin(&Turn::Load(1, load));
        (0..60).for_each(|_| rough.look());
        prop_assert_eq!(rough.total(), before);
        rough.heal();
        prop_assert!(rough.total() >= min);
    }
}

#[test]
fn who_takes_over_waits_for_what_was_ordered_before() {
    let mut world = World::new(2);
    world.deploy(Scale {
        min: 1,
        ..Scale::default()
    });
    world.ready(1);
    let first: Vec<Order> = (0..4).flat_map(|_| world.tick()).collect();
    assert_eq!(first.len(), 1, "one minimum: {first:?}");
    let home = steward_of(&world.fleet(NodeId(1)), &rev(1), None).unwrap();
    world.stewards.insert(home, Steward::new());
    world.quiet(2);
    world.obey(&first);
    world.quiet(10);
    assert_eq!(world.state.services[&web()].scale.min, 1);
}
