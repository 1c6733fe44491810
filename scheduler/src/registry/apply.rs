//! What each command changes, worked out from the present state without touching it. Commands
//! about services are here, those about nodes and tokens in `members`.

use std::collections::BTreeSet;

use super::addresses::give;
use super::members::{cordon_node, create_token, enroll, found, remove_node};
use super::objects::{
    claim_volume, delete_config, delete_secret, delete_volume, put_config, put_secret,
};
use super::validate::{at_most, invalid, validate, validate_scale, validate_traffic};
use super::validate_domains::ensure_unclaimed;
use super::validate_listen::ensure_free;
use super::{Action, Change, Command, Outcome, PutService, Refusal, State, certificates};
use crate::model::{
    Domain, MOST_DOMAINS, Meta, Revision, RevisionKey, RevisionState, Scale, Service, ServiceKey,
    ServiceStatus, TrafficTarget, UnixMs, set_domains,
};

/// Revisions of a service that stay whether anything refers to them or not, newest first.
const KEPT_REVISIONS: usize = 20;

/// What a command comes to.
#[derive(Debug)]
pub(super) struct Plan {
    pub changes: Vec<Change>,
    pub outcome: Outcome,
}

impl Plan {
    pub fn nothing() -> Self {
        Self::quiet(Vec::new())
    }

    /// Changes whose proposer needs no more than their index.
    pub fn quiet(changes: Vec<Change>) -> Self {
        Self {
            changes,
            outcome: Outcome::Nothing,
        }
    }

    fn service(service: Service, created: Option<RevisionKey>, changes: Vec<Change>) -> Self {
        Self {
            changes,
            outcome: Outcome::Service {
                service: Box::new(service),
                created_revision: created,
            },
        }
    }
}

pub(super) fn plan(state: &State, command: &Command) -> Result<Plan, Refusal> {
    let at = command.at;
    match &command.action {
        Action::FoundCluster { cluster, founder } => found(state, at, cluster, founder),
        Action::PutService(put) => put_service(state, at, put),
        Action::DeleteService { key } => delete_service(state, key),
        Action::SetScale { key, scale } => set_scale(state, key, scale),
        Action::SetTraffic { key, traffic } => set_traffic(state, key, traffic),
        Action::ChangeDomains { key, add, remove } => change_domains(state, key, add, remove),
        Action::MarkReady { revision } => mark_ready(state, revision),
        Action::MarkFailed {
            revision,
            reason,
            message,
        } => mark_failed(state, revision, reason, message),
        Action::CreateToken { hash, expires } => create_token(state, at, hash, *expires),
        Action::Enroll { token_hash, node } => enroll(state, at, token_hash, node),
        Action::RemoveNode { node } => remove_node(state, *node),
        Action::CordonNode {
            node,
            cordoned,
            draining,
        } => cordon_node(state, *node, *cordoned, *cordoned && *draining),
        Action::PutConfig {
            key,
            data,
            if_version,
        } => put_config(state, key, data, *if_version),
        Action::DeleteConfig { key } => delete_config(state, key),
        Action::PutSecret {
            key,
            data,
            if_version,
        } => put_secret(state, key, data, *if_version),
        Action::DeleteSecret { key } => delete_secret(state, key),
        Action::ClaimVolume { key, node } => claim_volume(state, key, *node),
        Action::DeleteVolume { key } => delete_volume(state, key),
        Action::PutCertificate { .. }
        | Action::DeleteCertificate { .. }
        | Action::PutOrder { .. }
        | Action::DeleteOrder { .. }
        | Action::PutAccount { .. }
        | Action::TakeLease { .. }
        | Action::GiveLease { .. } => certificates::plan(state, &command.action),
    }
}

fn put_service(state: &State, at: UnixMs, put: &PutService) -> Result<Plan, Refusal> {
    validate(put)?;
    let stored = state.services.get(&put.key);
    check_version(stored, put)?;
    let latest = stored
        .and_then(|s| s.status.latest_created.as_ref())
        .and_then(|key| state.revisions.get(key));
    let keeps_latest = latest.is_some_and(|r| {
        // A failed revision is never tried again, so deploying the same once more must make a new
        // one: what failed may have been a registry that was down for a minute.
        let failed = matches!(r.state, RevisionState::Failed { .. });
        r.spec == put.spec && r.image.digest == put.image.digest && !failed
    });
    let created = if keeps_latest {
        None
    } else {
        Some(next_revision(state, at, put, stored)?)
    };
    let known = |key: &RevisionKey| {
        let new = created.as_ref().is_some_and(|r| r.key == *key);
        new || state
            .revisions
            .get(key)
            .is_some_and(|r| r.service == put.key)
    };
    validate_traffic(&put.key, &put.traffic, known)?;
    let service = put_onto(state, at, put, stored, created.as_ref());
    ensure_free(state, &service)?;
    ensure_unclaimed(state, &service)?;
    match stored {
        Some(stored) if created.is_none() && same_wishes(stored, &service) => {
            Ok(Plan::service(stored.clone(), None, Vec::new()))
        }
        _ => {
            let key = created.as_ref().map(|r| r.key.clone());
            let mut changes = superfluous(state, &service, created.as_ref());
            changes.extend(created.map(|r| Change::Revision(Box::new(r))));
            changes.push(Change::Service(Box::new(service.clone())));
            Ok(Plan::service(service, key, changes))
        }
    }
}

fn check_version(stored: Option<&Service>, put: &PutService) -> Result<(), Refusal> {
    let found = stored.map_or(0, |s| s.meta.resource_version);
    match put.if_version {
        Some(expected) if expected != found => Err(Refusal::Conflict {
            what: format!("service {}", put.key),
            expected,
            found,
        }),
        _ => Ok(()),
    }
}

fn next_revision(
    state: &State,
    at: UnixMs,
    put: &PutService,
    stored: Option<&Service>,
) -> Result<Revision, Refusal> {
    let last = match stored {
        Some(service) => service.meta.generation,
        None => state.retired.get(&put.key).map_or(0, |r| r.generation),
    };
    let generation = last + 1;
    let key = RevisionKey::of(&put.key, generation).map_err(|_| {
        invalid(
            "name",
            "is too long to carry the number of its next revision",
        )
    })?;
    Ok(Revision {
        key,
        service: put.key.clone(),
        generation,
        created: at,
        spec: put.spec.clone(),
        image: put.image.clone(),
        state: RevisionState::Pending,
    })
}

/// The service as it would be stored.
fn put_onto(
    state: &State,
    at: UnixMs,
    put: &PutService,
    stored: Option<&Service>,
    created: Option<&Revision>,
) -> Service {
    let (mut meta, mut status) = match stored {
        Some(service) => (service.meta.clone(), service.status.clone()),
        None => (
            Meta {
                uid: put.uid.clone(),
                created: at,
                ..Meta::default()
            },
            ServiceStatus::default(),
        ),
    };
    meta.resource_version = state.index + 1;
    meta.address = meta.address.or_else(|| give(&put.key, &state.addresses));
    meta.labels.clone_from(&put.labels);
    meta.annotations.clone_from(&put.annotations);
    if let Some(revision) = created {
        meta.generation = revision.generation;
        status.latest_created = Some(revision.key.clone());
    }
    Service {
        key: put.key.clone(),
        meta,
        spec: put.spec.clone(),
        scale: put.scale.clone(),
        traffic: put.traffic.clone(),
        status,
    }
}

/// Whether two forms of a service differ in nothing a person wrote.
fn same_wishes(a: &Service, b: &Service) -> bool {
    a.spec == b.spec
        && a.scale == b.scale
        && a.traffic == b.traffic
        && a.meta.labels == b.meta.labels
        && a.meta.annotations == b.meta.annotations
        && a.meta.address == b.meta.address
}

/// Revisions that go once `service` is stored: those that are neither among the newest nor
/// referred to.
fn superfluous(state: &State, service: &Service, created: Option<&Revision>) -> Vec<Change> {
    let named = service.traffic.iter().filter_map(|t| t.revision.clone());
    let mut kept: BTreeSet<RevisionKey> = named
        .map(|name| RevisionKey {
            namespace: service.key.namespace.clone(),
            name,
        })
        .collect();
    kept.extend(service.status.latest_ready.clone());
    kept.extend(service.status.latest_created.clone());
    let mut old: Vec<&Revision> = state.revisions_of(&service.key).collect();
    old.sort_by_key(|r| std::cmp::Reverse(r.generation));
    let newest = KEPT_REVISIONS - usize::from(created.is_some());
    let beyond = old.into_iter().skip(newest);
    beyond
        .filter(|r| !kept.contains(&r.key))
        .map(|r| Change::RevisionGone(r.key.clone()))
        .collect()
}

fn delete_service(state: &State, key: &ServiceKey) -> Result<Plan, Refusal> {
    find_service(state, key)?;
    let revisions = state.revisions_of(key);
    let mut changes: Vec<_> = revisions
        .map(|r| Change::RevisionGone(r.key.clone()))
        .collect();
    changes.push(Change::ServiceGone(key.clone()));
    Ok(Plan::quiet(changes))
}

fn find_service<'a>(state: &'a State, key: &ServiceKey) -> Result<&'a Service, Refusal> {
    let service = state.services.get(key);
    service.ok_or_else(|| Refusal::NotFound(format!("service {key}")))
}

fn find_revision<'a>(state: &'a State, key: &RevisionKey) -> Result<&'a Revision, Refusal> {
    let revision = state.revisions.get(key);
    revision.ok_or_else(|| Refusal::NotFound(format!("revision {key}")))
}

/// Stores `service` with its version raised, or nothing when it is as it was.
fn restored(state: &State, was: &Service, mut service: Service) -> Plan {
    if *was == service {
        return Plan::service(service, None, Vec::new());
    }
    service.meta.resource_version = state.index + 1;
    let changes = vec![Change::Service(Box::new(service.clone()))];
    Plan::service(service, None, changes)
}

fn set_scale(state: &State, key: &ServiceKey, scale: &Scale) -> Result<Plan, Refusal> {
    let service = find_service(state, key)?;
    validate_scale(scale)?;
    let changed = Service {
        scale: scale.clone(),
        ..service.clone()
    };
    Ok(restored(state, service, changed))
}

fn set_traffic(
    state: &State,
    key: &ServiceKey,
    traffic: &[TrafficTarget],
) -> Result<Plan, Refusal> {
    let service = find_service(state, key)?;
    let known = |r: &RevisionKey| state.revisions.get(r).is_some_and(|r| r.service == *key);
    validate_traffic(key, traffic, known)?;
    let changed = Service {
        traffic: traffic.to_vec(),
        ..service.clone()
    };
    ensure_free(state, &changed)?;
    ensure_unclaimed(state, &changed)?;
    Ok(restored(state, service, changed))
}

fn change_domains(
    state: &State,
    key: &ServiceKey,
    add: &[Domain],
    remove: &[Domain],
) -> Result<Plan, Refusal> {
    let service = find_service(state, key)?;
    let mut domains = service.domains();
    domains.retain(|d| !remove.contains(d));
    for domain in add {
        if !domains.contains(domain) {
            domains.push(domain.clone());
        }
    }
    at_most("domains", domains.len() as u64, MOST_DOMAINS as u64)?;
    let mut changed = service.clone();
    set_domains(&mut changed.meta.annotations, &domains);
    ensure_unclaimed(state, &changed)?;
    Ok(restored(state, service, changed))
}

/// Status is written by nodes, not by people: it leaves `resource_version` alone, so that a
/// compare-and-set only fails when somebody else changed something.
fn mark_ready(state: &State, key: &RevisionKey) -> Result<Plan, Refusal> {
    let revision = find_revision(state, key)?;
    if revision.state != RevisionState::Pending {
        return Ok(Plan::nothing());
    }
    let mut ready = revision.clone();
    ready.state = RevisionState::Ready;
    let mut changes = vec![Change::Revision(Box::new(ready))];
    if let Some(service) = state.services.get(&revision.service) {
        let present = service.status.latest_ready.as_ref();
        let present = present.and_then(|key| state.revisions.get(key));
        if present.is_none_or(|present| present.generation < revision.generation) {
            let mut service = service.clone();
            service.status.latest_ready = Some(key.clone());
            changes.push(Change::Service(Box::new(service)));
        }
    }
    Ok(Plan::quiet(changes))
}

fn mark_failed(
    state: &State,
    key: &RevisionKey,
    reason: &str,
    message: &str,
) -> Result<Plan, Refusal> {
    let revision = find_revision(state, key)?;
    if revision.state != RevisionState::Pending {
        return Ok(Plan::nothing());
    }
    let mut failed = revision.clone();
    failed.state = RevisionState::Failed {
        reason: cut(reason, MAX_REASON),
        message: cut(message, MAX_MESSAGE),
    };
    Ok(Plan::quiet(vec![Change::Revision(Box::new(failed))]))
}

const MAX_REASON: usize = 64;
/// A message may carry an app's last log lines; the registry keeps it for ever on every node.
const MAX_MESSAGE: usize = 4096;

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
