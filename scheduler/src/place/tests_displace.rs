//! Who makes place for whom: only the lower, and no more than is needed.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::displace::{Occupant, displace, victims};
use super::tests::{member, name, put_instance, revision};
use super::*;
use crate::model::{InstanceId, InstanceState, UnixMs};

fn amount(cpu_millis: u32, memory_bytes: u64) -> Resources {
    Resources {
        cpu_millis,
        memory_bytes,
        instances: 1,
    }
}

prop_compose! {
    fn any_occupant()(
        priority in -2_i32..4,
        cpu in 0_u32..400,
        memory in 0_u64..400,
        state in 0_usize..5,
        in_flight in 0_u32..3,
        since in 0_u64..9,
    ) -> Occupant {
        use InstanceState::{Draining, Frozen, Parked, Ready, Starting};
        Occupant {
            instance: InstanceId(String::new()),
            revision: revision().key,
            priority,
            needs: amount(cpu, memory),
            state: [Draining, Frozen, Parked, Ready, Starting][state],
            in_flight,
            since: UnixMs(since),
        }
    }
}

/// What is free once those go that go already, and these.
fn freed(free: Resources, occupants: &[Occupant], go: &[&Occupant]) -> Resources {
    let going = occupants
        .iter()
        .filter(|o| o.state == InstanceState::Draining);
    going
        .chain(go.iter().copied())
        .fold(free, |free, o| Resources {
            cpu_millis: free.cpu_millis + o.needs.cpu_millis,
            memory_bytes: free.memory_bytes + o.needs.memory_bytes,
            instances: free.instances + 1,
        })
}

proptest! {
    #[test]
    fn only_the_lower_go_and_none_in_vain(
        mut occupants in prop::collection::vec(any_occupant(), 0..12),
        (cpu, memory, instances) in (0_u32..300, 0_u64..300, 0_u32..2),
        wanted in (1_u32..900, 1_u64..900),
        priority in -2_i32..5,
    ) {
        for (number, occupant) in occupants.iter_mut().enumerate() {
            occupant.instance = InstanceId(format!("web-{number}"));
        }
        let free = Resources { instances, ..amount(cpu, memory) };
        let wanted = amount(wanted.0, wanted.1);
        let found = victims(&free, &wanted, priority, &occupants);
        let lower: Vec<&Occupant> = occupants
            .iter()
            .filter(|o| o.state.is_live() && o.priority < priority)
            .collect();
        let Some(found) = found else {
            let most = freed(free, &occupants, &lower);
            prop_assert!(lacking(&most, &wanted).is_some(), "there was a way");
            return Ok(());
        };
        let go: Vec<&Occupant> = found
            .iter()
            .map(|v| occupants.iter().find(|o| o.instance == v.instance).unwrap())
            .collect();
        prop_assert!(go.iter().all(|o| o.priority < priority && o.state.is_live()));
        prop_assert_eq!(lacking(&freed(free, &occupants, &go), &wanted), None);
        for spared in 0..go.len() {
            let mut fewer = go.clone();
            fewer.remove(spared);
            let left = freed(free, &occupants, &fewer);
            prop_assert!(lacking(&left, &wanted).is_some(), "{:?} goes in vain", go[spared]);
        }
        // No higher one goes where the lower ones are enough.
        if let Some(highest) = go.iter().map(|o| o.priority).max() {
            let below: Vec<&Occupant> =
                lower.iter().copied().filter(|o| o.priority < highest).collect();
            let left = freed(free, &occupants, &below);
            prop_assert!(lacking(&left, &wanted).is_some(), "a higher one goes");
        }
    }
}

/// Three full nodes; each has two instances, of these priorities.
fn full(priorities: [[i32; 2]; 3]) -> (Fleet, BTreeMap<RevisionKey, Revision>) {
    let mut revisions = BTreeMap::new();
    let mut fleet = Fleet {
        me: NodeId(1),
        ..Fleet::default()
    };
    for (id, pair) in (1..).zip(priorities) {
        let mut member = member(id, "eu-west", Some(u32::try_from(id).unwrap() * 1_000));
        member.record.edit().free.instances = 0;
        for priority in pair {
            let mut low = revision();
            low.key.name = name(&format!("low-{}", priority.unsigned_abs()));
            low.spec.place.priority = priority;
            put_instance(&mut member.record.edit(), &low);
            revisions.insert(low.key.clone(), low);
        }
        fleet.members.insert(NodeId(id), member);
    }
    (fleet, revisions)
}

fn high(priority: i32) -> Revision {
    let mut high = revision();
    high.spec.place.priority = priority;
    high
}

fn displaced(fleet: &Fleet, revisions: &BTreeMap<RevisionKey, Revision>, priority: i32) -> Receipt {
    let (high, ask, promised) = (high(priority), Ask::default(), Promised::default());
    let receipt = place_beside(fleet, &high, &ask, &promised);
    displace(receipt, fleet, &high, &ask, &promised, |key| {
        revisions.get(key)
    })
}

#[test]
fn the_lowest_goes_wherever_it_is_and_the_receipt_says_who() {
    let (fleet, revisions) = full([[5, 5], [1, 5], [2, 2]]);
    let receipt = displaced(&fleet, &revisions, 9);
    let displaces = receipt.displaces.clone().unwrap();
    assert_eq!((displaces.node, displaces.priority), (NodeId(2), 9));
    let gone: Vec<i32> = displaces.victims.iter().map(|v| v.priority).collect();
    assert_eq!(gone, [1]);
    let ranked: Vec<NodeId> = receipt.ranked().map(|(node, _)| node).collect();
    assert_eq!(ranked, [NodeId(2)], "the others are refused as before");
    assert_eq!(receipt.refusals().len(), 2);
}

#[test]
fn nobody_goes_for_its_equal_nor_where_there_is_room_or_will_be() {
    let (mut fleet, revisions) = full([[5, 5], [5, 5], [5, 7]]);
    for priority in [0, 5] {
        let receipt = displaced(&fleet, &revisions, priority);
        assert_eq!(receipt.displaces, None, "{priority}");
        assert_eq!(receipt.ranked().count(), 0);
    }
    assert!(displaced(&fleet, &revisions, 6).displaces.is_some());
    // One that leaves already makes the room.
    let third = fleet.members.get_mut(&NodeId(3)).unwrap();
    third.record.edit().instances[1].state = InstanceState::Draining;
    assert_eq!(displaced(&fleet, &revisions, 6).displaces, None);
    // And where there is room, it goes there.
    let third = fleet.members.get_mut(&NodeId(3)).unwrap();
    third.record.edit().free.instances = 1;
    let receipt = displaced(&fleet, &revisions, 6);
    assert_eq!(receipt.displaces, None);
    assert_eq!(receipt.ranked().next().unwrap().0, NodeId(3));
}

#[test]
fn no_rule_is_broken_for_a_priority() {
    let (fleet, revisions) = full([[1, 1], [1, 1], [1, 1]]);
    let mut high = high(9);
    high.spec.place.regions = vec!["us-*".to_owned()];
    let (ask, promised) = (Ask::default(), Promised::default());
    let receipt = place_beside(&fleet, &high, &ask, &promised);
    let receipt = displace(receipt, &fleet, &high, &ask, &promised, |key| {
        revisions.get(key)
    });
    assert_eq!(receipt.displaces, None);
}
