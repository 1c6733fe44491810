//! What stewards order in a small world of nodes that do what they are told.

use proptest::prelude::*;

use super::world::{World, rev, scale, starts, stops, warm, web};
use super::*;
use crate::converge::SHIM_LOST;
use crate::model::{
    Demand, FailReason, InstanceState, Name, Scale, Schedule, TrafficTarget, UnixMs,
};
use crate::registry::Action;

#[test]
fn stewardship_spreads_and_moves_no_more_than_it_must() {
    let mut world = World::new(5);
    let keys: Vec<_> = (1..=1000).map(rev).collect();
    let stewards = |world: &World| -> Vec<NodeId> {
        let fleet = world.fleet(NodeId(1));
        keys.iter()
            .map(|k| steward_of(&fleet, k, None).unwrap())
            .collect()
    };
    let before = stewards(&world);
    for node in 1..=5 {
        let share = before.iter().filter(|n| n.0 == node).count();
        assert!((120..280).contains(&share), "n{node} has {share} of 1000");
    }
    world.dead.insert(NodeId(3));
    let after = stewards(&world);
    for (before, after) in before.iter().zip(&after) {
        assert!(*before == NodeId(3) || before == after);
        assert_ne!(*after, NodeId(3));
    }
    let (region, zone) = world.zone(2);
    let fleet = world.fleet(NodeId(1));
    let place = Some((&region, &zone));
    assert_eq!(steward_of(&fleet, &rev(1), place), Some(NodeId(2)));
    let (region, zone) = world.zone(3);
    assert_eq!(steward_of(&fleet, &rev(1), Some((&region, &zone))), None);
}

#[test]
fn a_new_revision_is_brought_up_once_and_told_ready() {
    let mut world = World::new(3);
    world.deploy(scale(0, 0));
    let orders = world.tick();
    assert_eq!(starts(&orders).len(), 1, "by one of three stewards");
    world.quiet(5);
    let id = world.put(2, 1, InstanceState::Starting);
    world.quiet(5);
    world.report(&id).state = InstanceState::Ready;
    assert_eq!(world.tick(), [Order::Ready { revision: rev(1) }]);
    world.quiet(2);
    let orders = world.tick();
    assert_eq!(
        orders,
        [Order::Ready { revision: rev(1) }],
        "until the registry shows it"
    );
    world.obey(&orders);
    world.quiet(50);
}

#[test]
fn several_first_instances_go_to_several_nodes() {
    let mut world = World::new(3);
    let initial = Scale {
        initial: 3,
        ..scale(0, 0)
    };
    world.deploy(initial);
    let orders = world.tick();
    assert_eq!(starts(&orders).len(), 3);
    world.obey(&orders);
    assert_eq!(world.tick(), [Order::Ready { revision: rev(1) }]);
}

#[test]
fn what_is_parked_is_no_instance_and_lands_no_start() {
    let mut world = World::new(3);
    world.deploy(scale(0, 0));
    world.put(1, 1, InstanceState::Parked);
    assert_eq!(starts(&world.tick()).len(), 1, "it does not count");
    world.put(2, 1, InstanceState::Parked);
    world.quiet(5);
}

#[test]
fn two_failures_in_a_row_give_a_revision_up() {
    let mut world = World::new(2);
    world.deploy(scale(0, 0));
    let orders = world.tick();
    let (node, _) = starts(&orders)[0];
    let home = steward_of(&world.fleet(NodeId(1)), &rev(1), None);
    let first = world.put(node, 1, InstanceState::Failed);
    world.report(&first).steward = home;
    let orders = world.tick();
    let (other, cause) = starts(&orders)[0];
    assert_eq!(cause, "initial");
    assert_ne!(other, node, "elsewhere");
    let second = world.put(other, 1, InstanceState::Failed);
    world.report(&second).steward = home;
    let orders = world.tick();
    let fail = Order::Fail {
        revision: rev(1),
        reason: "Exited".to_owned(),
        message: "exited with 1".to_owned(),
    };
    assert_eq!(orders, [fail]);
    world.obey(&orders);
    world.quiet(20);
}

#[test]
fn what_nobody_takes_is_given_up_with_their_reasons() {
    let mut world = World::new(1);
    world.records.get_mut(&NodeId(1)).unwrap().cordoned = true;
    world.deploy(scale(0, 0));
    let (second, orders) = world.next(60);
    assert!((10..30).contains(&second), "{second}");
    let [
        Order::Fail {
            reason, message, ..
        },
    ] = orders.as_slice()
    else {
        panic!("{orders:?}");
    };
    assert_eq!(reason, "CannotStart");
    assert_eq!(message, "no node can take it: node-1: cordoned");
}

#[test]
fn a_refused_start_is_tried_again_after_a_pause() {
    let mut world = World::new(1);
    world.deploy(scale(0, 0));
    assert_eq!(starts(&world.tick()).len(), 1);
    let steward = world.stewards.get_mut(&NodeId(1)).unwrap();
    steward.on_start_result(world.now, &rev(1), Err("no room".to_owned()));
    assert_eq!(starts(&world.tick()).len(), 1);
}

#[test]
fn an_overtaken_revision_is_failed_and_cleared() {
    let mut world = World::new(1);
    world.deploy(scale(0, 0));
    let id = world.put(1, 1, InstanceState::Starting);
    world.deploy(scale(0, 0));
    let orders = world.tick();
    let message = "web-00002 was deployed before it was ready".to_owned();
    let fail = Order::Fail {
        revision: rev(1),
        reason: "Superseded".to_owned(),
        message,
    };
    assert!(orders.contains(&fail), "{orders:?}");
    let stopped = |o: &Order| matches!(o, Order::Stop { instance, .. } if *instance == id);
    assert!(orders.iter().any(stopped));
    let started = |o: &Order| matches!(o, Order::Start { revision, .. } if *revision == rev(2));
    assert!(orders.iter().any(started));
}

#[test]
fn the_minimum_is_kept_through_the_loss_of_a_node() {
    let mut world = World::new(3);
    world.deploy(scale(2, 0));
    let orders = world.tick();
    world.obey(&orders);
    let orders = world.tick();
    assert_eq!(orders, [Order::Ready { revision: rev(1) }]);
    world.obey(&orders);
    world.quiet(200);
    let holder = world
        .records
        .values()
        .find(|r| !r.instances.is_empty())
        .unwrap()
        .node;
    world.dead.insert(holder);
    let (_, orders) = world.next(20);
    let starts = starts(&orders);
    assert!(
        starts
            .iter()
            .all(|(node, cause)| *node != holder.0 && *cause == "minimum")
    );
    world.obey(&orders);
    world.quiet(100);
}

#[test]
fn the_door_gets_its_moment_before_the_steward_starts_one() {
    let mut world = warm(scale(0, 0));
    world.quiet(3);
    world.queue(1, 5);
    world.quiet(2);
    assert_eq!(starts(&world.tick()), [(1, "held requests")]);
    world.quiet(10);
}

#[test]
fn the_doors_start_is_not_doubled() {
    let mut world = warm(scale(0, 0));
    world.queue(1, 60);
    world.tick();
    world.put(1, 1, InstanceState::Starting);
    world.quiet(20);
}

#[test]
fn a_herd_starts_what_it_asks_for_and_no_more() {
    let mut world = warm(scale(0, 0));
    world.queue(1, 200);
    world.put(1, 1, InstanceState::Starting);
    assert_eq!(starts(&world.tick()).len(), 2, "three in all carry 200");
    world.quiet(20);
}

#[test]
fn load_scales_up_and_silence_back_to_zero() {
    let mut world = warm(scale(0, 0));
    let first = world.put(1, 1, InstanceState::Ready);
    world.load(&first, 210);
    let orders = world.tick();
    assert_eq!(starts(&orders), [(1, "scale-up"), (1, "scale-up")]);
    let started = world.obey(&orders);
    for id in started.iter().chain([&first]) {
        world.load(id, 70);
    }
    world.quiet(100);
    for id in started.iter().chain([&first]) {
        world.load(id, 0);
    }
    world.load(&first, 1);
    let (_, orders) = world.next(200);
    assert!(
        !stops(&orders).contains(&&first),
        "the loaded one stays longest"
    );
    world.obey(&orders);
    while let Some(orders) = (0..100).map(|_| world.tick()).find(|o| !o.is_empty()) {
        assert!(!stops(&orders).contains(&&first));
        world.obey(&orders);
    }
    assert_eq!(world.reports().count(), 1);
    world.load(&first, 0);
    let (second, orders) = world.next(100);
    assert!((59..=62).contains(&second), "{second}");
    assert_eq!(stops(&orders), [&first]);
    world.quiet(3);
}

#[test]
fn the_last_one_stays_while_anything_waits() {
    let mut world = warm(scale(0, 0));
    let id = world.put(1, 1, InstanceState::Ready);
    world.quiet(60);
    world.queue(1, 1);
    world.quiet(1);
    world.queue(1, 0);
    let (_, orders) = world.next(100);
    assert_eq!(stops(&orders), [&id]);
}

#[test]
fn the_maximum_holds_over_all_zones() {
    let mut world = World::new(2);
    world.deploy(scale(0, 3));
    world.ready(1);
    world.put(2, 1, InstanceState::Ready);
    let id = world.put(1, 1, InstanceState::Ready);
    world.load(&id, 900);
    assert_eq!(starts(&world.tick()).len(), 1);
    world.put(1, 1, InstanceState::Starting);
    world.quiet(10);
}

#[test]
fn zones_spare_the_same_minimum() {
    let mut world = World::new(2);
    world.deploy(scale(1, 0));
    world.ready(1);
    let old = world.put(1, 1, InstanceState::Ready);
    world.now = world.now.plus(10);
    let young = world.put(2, 1, InstanceState::Ready);
    let (_, orders) = world.next(100);
    assert_eq!(stops(&orders), [&young]);
    world.obey(&orders);
    world.quiet(100);
    assert_eq!(world.report(&old).state, InstanceState::Ready);
}

#[test]
fn a_full_zone_starts_elsewhere_once() {
    let mut world = World::new(2);
    world.deploy(scale(0, 0));
    world.ready(1);
    let id = world.put(1, 1, InstanceState::Ready);
    world.records.get_mut(&NodeId(1)).unwrap().cordoned = true;
    world.load(&id, 140);
    let orders = world.tick();
    assert_eq!(starts(&orders), [(2, "scale-up")]);
    let started = world.obey(&orders);
    world.load(&started[0], 30);
    world.load(&id, 110);
    world.quiet(30);
}

#[test]
fn the_old_revision_leaves_once_the_new_one_is_ready_and_it_is_idle() {
    let mut world = warm(scale(0, 0));
    let old = world.put(1, 1, InstanceState::Ready);
    world.load(&old, 2);
    world.deploy(scale(0, 0));
    let orders = world.tick();
    assert_eq!(starts(&orders), [(1, "initial")]);
    let new = world.obey(&orders);
    let orders = world.tick();
    assert_eq!(
        orders,
        [Order::Ready { revision: rev(2) }],
        "the old one is left alone"
    );
    world.obey(&orders);
    world.quiet(30);
    world.load(&old, 0);
    assert_eq!(stops(&world.tick()), [&old]);
    assert_eq!(world.report(&new[0]).state, InstanceState::Ready);
}

#[test]
fn a_revision_with_a_share_of_the_traffic_stays() {
    let mut world = warm(scale(1, 0));
    world.put(1, 1, InstanceState::Ready);
    world.deploy(scale(1, 0));
    world.put(1, 2, InstanceState::Ready);
    world.ready(2);
    let target = |name: Option<Name>, percent| TrafficTarget {
        revision: name,
        percent,
        tag: None,
    };
    world.apply(Action::SetTraffic {
        key: web(),
        traffic: vec![target(Some(rev(1).name), 10), target(None, 90)],
    });
    world.quiet(100);
}

#[test]
fn what_the_registry_does_not_know_goes_unless_it_may_be_news() {
    let mut world = warm(scale(0, 0));
    world.deploy(scale(0, 0));
    let id = world.put(1, 1, InstanceState::Starting);
    world.apply(Action::DeleteService { key: web() });
    world.records.get_mut(&NodeId(1)).unwrap().registry_index += 1;
    world.quiet(3);
    world.records.get_mut(&NodeId(1)).unwrap().registry_index -= 1;
    let doubt =
        |world: &mut World, doubts| world.stewards.values_mut().for_each(|s| s.doubt(doubts));
    doubt(&mut world, true);
    world.quiet(3);
    doubt(&mut world, false);
    assert_eq!(stops(&world.tick()), [&id]);
    world.quiet(4);
    assert_eq!(stops(&world.tick()), [&id], "again when it shows no effect");
}

#[test]
fn crashes_are_replaced_at_once_and_then_ever_later() {
    let mut world = warm(scale(1, 0));
    let mut waits = Vec::new();
    let orders = world.tick();
    let mut id = world.obey(&orders).remove(0);
    world.tick();
    for _ in 0..8 {
        world.report(&id).state = InstanceState::Failed;
        let (wait, orders) = world.next(400);
        assert_eq!(starts(&orders), [(1, "minimum")]);
        waits.push(wait);
        id = world.obey(&orders).remove(0);
        world.tick();
    }
    assert_eq!(waits, [1, 11, 21, 41, 81, 161, 301, 301]);
}

#[test]
fn instances_lost_with_their_shims_are_replaced_at_once() {
    let mut world = warm(scale(1, 0));
    let orders = world.tick();
    let mut id = world.obey(&orders).remove(0);
    world.tick();
    for _ in 0..4 {
        world.report(&id).state = InstanceState::Failed;
        world.report(&id).failure = Some(FailReason {
            code: SHIM_LOST.to_owned(),
            message: String::new(),
        });
        let (wait, orders) = world.next(400);
        assert_eq!((wait, starts(&orders)), (1, vec![(1, "minimum")]));
        id = world.obey(&orders).remove(0);
        world.tick();
    }
}

#[test]
fn who_is_no_steward_or_leaves_orders_nothing() {
    let mut world = World::new(2);
    world.deploy(scale(1, 0));
    let home = steward_of(&world.fleet(NodeId(1)), &rev(1), None).unwrap();
    world.records.get_mut(&home).unwrap().serving = false;
    let fleet = world.fleet(home);
    let steward = world.stewards.get_mut(&home).unwrap();
    assert_eq!(steward.tick(world.now, UnixMs(0), &world.state, &fleet), []);
    let orders = world.tick();
    assert_eq!(starts(&orders).len(), 1, "the other one does");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked at whatever doors: never more than asked for, never zero with requests
    /// waiting, always zero in the end.
    #[test]
    fn load_comes_and_goes(
        nodes in 1_u64..4,
        loads in prop::collection::vec((1_u64..4, 0_u32..400), 1..12),
    ) {
        let mut world = World::new(nodes);
        world.deploy(scale(0, 0));
        world.ready(1);
        let mut peak = 0;
        for (door, load) in loads {
            let door = door.min(nodes);
            peak = peak.max(load.div_ceil(70));
            for _ in 0..10 {
                share(&mut world, door, load);
                let before = world.reports().count();
                let orders = world.tick();
                let waiting = world.records.values().any(|r| r.demand.iter().any(|d| d.queued > 0));
                world.obey(&orders);
                let after = world.reports().count();
                prop_assert!(!(waiting && before > 0 && after == 0), "zero while some wait");
            }
            let running = u32::try_from(world.reports().count()).unwrap();
            prop_assert!(running >= load.div_ceil(70).min(1));
            // Each zone may keep what its own peak asked for until its window has passed.
            let most = peak.max(1) * u32::try_from(nodes).unwrap();
            prop_assert!(running <= most, "{running} run, {most} are enough");
        }
        for id in world.reports().map(|r| r.id.clone()).collect::<Vec<_>>() {
            world.load(&id, 0);
        }
        for _ in 0..400 {
            (1..=nodes).for_each(|node| world.queue(node, 0));
            let orders = world.tick();
            world.obey(&orders);
        }
        prop_assert_eq!(world.reports().count(), 0);
    }
}

/// Spreads the load over what is ready; with nothing ready it waits at the door.
fn share(world: &mut World, door: u64, load: u32) {
    for node in world.records.keys().map(|n| n.0).collect::<Vec<_>>() {
        world.queue(node, 0);
    }
    let ids: Vec<_> = world.reports().map(|r| r.id.clone()).collect();
    if ids.is_empty() {
        world.queue(door, load);
        return;
    }
    let each = load / u32::try_from(ids.len()).unwrap();
    let mut rest = load % u32::try_from(ids.len()).unwrap();
    for id in ids {
        world.load(&id, each + u32::from(rest > 0));
        rest = rest.saturating_sub(1);
    }
}

#[test]
fn a_lowered_maximum_holds_over_all_zones() {
    let mut world = World::new(3);
    world.deploy(scale(1, 3));
    world.ready(1);
    let first = world.put(1, 1, InstanceState::Ready);
    let busy = world.put(2, 1, InstanceState::Ready);
    let idle = world.put(3, 1, InstanceState::Ready);
    for id in [&first, &busy, &idle] {
        world.load(id, 5);
    }
    world.quiet(3);
    world.apply(Action::SetScale {
        key: web(),
        scale: scale(1, 1),
    });
    let orders = world.tick();
    let stopped: Vec<_> = stops(&orders).into_iter().cloned().collect();
    assert_eq!(stopped.len(), 2, "{orders:?}");
    assert!(!stopped.contains(&first), "the oldest is the minimum");
    world.obey(&orders);
    world.quiet(10);
}

#[test]
fn traffic_that_keeps_coming_from_a_region_is_answered_there() {
    let mut world = World::new(3);
    world.deploy(scale(0, 2));
    world.ready(1);
    let far = world.put(1, 1, InstanceState::Ready);
    world.load(&far, 3);
    let mut away = 0;
    let mut second = |world: &mut World, more: u64| {
        away += more;
        let demand = Demand {
            revision: rev(1),
            queued: 0,
            away,
        };
        world.records.get_mut(&NodeId(2)).unwrap().demand = vec![demand];
        world.tick()
    };
    for more in [5, 50, 0, 9, 0, 0, 0, 0] {
        assert_eq!(
            second(&mut world, more),
            [],
            "one burst or two are no traffic"
        );
    }
    let orders: Vec<Order> = (0..3).flat_map(|_| second(&mut world, 1)).collect();
    assert_eq!(starts(&orders), [(2, "traffic from here")]);
    world.obey(&orders);
    for _ in 0..5 {
        assert_eq!(second(&mut world, 1), [], "one is enough");
    }
}

#[test]
fn what_gathers_behind_a_boot_is_no_load() {
    let mut world = warm(scale(0, 0));
    world.queue(1, 5);
    world.tick();
    world.put(1, 1, InstanceState::Starting);
    // Twenty more each second for half a minute: one that is there answers them as they come.
    for second in 1..=30 {
        world.queue(1, 5 + 20 * second);
        assert_eq!(world.tick(), [], "second {second}");
    }
    // And a crowd that comes at once is one.
    world.queue(1, 605 + 300);
    let orders: Vec<Order> = (0..6).flat_map(|_| world.tick()).collect();
    assert_eq!(starts(&orders).len(), 4, "five in all carry 300 at once");
    let Some(Order::Start { receipt, .. }) = orders.last() else {
        panic!("{orders:?}");
    };
    assert!(receipt.why.contains("5 wanted, "), "{}", receipt.why);
}

#[test]
fn a_scheduled_minimum_is_there_in_time_and_goes_after_it() {
    let mut service = scale(0, 0);
    // The world's wall clock begins sixteen minutes after midnight.
    service.schedules = vec![Schedule {
        cron: "30 0 * * *".to_owned(),
        for_seconds: 300,
        min: 2,
        utc_offset_minutes: 0,
    }];
    let mut world = warm(service);
    let (_, orders) = world.next(3600);
    let minute = |world: &World| world.now.0 / 60_000;
    let found = starts(&orders);
    assert!(found.iter().all(|(_, cause)| *cause == "scheduled minimum"));
    assert_eq!((found.len(), minute(&world)), (2, 29), "a start early");
    world.obey(&orders);
    let (_, orders) = world.next(3600);
    assert!(!stops(&orders).is_empty());
    assert!((35..=37).contains(&minute(&world)), "{}", minute(&world));
}

/// A history says that nobody comes for long: who asked for a longer window has it all the same.
#[test]
fn a_longer_window_than_usual_is_never_cut_short() {
    let mut service = scale(0, 0);
    service.window_seconds = 120;
    let mut world = warm(service);
    for round in 0..10 {
        let ids: Vec<_> = world.reports().map(|r| r.id.clone()).collect();
        let put = |world: &mut World| world.put(1, 1, InstanceState::Ready);
        let id = ids.first().cloned().unwrap_or_else(|| put(&mut world));
        world.load(&id, 1);
        world.tick();
        world.load(&id, 0);
        for second in 1..600 {
            let orders = world.tick();
            world.obey(&orders);
            let gone = world.reports().count() == 0;
            assert!(second > 115 || !gone, "after {second} s in round {round}");
        }
    }
}

#[test]
fn an_instance_is_there_when_requests_are_expected() {
    let mut world = warm(scale(0, 0));
    let mut warm_at = Vec::new();
    for round in 0..10 {
        // A request every five minutes, for which its door starts what is not there.
        let ids: Vec<_> = world.reports().map(|r| r.id.clone()).collect();
        let id = match ids.first() {
            Some(id) => id.clone(),
            None => world.put(1, 1, InstanceState::Ready),
        };
        warm_at.push(!ids.is_empty());
        world.load(&id, 1);
        world.tick();
        world.load(&id, 0);
        let mut there = 0;
        for _ in 1..300 {
            let orders = world.tick();
            there += world.reports().count();
            for order in &orders {
                if let Order::Start { receipt, .. } = order {
                    assert_eq!(receipt.cause, "expected requests", "round {round}");
                }
            }
            world.obey(&orders);
        }
        let usual = (60..75).contains(&there);
        let short = (10..35).contains(&there);
        assert!(
            if round < 6 { usual } else { short },
            "{there} seconds in round {round}"
        );
    }
    let warm = [
        false, false, false, false, false, false, false, true, true, true,
    ];
    assert_eq!(warm_at, warm, "once it has seen six pauses");
    // Nobody comes any more: it does not wait for long.
    let mut idle = 0;
    for _ in 0..600 {
        let orders = world.tick();
        world.obey(&orders);
        idle += world.reports().count();
    }
    assert!(idle < 60, "{idle} seconds for nobody");
}
