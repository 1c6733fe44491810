//! Front doors for a DNS answer: the nearest to who asks.

use std::net::IpAddr;

use crate::fleet::{Fleet, Member};
use crate::model::Name;

/// Addresses in one answer, of each family: enough to survive a dead one, few enough to be near.
const MAX_ANSWERS: usize = 3;

/// Addresses of front doors, best first: those in the client's region, then by round trip from
/// here, measured or reckoned. The client's region is `region` when an operator's table told it; else that of a node in
/// the client's own /24 or /48; else the asked node's own. Serving nodes; when there is none, live
/// ones; when there is none, all ever seen: never empty while any address is known.
#[must_use]
pub fn front_doors(fleet: &Fleet, client: Option<IpAddr>, region: Option<&Name>) -> Vec<IpAddr> {
    let neighbour = || client.and_then(|c| neighbour_region(fleet, c));
    let me = || fleet.members.get(&fleet.me).map(|m| &m.record.region);
    let region = region.or_else(neighbour).or_else(me);
    let mut members: Vec<&Member> = fleet.members.values().collect();
    members.sort_by_key(|m| {
        let elsewhere = region != Some(&m.record.region);
        let me = m.record.node == fleet.me;
        let rtt = m.distance_micros().unwrap_or(u32::MAX);
        (elsewhere, !me, m.silent, rtt, m.record.node)
    });
    let grades: [fn(&Member) -> bool; 3] = [
        |m| m.is_reachable() && m.record.serving,
        Member::is_reachable,
        |_| true,
    ];
    let of = |grade: fn(&Member) -> bool| {
        let chosen = members.iter().filter(move |m| grade(m));
        chosen.flat_map(|m| m.record.ingress.iter().copied())
    };
    let answers = grades
        .into_iter()
        .map(|grade| first_of_each_family(of(grade)));
    answers
        .into_iter()
        .find(|a| !a.is_empty())
        .unwrap_or_default()
}

fn neighbour_region(fleet: &Fleet, client: IpAddr) -> Option<&Name> {
    let near = |m: &&Member| m.record.ingress.iter().any(|a| are_neighbours(*a, client));
    let member = fleet.members.values().find(near);
    member.map(|m| &m.record.region)
}

fn are_neighbours(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..6] == b.octets()[..6],
        _ => false,
    }
}

fn first_of_each_family(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut answer: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let family = answer.iter().filter(|a| a.is_ipv4() == address.is_ipv4());
        if family.count() < MAX_ANSWERS && !answer.contains(&address) {
            answer.push(address);
        }
    }
    answer
}
