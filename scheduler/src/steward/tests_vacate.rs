//! Nodes that drain: their instances leave as others take their place.

use super::world::{World, scale, starts, stops};
use super::*;
use crate::model::{InstanceState, Scale};

/// Two nodes, and on the first an instance that has something to do.
fn serving(scale: Scale) -> (World, InstanceId) {
    let mut world = World::new(2);
    world.deploy(scale);
    world.ready(1);
    let id = world.put(1, 1, InstanceState::Ready);
    world.load(&id, 10);
    (world, id)
}

#[test]
fn a_node_drains_as_others_take_its_place() {
    let (mut world, id) = serving(scale(1, 0));
    world.quiet(10);
    world.drain(1);
    let orders = world.tick();
    let started: Vec<_> = starts(&orders).iter().map(|(node, _)| *node).collect();
    assert_eq!(started, [2]);
    for new in world.obey(&orders) {
        world.report(&new).state = InstanceState::Starting;
    }
    world.quiet(5);
    for report in &mut world.records.get_mut(&NodeId(2)).unwrap().instances {
        report.state = InstanceState::Ready;
    }
    let (_, orders) = world.next(3);
    assert_eq!(stops(&orders), [&id]);
}

#[test]
fn where_there_may_be_but_one_it_leaves_before_the_next_begins() {
    for scale in [scale(0, 1), scale(1, 1)] {
        let (mut world, id) = serving(scale);
        world.quiet(10);
        world.drain(1);
        let orders = world.tick();
        assert_eq!((orders.len(), stops(&orders)), (1, vec![&id]));
    }
}

#[test]
fn an_instance_that_nobody_else_could_take_the_place_of_stays() {
    let (mut world, _) = serving(scale(0, 1));
    world.records.get_mut(&NodeId(2)).unwrap().cordoned = true;
    world.quiet(10);
    world.drain(1);
    world.quiet(60);
}

#[test]
fn as_many_leave_as_have_others_in_their_place() {
    let mut world = World::new(2);
    world.deploy(scale(0, 3));
    world.ready(1);
    let ids: Vec<_> = (0..2)
        .map(|_| world.put(1, 1, InstanceState::Ready))
        .collect();
    for id in &ids {
        world.load(id, 70);
    }
    world.quiet(10);
    world.drain(1);
    let (_, orders) = world.next(10);
    assert_eq!(starts(&orders).len(), 1, "the maximum has room for one");
    world.obey(&orders);
    let (_, orders) = world.next(10);
    assert_eq!(stops(&orders).len(), 1, "{orders:?}");
    world.obey(&orders);
    let (_, orders) = world.next(30);
    assert_eq!(starts(&orders).len(), 1);
}
