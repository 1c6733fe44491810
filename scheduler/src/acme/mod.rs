//! Which certificate is ordered when: hosts of services that ask for one, renewal in good time,
//! patience after failures, and no more orders than an authority bears. What an order is made of is
//! the node's `certs`.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::fleet::text_hash;
use crate::model::{CertificateSource, ChallengeKind, HOST_BYTES, Order, UnixMs, wildcard_over};
use crate::registry::State;
use crate::route::{host_names, is_under};

const MINUTE: u64 = 60 * 1000;
const HOUR: u64 = 60 * MINUTE;
/// After the first order an authority refused; doubled by each further one. Five within an hour is
/// what authorities allow for one name.
const REFUSED: u64 = MINUTE;
const REFUSED_MOST: u64 = 6 * HOUR;
/// After an authority that was not there: no order of ours counts with it.
const OUT_OF_REACH: u64 = 5 * 1000;
const OUT_OF_REACH_MOST: u64 = 5 * MINUTE;
/// Renewals of one day are spread over this part of a certificate's life.
const SPREAD: u64 = 30;
/// An error is kept to this length.
const ERROR_CHARS: usize = 500;

/// How orders are to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The zone of the services, as in routes.
    pub origin: String,
    /// Orders of the whole fleet within an hour.
    pub per_hour: usize,
    /// The ways to show that a host is ours, the preferred first; the next is tried where one failed.
    pub challenges: Vec<ChallengeKind>,
    /// One certificate is ordered for all hosts of a namespace under the origin.
    pub wildcard: bool,
}

impl Rules {
    /// The name in the certificate that a host is to be served with.
    fn covering(&self, host: String) -> String {
        let whole = self.wildcard && is_under(&host, &self.origin);
        let over = whole.then(|| wildcard_over(&host)).flatten();
        over.unwrap_or(host)
    }

    /// The ways in which a name can be shown to be ours: all names below one only by its zone, and only
    /// that of the origin is ours.
    fn ways(&self, name: &str) -> impl Iterator<Item = ChallengeKind> {
        let (all, own) = (name.starts_with("*."), is_under(name, &self.origin));
        let kinds = self.challenges.iter().copied();
        kinds.filter(move |kind| match kind {
            ChallengeKind::Dns => own,
            ChallengeKind::Http | ChallengeKind::TlsAlpn => !all,
        })
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Order this one now, in this way.
    Order { host: String, kind: ChallengeKind },
    /// Nobody asks for it any more: what is known of its orders goes.
    ForgetOrder(String),
    /// Nobody asks for it any more, and it has expired.
    ForgetCertificate(String),
    /// Nothing before then, as things are; nothing at all without a time.
    Wait(Option<UnixMs>),
}

/// The names whose certificates are ordered: for the hosts of services that ask for it. What nobody could show
/// to be ours is not among them, as a service's own domain with `*.`: its zone is its owner's.
#[must_use]
pub fn wanted(state: &State, rules: &Rules) -> BTreeSet<String> {
    let asking = state.services.values().filter(|s| s.wants_acme());
    let hosts = asking.flat_map(|service| host_names(service, &rules.origin));
    let names = hosts.map(|host| rules.covering(host));
    let can = |name: &String| name.len() <= HOST_BYTES && rules.ways(name).next().is_some();
    names.filter(can).collect()
}

/// What to do next. The most urgent comes first: a host that has no certificate, then the one whose
/// certificate ends first.
#[must_use]
pub fn step(state: &State, now: UnixMs, rules: &Rules) -> Step {
    let wanted = wanted(state, rules);
    if let Some(step) = superfluous(state, now, &wanted) {
        return step;
    }
    let (own, has_room) = (state.own_hosts(now), state.has_room_for_certificates());
    // A host without a place waits for one, and in nobody's way.
    let has_place = |host: &str| match state.certificates.get(host) {
        Some(there) => there.source == CertificateSource::Acme,
        None => has_room && state.has_place_for_order(host),
    };
    let hosts = wanted.iter().filter(|h| !own.cover(h) && has_place(h));
    let due = hosts.map(|host| {
        let ends = issued(state, host).map(|(_, ends)| ends);
        (due(state, host), ends, host)
    });
    let due: Vec<_> = due.collect();
    let ready = due.iter().filter(|(at, ..)| *at <= now);
    let Some((_, _, host)) = ready.min_by_key(|(at, ends, host)| (*ends, *at, *host)) else {
        return Step::Wait(due.iter().map(|(at, ..)| *at).min());
    };
    if let Some(later) = budget(state, now, rules) {
        return Step::Wait(Some(later));
    }
    let failures = state.orders.get(*host).map_or(0, |o| o.failures) as usize;
    let ways: Vec<_> = rules.ways(host).collect();
    match ways.get(failures % ways.len().max(1)) {
        Some(kind) => Step::Order {
            host: (*host).clone(),
            kind: *kind,
        },
        None => Step::Wait(None),
    }
}

/// What nobody needs any more.
fn superfluous(state: &State, now: UnixMs, wanted: &BTreeSet<String>) -> Option<Step> {
    let old = |order: &&Order| !wanted.contains(&order.host) && recent(order, now).is_empty();
    if let Some(order) = state.orders.values().find(old) {
        return Some(Step::ForgetOrder(order.host.clone()));
    }
    let mut issued = state.certificates.values();
    let over = issued.find(|c| {
        let ordered = c.source == CertificateSource::Acme;
        ordered && c.not_after <= now && !wanted.contains(&c.name)
    });
    over.map(|c| Step::ForgetCertificate(c.name.clone()))
}

/// The life of the certificate that was ordered for a host.
fn issued(state: &State, host: &str) -> Option<(UnixMs, UnixMs)> {
    let stored = state.certificates.get(host)?;
    (stored.source == CertificateSource::Acme).then_some((stored.not_before, stored.not_after))
}

/// When a host's next order is to be made: at two thirds of its certificate's life and a little, at
/// once where there is none, and not before a failure's patience is over.
fn due(state: &State, host: &str) -> UnixMs {
    let renewal = issued(state, host).map_or(0, |(from, until)| {
        let life = until.0.saturating_sub(from.0);
        let spread = (life / SPREAD).max(1);
        from.0 + life / 3 * 2 + mixed(host, until.0) % spread
    });
    let patience = state.orders.get(host).map_or(0, |o| o.not_before.0);
    UnixMs(renewal.max(patience))
}

/// Until when no order may be made because too many were.
fn budget(state: &State, now: UnixMs, rules: &Rules) -> Option<UnixMs> {
    let mut made: Vec<UnixMs> = state
        .orders
        .values()
        .flat_map(|order| recent(order, now))
        .collect();
    made.sort();
    let allowed = rules.per_hour.max(1);
    let over = made.len().checked_sub(allowed)?;
    made.get(over).map(|oldest| UnixMs(oldest.0 + HOUR))
}

/// Orders of the last hour.
fn recent(order: &Order, now: UnixMs) -> Vec<UnixMs> {
    let counts = |at: &&UnixMs| at.0 + HOUR > now.0;
    order.begun.iter().filter(counts).copied().collect()
}

/// The same on every node, and unlike another host's.
fn mixed(host: &str, salt: u64) -> u64 {
    text_hash(host).wrapping_add(salt)
}

/// A host's order as it is begun.
#[must_use]
pub fn begun(state: &State, host: &str, now: UnixMs) -> Order {
    let known = state.orders.get(host);
    let mut begun = known.map_or_else(Vec::new, |order| recent(order, now));
    begun.push(now);
    Order {
        host: host.to_owned(),
        begun,
        failures: known.map_or(0, |o| o.failures),
        misses: known.map_or(0, |o| o.misses),
        // Whoever takes over from a node that is lost in the middle of it begins anew at once.
        not_before: UnixMs(0),
        error: known.and_then(|o| o.error.clone()),
        challenge: None,
    }
}

/// The order after it came to a certificate.
#[must_use]
pub fn succeeded(order: &Order) -> Order {
    Order {
        failures: 0,
        misses: 0,
        not_before: UnixMs(0),
        error: None,
        challenge: None,
        ..order.clone()
    }
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub error: String,
    pub stage: Stage,
    /// It said when to come again.
    pub retry_after_millis: Option<u64>,
}

/// How far an order came that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The authority never had it: it counts with nobody.
    Unplaced,
    /// The authority had it and was not there later.
    Placed,
    /// The authority refused it, or what it issued is of no use.
    Refused,
}

/// The order after it failed.
#[must_use]
pub fn failed(order: &Order, now: UnixMs, failure: &Failure) -> Order {
    let refused = failure.stage == Stage::Refused;
    // An authority that was away for long and then refuses is not made to wait for its absence.
    let (failures, misses) = if refused {
        (order.failures.saturating_add(1), 0)
    } else {
        (order.failures, order.misses.saturating_add(1))
    };
    let (first, most, times) = if refused {
        (REFUSED, REFUSED_MOST, failures)
    } else {
        (OUT_OF_REACH, OUT_OF_REACH_MOST, misses)
    };
    let mut begun = order.begun.clone();
    if failure.stage == Stage::Unplaced {
        begun.pop();
    }
    let doubled = first.saturating_mul(1_u64 << (times - 1).min(20));
    let pause = doubled.min(most);
    let jitter = mixed(&order.host, now.0) % (pause / 4);
    let asked = failure.retry_after_millis.unwrap_or(0);
    Order {
        begun,
        failures,
        misses,
        not_before: UnixMs(now.0 + (pause + jitter).max(asked)),
        error: Some(failure.error.chars().take(ERROR_CHARS).collect()),
        challenge: None,
        ..order.clone()
    }
}
