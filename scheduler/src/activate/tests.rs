use proptest::prelude::*;

use super::*;

const FREE: Bounds = Bounds {
    per_instance: 50,
    max_scale: 10,
    ready: 0,
    starting: 0,
};

fn crash() -> Refused {
    Refused::StartFailed {
        code: "Exited".into(),
        message: "exit code 1".into(),
    }
}

fn refuse(ticket: u64, reason: Refused, retry_after_millis: u64) -> Effect {
    Effect::Refuse {
        ticket: Ticket(ticket),
        reason,
        retry_after_millis,
    }
}

fn release(ticket: u64) -> Effect {
    Effect::Release {
        ticket: Ticket(ticket),
    }
}

/// Holds tickets `0..count` at time 0 and returns all effects.
fn herd(activation: &mut Activation, count: u64, bounds: &Bounds) -> Vec<Effect> {
    let each = |i| activation.on_request(Now(0), Ticket(i), Now(30_000), bounds);
    (0..count).flat_map(each).collect()
}

fn starts(effects: &[Effect]) -> u32 {
    let count = |e: &Effect| match e {
        Effect::Start { count } => *count,
        _ => 0,
    };
    effects.iter().map(count).sum()
}

#[test]
fn a_herd_starts_what_it_needs_and_no_more() {
    let with = |f: fn(&mut Bounds)| {
        let mut bounds = FREE;
        f(&mut bounds);
        bounds
    };
    let table = [
        ("one", 1, FREE, 1),
        ("exactly one instance's worth", 50, FREE, 1),
        ("one more", 51, FREE, 2),
        ("two hundred", 200, FREE, 4),
        ("bounded", 200, with(|b| b.max_scale = 3), 3),
        ("ready ones count", 200, with(|b| b.ready = 8), 2),
        ("all there is", 200, with(|b| b.ready = 10), 0),
        ("others start two", 200, with(|b| b.starting = 2), 2),
        ("others start five", 200, with(|b| b.starting = 5), 0),
        ("a target of nothing", 3, with(|b| b.per_instance = 0), 3),
    ];
    for (name, count, bounds, want) in table {
        let mut activation = Activation::new(1000);
        assert_eq!(
            starts(&herd(&mut activation, count, &bounds)),
            want,
            "{name}"
        );
    }
}

#[test]
fn room_releases_the_longest_waiting() {
    let mut activation = Activation::new(10);
    herd(&mut activation, 3, &FREE);
    activation.on_started();
    assert_eq!(activation.on_room(2), [release(0), release(1)]);
    assert_eq!(activation.on_room(2), [release(2)]);
    assert_eq!(activation.on_room(2), []);
    assert!(activation.is_idle());
}

#[test]
fn a_request_that_comes_again_keeps_its_place() {
    let mut activation = Activation::new(10);
    herd(&mut activation, 3, &FREE);
    assert_eq!(activation.on_room(1), [release(0)]);
    let again = activation.on_request(Now(5), Ticket(0), Now(30_000), &FREE);
    assert_eq!(again, []);
    assert_eq!(activation.on_room(1), [release(0)]);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut activation = Activation::new(2);
    let effects = herd(&mut activation, 3, &FREE);
    assert_eq!(effects.last(), Some(&refuse(2, Refused::QueueFull, 1_000)));
    assert_eq!(activation.held(), 2);
}

#[test]
fn waiting_ends_at_the_deadline() {
    let mut activation = Activation::new(10);
    activation.on_request(Now(0), Ticket(0), Now(10), &FREE);
    activation.on_request(Now(1), Ticket(1), Now(11), &FREE);
    assert_eq!(activation.poll_timeout(), Some(Now(10)));
    let effects = activation.on_timeout(Now(10), &FREE);
    assert_eq!(effects, [refuse(0, Refused::WaitTimeout, 1_000)]);
    assert_eq!(activation.poll_timeout(), Some(Now(11)));
}

#[test]
fn a_failed_start_refuses_all_and_cools_down() {
    let mut activation = Activation::new(10);
    herd(&mut activation, 2, &FREE);
    let effects = activation.on_start_failed(Now(100), crash(), &FREE);
    assert_eq!(
        effects,
        [refuse(0, crash(), 1_000), refuse(1, crash(), 1_000)]
    );
    let during = activation.on_request(Now(700), Ticket(2), Now(9_000), &FREE);
    assert_eq!(during, [refuse(2, crash(), 400)]);
    assert_eq!(activation.poll_timeout(), Some(Now(1_100)));
    activation.on_timeout(Now(1_100), &FREE);
    assert!(activation.is_idle());
}

#[test]
fn the_pause_doubles_up_to_a_cap_and_a_success_ends_it() {
    let mut activation = Activation::new(10);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        activation.on_start_failed(Now(0), crash(), &FREE);
        pauses.push(activation.poll_timeout().unwrap().0);
    }
    let want = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000];
    assert_eq!(pauses, want);
    activation.on_started();
    assert!(activation.is_idle());
    activation.on_start_failed(Now(0), crash(), &FREE);
    assert_eq!(activation.poll_timeout(), Some(Now(1_000)));
}

#[test]
fn a_failure_beside_hope_keeps_holding() {
    let hopes = [
        ("another of ours", 51, FREE),
        ("a ready one that is full", 1, Bounds { ready: 1, ..FREE }),
    ];
    for (name, count, bounds) in hopes {
        let mut activation = Activation::new(100);
        herd(&mut activation, count, &bounds);
        let effects = activation.on_start_failed(Now(0), crash(), &bounds);
        assert_eq!(effects, [], "{name}");
    }
    // Once the hope is gone too, nobody is kept waiting for nothing.
    let mut activation = Activation::new(100);
    let hope = Bounds {
        starting: 1,
        ..FREE
    };
    herd(&mut activation, 51, &hope);
    assert_eq!(activation.on_start_failed(Now(0), crash(), &hope), []);
    let effects = activation.on_timeout(Now(10), &FREE);
    assert_eq!(effects.len(), 51);
    assert_eq!(effects[0], refuse(0, crash(), 990));
}

#[test]
fn after_the_pause_those_still_held_get_another_start() {
    let ready = Bounds { ready: 1, ..FREE };
    let mut activation = Activation::new(10);
    herd(&mut activation, 1, &ready);
    activation.on_start_failed(Now(0), crash(), &ready);
    assert_eq!(activation.on_timeout(Now(999), &ready), []);
    let effects = activation.on_timeout(Now(1_000), &ready);
    assert_eq!(effects, [Effect::Start { count: 1 }]);
}

#[derive(Debug, Clone)]
enum Step {
    Request,
    Cancel(u64),
    Started,
    Failed,
    Room(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Request),
        1 => (0u64..60).prop_map(Step::Cancel),
        2 => Just(Step::Started),
        1 => Just(Step::Failed),
        2 => (0usize..6).prop_map(Step::Room),
        2 => (1u64..4_000).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens, each held request is released, refused or cancelled exactly once, and
    /// starts under way never exceed what the held requests need or the bounds allow.
    #[test]
    fn every_request_has_one_fate(
        steps in prop::collection::vec(step(), 1..120),
        per_instance in 1u32..5,
        max_scale in 1u32..6,
        queue in 1usize..30,
    ) {
        let bounds = Bounds { per_instance, max_scale, ready: 0, starting: 0 };
        let mut activation = Activation::new(queue);
        let mut now = Now(0);
        let mut next = 0u64;
        let mut under_way = 0u32;
        let mut open = BTreeSet::new();
        for step in steps {
            let held_before = u32::try_from(activation.held()).unwrap();
            let effects = match step {
                Step::Request => {
                    let ticket = Ticket(next);
                    next += 1;
                    open.insert(ticket);
                    activation.on_request(now, ticket, now.plus(2_000), &bounds)
                }
                Step::Cancel(number) => {
                    open.remove(&Ticket(number));
                    activation.on_cancel(Ticket(number));
                    Vec::new()
                }
                Step::Started if under_way > 0 => {
                    under_way -= 1;
                    activation.on_started();
                    Vec::new()
                }
                Step::Failed if under_way > 0 => {
                    under_way -= 1;
                    activation.on_start_failed(now, crash(), &bounds)
                }
                Step::Room(room) => activation.on_room(room),
                Step::Pass(millis) => {
                    now = now.plus(millis);
                    activation.on_timeout(now, &bounds)
                }
                Step::Started | Step::Failed => Vec::new(),
            };
            let new = starts(&effects);
            if new > 0 {
                under_way += new;
                let held = held_before.max(u32::try_from(activation.held()).unwrap());
                prop_assert!(under_way <= held.div_ceil(per_instance).min(max_scale));
            }
            for effect in effects {
                if let Effect::Release { ticket } | Effect::Refuse { ticket, .. } = effect {
                    prop_assert!(open.remove(&ticket), "{ticket:?} had its fate already");
                }
            }
            prop_assert_eq!(open.len(), activation.held());
        }
        now = now.plus(2_000);
        for effect in activation.on_timeout(now, &bounds) {
            if let Effect::Refuse { ticket, .. } = effect {
                prop_assert!(open.remove(&ticket));
            }
        }
        prop_assert!(open.is_empty());
    }
}
