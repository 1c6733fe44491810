//! Tables of what is ordered when.

use super::*;
use crate::model::{
    Blob, CERTIFICATE, Certificate, Meta, Name, RevisionSpec, Scale, Sealed, Service, ServiceKey,
    ServiceStatus, TrafficTarget, set_domains,
};
use crate::registry::certificate_limits;

const DAY: u64 = 24 * HOUR;
const NOW: UnixMs = UnixMs(1_000 * DAY);

fn rules() -> Rules {
    Rules {
        origin: "edge.test".to_owned(),
        per_hour: 3,
        challenges: vec![ChallengeKind::Http, ChallengeKind::TlsAlpn],
        wildcard: false,
    }
}

fn service(name: &str, tag: Option<&str>, certificate: &str) -> Service {
    let traffic = tag.map(|tag| TrafficTarget {
        revision: None,
        percent: 100,
        tag: Some(Name::new(tag).unwrap()),
    });
    Service {
        key: ServiceKey {
            namespace: Name::default_namespace(),
            name: Name::new(name).unwrap(),
        },
        meta: Meta {
            annotations: [(CERTIFICATE.to_owned(), certificate.to_owned())].into(),
            ..Meta::default()
        },
        spec: RevisionSpec::default(),
        scale: Scale::default(),
        traffic: traffic.into_iter().collect(),
        status: ServiceStatus::default(),
    }
}

fn state(services: &[&str]) -> State {
    let mut state = State::default();
    for name in services {
        let service = service(name, None, "acme");
        state.services.insert(service.key.clone(), service);
    }
    state
}

fn has(state: &mut State, host: &str, source: CertificateSource, from: u64, until: u64) {
    let certificate = Certificate {
        name: host.to_owned(),
        source,
        hosts: vec![host.to_owned()],
        not_before: UnixMs(from),
        not_after: UnixMs(until),
        chain: String::new(),
        key: Sealed {
            upon: 0,
            nonce: Blob(vec![]),
            text: Blob(vec![]),
        },
        version: 1,
    };
    state.certificates.insert(host.to_owned(), certificate);
}

fn order(host: &str, begun: &[u64], failures: u32, not_before: u64) -> Order {
    Order {
        host: host.to_owned(),
        begun: begun.iter().map(|at| UnixMs(*at)).collect(),
        failures,
        misses: 0,
        not_before: UnixMs(not_before),
        error: None,
        challenge: None,
    }
}

fn known(state: &mut State, order: Order) {
    state.orders.insert(order.host.clone(), order);
}

fn orders(host: &str) -> Step {
    Step::Order {
        host: host.to_owned(),
        kind: ChallengeKind::Http,
    }
}

#[test]
fn hosts_of_services_that_ask_are_ordered_for() {
    let mut state = state(&["web"]);
    for other in [
        service("plain", None, "own"),
        service("shop", Some("canary"), "acme"),
    ] {
        state.services.insert(other.key.clone(), other);
    }
    let hosts = wanted(&state, &rules());
    let want = ["canary-shop.edge.test", "shop.edge.test", "web.edge.test"];
    assert_eq!(hosts.iter().collect::<Vec<_>>(), want);
    assert_eq!(step(&State::default(), NOW, &rules()), Step::Wait(None));
}

#[test]
fn names_are_ordered_for_in_ways_that_can_show_them_to_be_ours() {
    use ChallengeKind::{Dns, Http, TlsAlpn};
    let mut state = state(&["web"]);
    let mut shop = service("shop", Some("canary"), "acme");
    shop.key.namespace = Name::new("mall").unwrap();
    let domains = ["www.shop.test", "*.shop.test", "www.shop.test/api"];
    let domains = domains.map(|d| d.parse().unwrap());
    set_domains(&mut shop.meta.annotations, &domains);
    state.services.insert(shop.key.clone(), shop);
    let rules = |wildcard, challenges: &[ChallengeKind]| Rules {
        challenges: challenges.to_vec(),
        wildcard,
        per_hour: 100,
        ..rules()
    };
    let each = [
        "canary-shop.mall.edge.test",
        "shop.mall.edge.test",
        "web.edge.test",
    ];
    let whole = ["*.edge.test", "*.mall.edge.test"];
    let outside = ["www.shop.test"];
    let table = [
        (
            false,
            vec![Http, TlsAlpn, Dns],
            [&each[..], &outside].concat(),
        ),
        (false, vec![Dns], each.to_vec()),
        (true, vec![Http, Dns], [&whole[..], &outside].concat()),
        (true, vec![Dns], whole.to_vec()),
    ];
    for (wildcard, challenges, want) in table {
        let rules = rules(wildcard, &challenges);
        let names = wanted(&state, &rules);
        assert_eq!(
            names.iter().collect::<Vec<_>>(),
            want,
            "{wildcard} {challenges:?}"
        );
        for (name, failures) in names.iter().flat_map(|n| [(n, 0), (n, 1), (n, 2)]) {
            let mut one = state.clone();
            for other in names.iter().filter(|n| *n != name) {
                let (from, until) = (NOW.0 - DAY, NOW.0 + 89 * DAY);
                has(&mut one, other, CertificateSource::Acme, from, until);
            }
            known(&mut one, order(name, &[], failures, 0));
            let Step::Order { host, kind } = step(&one, NOW, &rules) else {
                panic!("{name}: {:?}", step(&one, NOW, &rules));
            };
            assert_eq!(host, *name);
            let can = match kind {
                Dns => name.ends_with("edge.test"),
                Http | TlsAlpn => !name.starts_with("*."),
            };
            assert!(can, "{name} by {kind:?}");
        }
    }
}

#[test]
fn the_most_urgent_is_ordered_first() {
    let mut state = state(&["a", "b", "c"]);
    has(
        &mut state,
        "a.edge.test",
        CertificateSource::Acme,
        NOW.0 - 80 * DAY,
        NOW.0 + 10 * DAY,
    );
    has(
        &mut state,
        "b.edge.test",
        CertificateSource::Acme,
        NOW.0 - 89 * DAY,
        NOW.0 + DAY,
    );
    assert_eq!(
        step(&state, NOW, &rules()),
        orders("c.edge.test"),
        "it has none"
    );
    has(
        &mut state,
        "c.edge.test",
        CertificateSource::Acme,
        NOW.0,
        NOW.0 + 90 * DAY,
    );
    assert_eq!(
        step(&state, NOW, &rules()),
        orders("b.edge.test"),
        "it ends first"
    );
    has(
        &mut state,
        "b.edge.test",
        CertificateSource::Own,
        NOW.0,
        NOW.0 + DAY,
    );
    assert_eq!(
        step(&state, NOW, &rules()),
        orders("a.edge.test"),
        "b has its own"
    );
}

#[test]
fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_a_little() {
    for (number, life) in [(1, 90 * DAY), (2, 6 * DAY), (3, 60 * 1000)] {
        let name = format!("web{number}");
        let mut state = state(&[&name]);
        let host = format!("{name}.edge.test");
        has(
            &mut state,
            &host,
            CertificateSource::Acme,
            NOW.0,
            NOW.0 + life,
        );
        let Step::Wait(Some(at)) = step(&state, NOW, &rules()) else {
            panic!("it is new");
        };
        let share = (at.0 - NOW.0) * 1000 / life;
        assert!((666..=701).contains(&share), "{share} of 1000");
        assert_eq!(step(&state, at, &rules()), orders(&host));
        let before = UnixMs(at.0 - 1);
        assert_eq!(step(&state, before, &rules()), Step::Wait(Some(at)));
    }
    let spread = |host: &str| mixed(host, 1) % 1000;
    assert_ne!(spread("a.edge.test"), spread("b.edge.test"));
}

#[test]
fn failures_are_waited_out_longer_each_time_and_the_next_way_is_tried() {
    let mut state = state(&["web"]);
    let host = "web.edge.test";
    let refused = Failure {
        error: "x".repeat(10_000),
        stage: Stage::Refused,
        retry_after_millis: None,
    };
    let rules = || Rules {
        per_hour: 100,
        ..self::rules()
    };
    let mut now = NOW;
    let mut pauses = Vec::new();
    for turn in 0..12 {
        let Step::Order { kind, .. } = step(&state, now, &rules()) else {
            panic!("turn {turn}: {:?}", step(&state, now, &rules()));
        };
        assert_eq!(kind, rules().challenges[turn % 2]);
        let begun = begun(&state, host, now);
        let after = failed(&begun, now, &refused);
        assert!(after.error.as_ref().unwrap().len() <= ERROR_CHARS);
        pauses.push(after.not_before.0 - now.0);
        known(&mut state, after);
        let Step::Wait(Some(at)) = step(&state, now, &rules()) else {
            panic!("it was refused just now");
        };
        now = at;
    }
    for (turn, pause) in pauses.iter().enumerate() {
        let least = (REFUSED << turn).min(REFUSED_MOST);
        assert!(
            (least..least + least / 4).contains(pause),
            "{turn}: {pause}"
        );
    }
    let away = Failure {
        error: "connection refused".to_owned(),
        stage: Stage::Unplaced,
        retry_after_millis: None,
    };
    let mut after = failed(&order(host, &[], 0, 0), NOW, &away);
    assert!(
        after.not_before.0 - NOW.0 < 10_000,
        "an authority that comes back is asked soon"
    );
    for _ in 0..20 {
        after = failed(&after, NOW, &away);
    }
    let pause = after.not_before.0 - NOW.0;
    assert!(pause < OUT_OF_REACH_MOST * 5 / 4, "{pause}");
    assert_eq!(after.failures, 0, "the same way is tried again");
    let pause = failed(&after, NOW, &refused).not_before.0 - NOW.0;
    assert!(pause < 2 * MINUTE, "its first refusal: {pause}");
    let told = Failure {
        retry_after_millis: Some(DAY),
        ..refused.clone()
    };
    let after = failed(&order(host, &[], 0, 0), NOW, &told);
    assert_eq!(after.not_before.0, NOW.0 + DAY, "as it asked");
    let done = succeeded(&after);
    assert_eq!(
        (done.failures, done.not_before, done.error),
        (0, UnixMs(0), None)
    );
}

#[test]
fn the_fleet_makes_no_more_orders_within_an_hour_than_agreed() {
    let mut state = state(&["a", "b"]);
    let hosts = ["a.edge.test", "b.edge.test"];
    known(
        &mut state,
        order(hosts[0], &[NOW.0 - HOUR, NOW.0 - 30 * MINUTE], 0, 0),
    );
    known(&mut state, order(hosts[1], &[NOW.0 - 20 * MINUTE], 0, 0));
    assert_eq!(step(&state, NOW, &rules()), orders(hosts[0]), "one is old");
    let again = begun(&state, hosts[0], NOW);
    known(&mut state, again);
    assert_eq!(
        state.orders[hosts[0]].begun.len(),
        2,
        "the old one is forgotten"
    );
    let later = UnixMs(NOW.0 + 30 * MINUTE);
    assert_eq!(step(&state, NOW, &rules()), Step::Wait(Some(later)));
    assert_eq!(step(&state, later, &rules()), orders(hosts[0]));
}

#[test]
fn an_order_that_no_authority_had_does_not_count() {
    let mut state = state(&["a"]);
    let host = "a.edge.test";
    let ways = [
        (Stage::Unplaced, 1),
        (Stage::Placed, 2),
        (Stage::Refused, 3),
    ];
    known(&mut state, order(host, &[NOW.0 - MINUTE], 0, 0));
    for (stage, left) in ways {
        let failure = Failure {
            error: "no".to_owned(),
            stage,
            retry_after_millis: None,
        };
        let after = failed(&begun(&state, host, NOW), NOW, &failure);
        assert_eq!(after.begun.len(), left, "{stage:?}");
        assert_eq!(after.begun[0], UnixMs(NOW.0 - MINUTE));
        known(&mut state, after);
    }
}

#[test]
fn a_host_without_a_place_keeps_nobody_from_renewing() {
    let mut state = state(&["new", "old"]);
    let fill = |state: &mut State, count: usize| {
        for number in state.certificates.len()..count {
            let name = format!("{number}.test");
            has(state, &name, CertificateSource::Own, NOW.0, NOW.0 + DAY);
        }
    };
    let old = "old.edge.test";
    has(&mut state, old, CertificateSource::Acme, 0, NOW.0 + DAY);
    assert_eq!(step(&state, NOW, &rules()), orders("new.edge.test"));
    fill(&mut state, certificate_limits::CERTIFICATES);
    assert_eq!(step(&state, NOW, &rules()), orders(old));
    state.certificates.pop_first();
    assert_eq!(step(&state, NOW, &rules()), orders("new.edge.test"));
    for number in 0..certificate_limits::ORDERS {
        known(
            &mut state,
            order(&format!("{number}.test"), &[NOW.0 - 1], 0, 0),
        );
    }
    let rules = Rules {
        per_hour: usize::MAX,
        ..rules()
    };
    assert_eq!(step(&state, NOW, &rules), orders(old));
}

#[test]
fn a_name_that_is_an_own_certificates_is_not_ordered_for() {
    let mut state = state(&["web"]);
    let host = "web.edge.test";
    has(&mut state, host, CertificateSource::Own, 0, NOW.0);
    assert_eq!(
        step(&state, NOW, &rules()),
        Step::Wait(None),
        "it has expired, and is its owner's"
    );
}

#[test]
fn what_nobody_asks_for_any_more_goes_in_its_time() {
    let mut state = state(&[]);
    let host = "web.edge.test";
    known(&mut state, order(host, &[NOW.0], 0, 0));
    has(
        &mut state,
        host,
        CertificateSource::Acme,
        NOW.0,
        NOW.0 + DAY,
    );
    has(
        &mut state,
        "own.test",
        CertificateSource::Own,
        NOW.0,
        NOW.0 + DAY,
    );
    assert_eq!(
        step(&state, NOW, &rules()),
        Step::Wait(None),
        "it still counts"
    );
    let hour = UnixMs(NOW.0 + HOUR);
    assert_eq!(
        step(&state, hour, &rules()),
        Step::ForgetOrder(host.to_owned())
    );
    state.orders.clear();
    assert_eq!(
        step(&state, hour, &rules()),
        Step::Wait(None),
        "it is served still"
    );
    let day = UnixMs(NOW.0 + DAY);
    assert_eq!(
        step(&state, day, &rules()),
        Step::ForgetCertificate(host.to_owned())
    );
    state.certificates.remove(host);
    assert_eq!(
        step(&state, day, &rules()),
        Step::Wait(None),
        "an own one is its owner's"
    );
}
