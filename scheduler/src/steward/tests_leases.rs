//! Instances whose programs hold leases: nobody stops them for having nothing to do.

use super::world::{World, scale, starts, warm};
use super::*;
use crate::model::{InstanceState, Scale};

fn lease(world: &mut World, id: &InstanceId, leases: u32) {
    world.report(id).activity.leases = leases;
}

/// A warm service of so many idle instances, the first of which hold leases.
fn leased(scale: Scale, count: u64, leases: usize) -> (World, Vec<InstanceId>) {
    let mut world = warm(scale);
    let put = |_| world.put(1, 1, InstanceState::Ready);
    let all: Vec<InstanceId> = (1..=count).map(put).collect();
    for id in &all[..leases] {
        lease(&mut world, id, 1);
    }
    (world, all)
}

/// Everything that is stopped within so many seconds.
fn stopped(world: &mut World, seconds: u64) -> Vec<InstanceId> {
    let mut all = Vec::new();
    for _ in 0..seconds {
        let orders = world.tick();
        all.extend(orders.iter().filter_map(|order| match order {
            Order::Stop { instance, .. } => Some(instance.clone()),
            _ => None,
        }));
        world.obey(&orders);
    }
    all.sort_unstable();
    all
}

#[test]
fn a_service_goes_to_those_that_work_and_not_to_zero() {
    let (mut world, all) = leased(scale(0, 10), 3, 2);
    assert_eq!(stopped(&mut world, 400), [all[2].clone()]);
    // The last lease of one is over.
    lease(&mut world, &all[0], 0);
    assert_eq!(stopped(&mut world, 400), [all[0].clone()]);
    lease(&mut world, &all[1], 0);
    assert_eq!(stopped(&mut world, 400), [all[1].clone()]);
}

#[test]
fn a_lease_starts_nothing_and_the_maximum_holds() {
    let (mut world, all) = leased(scale(0, 2), 3, 3);
    let gone = stopped(&mut world, 200);
    assert_eq!(gone.len(), 1, "{gone:?} of {all:?}");
    let orders = world.tick();
    assert!(starts(&orders).is_empty());
}

#[test]
fn a_revision_that_was_replaced_has_its_work_done_first() {
    let (mut world, all) = leased(scale(0, 10), 2, 1);
    world.deploy(scale(0, 10));
    let new = world.put(1, 2, InstanceState::Ready);
    let gone = stopped(&mut world, 60);
    assert!(
        gone.contains(&all[1]) && !gone.contains(&all[0]),
        "{gone:?} {new}"
    );
    let gone = stopped(&mut world, 700);
    assert!(gone.contains(&all[0]), "but not for ever: {gone:?}");
}
