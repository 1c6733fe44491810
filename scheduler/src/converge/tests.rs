use proptest::prelude::*;

use super::*;
use crate::model::{Name, UnixMs};

const NEEDS: Resources = Resources {
    cpu_millis: 100,
    memory_bytes: 10,
    instances: 1,
};

fn admission(id: &str) -> Admission {
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
        port: 8080,
        promised: 0,
        start_deadline_ms: 30_000,
        drain_ms: 5_000,
        grace_ms: 10_000,
    }
}

fn node() -> Node {
    Node::new(Resources {
        cpu_millis: 200,
        memory_bytes: 20,
        instances: 2,
    })
}

fn id() -> InstanceId {
    InstanceId("a".to_owned())
}

fn exit(code: i32, oom: bool) -> Exit {
    Exit {
        code,
        signal: None,
        oom,
        at: UnixMs(0),
    }
}

fn ready_node() -> Node {
    let mut node = node();
    node.admit(Now(0), admission("a")).unwrap();
    node.on_prepared(Now(1), &id(), Ok(()));
    node.on_launched(Now(2), &id(), Ok(()));
    assert_eq!(node.on_probe(Now(3), &id(), true), [Effect::Open(id())]);
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
        [Effect::Prepare(id())]
    );
    assert_eq!(
        node.on_prepared(Now(5), &id(), Ok(())),
        [Effect::Launch(id())]
    );
    let probe = |after_ms| Effect::Probe { id: id(), after_ms };
    assert_eq!(node.on_launched(Now(9), &id(), Ok(())), [probe(0)]);
    assert_eq!(node.on_probe(Now(10), &id(), false), [probe(1)]);
    assert_eq!(node.on_probe(Now(9 + 600), &id(), false), [probe(25)]);
    assert_eq!(state(&node), InstanceState::Starting);
    assert_eq!(node.on_probe(Now(700), &id(), true), [Effect::Open(id())]);
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
    silent.heard(&id(), "tcp 10.0.0.2:81: connection refused".to_owned());
    assert_eq!(silent.on_probe(Now(30_002), &id(), false), gone);
    fails(&silent, "NeverReady");
    let message = &silent.failure(&id()).unwrap().message;
    assert!(message.ends_with("Last probe: tcp 10.0.0.2:81: connection refused"));
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
    let mut small = Node::new(Resources {
        cpu_millis: 50,
        memory_bytes: 20,
        instances: 2,
    });
    let refused = small.admit(Now(0), admission("a")).unwrap_err();
    assert_eq!(
        refused,
        NoRoom::Cpu {
            want: 100,
            free: 50
        }
    );
    let mut full = Node::new(Resources {
        cpu_millis: 500,
        memory_bytes: 5,
        instances: 2,
    });
    let refused = full.admit(Now(0), admission("a")).unwrap_err();
    assert_eq!(refused, NoRoom::Memory { want: 10, free: 5 });
    let mut none = Node::new(Resources {
        cpu_millis: 500,
        memory_bytes: 50,
        instances: 0,
    });
    assert_eq!(
        none.admit(Now(0), admission("a")).unwrap_err(),
        NoRoom::Instances(0)
    );
}

#[test]
fn askers_of_one_moment_share_an_instance_within_what_it_carries() {
    let mut node = node();
    let revision = admission("a").revision;
    assert_eq!(node.share(Now(0), &revision, 1, 10), None);
    let first = Admission {
        promised: 4,
        ..admission("a")
    };
    node.admit(Now(0), first).unwrap();
    assert_eq!(node.share(Now(1), &revision, 5, 10), Some(id()));
    assert_eq!(
        node.share(Now(1), &revision, 2, 10),
        None,
        "four, five and two are too many"
    );
    node.on_prepared(Now(1), &id(), Ok(()));
    node.on_launched(Now(2), &id(), Ok(()));
    node.on_probe(Now(3), &id(), true);
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
            after_ms: 0
        }]
    );
    assert_eq!(node.on_probe(Now(1), &id(), true), [Effect::Open(id())]);
}

#[derive(Debug, Clone)]
enum Input {
    Prepared(bool),
    Launched(bool),
    Probe(bool),
    Exit,
    Stop,
    Drained,
    Removed,
    Timeout,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        any::<bool>().prop_map(Input::Prepared),
        any::<bool>().prop_map(Input::Launched),
        any::<bool>().prop_map(Input::Probe),
        Just(Input::Exit),
        Just(Input::Stop),
        Just(Input::Drained),
        Just(Input::Removed),
        Just(Input::Timeout),
    ]
}

fn outcome(ok: bool) -> Result<(), FailReason> {
    if ok {
        Ok(())
    } else {
        Err(FailReason {
            code: "X".into(),
            message: String::new(),
        })
    }
}

proptest! {
    /// Whatever happens in whatever order: an open instance is closed before it is terminated, is
    /// removed exactly once, and gives back what it took.
    #[test]
    fn closed_before_terminated_and_removed_once(inputs in prop::collection::vec(input(), 0..40)) {
        let mut node = node();
        let mut effects = node.admit(Now(0), admission("a")).unwrap();
        let mut now = 0;
        for input in inputs {
            now += 1_000;
            let at = Now(now);
            effects.extend(match input {
                Input::Prepared(ok) => node.on_prepared(at, &id(), outcome(ok)),
                Input::Launched(ok) => node.on_launched(at, &id(), outcome(ok)),
                Input::Probe(ok) => node.on_probe(at, &id(), ok),
                Input::Exit => node.on_exit(at, &id(), &exit(0, false), ""),
                Input::Stop => node.on_stop(at, &id()).1,
                Input::Drained => node.on_drained(at, &id()),
                Input::Removed => { node.on_removed(at, &id()); vec![] }
                Input::Timeout => node.on_timeout(at),
            });
        }
        let position = |wanted: &Effect| effects.iter().position(|e| e == wanted);
        if let (Some(open), Some(end)) =
            (position(&Effect::Open(id())), position(&Effect::Terminate(id())))
        {
            let close = position(&Effect::Close(id()));
            prop_assert!(close.is_some_and(|c| open < c && c < end), "{effects:?}");
        }
        let removals = effects.iter().filter(|e| **e == Effect::Remove(id())).count();
        prop_assert!(removals <= 1);
        let ended = node.seen().next().is_none_or(|s| {
            matches!(s.state, InstanceState::Stopped | InstanceState::Failed)
        });
        if ended {
            prop_assert_eq!(removals, 1);
            node.on_removed(Now(now), &id());
            prop_assert_eq!(node.free(), node.capacity());
        }
    }
}
