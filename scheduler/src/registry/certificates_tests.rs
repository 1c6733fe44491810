//! Certificates, orders and the lease: who may change them, and what is taken in.

use super::certificates::{ISSUER, limits};
use super::tests::{done, founded, run};
use super::*;
use crate::model::{
    AcmeAccount, Blob, Certificate, CertificateSource, Lease, NodeId, Order, Sealed, UnixMs,
};

fn sealed(text: usize) -> Sealed {
    Sealed {
        upon: 0,
        nonce: Blob(vec![1; 24]),
        text: Blob(vec![2; text]),
    }
}

fn certificate(name: &str, source: CertificateSource) -> Certificate {
    Certificate {
        name: name.to_owned(),
        source,
        hosts: vec![name.to_owned()],
        not_before: UnixMs(0),
        not_after: UnixMs(1_000),
        chain: "chain".to_owned(),
        key: sealed(100),
        version: 0,
    }
}

fn put(certificate: Certificate, epoch: Option<u64>) -> Action {
    Action::PutCertificate {
        certificate: Box::new(certificate),
        if_version: None,
        epoch,
    }
}

fn order(host: &str, epoch: u64) -> Action {
    let order = Order {
        host: host.to_owned(),
        begun: vec![UnixMs(1)],
        failures: 0,
        misses: 0,
        not_before: UnixMs(0),
        error: None,
        challenge: None,
    };
    Action::PutOrder {
        order: Box::new(order),
        epoch,
    }
}

fn take(node: u64, seen: Option<u64>) -> Action {
    Action::TakeLease {
        name: ISSUER.to_owned(),
        node: NodeId(node),
        seen,
    }
}

fn taken(reply: Reply) -> Lease {
    match done(reply) {
        Outcome::Lease(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn is_fenced(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(Refusal::Fenced(_)))
}

#[test]
fn an_own_certificate_is_put_replaced_and_deleted() {
    let mut state = founded();
    let first = certificate("web.test", CertificateSource::Own);
    done(run(&mut state, 1, put(first.clone(), None)));
    let version = state.certificates["web.test"].version;
    assert_eq!(version, state.index);
    let stale = Action::PutCertificate {
        certificate: Box::new(first.clone()),
        if_version: Some(0),
        epoch: None,
    };
    let stale = run(&mut state, 1, stale);
    assert!(matches!(stale, Reply::Refused(Refusal::Conflict { found, .. }) if found == version));
    done(run(&mut state, 1, put(first, None)));
    assert!(state.certificates["web.test"].version > version);
    assert!(state.own_hosts(UnixMs(999)).cover("web.test"));
    let late = state.own_hosts(UnixMs(1_000));
    assert!(!late.cover("web.test"), "expired");
    assert!(!state.own_hosts(UnixMs(0)).cover("a.web.test"));
    let delete = Action::DeleteCertificate {
        name: "web.test".to_owned(),
        epoch: None,
    };
    done(run(&mut state, 1, delete.clone()));
    let again = run(&mut state, 1, delete);
    assert!(matches!(again, Reply::Refused(Refusal::NotFound(_))));
}

#[test]
fn what_is_too_large_or_not_sealed_is_refused() {
    let good = || certificate("web.test", CertificateSource::Own);
    let table = [
        Certificate {
            name: "a/b".to_owned(),
            ..good()
        },
        Certificate {
            name: String::new(),
            ..good()
        },
        Certificate {
            hosts: vec![],
            ..good()
        },
        Certificate {
            hosts: vec!["h".to_owned(); 101],
            ..good()
        },
        Certificate {
            chain: "x".repeat(Certificate::MAX_PEM + 1),
            ..good()
        },
        Certificate {
            key: sealed(3),
            ..good()
        },
        Certificate {
            key: sealed(Certificate::MAX_PEM + 17),
            ..good()
        },
    ];
    for bad in table {
        let mut state = founded();
        let reply = run(&mut state, 1, put(bad.clone(), None));
        assert!(
            matches!(reply, Reply::Refused(Refusal::Invalid { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn one_node_at_a_time_speaks_to_authorities() {
    let mut state = founded();
    let acme = || certificate("web.test", CertificateSource::Acme);
    assert!(is_fenced(&run(&mut state, 1, order("web.test", 1))));
    let first = taken(run(&mut state, 1, take(1, None)));
    assert_eq!((first.epoch, first.holder), (1, Some(NodeId(1))));
    done(run(&mut state, 1, order("web.test", 1)));
    // Two that saw the same: the second comes too late.
    let late = run(&mut state, 1, take(1, None));
    assert!(matches!(late, Reply::Refused(Refusal::Conflict { .. })));
    let renewed = taken(run(&mut state, 1, take(1, Some(first.version))));
    assert_eq!(renewed.epoch, 1, "renewing keeps the epoch");
    assert!(renewed.version > first.version);
    done(run(&mut state, 1, put(acme(), Some(1))));
    let give = |epoch| Action::GiveLease {
        name: ISSUER.to_owned(),
        epoch,
    };
    done(run(&mut state, 1, give(7)));
    assert_eq!(state.leases[ISSUER].holder, Some(NodeId(1)), "not its own");
    done(run(&mut state, 1, give(1)));
    assert!(is_fenced(&run(&mut state, 1, put(acme(), Some(1)))));
    let version = state.leases[ISSUER].version;
    let second = taken(run(&mut state, 1, take(1, Some(version))));
    assert_eq!(
        second.epoch, 2,
        "what was begun under the first is fenced off"
    );
    assert!(is_fenced(&run(&mut state, 1, order("web.test", 1))));
    assert!(is_fenced(&run(&mut state, 1, put(acme(), None))));
    let account = AcmeAccount {
        directory: "https://ca.test/dir".to_owned(),
        credentials: sealed(200),
    };
    let account = |epoch| Action::PutAccount {
        account: Box::new(account.clone()),
        epoch,
    };
    assert!(is_fenced(&run(&mut state, 1, account(1))));
    done(run(&mut state, 1, account(2)));
    let unknown = run(&mut state, 1, take(9, Some(second.version)));
    assert!(matches!(unknown, Reply::Refused(Refusal::NotFound(_))));
    // An operator's own is never replaced by an order.
    done(run(
        &mut state,
        1,
        put(certificate("web.test", CertificateSource::Own), None),
    ));
    let over = run(&mut state, 1, put(acme(), Some(2)));
    assert!(matches!(over, Reply::Refused(Refusal::Conflict { .. })));
    let forget = Action::DeleteOrder {
        host: "web.test".to_owned(),
        epoch: 2,
    };
    done(run(&mut state, 1, forget));
    assert!(state.orders.is_empty());
}

#[test]
fn what_is_there_is_renewed_when_there_is_no_place_for_more() {
    let mut state = founded();
    taken(run(&mut state, 1, take(1, None)));
    let acme = |name: &str, chain: usize| Certificate {
        chain: "c".repeat(chain),
        ..certificate(name, CertificateSource::Acme)
    };
    let no_place = |reply: Reply| matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
    done(run(&mut state, 1, order("web.test", 1)));
    done(run(&mut state, 1, put(acme("web.test", 4_000), Some(1))));
    // Many, and an order for each.
    let mut crowded = state.clone();
    for number in 1..limits::CERTIFICATES {
        let name = format!("{number}.test");
        let other = certificate(&name, CertificateSource::Own);
        crowded.certificates.insert(name, other);
    }
    let new = put(certificate("new.test", CertificateSource::Own), None);
    assert!(no_place(run(&mut crowded, 1, new.clone())));
    done(run(&mut crowded, 1, put(acme("web.test", 5_000), Some(1))));
    let known = crowded.orders.remove("web.test").unwrap();
    for number in 0..limits::ORDERS {
        let host = format!("{number}.com");
        crowded.orders.insert(host, known.clone());
    }
    assert!(no_place(run(&mut crowded, 1, order("new.test", 1))));
    done(run(&mut crowded, 1, order("web.test", 1)));
    // Few, and large.
    let large = limits::TOTAL_BYTES / Certificate::MAX_PEM;
    for number in 0..large {
        let name = format!("{number}.test");
        let large = acme(&name, Certificate::MAX_PEM);
        state.certificates.insert(name, large);
    }
    assert!(no_place(run(&mut state, 1, new)));
    done(run(&mut state, 1, put(acme("web.test", 5_000), Some(1))));
}

#[test]
fn a_star_is_one_label() {
    let table = [
        ("web.test", "web.test", true),
        ("web.test", "a.web.test", false),
        ("*.web.test", "a.web.test", true),
        ("*.web.test", "a.b.web.test", false),
        ("*.web.test", "web.test", false),
    ];
    for (name, host, want) in table {
        let mut state = founded();
        let own = certificate(name, CertificateSource::Own);
        done(run(&mut state, 1, put(own, None)));
        let hosts = state.own_hosts(UnixMs(0));
        assert_eq!(hosts.cover(host), want, "{name} {host}");
    }
}
