//! What is written down is read again, also by the next daemon.

use std::fs;

use scheduler::model::{Name, NodeId};
use scheduler::place::{Inputs, Passed, Rejection, Verdict};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn keys(service: &str) -> (ServiceKey, RevisionKey) {
    let namespace = Name::default_namespace();
    let revision = name(&format!("{service}-00001"));
    (
        ServiceKey {
            namespace: namespace.clone(),
            name: name(service),
        },
        RevisionKey {
            namespace,
            name: revision,
        },
    )
}

fn receipt(cause: &str, refused: u64) -> Receipt {
    let verdict = |node| Verdict {
        node: NodeId(node),
        name: name(&format!("n{node}")),
        region: name("eu"),
        record: (1, 1),
        outcome: Err(Rejection::Cordoned),
    };
    Receipt {
        revision: keys("web").1,
        decided_by: NodeId(1),
        cause: cause.to_owned(),
        why: String::new(),
        verdicts: (0..refused).map(verdict).collect(),
        inputs: Inputs::default(),
        passed: Passed::default(),
        displaces: None,
    }
}

fn open(data: &Path) -> Decisions {
    Decisions::open(data, NodeId(1), name("par-1"))
}

/// All that the service's decisions say, once there are so many.
fn wait(decisions: &Decisions, service: &str, count: usize) -> Vec<Decision> {
    let subject = Subject::Service(keys(service).0);
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let all = decisions.about(&subject, 100).unwrap();
        if all.len() >= count || Instant::now() > end {
            return all;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn told(instance: &str, why: &str) -> Told {
    Told {
        instance: Some(InstanceId(instance.to_owned())),
        why: why.to_owned(),
        receipt: Some(receipt(why, 1)),
    }
}

#[test]
fn the_next_daemon_knows_why() {
    let data = tempfile::tempdir().unwrap();
    let (service, revision) = keys("web");
    let first = open(data.path());
    first.note(
        Deed::Placed,
        (&service, &revision),
        told("web-a", "request"),
    );
    assert_eq!(wait(&first, "web", 1).len(), 1);
    drop(first);
    let file = data.path().join("decisions/0.log");
    let torn = [&fs::read(&file).unwrap()[..], b"0000"].concat();
    fs::write(&file, torn).unwrap();

    let second = open(data.path());
    let (other, its) = keys("webs");
    second.note(Deed::Placed, (&other, &its), told("webs-a", "minimum"));
    second.note(Deed::Retired, (&service, &revision), told("web-a", "idle"));
    let all = wait(&second, "web", 2);
    let deeds: Vec<_> = all.iter().map(|d| (d.deed, d.why.as_str())).collect();
    assert_eq!(deeds, [(Deed::Placed, "request"), (Deed::Retired, "idle")]);
    assert_eq!(all[0].receipt, Some(receipt("request", 1)));
    let one = Subject::Instance(InstanceId("webs-a".to_owned()));
    assert_eq!(second.about(&one, 9).unwrap().len(), 1);
    let newest = second.about(&Subject::Service(service), 1).unwrap();
    assert_eq!(newest[0].deed, Deed::Retired, "the newest stay");
    assert_eq!(second.lost(), 0);
}

#[test]
fn what_is_refused_again_and_again_is_written_once() {
    let data = tempfile::tempdir().unwrap();
    let (service, revision) = keys("web");
    let decisions = open(data.path());
    for _ in 0..50 {
        decisions.note(
            Deed::Refused,
            (&service, &revision),
            told("web-a", "no room"),
        );
    }
    decisions.note(Deed::Refused, (&service, &revision), told("web-a", "other"));
    let all = wait(&decisions, "web", 2);
    let whys: Vec<_> = all.iter().map(|d| d.why.as_str()).collect();
    assert_eq!(whys, ["no room", "other"]);
}

#[test]
fn a_receipt_of_a_large_fleet_is_cut_and_says_so() {
    let cut = trimmed(receipt("request", 10_000));
    assert_eq!(cut.verdicts.len(), REFUSED);
    assert_eq!(cut.passed.refused, 10_000 - 12);
    let long = short("ä".repeat(WHY + 1));
    assert_eq!(long.chars().count(), WHY + 1);
}

#[test]
fn a_disk_that_takes_nothing_costs_the_memory_of_it_and_nothing_else() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("decisions"), "in the way").unwrap();
    let (service, revision) = keys("web");
    let decisions = open(data.path());
    let note = || {
        decisions.note(
            Deed::Placed,
            (&service, &revision),
            told("web-a", "request"),
        );
    };
    note();
    let end = Instant::now() + Duration::from_secs(10);
    while decisions.lost() < 1 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(decisions.lost(), 1);
    fs::remove_file(data.path().join("decisions")).unwrap();
    note();
    assert_eq!(wait(&decisions, "web", 1).len(), 1, "it works again");
}

#[test]
fn a_decision_of_a_later_version_is_read_as_far_as_it_is_known() {
    let text = r#"{"at":1,"node":1,"nodeName":"n1","deed":"transmuted","novel":true,"why":"x",
        "service":{"namespace":"default","name":"web"},
        "revision":{"namespace":"default","name":"web-00001"}}"#;
    let decision: Decision = serde_json::from_str(text).unwrap();
    assert_eq!(decision.deed, Deed::Other);
}
