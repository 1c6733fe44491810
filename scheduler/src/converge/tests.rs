//! The table of an instance's life: inputs in order, effects in order.

use super::*;
use crate::autoscale::ladder::FREEZE_AFTER_MS;
use crate::model::{Name, UnixMs};

pub(super) const NEEDS: Resources = Resources {
    cpu_millis: 100,
    memory_bytes: 10,
    instances: 1,
};

pub(super) fn admission(id: &str) -> Admission {
    let name = |text: &str| Name::new(text).unwrap();
    Admission {
        id: InstanceId(id.to_owned()),
        service: ServiceKey {
            namespace: name("default"),
            name: name("web"),
        },
        revision: RevisionKey {
            namespace: name("default"),
            name: name("web-00001"),
        },
        needs: NEEDS,
        asked: None,
        port: 8080,
        promised: 0,
        start_deadline_ms: 30_000,
        drain_ms: 5_000,
        grace_ms: 10_000,
        probes: Probes::default(),
        freezes: true,
        works_unasked: true,
    }
}

pub(super) fn node() -> Node {
    let capacity = Resources {
        cpu_millis: 200,
        memory_bytes: 20,
        instances: 2,
    };
    Node::new(capacity, 0)
}

/// The one answer of an instance that is asked its readiness for the first time.
pub(super) fn first(node: &mut Node, now: u64, ready: bool) -> Vec<Effect> {
    let said = if ready { Ok(()) } else { Err("no".to_owned()) };
    node.on_probed(Now(now), &id(), ask(Kind::Readiness, 0), said)
}

pub(super) fn ask(kind: Kind, round: u32) -> Ask {
    Ask { kind, round }
}

pub(super) fn id() -> InstanceId {
    InstanceId("a".to_owned())
}

pub(super) fn exit(code: i32, oom: bool) -> Exit {
    Exit {
        code,
        signal: None,
        oom,
        lost: false,
        at: UnixMs(0),
    }
}

fn ready_node() -> Node {
    let mut node = node();
    node.admit(Now(0), admission("a")).unwrap();
    node.on_prepared(Now(1), &id(), Ok(()));
    node.on_launched(Now(2), &id(), Ok(()));
    assert_eq!(first(&mut node, 3, true), [Effect::Open(id())]);
    node
}

fn state(node: &Node) -> InstanceState {
    node.seen().next().unwrap().state
}

#[test]
fn a_start_goes_step_by_step() {
    let mut node = node();
    assert_eq!(
        node.admit(Now(0), admission("a")).unwrap(),
        (id(), vec![Effect::Prepare(id())])
    );
    assert_eq!(
        node.on_prepared(Now(5), &id(), Ok(())),
        [Effect::Launch(id())]
    );
    let probe = |after_ms| Effect::Probe {
        id: id(),
        ask: ask(Kind::Readiness, 0),
        after_ms,
    };
    assert_eq!(node.on_launched(Now(9), &id(), Ok(())), [probe(0)]);
    assert_eq!(first(&mut node, 10, false), [probe(1)]);
    assert_eq!(first(&mut node, 9 + 600, false), [probe(25)]);
    assert_eq!(state(&node), InstanceState::Starting);
    assert_eq!(first(&mut node, 700, true), [Effect::Open(id())]);
    assert_eq!(state(&node), InstanceState::Ready);
}

#[test]
fn a_stop_closes_drains_terminates_kills_and_removes_in_that_order() {
    let mut node = ready_node();
    assert_eq!(
        node.on_stop(Now(10), &id()),
        (true, vec![Effect::Close(id())])
    );
    assert_eq!(node.poll_timeout(), Some(Now(5_010)));
    assert_eq!(node.on_drained(Now(20), &id()), [Effect::Terminate(id())]);
    assert_eq!(node.poll_timeout(), Some(Now(10_020)));
    assert_eq!(node.on_timeout(Now(10_020)), [Effect::Kill(id())]);
    assert_eq!(
        node.on_exit(Now(10_030), &id(), &exit(137, false), ""),
        [Effect::Remove(id())]
    );
    assert_eq!(node.free().instances, 1);
    node.on_removed(Now(10_040), &id());
    assert_eq!(node.free(), node.capacity());
    assert_eq!(state(&node), InstanceState::Stopped);
    node.on_timeout(Now(10_040 + REMEMBER_MS));
    assert_eq!(node.seen().count(), 0);
}

#[test]
fn a_signal_that_did_not_reach_its_program_is_sent_again() {
    let mut node = ready_node();
    node.on_stop(Now(10), &id());
    assert_eq!(node.on_drained(Now(20), &id()), [Effect::Terminate(id())]);
    node.on_unsignalled(Now(30), &id());
    assert_eq!(node.poll_timeout(), Some(Now(30 + SIGNAL_AGAIN_MS)));
    assert_eq!(node.on_timeout(Now(1_029)), []);
    assert_eq!(node.on_timeout(Now(1_030)), [Effect::Terminate(id())]);
    assert_eq!(node.poll_timeout(), Some(Now(10_020)), "it was sent");
    node.on_unsignalled(Now(9_500), &id());
    assert_eq!(node.on_timeout(Now(10_020)), [Effect::Kill(id())]);
    assert_eq!(node.poll_timeout(), None);
    node.on_unsignalled(Now(10_510), &id());
    assert_eq!(node.on_timeout(Now(11_510)), [Effect::Kill(id())]);
    node.on_exit(Now(11_520), &id(), &exit(137, false), "");
    node.on_unsignalled(Now(11_530), &id());
    assert_eq!(node.poll_timeout(), None, "it is gone");
}

#[test]
fn requests_that_never_end_hold_a_drain_only_so_long() {
    let mut node = ready_node();
    node.on_stop(Now(10), &id());
    assert_eq!(node.on_timeout(Now(5_010)), [Effect::Terminate(id())]);
}

#[test]
fn failures_say_why() {
    let fails = |node: &Node, code: &str| {
        let seen = node.seen().next().unwrap();
        assert_eq!(
            (seen.state, seen.failure.unwrap().code.as_str()),
            (InstanceState::Failed, code)
        );
    };
    let gone = [
        Effect::Close(id()),
        Effect::Failed(id()),
        Effect::Remove(id()),
    ];

    let mut early = node();
    early.admit(Now(0), admission("a")).unwrap();
    early.on_prepared(Now(1), &id(), Ok(()));
    early.on_launched(Now(2), &id(), Ok(()));
    assert_eq!(early.on_exit(Now(3), &id(), &exit(1, false), "boom"), gone);
    fails(&early, "Exited");
    assert!(
        early
            .failure(&id())
            .unwrap()
            .message
            .ends_with("last lines:\nboom")
    );

    let mut oom = ready_node();
    assert_eq!(oom.on_exit(Now(9), &id(), &exit(137, true), ""), gone);
    fails(&oom, "OOMKilled");

    let mut silent = node();
    silent.admit(Now(0), admission("a")).unwrap();
    silent.on_prepared(Now(1), &id(), Ok(()));
    silent.on_launched(Now(2), &id(), Ok(()));
    assert_eq!(first(&mut silent, 30_002, false), gone);
    fails(&silent, "NeverReady");
}

#[test]
fn a_stop_while_starting_is_kept_until_the_step_is_done() {
    let mut node = node();
    node.admit(Now(0), admission("a")).unwrap();
    assert_eq!(node.on_stop(Now(1), &id()), (true, vec![]));
    assert_eq!(
        node.on_prepared(Now(2), &id(), Ok(())),
        [Effect::Remove(id())]
    );
}

#[test]
fn admission_checks_every_resource() {
    let mut small = Node::new(
        Resources {
            cpu_millis: 50,
            memory_bytes: 20,
            instances: 2,
        },
        0,
    );
    let refused = small.admit(Now(0), admission("a")).unwrap_err();
    assert_eq!(
        refused,
        Refused::NoRoom(NoRoom::Cpu {
            want: 100,
            free: 50
        })
    );
    let mut full = Node::new(
        Resources {
            cpu_millis: 500,
            memory_bytes: 5,
            instances: 2,
        },
        0,
    );
    let refused = full.admit(Now(0), admission("a")).unwrap_err();
    assert_eq!(
        refused,
        Refused::NoRoom(NoRoom::Memory { want: 10, free: 5 })
    );
    let mut none = Node::new(
        Resources {
            cpu_millis: 500,
            memory_bytes: 50,
            instances: 0,
        },
        0,
    );
    assert_eq!(
        none.admit(Now(0), admission("a")).unwrap_err(),
        Refused::NoRoom(NoRoom::Instances(0))
    );
}

#[test]
fn askers_of_one_moment_share_an_instance_within_what_it_carries() {
    let mut node = node();
    let revision = admission("a").revision;
    assert_eq!(node.share(Now(0), &revision, 1, 10), None);
    let promised = Admission {
        promised: 4,
        ..admission("a")
    };
    node.admit(Now(0), promised).unwrap();
    assert_eq!(node.share(Now(1), &revision, 5, 10), Some(id()));
    assert_eq!(
        node.share(Now(1), &revision, 2, 10),
        None,
        "four, five and two are too many"
    );
    node.on_prepared(Now(1), &id(), Ok(()));
    node.on_launched(Now(2), &id(), Ok(()));
    first(&mut node, 3, true);
    assert_eq!(node.share(Now(2_002), &revision, 1, 10), Some(id()));
    assert_eq!(
        node.share(Now(2_003), &revision, 0, 10),
        None,
        "by now everybody knows it"
    );
    node.on_stop(Now(2_004), &id());
    assert_eq!(node.share(Now(2_004), &revision, 0, 10), None);
}

#[test]
fn an_adopted_instance_is_probed_not_started() {
    let mut node = node();
    assert_eq!(
        node.adopt(Now(0), admission("a")),
        [Effect::Probe {
            id: id(),
            ask: ask(Kind::Readiness, 0),
            after_ms: 0
        }]
    );
    assert_eq!(first(&mut node, 1, true), [Effect::Open(id())]);
}

fn plan(period_ms: u64, failures: u32) -> Plan {
    Plan {
        delay_ms: 0,
        period_ms,
        failures,
        successes: 2,
        floor_ms: 1,
    }
}

/// Ready, with the probes that go on.
fn probed(probes: Probes) -> Node {
    let mut node = node();
    let wanted = Admission {
        probes,
        ..admission("a")
    };
    node.admit(Now(0), wanted).unwrap();
    node.on_prepared(Now(1), &id(), Ok(()));
    node.on_launched(Now(2), &id(), Ok(()));
    let effects = first(&mut node, 3, true);
    assert_eq!(effects[0], Effect::Open(id()));
    node
}

fn answer(node: &mut Node, now: u64, kind: Kind, good: bool) -> Vec<Effect> {
    let said = if good { Ok(()) } else { Err("sick".to_owned()) };
    node.on_probed(Now(now), &id(), ask(kind, 1), said)
}

#[test]
fn a_startup_probe_gates_the_others_and_has_its_own_budget() {
    let mut node = node();
    let probes = Probes {
        startup: Some(plan(10_000, 6)),
        ..Probes::default()
    };
    let wanted = Admission {
        probes,
        ..admission("a")
    };
    node.admit(Now(0), wanted).unwrap();
    node.on_prepared(Now(1), &id(), Ok(()));
    let asks = |kind, after_ms| Effect::Probe {
        id: id(),
        ask: ask(kind, 0),
        after_ms,
    };
    assert_eq!(
        node.on_launched(Now(2), &id(), Ok(())),
        [asks(Kind::Startup, 0)]
    );
    let mut late = node.clone();
    let say =
        |node: &mut Node, now, said| node.on_probed(Now(now), &id(), ask(Kind::Startup, 0), said);
    // Beyond what readiness alone would be given.
    let no = || Err("no".to_owned());
    assert_eq!(say(&mut node, 50_000, no()), [asks(Kind::Startup, 200)]);
    assert_eq!(say(&mut node, 50_200, Ok(())), [asks(Kind::Readiness, 0)]);
    assert_eq!(first(&mut node, 50_201, true), [Effect::Open(id())]);
    say(&mut late, 60_002, no());
    assert_eq!(state(&late), InstanceState::Failed);
}

#[test]
fn an_instance_that_is_not_ready_any_more_is_shut_and_reopened() {
    let mut node = probed(Probes {
        readiness: Some(plan(1_000, 2)),
        ..Probes::default()
    });
    let again = Effect::Probe {
        id: id(),
        ask: ask(Kind::Readiness, 1),
        after_ms: 1_000,
    };
    assert_eq!(
        answer(&mut node, 1_000, Kind::Readiness, false),
        std::slice::from_ref(&again)
    );
    assert_eq!(
        answer(&mut node, 2_000, Kind::Readiness, false),
        [again.clone(), Effect::Shut(id())]
    );
    assert_eq!(state(&node), InstanceState::Starting);
    answer(&mut node, 3_000, Kind::Readiness, true);
    assert_eq!(
        answer(&mut node, 4_000, Kind::Readiness, true),
        [again, Effect::Reopen(id())]
    );
    assert_eq!(state(&node), InstanceState::Ready);
    answer(&mut node, 5_000, Kind::Readiness, false);
    answer(&mut node, 6_000, Kind::Readiness, false);
    let ended = node.on_timeout(Now(6_000 + UNREADY_MOST_MS));
    assert!(ended.contains(&Effect::Terminate(id())), "{ended:?}");
}

#[test]
fn an_instance_that_its_liveness_probe_gives_up_ends_in_its_own_way() {
    let mut node = probed(Probes {
        liveness: Some(plan(1_000, 3)),
        ..Probes::default()
    });
    for (now, good) in [(1, false), (2, false), (3, true), (4, false), (5, false)] {
        assert_eq!(
            answer(&mut node, now * 1_000, Kind::Liveness, good).len(),
            1
        );
    }
    assert_eq!(
        answer(&mut node, 6_000, Kind::Liveness, false),
        [
            Effect::Close(id()),
            Effect::Failed(id()),
            Effect::Terminate(id())
        ]
    );
    let told = node.failure(&id()).unwrap();
    assert_eq!(told.code, UNHEALTHY);
    assert!(told.message.ends_with("sick"), "{told:?}");
    assert_eq!(node.on_timeout(Now(16_000)), [Effect::Kill(id())]);
    assert_eq!(
        node.on_exit(Now(16_001), &id(), &exit(137, false), ""),
        [Effect::Remove(id())]
    );
    assert_eq!(state(&node), InstanceState::Failed);
}

#[test]
fn an_idle_instance_is_frozen_and_probed_again_once_thawed() {
    let mut node = probed(Probes {
        liveness: Some(plan(1_000, 1)),
        ..Probes::default()
    });
    assert_eq!(node.on_idle(&id(), FREEZE_AFTER_MS - 1), []);
    assert_eq!(node.on_idle(&id(), FREEZE_AFTER_MS), [Effect::Freeze(id())]);
    assert_eq!(node.on_idle(&id(), FREEZE_AFTER_MS), [], "asked already");
    assert_eq!(
        answer(&mut node, 10_001, Kind::Liveness, false),
        [],
        "asked before it was frozen"
    );
    node.on_frozen(Now(10_002), &id(), Froze::Still);
    assert_eq!(state(&node), InstanceState::Frozen);
    let asked = Effect::Probe {
        id: id(),
        ask: ask(Kind::Liveness, 3),
        after_ms: 1_000,
    };
    assert_eq!(node.on_thawed(Now(20_000), &id()), [asked]);
    assert_eq!(state(&node), InstanceState::Ready);
    node.on_idle(&id(), FREEZE_AFTER_MS);
    assert_eq!(node.on_frozen(Now(40_000), &id(), Froze::Busy).len(), 1);
    assert_eq!(state(&node), InstanceState::Ready);
    node.on_idle(&id(), FREEZE_AFTER_MS);
    node.on_frozen(Now(50_000), &id(), Froze::Cannot);
    assert_eq!(node.on_idle(&id(), FREEZE_AFTER_MS), [], "it cannot be");
}

#[test]
fn a_frozen_instance_is_closed_before_it_is_told_to_end() {
    let mut node = ready_node();
    node.on_idle(&id(), FREEZE_AFTER_MS);
    node.on_frozen(Now(10), &id(), Froze::Still);
    assert_eq!(
        node.on_stop(Now(11), &id()),
        (true, vec![Effect::Close(id())])
    );
    assert_eq!(node.on_drained(Now(12), &id()), [Effect::Terminate(id())]);
}

#[test]
fn a_revision_that_fails_in_a_row_is_refused_for_a_while() {
    let mut node = node();
    let crash = |node: &mut Node, now: u64| {
        let (id, _) = node.admit(Now(now), admission(&format!("i{now}"))).unwrap();
        node.on_prepared(Now(now), &id, Ok(()));
        node.on_launched(Now(now), &id, Ok(()));
        node.on_exit(Now(now + 1), &id, &exit(1, false), "boom");
        node.on_removed(Now(now + 2), &id);
        node.failure(&id).unwrap().code.clone()
    };
    assert_eq!(crash(&mut node, 1_000), "Exited");
    assert_eq!(crash(&mut node, 3_000), CRASH_LOOP);
    let Err(Refused::CrashLoop(why)) = node.admit(Now(13_000), admission("x")) else {
        panic!("it was taken");
    };
    assert!(why.message.ends_with("boom"), "{why:?}");
    assert_eq!(crash(&mut node, 13_001), CRASH_LOOP);
    node.on_timeout(Now(33_001));
    assert_eq!(node.seen().count(), 3, "all are told about");
    node.admit(Now(33_002), admission("y")).unwrap();
}

#[test]
fn an_instance_that_served_and_went_with_its_shim_does_not_count() {
    let lost = Exit {
        lost: true,
        ..exit(255, false)
    };
    let mut node = node();
    let mut lose = |now: u64, served: bool| {
        let (id, _) = node.admit(Now(now), admission(&format!("i{now}"))).unwrap();
        node.on_prepared(Now(now), &id, Ok(()));
        node.on_launched(Now(now), &id, Ok(()));
        if served {
            node.on_probed(Now(now), &id, ask(Kind::Readiness, 0), Ok(()));
        }
        node.on_exit(Now(now + 1), &id, &lost, "");
        node.on_removed(Now(now + 2), &id);
        node.failure(&id).unwrap().code.clone()
    };
    for now in [1_000, 3_000, 5_000] {
        assert_eq!(lose(now, true), SHIM_LOST);
    }
    // Shims that do not live until it is ready would be started without end.
    assert_eq!(lose(7_000, false), "Exited");
    assert_eq!(lose(9_000, false), CRASH_LOOP);
}

#[test]
fn one_that_is_frozen_for_long_gives_back_memory_once_for_each_sleep() {
    let mut node = probed(Probes::default());
    let sleep = |node: &mut Node, from: u64| {
        node.on_idle(&id(), FREEZE_AFTER_MS);
        node.on_frozen(Now(from), &id(), Froze::Still);
        let rests: Vec<u64> = (0..3_600)
            .filter(|second| !node.rest(Now(from + second * 1000)).is_empty())
            .collect();
        rests
    };
    let first = sleep(&mut node, 20_000);
    assert!(first.len() == 1 && first[0] > 0, "{first:?}");
    node.on_thawed(Now(5_000_000), &id());
    assert_eq!(node.rest(Now(9_000_000)), [], "it is not frozen");
    assert_eq!(sleep(&mut node, 9_000_000), first, "again");
}
