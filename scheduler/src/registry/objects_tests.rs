//! Configs, secrets and local volumes: what is taken in, what a change needs, what goes with what.

use super::objects::limits;
use super::tests::{done, founded, key as service, put, run};
use super::*;
use crate::model::{Blob, Name, NodeId, Sealed, Volume, VolumeSource};

fn key(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: Name::default_namespace(),
        name: Name::new(name).unwrap(),
    }
}

fn data(pairs: &[(&str, usize)]) -> BTreeMap<String, Blob> {
    let pair = |(key, size): &(&str, usize)| ((*key).to_owned(), Blob(vec![7; *size]));
    pairs.iter().map(pair).collect()
}

fn config(name: &str, pairs: &[(&str, usize)], if_version: Option<u64>) -> Action {
    Action::PutConfig {
        key: key(name),
        data: data(pairs),
        if_version,
    }
}

fn secret(name: &str, nonce: usize, text: usize) -> Action {
    let sealed = Sealed {
        upon: 0,
        nonce: Blob(vec![1; nonce]),
        text: Blob(vec![2; text]),
    };
    Action::PutSecret {
        key: key(name),
        data: [("password".to_owned(), sealed)].into(),
        if_version: None,
    }
}

#[test]
fn a_config_is_put_compared_and_deleted() {
    let mut state = founded();
    let Outcome::Version(first) = done(run(&mut state, 1, config("app", &[("a", 3)], Some(0))))
    else {
        panic!("no version");
    };
    assert_eq!(first, state.index);
    let again = done(run(&mut state, 1, config("app", &[("a", 3)], None)));
    assert_eq!(again, Outcome::Version(first), "the same is no change");
    let stale = run(&mut state, 1, config("app", &[("a", 4)], Some(0)));
    assert!(matches!(stale, Reply::Refused(Refusal::Conflict { found, .. }) if found == first));
    let next = done(run(&mut state, 1, config("app", &[("b", 4)], Some(first))));
    assert_eq!(next, Outcome::Version(first + 1));
    assert_eq!(state.configs[&key("app")].data, data(&[("b", 4)]), "whole");
    done(run(&mut state, 1, Action::DeleteConfig { key: key("app") }));
    assert!(state.configs.is_empty());
    let gone = run(&mut state, 1, Action::DeleteConfig { key: key("app") });
    assert!(matches!(gone, Reply::Refused(Refusal::NotFound(_))));
}

#[test]
fn what_is_no_config_is_refused_with_the_reason() {
    let long = "k".repeat(254);
    let table: [(&[(&str, usize)], &str); 8] = [
        (&[("", 1)], "is no key"),
        (&[("a/b", 1)], "is no key"),
        (&[(".", 1)], "is no key"),
        (&[("..data", 1)], "is no key"),
        (&[("a b", 1)], "is no key"),
        (&[(&long, 1)], "is no key"),
        (&[("big", limits::OBJECT_BYTES)], "above 1 MiB"),
        (&[(".env", 1), ("nginx.conf", 9)], ""),
    ];
    for (pairs, reason) in table {
        match run(&mut founded(), 1, config("app", pairs, None)) {
            Reply::Refused(refusal) => {
                let text = refusal.to_string();
                assert!(!reason.is_empty() && text.contains(reason), "{text}");
            }
            Reply::Done { .. } => assert_eq!(reason, "", "{pairs:?}"),
        }
    }
    let keys: Vec<String> = (0..=limits::OBJECT_KEYS).map(|n| n.to_string()).collect();
    let many: Vec<_> = keys.iter().map(|k| (k.as_str(), 1)).collect();
    let reply = run(&mut founded(), 1, config("app", &many, None));
    assert!(matches!(reply, Reply::Refused(Refusal::Invalid { .. })));
}

#[test]
fn all_objects_together_have_a_bound() {
    let mut state = founded();
    let most = limits::OBJECT_BYTES - 1;
    let whole = limits::TOTAL_BYTES / limits::OBJECT_BYTES;
    for n in 0..whole {
        done(run(
            &mut state,
            1,
            config(&format!("c-{n}"), &[("k", most)], None),
        ));
    }
    let beyond = run(&mut state, 1, config("one-more", &[("k", 1)], None));
    assert!(matches!(beyond, Reply::Refused(Refusal::Invalid { .. })));
    // One that takes the place of another of its size is none more.
    let other = config("c-0", &[("l", most)], None);
    done(run(&mut state, 1, other));
}

#[test]
fn only_sealed_values_become_a_secret() {
    let mut state = founded();
    for (nonce, text) in [(0, 40), (12, 40), (24, 15)] {
        let reply = run(&mut state, 1, secret("db", nonce, text));
        assert!(matches!(reply, Reply::Refused(Refusal::Invalid { .. })));
    }
    done(run(&mut state, 1, secret("db", 24, 16)));
    assert_eq!(state.secrets.len(), 1);
}

#[test]
fn a_local_volume_has_one_place_and_goes_when_nobody_needs_it() {
    let mut state = founded();
    let claim = |node| Action::ClaimVolume {
        key: key("db"),
        node: NodeId(node),
    };
    let missing = run(&mut state, 1, claim(9));
    assert!(matches!(missing, Reply::Refused(Refusal::NotFound(_))));
    let first = done(run(&mut state, 1, claim(1)));
    let Outcome::Volume(volume) = &first else {
        panic!("no volume");
    };
    assert_eq!((volume.node, volume.claimed), (NodeId(1), state.index));
    assert_eq!(done(run(&mut state, 1, claim(1))), first);

    let mut with = put("web", 'a');
    with.spec.volumes.push(Volume {
        name: "data".to_owned(),
        source: VolumeSource::Local {
            name: "db".to_owned(),
        },
    });
    done(run(&mut state, 1, Action::PutService(Box::new(with))));
    let delete = || Action::DeleteVolume { key: key("db") };
    let used = run(&mut state, 1, delete());
    let Reply::Refused(Refusal::InUse { by, .. }) = used else {
        panic!("{used:?}");
    };
    assert_eq!(by, "service default/web");
    let gone = Action::DeleteService {
        key: service("web"),
    };
    done(run(&mut state, 1, gone));
    done(run(&mut state, 1, delete()));
    let anew = done(run(&mut state, 1, claim(1)));
    assert_ne!(anew, first, "another volume of the same name");
}
