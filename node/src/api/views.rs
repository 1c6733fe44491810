//! What the API shows, computed from the registry's state and the fleet. Pure.

use netfabric::wire::api::{Condition, InstanceCounts, InstanceView, NodeStatus, ServiceView};
use scheduler::fleet::{Fleet, Member};
use scheduler::model::{
    InstanceReport, InstanceState, Name, NodeIdentity, Resources, RevisionState, Service,
    ServiceKey,
};
use scheduler::registry::{Hosts, State};

pub(super) fn service(
    state: &State,
    fleet: &Fleet,
    (origin, secure): (&str, &Hosts<'_>),
    service: &Service,
) -> ServiceView {
    let live = fleet.members.values().filter(|m| m.alive);
    let mine = live.flat_map(|m| {
        m.record
            .instances
            .iter()
            .filter(|r| r.service == service.key)
    });
    ServiceView {
        url: url(&service.key, origin, secure),
        instances: counts(mine.map(|r| r.state)),
        condition: condition(state, service),
        service: service.clone(),
    }
}

pub(super) fn counts(states: impl Iterator<Item = InstanceState>) -> InstanceCounts {
    let mut counts = InstanceCounts::default();
    for state in states {
        match state {
            InstanceState::Parked => counts.parked += 1,
            InstanceState::Starting => counts.starting += 1,
            InstanceState::Ready => counts.ready += 1,
            InstanceState::Draining => counts.draining += 1,
            InstanceState::Failed => counts.failed += 1,
            InstanceState::Frozen => counts.frozen += 1,
            InstanceState::Stopped => {}
        }
    }
    counts
}

/// Where clients find a service: over TLS where there is a certificate for that.
fn url(key: &ServiceKey, origin: &str, secure: &Hosts<'_>) -> String {
    let host = if key.namespace == Name::default_namespace() {
        format!("{}.{origin}", key.name)
    } else {
        format!("{}.{}.{origin}", key.name, key.namespace)
    };
    // An origin may say a port, as the demo's does.
    let name = host.split(':').next().unwrap_or(&host);
    let scheme = if secure.cover(name) { "https" } else { "http" };
    format!("{scheme}://{host}")
}

/// A service is ready when its latest revision is: what was deployed last is what people ask about.
fn condition(state: &State, service: &Service) -> Condition {
    let latest = service
        .status
        .latest_created
        .as_ref()
        .and_then(|key| state.revisions.get(key));
    let (ready, reason, message) = match latest.map(|revision| &revision.state) {
        Some(RevisionState::Ready) => ("True", String::new(), String::new()),
        Some(RevisionState::Failed { reason, message }) => {
            ("False", reason.clone(), message.clone())
        }
        Some(RevisionState::Pending) | None => (
            "Unknown",
            "Deploying".to_owned(),
            "the first instance is not ready yet".to_owned(),
        ),
    };
    Condition {
        ready: ready.to_owned(),
        reason,
        message,
    }
}

pub(super) fn instance(member: &Member, report: &InstanceReport) -> InstanceView {
    InstanceView {
        id: report.id.clone(),
        namespace: report.service.namespace.clone(),
        service: report.service.name.clone(),
        revision: report.revision.name.clone(),
        node: member.record.node,
        node_name: member.record.name.clone(),
        region: member.record.region.clone(),
        state: report.state,
        since: report.since,
        in_flight: report.in_flight,
        leases: report.activity.leases,
        failure: report.failure.clone(),
        alive: member.alive,
    }
}

/// Every instance a known node reports, by id; those that ended well a moment ago included.
pub(super) fn instances(fleet: &Fleet) -> Vec<InstanceView> {
    let mut all: Vec<InstanceView> = fleet
        .members
        .values()
        .flat_map(|member| {
            member
                .record
                .instances
                .iter()
                .map(move |report| instance(member, report))
        })
        .collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

/// An enrolled node; what only gossip knows is empty while it was never heard.
pub(super) fn node(identity: &NodeIdentity, fleet: &Fleet) -> NodeStatus {
    let member = fleet.members.get(&identity.id);
    let record = member.map(|m| &m.record);
    NodeStatus {
        id: identity.id,
        name: identity.name.clone(),
        region: identity.region.clone(),
        zone: identity.zone.clone(),
        role: identity.role,
        alive: member.is_some_and(Member::is_reachable),
        serving: record.is_some_and(|r| r.serving),
        cordoned: record.is_some_and(|r| r.cordoned),
        draining: identity.draining,
        rtt_micros: member.and_then(|m| m.rtt_micros),
        mesh: record.map_or(identity.mesh, |r| r.mesh),
        ingress: record.map(|r| r.ingress.clone()).unwrap_or_default(),
        capacity: record.map_or_else(Resources::default, |r| r.capacity),
        free: record.map_or_else(Resources::default, |r| r.free),
        registry_index: record.map_or(0, |r| r.registry_index),
        version: record.map(|r| r.version.clone()).unwrap_or_default(),
        instances: record.map_or(0, |r| count_running(&r.instances)),
        labels: record.map(|r| r.labels.clone()).unwrap_or_default(),
    }
}

/// What people mean by instances: those that ended well are gone.
pub(super) fn present(fleet: &Fleet) -> Vec<InstanceView> {
    let mut all = instances(fleet);
    all.retain(|i| i.state != InstanceState::Stopped);
    all
}

fn count_running(reports: &[InstanceReport]) -> u32 {
    let running = |r: &&InstanceReport| !r.state.is_over() && r.state != InstanceState::Parked;
    u32::try_from(reports.iter().filter(running).count()).unwrap_or(u32::MAX)
}
