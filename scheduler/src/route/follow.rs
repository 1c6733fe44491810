//! Routes after a change, from the routes before it: only services that the change is about are
//! joined anew.

use std::collections::BTreeSet;

use super::Routes;
use super::build::{is_alone, routed, sight};
use crate::fleet::{Fleet, Mark, Member};
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
        routes.refresh(state, fleet, touched);
        routes
    }

    /// Joins these services anew, and no other.
    pub fn refresh(&mut self, state: &State, fleet: &Fleet, touched: &BTreeSet<ServiceKey>) {
        self.index = state.index;
        for key in touched {
            self.remove(key);
        }
        let services = touched.iter().filter_map(|key| state.services.get(key));
        let services: Vec<_> = services.collect();
        let marks = services.iter().copied().flat_map(routed);
        let marks: BTreeSet<Mark> = marks.map(|revision| Mark::of(&revision)).collect();
        let sightings = sight(fleet, Some(&marks));
        for service in services {
            self.add(state, service, &sightings);
        }
    }
}

/// Revisions with instances on members that changed.
fn moved<'a>(before: &'a Fleet, fleet: &'a Fleet) -> impl Iterator<Item = &'a RevisionKey> {
    // What routes read of a member.
    let same = |a: &Member, b: &Member| {
        let life = |m: &Member| (m.alive, m.silent, m.lost, m.distance_micros());
        life(a) == life(b) && a.record.instances == b.record.instances
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
