//! Commands and what they come to.

use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::model::{
    Blob, Container, ImagePin, Name, RevisionSpec, RevisionState, Role, Scale, TrafficTarget,
    UnixMs,
};

pub(super) const HOUR: u64 = 3_600_000;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn key(text: &str) -> ServiceKey {
    ServiceKey {
        namespace: Name::default_namespace(),
        name: name(text),
    }
}

fn rev(text: &str) -> RevisionKey {
    RevisionKey {
        namespace: Name::default_namespace(),
        name: name(text),
    }
}

fn pin(digit: char) -> ImagePin {
    ImagePin {
        reference: "registry.example/web:1".to_owned(),
        digest: format!("sha256:{}", digit.to_string().repeat(64)),
    }
}

pub(super) fn put(service: &str, digit: char) -> PutService {
    PutService {
        key: key(service),
        spec: RevisionSpec {
            containers: vec![Container {
                image: "web:1".to_owned(),
                ..Container::default()
            }],
            ..RevisionSpec::default()
        },
        image: pin(digit),
        scale: Scale::default(),
        traffic: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        uid: format!("uid-{service}"),
        if_version: None,
    }
}

pub(super) fn node(label: &str, byte: u8) -> NodeIdentity {
    NodeIdentity {
        id: NodeId(99),
        name: name(label),
        region: name("eu-west"),
        zone: name("par"),
        mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 8422)),
        public_key: vec![byte; 32],
        role: Role::Follower,
        enrolled: UnixMs(0),
        revoked: true,
        cordoned: false,
        draining: false,
    }
}

pub(super) fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

pub(super) fn run(state: &mut State, at: u64, action: Action) -> Reply {
    let command = Command {
        at: UnixMs(at),
        action,
    };
    state.apply(&command).0
}

#[track_caller]
pub(super) fn done(reply: Reply) -> Outcome {
    match reply {
        Reply::Done { outcome, .. } => outcome,
        Reply::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

#[track_caller]
pub(super) fn refused(reply: Reply) -> String {
    match reply {
        Reply::Refused(refusal) => refusal.to_string(),
        Reply::Done { outcome, .. } => panic!("done: {outcome:?}"),
    }
}

#[track_caller]
fn deploy(state: &mut State, put: PutService) -> (Service, Option<RevisionKey>) {
    match done(run(state, 1, Action::PutService(Box::new(put)))) {
        Outcome::Service {
            service,
            created_revision,
        } => (*service, created_revision),
        other => panic!("{other:?}"),
    }
}

pub(super) fn founded() -> State {
    let mut state = State::default();
    let cluster = ClusterMeta {
        id: "c".to_owned(),
        ca_hash: hash('c'),
        created: UnixMs(0),
    };
    let founder = node("par-1", 1);
    done(run(
        &mut state,
        0,
        Action::FoundCluster { cluster, founder },
    ));
    state
}

#[test]
fn the_founder_is_the_first_node_and_votes() {
    let mut state = founded();
    let founder = &state.nodes[&NodeId(1)];
    assert_eq!((founder.role, founder.revoked), (Role::Voter, false));
    let cluster = state.cluster.clone().unwrap();
    let founder = node("other", 2);
    let again = run(&mut state, 0, Action::FoundCluster { cluster, founder });
    assert_eq!(again, Reply::Refused(Refusal::AlreadyFounded));
    assert_eq!(state.index, 1);
}

#[test]
fn a_put_makes_a_revision_only_when_template_or_image_change() {
    let mut state = State::default();
    let (service, created) = deploy(&mut state, put("web", 'a'));
    assert_eq!(created, Some(rev("web-00001")));
    assert_eq!(
        (service.meta.generation, service.meta.resource_version),
        (1, 1)
    );
    assert_eq!(service.meta.uid, "uid-web");

    let (same, created) = deploy(&mut state, put("web", 'a'));
    assert_eq!((&same, created, state.index), (&service, None, 1));

    let mut labelled = put("web", 'a');
    labelled.labels.insert("team".to_owned(), "a".to_owned());
    labelled.scale.max = 3;
    let (service, created) = deploy(&mut state, labelled.clone());
    assert_eq!(
        (created, service.meta.generation, state.index),
        (None, 1, 2)
    );

    labelled.image = pin('b');
    let (service, created) = deploy(&mut state, labelled.clone());
    assert_eq!(created, Some(rev("web-00002")));
    assert_eq!(service.status.latest_created, created);
    assert_eq!(
        state.revisions[&rev("web-00001")].image,
        pin('a'),
        "immutable"
    );

    labelled.spec.timeout_seconds = 7;
    labelled.uid = "other".to_owned();
    let (service, created) = deploy(&mut state, labelled);
    assert_eq!(created, Some(rev("web-00003")));
    assert_eq!(service.meta.uid, "uid-web");
}

#[test]
fn the_same_put_after_a_failure_is_tried_anew() {
    let mut state = State::default();
    deploy(&mut state, put("web", 'a'));
    let failed = Action::MarkFailed {
        revision: rev("web-00001"),
        reason: "ImagePull".to_owned(),
        message: "registry away".to_owned(),
    };
    done(run(&mut state, 2, failed));
    let (_, created) = deploy(&mut state, put("web", 'a'));
    assert_eq!(created, Some(rev("web-00002")));
}

#[test]
fn a_compare_and_set_refuses_what_changed_meanwhile() {
    let mut state = State::default();
    let with = |version| PutService {
        if_version: Some(version),
        image: pin(char::from_digit(u32::try_from(version).unwrap(), 10).unwrap()),
        ..put("web", '0')
    };
    deploy(&mut state, with(0));
    for (version, text) in [
        (
            0,
            "service default/web was changed meanwhile: expected version 0, found 1",
        ),
        (
            2,
            "service default/web was changed meanwhile: expected version 2, found 1",
        ),
    ] {
        let reply = run(&mut state, 1, Action::PutService(Box::new(with(version))));
        assert_eq!(refused(reply), text);
    }
    let mark = Action::MarkReady {
        revision: rev("web-00001"),
    };
    done(run(&mut state, 1, mark));
    deploy(&mut state, with(1));
    let mut absent = with(4);
    absent.key = key("api");
    let reply = run(&mut state, 1, Action::PutService(Box::new(absent)));
    assert!(refused(reply).ends_with("expected version 4, found 0"));
}

#[test]
fn ready_moves_forward_only_and_is_decided_once() {
    let mut state = State::default();
    for digit in ['a', 'b', 'c'] {
        deploy(&mut state, put("web", digit));
    }
    let ready = |state: &mut State, revision: &str| {
        let revision = rev(revision);
        done(run(state, 1, Action::MarkReady { revision }));
        state.services[&key("web")]
            .status
            .latest_ready
            .clone()
            .unwrap()
    };
    assert_eq!(ready(&mut state, "web-00002"), rev("web-00002"));
    assert_eq!(ready(&mut state, "web-00001"), rev("web-00002"), "older");
    let fail = |revision: &str| Action::MarkFailed {
        revision: rev(revision),
        reason: "Exited".to_owned(),
        message: "x".repeat(10_000),
    };
    let index = state.index;
    done(run(&mut state, 1, fail("web-00002")));
    assert_eq!(state.index, index, "ready stays ready");
    done(run(&mut state, 1, fail("web-00003")));
    let failed = &state.revisions[&rev("web-00003")].state;
    assert!(matches!(failed, RevisionState::Failed { message, .. } if message.len() == 4096));
    assert_eq!(
        ready(&mut state, "web-00003"),
        rev("web-00002"),
        "failed stays failed"
    );
    let revision = rev("web-00009");
    let reply = run(&mut state, 1, Action::MarkReady { revision });
    assert_eq!(refused(reply), "revision default/web-00009 does not exist");
}

#[test]
fn old_revisions_go_unless_something_needs_them() {
    let mut state = State::default();
    for generation in 1_u32..=40 {
        let mut put = put("web", 'a');
        put.spec.timeout_seconds = generation;
        if generation >= 4 {
            put.traffic = vec![
                TrafficTarget {
                    revision: Some(name("web-00003")),
                    percent: 100,
                    tag: None,
                },
                TrafficTarget {
                    revision: Some(name("web-00004")),
                    percent: 0,
                    tag: None,
                },
            ];
        }
        deploy(&mut state, put);
        if generation == 2 {
            let revision = rev("web-00002");
            done(run(&mut state, 1, Action::MarkReady { revision }));
        }
    }
    let kept: Vec<_> = state.revisions.values().map(|r| r.generation).collect();
    let expected: Vec<_> = (2..=4).chain(21..=40).collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_service_made_anew_never_reuses_a_revision_name() {
    let mut state = State::default();
    deploy(&mut state, put("web", 'a'));
    deploy(&mut state, put("web", 'b'));
    let delete = || Action::DeleteService { key: key("web") };
    done(run(&mut state, 1, delete()));
    assert!(state.services.is_empty() && state.revisions.is_empty());
    let reply = run(&mut state, 1, delete());
    assert_eq!(refused(reply), "service default/web does not exist");
    let (_, created) = deploy(&mut state, put("web", 'a'));
    assert_eq!(created, Some(rev("web-00003")));
    assert!(state.retired.is_empty());
}

#[test]
fn traffic_adds_up_and_names_what_exists() {
    let mut state = State::default();
    deploy(&mut state, put("web", 'a'));
    deploy(&mut state, put("api", 'a'));
    let target = |revision: Option<&str>, percent, tag: Option<&str>| TrafficTarget {
        revision: revision.map(name),
        percent,
        tag: tag.map(name),
    };
    let set = |state: &mut State, traffic| {
        let key = key("web");
        run(state, 1, Action::SetTraffic { key, traffic })
    };
    for (traffic, message) in [
        (
            vec![target(None, 99, None)],
            "traffic: adds up to 99 percent, not to 100",
        ),
        (
            vec![target(Some("web-00002"), 100, None)],
            "traffic: web has no revision `web-00002`",
        ),
        (
            vec![target(Some("api-00001"), 100, None)],
            "traffic: web has no revision `api-00001`",
        ),
        (
            vec![target(None, 50, Some("a")), target(None, 50, Some("a"))],
            "traffic: tag `a` is given twice",
        ),
    ] {
        assert_eq!(refused(set(&mut state, traffic)), message);
    }
    let index = state.index;
    done(set(&mut state, Vec::new()));
    assert_eq!(state.index, index, "as it was");
    done(set(
        &mut state,
        vec![target(Some("web-00001"), 100, Some("blue"))],
    ));
    assert_eq!(state.services[&key("web")].meta.resource_version, index + 1);
    let mut own = put("new", 'a');
    own.traffic = vec![target(Some("new-00001"), 100, None)];
    deploy(&mut state, own);
}

#[test]
fn scale_is_set_and_bounded() {
    let mut state = State::default();
    deploy(&mut state, put("web", 'a'));
    let set = |state: &mut State, min, max| {
        let scale = Scale {
            min,
            max,
            ..Scale::default()
        };
        let key = key("web");
        run(state, 1, Action::SetScale { key, scale })
    };
    assert_eq!(
        refused(set(&mut state, 3, 2)),
        "scale: min 3 is above max 2"
    );
    done(set(&mut state, 2, 3));
    assert_eq!(state.services[&key("web")].scale.min, 2);
    assert_eq!(state.revisions.len(), 1);
}

fn any_put() -> impl Strategy<Value = Action> {
    let service = prop_oneof![Just("a"), Just("b"), Just("a-00001")];
    let versions = prop_oneof![4 => Just(None), 1 => (0_u64..6).prop_map(Some)];
    let traffic = prop_oneof![
        3 => Just(None),
        1 => prop_oneof![Just("a-00001"), Just("a-00002")].prop_map(Some)
    ];
    (service, 0_u8..3, versions, 0_u32..3, traffic).prop_map(|(s, image, version, max, traffic)| {
        let mut put = put(s, char::from(b'a' + image));
        put.if_version = version;
        put.scale.max = max;
        put.traffic.extend(traffic.map(|revision| TrafficTarget {
            revision: Some(name(revision)),
            percent: 100,
            tag: None,
        }));
        Action::PutService(Box::new(put))
    })
}

fn object(text: &str) -> ObjectKey {
    ObjectKey {
        namespace: Name::default_namespace(),
        name: name(text),
    }
}

fn any_action() -> impl Strategy<Value = Action> {
    let revision = prop_oneof![Just("a-00001"), Just("a-00002"), Just("b-00001")].prop_map(rev);
    let digit = prop_oneof![Just('1'), Just('2'), Just('3'), Just('4')];
    prop_oneof![
        6 => any_put(),
        1 => Just(Action::DeleteService { key: key("a") }),
        2 => revision.clone().prop_map(|revision| Action::MarkReady { revision }),
        1 => revision.prop_map(|revision| Action::MarkFailed {
            revision,
            reason: "Exited".to_owned(),
            message: String::new(),
        }),
        1 => (0_u32..4).prop_map(|min| Action::SetScale {
            key: key("a"),
            scale: Scale { min, max: 2, ..Scale::default() },
        }),
        2 => digit.clone().prop_map(|d| Action::CreateToken {
            hash: hash(d),
            expires: UnixMs(50 * HOUR),
        }),
        2 => (digit, 2_u8..7).prop_map(|(d, byte)| Action::Enroll {
            token_hash: hash(d),
            node: node(&format!("n-{byte}"), byte),
        }),
        1 => (1_u64..5).prop_map(|id| Action::RemoveNode { node: NodeId(id) }),
        2 => (0_u8..3).prop_map(|byte| Action::PutConfig {
            key: object("app"),
            data: [("a".to_owned(), Blob(vec![byte]))].into(),
            if_version: None,
        }),
        1 => Just(Action::DeleteConfig { key: object("app") }),
        2 => (1_u64..5).prop_map(|id| Action::ClaimVolume {
            key: object("db"),
            node: NodeId(id),
        }),
        1 => Just(Action::DeleteVolume { key: object("db") }),
    ]
}

proptest! {
    #[test]
    fn following_is_applying(
        actions in prop::collection::vec((0_u64..100, any_action()), 1..80),
        resend in any::<bool>(),
    ) {
        let mut leader = founded();
        let mut follower = leader.clone();
        for (hour, action) in actions {
            let before = leader.clone();
            let command = Command { at: UnixMs(hour * HOUR), action };
            let (reply, changes) = leader.apply(&command);
            if let Reply::Refused(_) = &reply {
                prop_assert!(changes.is_empty());
                prop_assert_eq!(&leader, &before);
            }
            prop_assert_eq!(leader.index, before.index + u64::from(!changes.is_empty()));
            if changes.is_empty() {
                prop_assert_eq!(&leader, &before);
            } else {
                follower.follow(leader.index, &changes);
                if resend {
                    follower.follow(leader.index, &changes);
                }
            }
            prop_assert_eq!(&leader, &follower);
            check(&leader)?;
        }
        let text = serde_json::to_string(&leader).unwrap();
        prop_assert_eq!(serde_json::from_str::<State>(&text).unwrap(), leader);
    }
}

/// What holds in every state.
fn check(state: &State) -> Result<(), TestCaseError> {
    for service in state.services.values() {
        let mut named: Vec<_> = service.routed().into_iter().collect();
        named.extend(service.status.latest_created.clone());
        named.extend(service.status.latest_ready.clone());
        for key in named {
            let revision = state.revisions.get(&key);
            prop_assert!(revision.is_some_and(|r| r.service == service.key), "{key}");
        }
    }
    for revision in state.revisions.values() {
        prop_assert!(state.services.contains_key(&revision.service));
    }
    let valid: Vec<_> = state.nodes.values().filter(|n| !n.revoked).collect();
    let names: BTreeSet<_> = valid.iter().map(|n| &n.name).collect();
    prop_assert_eq!(names.len(), valid.len());
    let voters = valid.iter().filter(|n| n.role == Role::Voter).count();
    prop_assert!((1..=3).contains(&voters), "{voters} voters");
    for volume in state.volumes.values() {
        let holder = valid.iter().find(|n| n.id == volume.node);
        prop_assert!(holder.is_some(), "{} is nowhere", volume.key);
    }
    Ok(())
}

#[test]
fn a_port_is_one_service_s_over_all_its_revisions() {
    let listen = |port| {
        vec![crate::model::Listen {
            port,
            ..crate::model::Listen::default()
        }]
    };
    let mut state = State::default();
    let mut db = put("db", 'a');
    db.spec.listen = listen(5432);
    done(run(&mut state, 1, Action::PutService(Box::new(db.clone()))));
    let first = rev("db-00001");
    done(run(
        &mut state,
        2,
        Action::MarkReady {
            revision: first.clone(),
        },
    ));
    let mut other = put("other", 'a');
    other.spec.listen = listen(5432);
    let put_other = || Action::PutService(Box::new(other.clone()));
    let taken = "listen.port: 5432/tcp is the service default/db's";
    assert_eq!(refused(run(&mut state, 3, put_other())), taken);
    // Asked for no more, but the revision that has it still takes requests.
    db.spec.listen.clear();
    done(run(&mut state, 4, Action::PutService(Box::new(db.clone()))));
    assert_eq!(refused(run(&mut state, 5, put_other())), taken);
    let revision = rev("db-00002");
    done(run(&mut state, 6, Action::MarkReady { revision }));
    done(run(&mut state, 7, put_other()));
    // And now it cannot go back to it, in either way.
    db.traffic = vec![TrafficTarget {
        revision: Some(first.name),
        percent: 100,
        tag: None,
    }];
    let back = Action::SetTraffic {
        key: key("db"),
        traffic: db.traffic.clone(),
    };
    let taken = "listen.port: 5432/tcp is the service default/other's";
    assert_eq!(refused(run(&mut state, 8, back)), taken);
    let back = Action::PutService(Box::new(db));
    assert_eq!(refused(run(&mut state, 9, back)), taken);
}

#[test]
fn an_address_is_kept_until_its_service_goes() {
    let mut state = State::default();
    let address = |state: &State| state.services[&key("web")].meta.address.unwrap();
    done(run(
        &mut state,
        1,
        Action::PutService(Box::new(put("web", 'a'))),
    ));
    let first = address(&state);
    assert!(state.addresses.contains(&first));
    done(run(
        &mut state,
        2,
        Action::PutService(Box::new(put("web", 'b'))),
    ));
    assert_eq!(address(&state), first);
    done(run(
        &mut state,
        3,
        Action::DeleteService { key: key("web") },
    ));
    assert!(state.addresses.is_empty());
}
