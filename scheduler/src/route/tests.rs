use std::collections::BTreeMap;
use std::net::IpAddr;

use super::fixture::{add, failed, fleet, name, revision_key, run, service_key, target};
use super::*;
use crate::fleet::Fleet;
use crate::model::InstanceState::{Draining, Failed, Ready, Starting};
use crate::model::{NodeId, RevisionKey, RevisionState};
use crate::registry::{Change, State};

fn routes(state: &State, fleet: &Fleet) -> Routes {
    Routes::build(state, fleet, "Edge.Test.")
}

#[test]
fn hosts_name_services() {
    let mut state = State::default();
    let ready = [RevisionState::Ready];
    let tagged = vec![target(None, 100, Some("canary"))];
    add(&mut state, "default", "web", &ready, tagged);
    add(&mut state, "shop", "web", &ready, vec![]);
    // Spelled like the tag of `web`: a service's own name wins.
    let tagged = vec![target(None, 100, Some("v2"))];
    add(&mut state, "default", "api", &ready, tagged);
    add(&mut state, "default", "v2-api", &ready, vec![]);
    let routes = routes(&state, &fleet());
    let table = [
        ("web.edge.test", Some(("default", "web", None))),
        ("WEB.EDGE.test:8080", Some(("default", "web", None))),
        ("web.default.edge.test.", Some(("default", "web", None))),
        ("web.shop.edge.test", Some(("shop", "web", None))),
        (
            "canary-web.edge.test",
            Some(("default", "web", Some("canary"))),
        ),
        (
            "canary-web.default.edge.test",
            Some(("default", "web", Some("canary"))),
        ),
        ("canary-web.shop.edge.test", None),
        ("v2-api.edge.test", Some(("default", "v2-api", None))),
        ("other.edge.test", None),
        ("a.web.shop.edge.test", None),
        ("web.edge.test.evil", None),
        ("edge.test", None),
        ("web", None),
    ];
    for (host, want) in table {
        let found = routes.lookup(host, "/");
        let found = found.map(|m| (m.service.key.clone(), m.tag.cloned()));
        let want = want.map(|(ns, service, tag)| (service_key(ns, service), tag.map(name)));
        assert_eq!(found, want, "{host}");
    }
}

#[test]
fn traffic_goes_to_revisions_that_were_ready() {
    use RevisionState::{Pending, Ready};
    let picked = |states: &[RevisionState], traffic: Vec<_>, draw: u32, tag: Option<&str>| {
        let mut state = State::default();
        add(&mut state, "default", "web", states, traffic);
        let routes = routes(&state, &Fleet::default());
        let found = routes.lookup("web.edge.test", "/").unwrap();
        let revision = found.service.pick_revision(draw, tag.map(name).as_ref());
        revision.map(|r| r.key.name.to_string())
    };
    let one = |n: u32| Ok(format!("web-0000{n}"));
    let key = |n: u32| revision_key("default", &format!("web-0000{n}"));
    assert_eq!(picked(&[Ready], vec![], 7, None), one(1));
    assert_eq!(picked(&[Ready, Pending], vec![], 7, None), one(1));
    assert_eq!(picked(&[Ready, Ready], vec![], 7, None), one(2));
    assert_eq!(
        picked(&[Pending], vec![], 7, None),
        Err(Unrouted::Pending(key(1)))
    );
    assert_eq!(picked(&[], vec![], 7, None), Err(Unrouted::NoRevision));
    let refused = picked(&[failed()], vec![], 7, None).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "revision default/web-00001 never became ready: Exited: exit code 1"
    );

    let split = || {
        let first = target(Some("web-00001"), 90, Some("old"));
        vec![
            first,
            target(None, 10, None),
            target(Some("web-00003"), 0, Some("try")),
        ]
    };
    let all = [Ready, Ready, Ready];
    assert_eq!(picked(&all, split(), 0, None), one(1));
    assert_eq!(picked(&all, split(), 89, None), one(1));
    assert_eq!(picked(&all, split(), 90, None), one(3));
    assert_eq!(picked(&all, split(), 190, None), one(3));
    assert_eq!(picked(&all, split(), 95, Some("old")), one(1));
    assert_eq!(picked(&all, split(), 0, Some("try")), one(3));
    assert_eq!(
        picked(&all, split(), 0, Some("none")),
        Err(Unrouted::NoRevision)
    );
    // A share whose revision never was ready falls to the others.
    let lame = [Pending, Ready];
    assert_eq!(picked(&lame, split(), 3, None), one(2));
    assert_eq!(
        picked(&lame, split(), 3, Some("old")),
        Err(Unrouted::Pending(key(1)))
    );
}

fn web(fleet: &Fleet) -> Arc<RevisionRoute> {
    let mut state = State::default();
    add(
        &mut state,
        "default",
        "web",
        &[RevisionState::Ready],
        vec![],
    );
    let routes = routes(&state, fleet);
    let route = routes.revision(&revision_key("default", "web-00001"));
    Arc::clone(route.unwrap())
}

#[test]
fn endpoints_are_live_ready_and_nearest_first() {
    let mut fleet = fleet();
    run(&mut fleet, 3, "web-00001", Ready, 2);
    run(&mut fleet, 4, "web-00001", Ready, 0);
    run(&mut fleet, 2, "web-00001", Ready, 3);
    run(&mut fleet, 2, "web-00001", Ready, 4);
    run(&mut fleet, 2, "web-00001", Draining, 4);
    run(&mut fleet, 2, "web-00009", Ready, 4);
    run(&mut fleet, 1, "web-00001", Ready, 0);
    run(&mut fleet, 1, "web-00001", Starting, 0);
    run(&mut fleet, 4, "web-00001", Failed, 0);
    let route = web(&fleet);
    let away: Vec<_> = route
        .away
        .iter()
        .map(|a| (a.node.0, a.instances.len(), a.in_flight))
        .collect();
    assert_eq!(away, [(2, 2, 7), (3, 1, 2), (4, 1, 0)]);
    assert_eq!((route.ready, route.starting), (5, 1));
    assert_eq!((route.hard, route.total, route.target), (10, 10, 7));

    fleet.members.get_mut(&NodeId(2)).unwrap().alive = false;
    let away: Vec<_> = web(&fleet).away.iter().map(|a| a.node.0).collect();
    assert_eq!(away, [3, 4]);
}

#[test]
fn an_old_record_takes_no_route_away() {
    let mut fleet = fleet();
    run(&mut fleet, 2, "web-00001", Ready, 0);
    run(&mut fleet, 3, "web-00001", Ready, 0);
    let fresh = web(&fleet);
    // However old the records are that are there: a node at rest says nothing new.
    for id in 2..=4 {
        fleet
            .members
            .get_mut(&NodeId(id))
            .unwrap()
            .record
            .edit()
            .seq += 1_000;
    }
    assert_eq!(web(&fleet), fresh);
    // Nobody hears of 2 any more: it is the last, and then none.
    let lost = |fleet: &mut Fleet, id| fleet.members.get_mut(&NodeId(id)).unwrap().alive = false;
    lost(&mut fleet, 2);
    let away: Vec<_> = web(&fleet)
        .away
        .iter()
        .map(|a| (a.node.0, a.alive))
        .collect();
    assert_eq!(away, [(3, true)]);
    // Nor of 3: nobody is known to serve it, and others are alive. It is not picked, an instance is
    // started; where none can be, what was good is tried.
    lost(&mut fleet, 3);
    let route = web(&fleet);
    let away: Vec<_> = route.away.iter().map(|a| (a.node.0, a.alive)).collect();
    assert_eq!(away, [(2, false), (3, false)]);
    assert_eq!(route.ready, 0);
    let view = View::default();
    assert_eq!(pick(&route, &view, 0), Pick::None);
    assert_eq!(last_resort(&route, &view), Pick::Remote(NodeId(2)));
}

#[test]
fn alone_keeps_what_it_last_knew_as_a_last_resort() {
    let mut fleet = fleet();
    run(&mut fleet, 2, "web-00001", Ready, 0);
    for id in 2..=4 {
        fleet.members.get_mut(&NodeId(id)).unwrap().alive = false;
    }
    let route = web(&fleet);
    assert_eq!(route.ready, 0);
    assert!(!route.away[0].alive);
    let view = View::default();
    assert_eq!(pick(&route, &view, 0), Pick::None);
    assert_eq!(last_resort(&route, &view), Pick::Remote(NodeId(2)));
}

#[derive(Default)]
struct View {
    here: Vec<Option<u32>>,
    out_here: Vec<usize>,
    fresh: Vec<(NodeId, u32)>,
    sent: BTreeMap<u64, u32>,
    tried: Vec<u64>,
    out: Vec<u64>,
    /// How long instances here have been ready; the rest always were.
    ages: Vec<u64>,
}

impl LoadView for View {
    fn here(&self) -> usize {
        self.here.len()
    }
    fn load(&self, instance: usize) -> Option<u32> {
        self.here[instance]
    }
    fn age_millis(&self, instance: usize) -> u64 {
        self.ages.get(instance).copied().unwrap_or(u64::MAX)
    }
    fn ejected_here(&self, instance: usize) -> bool {
        self.out_here.contains(&instance)
    }
    fn fresh(&self) -> &[(NodeId, u32)] {
        &self.fresh
    }
    fn sent(&self, node: NodeId) -> Option<u32> {
        let sent = self.sent.get(&node.0).copied().unwrap_or(0);
        (!self.tried.contains(&node.0)).then_some(sent)
    }
    fn ejected(&self, node: NodeId) -> bool {
        self.out.contains(&node.0)
    }
}

/// Two nodes away with one instance each: 2 is nearer.
fn two_away(in_flight: u32) -> Arc<RevisionRoute> {
    let mut fleet = fleet();
    run(&mut fleet, 2, "web-00001", Ready, in_flight);
    run(&mut fleet, 3, "web-00001", Ready, 0);
    web(&fleet)
}

#[test]
fn here_comes_first_then_the_nearest_with_room() {
    let (near, far) = (Pick::Remote(NodeId(2)), Pick::Remote(NodeId(3)));
    let with = |f: fn(&mut View)| {
        let mut view = View::default();
        f(&mut view);
        view
    };
    let table = [
        ("nothing here", with(|_| {}), near),
        ("one here", with(|v| v.here = vec![Some(9)]), Pick::Local(0)),
        (
            "less loaded here",
            with(|v| v.here = vec![Some(9), Some(2)]),
            Pick::Local(1),
        ),
        ("full here", with(|v| v.here = vec![Some(10)]), near),
        ("closing here", with(|v| v.here = vec![None]), near),
        (
            "only the last has room",
            with(|v| v.here = vec![Some(10), None, Some(10), Some(1)]),
            Pick::Local(3),
        ),
        ("near tried", with(|v| v.tried = vec![2]), far),
        ("near full by us", with(|v| v.sent = [(2, 10)].into()), far),
        ("near ejected of two", with(|v| v.out = vec![2]), far),
        (
            "more than half ejected",
            with(|v| {
                v.here = vec![Some(10)];
                v.out = vec![2, 3];
            }),
            near,
        ),
        ("all ejected", with(|v| v.out = vec![2, 3]), Pick::None),
        (
            "one of three here ejected",
            with(|v| {
                v.here = vec![Some(0), Some(5), Some(5)];
                v.out_here = vec![0];
            }),
            Pick::Local(1),
        ),
        ("all tried", with(|v| v.tried = vec![2, 3]), Pick::None),
        (
            "a full one with a fresh instance beside",
            with(|v| {
                v.sent = [(2, 10)].into();
                v.fresh = vec![(NodeId(2), 1)];
            }),
            near,
        ),
        (
            "a fresh one",
            with(|v| {
                v.tried = vec![2, 3];
                v.fresh = vec![(NodeId(4), 1)];
            }),
            Pick::Remote(NodeId(4)),
        ),
    ];
    for (name, view, want) in table {
        assert_eq!(pick(&two_away(9), &view, 0), want, "{name}");
    }
    assert_eq!(
        pick(&two_away(10), &View::default(), 0),
        far,
        "near full by its own word"
    );
}

#[test]
fn a_single_ejected_endpoint_is_left_alone() {
    let mut fleet = fleet();
    run(&mut fleet, 2, "web-00001", Ready, 0);
    let view = View {
        out: vec![2],
        ..View::default()
    };
    assert_eq!(pick(&web(&fleet), &view, 0), Pick::None);
    assert_eq!(last_resort(&web(&fleet), &view), Pick::Remote(NodeId(2)));
}

#[test]
fn draws_spread_over_instances_here() {
    let view = View {
        here: vec![Some(1); 5],
        ..View::default()
    };
    let mut seen = [0; 5];
    for step in 0..1000u64 {
        let draw = step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if let Pick::Local(i) = pick(&two_away(0), &view, draw) {
            seen[i] += 1;
        }
    }
    assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
}

/// `web` with an instance elsewhere and a slow start of 30 s.
fn slow() -> RevisionRoute {
    RevisionRoute {
        slow_start_seconds: 30,
        ..RevisionRoute::clone(&two_away(0))
    }
}

/// How many of a thousand requests the instances here get.
fn shares(route: &RevisionRoute, view: &View) -> Vec<u32> {
    let mut shares = vec![0; view.here.len()];
    for step in 0..1000u64 {
        let draw = step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match pick(route, view, draw) {
            Pick::Local(i) => shares[i] += 1,
            other => panic!("{other:?} with room here"),
        }
    }
    shares
}

#[test]
fn a_newcomers_share_grows_and_never_starves() {
    // A newcomer without a request beside busy ones, which gets all that it stands for.
    let table = [
        (0, 100),
        (7_500, 250),
        (15_000, 500),
        (27_000, 900),
        (30_000, 1000),
    ];
    for (age, want) in table {
        let view = View {
            here: vec![Some(5), Some(0)],
            ages: vec![u64::MAX, age],
            ..View::default()
        };
        let got = shares(&slow(), &view)[1];
        assert!(got.abs_diff(want) <= 45, "{age} ms: {got}, not {want}");
    }
    // One of five that are loaded alike, up to its fifth.
    let mut last = 0;
    for age in [0, 10_000, 20_000, 30_000] {
        let view = View {
            here: vec![Some(1); 5],
            ages: vec![u64::MAX, u64::MAX, age],
            ..View::default()
        };
        let got = shares(&slow(), &view);
        assert!(got[2] > last, "{got:?} at {age} ms");
        assert!(got.iter().all(|share| *share > 0), "{got:?}");
        last = got[2];
    }
    assert!((150..=250).contains(&last), "{last}");
    // Off, it is as any other.
    let view = View {
        here: vec![Some(5), Some(0)],
        ages: vec![u64::MAX, 0],
        ..View::default()
    };
    assert_eq!(shares(&two_away(0), &view), [0, 1000]);
}

#[test]
fn newcomers_are_better_than_nobody_here() {
    let table = [
        ("alone", vec![Some(0)], vec![0]),
        (
            "all are new",
            vec![Some(0), Some(1), Some(2)],
            vec![0, 0, 0],
        ),
        (
            "the others are full",
            vec![Some(10), Some(10), Some(1)],
            vec![u64::MAX, u64::MAX, 0],
        ),
        (
            "the others are closing",
            vec![None, Some(1)],
            vec![u64::MAX, 0],
        ),
    ];
    for (name, here, ages) in table {
        let view = View {
            here,
            ages,
            ..View::default()
        };
        let got = shares(&slow(), &view);
        assert_eq!(got.iter().sum::<u32>(), 1000, "{name}");
    }
}

#[test]
fn names_exist_or_enclose() {
    let mut state = State::default();
    let ready = [RevisionState::Ready];
    add(&mut state, "shop", "web", &ready, vec![]);
    add(&mut state, "default", "api", &[], vec![]);
    let routes = routes(&state, &fleet());
    let names = [
        "web",
        "web.shop",
        "shop",
        "api",
        "api.default",
        "default",
        "x",
    ];
    let table = names.map(|n| (routes.names(n), routes.encloses(n)));
    let want = [
        (false, false),
        (true, false),
        (false, true),
        (true, false),
        (true, false),
        (false, true),
        (false, false),
    ];
    assert_eq!(table, want);
}

#[test]
fn front_doors_are_near_the_client() {
    let ask = |fleet: &Fleet, client: Option<&str>, region: Option<&str>| {
        let region = region.map(name);
        let doors = front_doors(fleet, client.map(|c| c.parse().unwrap()), region.as_ref());
        let node = |a: IpAddr| match a {
            IpAddr::V4(a) => a.octets()[2],
            IpAddr::V6(_) => 6,
        };
        doors.into_iter().map(node).collect::<Vec<_>>()
    };
    let all = fleet();
    assert_eq!(ask(&all, None, None), [1, 2, 3], "this node first");
    assert_eq!(
        ask(&all, None, Some("lis")),
        [3, 1, 2],
        "the table's region"
    );
    assert_eq!(
        ask(&all, Some("10.0.3.9"), Some("fra")),
        [2, 4, 1],
        "the table wins"
    );
    assert_eq!(
        ask(&all, Some("10.0.2.77"), None),
        [2, 4, 1],
        "a node's neighbour"
    );
    assert_eq!(
        ask(&all, Some("198.51.100.1"), None),
        [1, 2, 3],
        "a stranger"
    );
    assert_eq!(
        ask(&all, None, Some("nowhere")),
        [1, 2, 3],
        "an empty region"
    );

    let mut both = fleet();
    let v6 = "2001:db8::1".parse().unwrap();
    both.members
        .get_mut(&NodeId(1))
        .unwrap()
        .record
        .edit()
        .ingress
        .push(v6);
    assert_eq!(ask(&both, None, None), [1, 6, 2, 3], "three of each family");
    assert_eq!(ask(&both, Some("2001:db8:0:9::7"), None), [1, 6, 2, 3]);

    let mut leaving = fleet();
    leaving
        .members
        .get_mut(&NodeId(1))
        .unwrap()
        .record
        .edit()
        .serving = false;
    assert_eq!(ask(&leaving, None, None), [2, 3, 4]);
    let mut dark = fleet();
    for member in dark.members.values_mut() {
        member.alive = false;
    }
    assert_eq!(ask(&dark, None, None), [1, 2, 3], "never empty");
}

/// A step of a random history: what is done, to which service, and how.
type Step = (u8, u8, u8, u8);

/// Does one step to registry and fleet, and tells the registry's changes.
fn step(state: &mut State, fleet: &mut Fleet, (what, service, how, node): Step) -> Vec<Change> {
    // `a-web` with the tag `b` and `web` with the tag `b-a` spell the same.
    let service = ["web", "a-web", "api", "b-a-web"][usize::from(service) % 4];
    let namespace = ["default", "shop"][usize::from(node) % 2];
    let key = service_key(namespace, service);
    let member = u64::from(node % 4) + 1;
    match what % 4 {
        0 => {
            let states = [RevisionState::Ready, RevisionState::Pending, failed()];
            let states: Vec<_> = (0..=how % 3)
                .map(|i| states[(usize::from(i) + usize::from(how)) % 3].clone())
                .collect();
            let first = RevisionKey::of(&key, 1).unwrap().name.to_string();
            let tag = [None, Some("b"), Some("b-a"), Some("c")][usize::from(how) % 4];
            let traffic = vec![target(None, 60, tag), target(Some(&first), 40, None)];
            let traffic = if how % 5 == 0 { vec![] } else { traffic };
            add(state, namespace, service, &states, traffic);
            let service = state.services[&key].clone();
            vec![Change::Service(Box::new(service))]
        }
        1 => {
            state.services.remove(&key);
            state.revisions.retain(|_, r| r.service != key);
            vec![Change::ServiceGone(key)]
        }
        2 => {
            let states = [Ready, Starting, Draining];
            let revision = format!("{service}-00001");
            run(
                fleet,
                member,
                &revision,
                states[usize::from(how) % 3],
                u32::from(how),
            );
            vec![]
        }
        _ => {
            let member = fleet.members.get_mut(&NodeId(member)).unwrap();
            match how % 4 {
                0 => member.alive = !member.alive,
                3 => member.lost = !member.lost,
                1 => member.rtt_micros = Some(u32::from(how) * 100),
                _ => member.record.edit().instances.clear(),
            }
            vec![]
        }
    }
}

proptest::proptest! {
    #[test]
    fn following_is_building_anew(steps in proptest::collection::vec(proptest::prelude::any::<Step>(), 1..40)) {
        let (mut state, mut fleet) = (State::default(), fleet());
        let mut followed = routes(&state, &fleet);
        for one in steps {
            let before = fleet.clone();
            let changes = step(&mut state, &mut fleet, one);
            state.index += 1;
            followed = followed.follow(&state, &changes, &before, &fleet);
            proptest::prop_assert_eq!(&followed, &routes(&state, &fleet));
        }
    }
}

#[test]
fn who_has_been_silent_comes_later_and_is_kept() {
    let mut fleet = fleet();
    for node in [2, 3] {
        run(&mut fleet, node, "web-00001", Ready, 0);
    }
    let order =
        |fleet: &Fleet| -> Vec<u64> { web(fleet).away.iter().map(|away| away.node.0).collect() };
    assert_eq!(order(&fleet), [2, 3], "the nearer one first");
    fleet.members.get_mut(&NodeId(2)).unwrap().silent = 4;
    assert_eq!(order(&fleet), [3, 2]);
    fleet.members.get_mut(&NodeId(3)).unwrap().silent = 5;
    assert_eq!(
        order(&fleet),
        [2, 3],
        "all are silent: it may be this node that hears badly"
    );
}

#[test]
fn who_gives_no_answer_is_a_last_resort() {
    let mut fleet = fleet();
    for node in [2, 3] {
        run(&mut fleet, node, "web-00001", Ready, 0);
    }
    let away = |fleet: &Fleet| -> Vec<(u64, bool)> {
        let away = &web(fleet).away;
        away.iter().map(|a| (a.node.0, a.alive)).collect()
    };
    fleet.members.get_mut(&NodeId(2)).unwrap().lost = true;
    assert_eq!(away(&fleet), [(3, true)]);
    assert_eq!(web(&fleet).ready, 1);
    fleet.members.get_mut(&NodeId(3)).unwrap().lost = true;
    assert_eq!(away(&fleet), [(2, false), (3, false)]);
    assert_eq!(web(&fleet).ready, 0, "one is started");
}
