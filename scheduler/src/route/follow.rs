//! Routes after a change, from the routes before it: only services that the change is about are
//! joined anew.

use std::collections::BTreeSet;

use super::Routes;
use super::build::{is_alone, sight};
use crate::fleet::{Fleet, Member};
use crate::model::{RevisionKey, ServiceKey};
use crate::registry::{Change, State};

impl Routes {
    /// The routes of `state` and `fleet`, when these are those of `before`. `changes` are the
    /// registry's since `self.index`, whatever they are about.
    #[must_use]
    pub fn follow<'a>(
        &self,
        state: &State,
        changes: impl IntoIterator<Item = &'a Change>,
        before: &Fleet,
        fleet: &Fleet,
    ) -> Self {
        if before.me != fleet.me || is_alone(before) != is_alone(fleet) {
            return Self::build(state, fleet, &self.origin);
        }
        let mut touched = self.services_of(state, moved(before, fleet));
        for change in changes {
            touched.extend(self.service_of(change));
        }
        self.renew(state, fleet, &touched)
    }

    /// The same for whoever knows which revisions have instances on members that changed, before or after:
    /// the registry is the same, and nobody came or went.
    #[must_use]
    pub fn follow_moved<'a>(
        &self,
        state: &State,
        moved: impl IntoIterator<Item = &'a RevisionKey>,
        fleet: &Fleet,
    ) -> Self {
        self.renew(state, fleet, &self.services_of(state, moved))
    }

    fn services_of<'a>(
        &self,
        state: &State,
        moved: impl IntoIterator<Item = &'a RevisionKey>,
    ) -> BTreeSet<ServiceKey> {
        let services = moved.into_iter().filter_map(|revision| {
            let known = state.revisions.get(revision).map(|r| &r.service);
            let shown = || self.revisions.get(revision).map(|r| &r.service);
            known.or_else(shown).cloned()
        });
        services.collect()
    }

    fn service_of(&self, change: &Change) -> Option<ServiceKey> {
        match change {
            Change::Service(service) => Some(service.key.clone()),
            Change::ServiceGone(key) => Some(key.clone()),
            Change::Revision(revision) => Some(revision.service.clone()),
            Change::RevisionGone(key) => self.revisions.get(key).map(|r| r.service.clone()),
            _ => None,
        }
    }

    fn renew(&self, state: &State, fleet: &Fleet, touched: &BTreeSet<ServiceKey>) -> Self {
        let mut routes = self.clone();
        routes.index = state.index;
        for key in touched {
            routes.remove(key);
        }
        let services = touched.iter().filter_map(|key| state.services.get(key));
        let wanted = |revision: &RevisionKey| {
            let revision = state.revisions.get(revision);
            revision.is_some_and(|r| touched.contains(&r.service))
        };
        let sightings = sight(fleet, wanted);
        for service in services {
            routes.add(state, service, &sightings);
        }
        routes
    }
}

/// Revisions with instances on members that changed.
fn moved<'a>(before: &'a Fleet, fleet: &'a Fleet) -> impl Iterator<Item = &'a RevisionKey> {
    // What routes read of a member.
    let same = |a: &Member, b: &Member| {
        (a.alive, a.distance_micros()) == (b.alive, b.distance_micros())
            && a.record.instances == b.record.instances
    };
    let changed = move |one: &'a Fleet, other: &'a Fleet| {
        let members = one.members.iter();
        members.filter(move |(id, member)| {
            let other = other.members.get(id);
            !other.is_some_and(|other| same(member, other))
        })
    };
    let members = changed(before, fleet).chain(changed(fleet, before));
    members.flat_map(|(_, member)| member.record.instances.iter().map(|i| &i.revision))
}
