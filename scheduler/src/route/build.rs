//! Routes from the registry and the fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::sticky::Sticky;
use super::{Away, MAX_SCALE, RevisionRoute, Routes, ServiceRoute, Tagged, Unrouted, host};
use crate::fleet::{Fleet, Mark, Member};
use crate::model::{
    InstanceReport, InstanceState, Name, NodeId, Revision, RevisionKey, RevisionState, Service,
    ServiceKey,
};
use crate::registry::State;

impl Routes {
    /// Joins what people decided with what nodes say of themselves.
    #[must_use]
    pub fn build(state: &State, fleet: &Fleet, origin: &str) -> Self {
        let sightings = sight(fleet, None);
        let mut routes = Self {
            me: fleet.me,
            index: state.index,
            origin: host::normal_origin(origin),
            ..Self::default()
        };
        for service in state.services.values() {
            routes.add(state, service, &sightings);
        }
        routes
    }

    pub(super) fn add(
        &mut self,
        state: &State,
        service: &Service,
        sightings: &BTreeMap<&RevisionKey, Sighting>,
    ) {
        let key = &service.key;
        let route = Arc::new(self.service_route(state, service, sightings));
        *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
        let label = host::label(key, None);
        self.hosts.insert(label, Arc::clone(&route));
        for tag in route.tags.keys() {
            let named = self.tagged.entry(host::label(key, Some(tag))).or_default();
            let at = named.partition_point(|t| t.service.key < *key);
            let tagged = Tagged {
                service: Arc::clone(&route),
                tag: tag.clone(),
            };
            named.insert(at, tagged);
        }
        self.note_domains(&route);
        self.note_inner(&route);
        self.services.insert(key.clone(), route);
    }

    pub(super) fn remove(&mut self, key: &ServiceKey) {
        let Some(route) = self.services.remove(key) else {
            return;
        };
        for tag in route.tags.keys() {
            let label = host::label(key, Some(tag));
            if let Some(named) = self.tagged.get_mut(&label) {
                named.retain(|t| t.service.key != *key);
                if named.is_empty() {
                    self.tagged.remove(&label);
                }
            }
        }
        self.hosts.remove(&host::label(key, None));
        self.forget_domains(&route);
        self.forget_inner(&route);
        let revisions = route.shares.iter().map(|(_, revision)| revision);
        for revision in revisions.chain(route.tags.values()) {
            self.revisions.remove(&revision.key);
        }
        if let Some(count) = self.namespaces.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&key.namespace);
            }
        }
    }

    fn service_route(
        &mut self,
        state: &State,
        service: &Service,
        sightings: &BTreeMap<&RevisionKey, Sighting>,
    ) -> ServiceRoute {
        let mut route = ServiceRoute {
            key: service.key.clone(),
            shares: Vec::new(),
            tags: BTreeMap::new(),
            unrouted: None,
            address: service.meta.address,
            callers: service.spec.callers.clone(),
            domains: service.domains(),
            plain_http: service.allows_plain_http(),
            sticky: None,
        };
        for (percent, tag, wanted) in targets(service) {
            let revision = match takes_requests(state, wanted.as_ref()) {
                Ok(revision) => revision,
                Err(reason) => {
                    route.unrouted.get_or_insert(reason);
                    continue;
                }
            };
            let revision = self
                .revisions
                .entry(revision.key.clone())
                .or_insert_with(|| {
                    let sighting = sightings.get(&revision.key);
                    Arc::new(revision_route(revision, service, sighting))
                });
            if percent > 0 {
                route.shares.push((percent, Arc::clone(revision)));
            }
            if let Some(tag) = tag {
                route.tags.insert(tag, Arc::clone(revision));
            }
        }
        if route.shares.is_empty() {
            route.unrouted.get_or_insert(Unrouted::NoRevision);
        }
        let (seconds, uid) = (service.sticky_seconds(), &service.meta.uid);
        route.sticky = Sticky::new(seconds, uid, &route.shares);
        route
    }
}

/// The revisions that a service's requests go to.
pub(super) fn routed(service: &Service) -> impl Iterator<Item = RevisionKey> {
    let targets = targets(service).into_iter();
    targets.filter_map(|(_, _, revision)| revision)
}

/// A service's traffic as (percent, tag, revision): the explicit targets, or all to the latest
/// ready revision, or to the latest created one while none was ever ready (which then says why
/// it takes nothing).
fn targets(service: &Service) -> Vec<(u32, Option<Name>, Option<RevisionKey>)> {
    let status = &service.status;
    let latest = status
        .latest_ready
        .as_ref()
        .or(status.latest_created.as_ref());
    if service.traffic.is_empty() {
        return vec![(100, None, latest.cloned())];
    }
    let key = |name: &Name| RevisionKey {
        namespace: service.key.namespace.clone(),
        name: name.clone(),
    };
    let targets = service.traffic.iter();
    targets
        .map(|t| {
            let revision = t.revision.as_ref().map(key).or_else(|| latest.cloned());
            (t.percent, t.tag.clone(), revision)
        })
        .collect()
}

fn takes_requests<'a>(
    state: &'a State,
    wanted: Option<&RevisionKey>,
) -> Result<&'a Revision, Unrouted> {
    let revision = wanted.and_then(|key| state.revisions.get(key));
    let revision = revision.ok_or(Unrouted::NoRevision)?;
    match &revision.state {
        RevisionState::Ready => Ok(revision),
        RevisionState::Pending => Err(Unrouted::Pending(revision.key.clone())),
        RevisionState::Failed { reason, message } => Err(Unrouted::Failed {
            revision: revision.key.clone(),
            reason: reason.clone(),
            message: message.clone(),
        }),
    }
}

fn revision_route(
    revision: &Revision,
    service: &Service,
    seen: Option<&Sighting>,
) -> RevisionRoute {
    let (spec, scale) = (&revision.spec, &service.scale);
    let total = scale.total_concurrency(spec.container_concurrency).max(1);
    let percent = scale.utilization_percent.clamp(1, 100);
    let max_scale = match scale.max {
        0 => MAX_SCALE,
        max => max.min(MAX_SCALE),
    };
    RevisionRoute {
        key: revision.key.clone(),
        service: revision.service.clone(),
        hard: spec.container_concurrency,
        total,
        target: (total.saturating_mul(percent) / 100).max(1),
        timeout_seconds: spec.timeout_seconds,
        protocol: spec.port().protocol,
        listens: spec.listen.clone(),
        rate: service.rate(),
        max_scale,
        slow_start_seconds: service.slow_start_seconds(),
        ready: seen.map_or(0, |s| s.ready),
        starting: seen.map_or(0, |s| s.starting),
        away: seen.map_or_else(Vec::new, |s| s.away.clone()),
    }
}

/// What the fleet shows of one revision.
#[derive(Debug, Default)]
pub(super) struct Sighting {
    ready: u32,
    starting: u32,
    away: Vec<Away>,
}

/// One walk over all reports, or those of `wanted` revisions. Members that are not heard any more do not count, but
/// what they last said is kept as a last resort where no one else serves a revision, and when no other
/// member is alive: then it is more likely this node that is cut off.
pub(super) fn sight<'a>(
    fleet: &'a Fleet,
    wanted: Option<&BTreeSet<Mark>>,
) -> BTreeMap<&'a RevisionKey, Sighting> {
    let alone = is_alone(fleet);
    let has =
        |m: &Member| wanted.is_none_or(|marks| marks.iter().any(|mark| m.record.may_know(*mark)));
    let mut members: Vec<(&NodeId, &Member)> =
        fleet.members.iter().filter(|(_, m)| has(m)).collect();
    members.sort_by_key(|(id, m)| {
        (
            !m.is_reachable(),
            m.silent,
            m.distance_micros().unwrap_or(u32::MAX),
            **id,
        )
    });
    let mut sightings = BTreeMap::<&RevisionKey, Sighting>::new();
    for (id, member) in members {
        note(&mut sightings, (fleet.me == *id, alone), member, wanted);
    }
    sightings
}

/// Whether no other member is alive.
pub(super) fn is_alone(fleet: &Fleet) -> bool {
    let mut others = fleet.members.iter().filter(|(id, _)| **id != fleet.me);
    !others.any(|(_, m)| m.is_reachable())
}

fn note<'a>(
    sightings: &mut BTreeMap<&'a RevisionKey, Sighting>,
    (here, alone): (bool, bool),
    member: &'a Member,
    wanted: Option<&BTreeSet<Mark>>,
) {
    let reports = member.record.marked_instances();
    let wanted = |mark: &Mark| wanted.is_none_or(|marks| marks.contains(mark));
    for (report, _) in reports.filter(|(_, mark)| wanted(mark)) {
        let sighting = sightings.entry(&report.revision).or_default();
        match report.state {
            InstanceState::Starting if member.is_reachable() || here => sighting.starting += 1,
            state if state.serves() => {
                if member.is_reachable() || here {
                    sighting.ready += 1;
                }
                // Live members come first: by now they are counted.
                let last_known = || alone || sighting.ready == 0;
                if !here && (member.is_reachable() || last_known()) {
                    sighting.add_away(member, report);
                }
            }
            _ => {}
        }
    }
}

impl Sighting {
    /// Members are walked one after the other, so a node's instances meet in the last entry.
    fn add_away(&mut self, member: &Member, report: &InstanceReport) {
        let node = member.record.node;
        match self.away.last_mut().filter(|last| last.node == node) {
            Some(last) => {
                last.instances.push(report.id.clone());
                last.in_flight = last.in_flight.saturating_add(report.in_flight);
            }
            None => self.away.push(Away {
                node,
                rtt_micros: member.distance_micros(),
                instances: vec![report.id.clone()],
                in_flight: report.in_flight,
                alive: member.is_reachable(),
            }),
        }
    }
}
