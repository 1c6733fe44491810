use std::sync::Arc;

use super::super::fixture::{add, fleet, revision_key, run, service_key, target};
use super::*;
use crate::model::Caller;
use crate::model::InstanceState::{Draining, Ready as Up};
use crate::model::RevisionState::Ready;
use crate::registry::State;

/// `web` with two revisions: the first here and at nodes 2 and 4 (`fra`), the second at 3 (`lis`).
/// `api` beside it with nothing ready, `web` of another namespace.
fn world() -> (Routes, Fleet) {
    let mut state = State::default();
    let halves = vec![
        target(Some("web-00001"), 100, None),
        target(Some("web-00002"), 0, Some("next")),
    ];
    add(&mut state, "default", "web", &[Ready, Ready], halves);
    add(&mut state, "default", "api", &[Ready], vec![]);
    add(&mut state, "shop", "web", &[Ready], vec![]);
    add(&mut state, "shop", "cart", &[Ready], vec![]);
    let api = state.services.get_mut(&service_key("default", "api"));
    api.unwrap().spec.callers = vec!["default/web".parse::<Caller>().unwrap()];
    let mut fleet = fleet();
    run(&mut fleet, 1, "web-00001", Up, 0);
    run(&mut fleet, 2, "web-00001", Up, 0);
    run(&mut fleet, 2, "web-00001", Draining, 0);
    run(&mut fleet, 4, "web-00001", Up, 0);
    run(&mut fleet, 3, "web-00002", Up, 0);
    let routes = Routes::build(&state, &fleet, "edge.test");
    (routes, fleet)
}

fn here(revision: &RevisionKey) -> Vec<InstanceId> {
    let mine = *revision == revision_key("default", "web-00001");
    let id = mine.then(|| InstanceId("web-00001-1-0".to_owned()));
    id.into_iter().collect()
}

/// Where an order of the instance here leads: the revision, and the nodes and instances it may be.
fn leads(order: &str, caller: Option<&str>) -> Result<String, String> {
    let (routes, fleet) = world();
    let (service, revision) = (
        service_key("default", "web"),
        revision_key("default", "web-00001"),
    );
    let me = InstanceId("web-00001-1-0".to_owned());
    let caller = caller.map(|caller| service_key("default", caller));
    let giver = Giver {
        service: &service,
        revision: &revision,
        instance: Some(&me),
        caller: caller.as_ref(),
    };
    let order = Order::parse(order).unwrap();
    let found = order.target((&routes, &fleet), &giver, 0, &here);
    let Target { revision, aim } = found.map_err(|nowhere| nowhere.to_string())?;
    let narrow = aim.narrow(&revision);
    let mine = here(&revision.key);
    let mine = mine
        .iter()
        .filter(|i| aim.takes_node(routes.me) && aim.takes(i));
    let away = narrow.away.iter().flat_map(|a| &a.instances);
    let all: Vec<&str> = mine.chain(away).map(|i| i.0.as_str()).collect();
    Ok(format!("{}: {}", revision.key, all.join(" ")))
}

#[test]
fn orders_lead_where_they_say() {
    let table = [
        (
            "region=fra",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
        ("region=par", "default/web-00001: web-00001-1-0"),
        (
            "region=\"nowhere,fra\"",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
        (
            "region=\"lis,f*\"",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
        // Nothing is ready there: it is started.
        ("region=lis", "default/web-00001: "),
        ("region=\"x*,lis\"", "default/web-00001: "),
        ("region=par;elsewhere=true", "default/web-00001: "),
        ("app=api;region=fra", "default/api-00001: "),
        (
            "region=\"lis,any\"",
            "default/web-00001: web-00001-1-0 web-00001-2-0 web-00001-4-0",
        ),
        (
            "region=any;elsewhere=true",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
        (
            "elsewhere=true",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
        ("instance=web-00001-4-0", "default/web-00001: web-00001-4-0"),
        ("instance=web-00001-1-0", "default/web-00001: web-00001-1-0"),
        // Of another revision that the service routes to.
        ("instance=web-00002-3-0", "default/web-00002: web-00002-3-0"),
        (
            "prefer_instance=web-00001-4-0",
            "default/web-00001: web-00001-4-0",
        ),
        (
            "prefer_instance=web-00001-9-9;region=fra",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
        // Nothing of it is ready: the request wakes it.
        ("app=api", "default/api-00001: "),
        (
            "app=web;region=fra",
            "default/web-00001: web-00001-2-0 web-00001-4-0",
        ),
    ];
    for (order, want) in table {
        assert_eq!(leads(order, None), Ok(want.to_owned()), "{order}");
    }
}

#[test]
fn orders_that_lead_nowhere_say_why() {
    let table = [
        ("region=ber", "there is no node in ber"),
        ("region=\"ber,x*\"", "there is no node in ber, x*"),
        (
            "instance=web-00001-9-9",
            "default/web has no ready instance `web-00001-9-9`",
        ),
        // One that is on its way out.
        (
            "instance=web-00001-2-1",
            "default/web has no ready instance `web-00001-2-1`",
        ),
        (
            "app=api;instance=web-00001-1-0",
            "default/api has no ready instance `web-00001-1-0`",
        ),
        // It is there, in another namespace.
        ("app=cart", "there is no service `cart` in the namespace"),
    ];
    for (order, want) in table {
        assert_eq!(leads(order, None), Err(want.to_owned()), "{order}");
    }
}

/// A service that lets nobody but `web` in is not reached by others through `web`.
#[test]
fn who_comes_by_the_way_inside_must_be_let_in_there_too() {
    assert!(leads("app=api", Some("web")).is_ok());
    let refused = Err("default/api does not let this caller in".to_owned());
    assert_eq!(leads("app=api", Some("other")), refused);
    let own = leads("elsewhere=true", Some("other"));
    assert_eq!(
        own,
        Err("default/web does not let this caller in".to_owned())
    );
}

#[test]
fn an_open_aim_narrows_nothing() {
    let (routes, _) = world();
    let route = routes
        .revision(&revision_key("default", "web-00001"))
        .unwrap();
    assert!(Arc::ptr_eq(&Aim::default().narrow(route), route));
    let aim = Aim {
        not: Some(InstanceId("web-00001-2-0".to_owned())),
        ..Aim::default()
    };
    assert!(!aim.is_open());
    let away: Vec<u64> = aim.narrow(route).away.iter().map(|a| a.node.0).collect();
    assert_eq!(away, [4]);
}
