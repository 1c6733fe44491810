//! The parked pool: how many are kept, for how long, and whose they become.

use super::tests::{admission, ask, exit};
use super::*;

fn node(parked: u32) -> Node {
    let capacity = Resources {
        cpu_millis: 2_000,
        memory_bytes: 1 << 30,
        instances: 20,
    };
    Node::new(capacity, parked)
}

fn instance(name: &str) -> InstanceId {
    InstanceId(name.to_owned())
}

/// Starts an instance until it is ready; returns what its start began with.
fn start(node: &mut Node, now: u64, name: &str) -> (InstanceId, Effect) {
    let (id, effects) = node.admit(Now(now), admission(name)).unwrap();
    node.on_prepared(Now(now), &id, Ok(()));
    node.on_launched(Now(now), &id, Ok(()));
    let ready = node.on_probed(Now(now), &id, ask(Kind::Readiness, 0), Ok(()));
    assert_eq!(ready, [Effect::Open(id.clone())]);
    (id, effects[0].clone())
}

/// Parks as many as are wanted at once, and returns how many of them there are then.
fn refill(node: &mut Node, now: u64) -> usize {
    for n in 0.. {
        let effects = node.tend(Now(now), |_| true);
        let removed = effects.iter().filter_map(|effect| match effect {
            Effect::Remove(id) => Some(id.clone()),
            _ => None,
        });
        for id in removed.collect::<Vec<_>>() {
            node.on_removed(Now(now), &id);
        }
        if !effects.iter().any(|e| matches!(e, Effect::Park(_))) {
            break;
        }
        let id = instance(&format!("p{now}-{n}"));
        let effects = node.park(Now(now), admission(&id.0));
        assert_eq!(effects, [Effect::Prepare(id.clone())]);
        assert_eq!(node.tend(Now(now), |_| true), [], "one at a time");
        node.on_prepared(Now(now), &id, Ok(()));
    }
    parked(node)
}

fn parked(node: &Node) -> usize {
    let parked = |s: &Seen<'_>| s.state == InstanceState::Parked;
    node.seen().filter(parked).count()
}

#[test]
fn one_is_kept_after_a_start_more_after_a_burst_and_none_in_the_end() {
    let mut node = node(16);
    assert_eq!(refill(&mut node, 0), 0);
    start(&mut node, 1_000, "a");
    assert_eq!(refill(&mut node, 1_000), 1);
    for n in 0..5 {
        start(&mut node, 2_500 + n, &format!("b{n}"));
    }
    assert_eq!(refill(&mut node, 3_000), 5);
    assert_eq!(refill(&mut node, 2_504 + 150_000), 2);
    assert_eq!(refill(&mut node, 2_504 + 300_000), 1);
    assert_eq!(refill(&mut node, 2_503 + 600_000), 1);
    assert_eq!(refill(&mut node, 2_504 + 600_000), 0);
    assert_eq!(node.seen().count(), 6, "what was parked leaves no trace");
}

/// A node that is busy with the first of a crowd gets to the last of it seconds later.
#[test]
fn those_that_wait_in_a_line_asked_when_they_came() {
    let mut node = node(16);
    for n in 0..5 {
        let asked = Admission {
            asked: Some(Now(100 + n)),
            ..admission(&format!("a{n}"))
        };
        let at = Now(2_000 * (n + 1));
        let (id, _) = node.admit(at, asked).unwrap();
        node.on_prepared(at, &id, Ok(()));
        node.on_launched(at, &id, Ok(()));
        node.on_probed(at, &id, ask(Kind::Readiness, 0), Ok(()));
    }
    assert_eq!(refill(&mut node, 11_000), 5);
}

#[test]
fn as_many_are_kept_as_were_asked_for_at_once_however_long_they_took() {
    let mut node = node(16);
    let admitted = (0..6).map(|n| node.admit(Now(n), admission(&format!("a{n}"))).unwrap().0);
    let admitted: Vec<_> = admitted.collect();
    for (id, now) in admitted.iter().zip((2_000..).step_by(2_000)) {
        node.on_prepared(Now(now), id, Ok(()));
        node.on_launched(Now(now), id, Ok(()));
        node.on_probed(Now(now), id, ask(Kind::Readiness, 0), Ok(()));
    }
    assert_eq!(refill(&mut node, 13_000), 6);
}

#[test]
fn a_start_takes_a_parked_one_and_needs_nothing_but_its_program() {
    let mut node = node(16);
    start(&mut node, 0, "a");
    refill(&mut node, 10);
    let free = node.free();
    let (id, first) = start(&mut node, 20, "b");
    assert_eq!(
        (id, first),
        (instance("p10-0"), Effect::Launch(instance("p10-0")))
    );
    assert_eq!(node.free().instances, free.instances - 1, "now it counts");
    let (id, first) = start(&mut node, 30, "c");
    assert_eq!((&id, first), (&instance("c"), Effect::Prepare(id.clone())));
}

#[test]
fn a_start_takes_over_one_that_is_being_parked() {
    let mut node = node(16);
    start(&mut node, 0, "a");
    node.tend(Now(1), |_| true);
    node.park(Now(1), admission("p"));
    assert_eq!(
        node.admit(Now(2), admission("b")).unwrap(),
        (instance("p"), vec![])
    );
    assert_eq!(
        node.on_prepared(Now(3), &instance("p"), Ok(())),
        [Effect::Launch(instance("p"))]
    );
}

#[test]
fn nothing_is_parked_while_an_instance_starts_or_without_room() {
    let mut node = node(16);
    start(&mut node, 0, "a");
    node.admit(Now(1), admission("b")).unwrap();
    assert_eq!(node.tend(Now(1), |_| true), []);
    let mut none = self::node(0);
    start(&mut none, 0, "a");
    assert_eq!(refill(&mut none, 1), 0);
    let mut small = Node::new(
        Resources {
            memory_bytes: 40,
            ..node.capacity()
        },
        16,
    );
    start(&mut small, 0, "a");
    assert_eq!(refill(&mut small, 1), 0);
}

#[test]
fn what_is_parked_of_a_revision_that_is_gone_goes_at_once() {
    let mut node = node(16);
    start(&mut node, 0, "a");
    refill(&mut node, 1);
    assert_eq!(
        node.tend(Now(2), |_| false),
        [Effect::Remove(instance("p1-0"))]
    );
    node.on_removed(Now(3), &instance("p1-0"));
    start(&mut node, 4, "b");
    node.tend(Now(5), |_| true);
    node.park(Now(5), admission("p"));
    node.tend(Now(6), |_| false);
    assert_eq!(
        node.on_prepared(Now(7), &instance("p"), Ok(())),
        [Effect::Remove(instance("p"))]
    );
}

#[test]
fn a_parked_one_that_died_is_replaced_and_a_start_that_met_it_is_made_again() {
    let mut node = node(16);
    start(&mut node, 0, "a");
    refill(&mut node, 1);
    let died = node.on_exit(Now(2), &instance("p1-0"), &exit(137, false), "");
    assert_eq!(died, [Effect::Remove(instance("p1-0"))]);
    node.on_removed(Now(2), &instance("p1-0"));
    assert_eq!(refill(&mut node, 3), 1);
    let (id, _) = node.admit(Now(4), admission("b")).unwrap();
    let gone = FailReason {
        code: "Runtime".into(),
        message: "the shim is gone".into(),
    };
    assert_eq!(
        node.on_launched(Now(5), &id, Err(gone)),
        [Effect::Again(id.clone()), Effect::Remove(id)]
    );
    let (id, first) = start(&mut node, 6, "b");
    assert_eq!(first, Effect::Prepare(id));
}

#[test]
fn a_program_that_ends_before_its_launch_is_told_failed() {
    let mut node = node(16);
    start(&mut node, 0, "a");
    refill(&mut node, 1);
    let (id, _) = node.admit(Now(2), admission("b")).unwrap();
    assert_eq!(node.on_exit(Now(3), &id, &exit(1, false), "boom"), []);
    let effects = node.on_launched(Now(4), &id, Ok(()));
    assert!(effects.contains(&Effect::Failed(id.clone())), "{effects:?}");
    assert_eq!(node.failure(&id).unwrap().code, "Exited");
}
