//! Who looks after a revision, and what it does about it at each tick. Every node runs one; it
//! acts for the revisions it is the steward of, and its orders are carried out by others.
//!
//! A revision has one **home** steward, which brings up its first instances, judges whether it
//! came up, and keeps its minimum and maximum; and one steward in each **zone**, which scales the zone's
//! instances with the requests in them and at the zone's doors. Both are found by rendezvous
//! hashing over the live nodes, without an election. Who takes over waits until what was ordered before
//! shows, and the zones share what the maximum leaves, so that it holds however often stewards change.
//! Where two nodes take themselves for the steward because they do not see each other, no harm is
//! done: starts are admitted by their targets, stops are drained and choose the same instances, and
//! what is too many is mended once they do.

mod afar;
mod clear;
mod duty;
mod foresee;
mod memory;
mod room;
mod roster;
mod scale;
mod scene;
mod vacate;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_leases;
#[cfg(test)]
mod tests_many;
#[cfg(test)]
mod tests_vacate;
#[cfg(test)]
mod world;

use std::collections::BTreeMap;

use crate::fleet::Fleet;
use crate::model::{
    InstanceId, NodeId, Now, Revision, RevisionKey, RevisionState, Service, UnixMs,
};
use crate::place::Receipt;
use crate::registry::State;
pub use duty::steward_of;
use duty::{Duties, Duty};
use foresee::waiting;
use memory::Memory;
use roster::Roster;
use scale::Tick;
use scene::{Scene, Watch};

/// What a steward wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Ask the receipt's nodes in turn for one instance; report to
    /// [`Steward::on_start_result`] what came of it.
    Start {
        revision: RevisionKey,
        receipt: Receipt,
    },
    /// Drain and stop one instance.
    Stop {
        instance: InstanceId,
        node: NodeId,
        cause: String,
    },
    /// Propose `MarkReady`: the first instances are up.
    Ready { revision: RevisionKey },
    /// Propose `MarkFailed`: it will not come up.
    Fail {
        revision: RevisionKey,
        reason: String,
        message: String,
    },
}

/// How a revision stands with its service.
enum Standing<'a> {
    /// To be brought up.
    Initial(&'a Revision, &'a Service),
    /// Requests are sent to it.
    Routed(&'a Revision, &'a Service),
    /// It was ready once; nothing is sent to it.
    Superseded,
    /// A newer one was deployed before it was ready.
    Overtaken {
        by: RevisionKey,
    },
    Failed,
    /// Not in the registry.
    Gone,
}

impl<'a> Standing<'a> {
    fn of(state: &'a State, key: &RevisionKey, revision: Option<&'a Revision>) -> Self {
        let Some(revision) = revision else {
            return Self::Gone;
        };
        let Some(service) = state.services.get(&revision.service) else {
            return Self::Gone;
        };
        let routed = service.routed().contains(key);
        let latest = service.status.latest_created.as_ref();
        match revision.state {
            RevisionState::Failed { .. } => Self::Failed,
            RevisionState::Ready if routed => Self::Routed(revision, service),
            RevisionState::Ready => Self::Superseded,
            RevisionState::Pending => match latest {
                Some(by) if by != key && !routed => Self::Overtaken { by: by.clone() },
                _ => Self::Initial(revision, service),
            },
        }
    }
}

/// A node's stewardship over all revisions.
#[derive(Debug, Default)]
pub struct Steward {
    memories: BTreeMap<RevisionKey, Memory>,
    roster: Roster,
    duties: Duties,
    doubts: bool,
}

impl Steward {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the registry's state may be older than what is there: until a node that was restarted hears
    /// of the others, it knows what its disk had. No revision is gone or superseded for that.
    pub fn doubt(&mut self, doubts: bool) {
        self.doubts = doubts;
    }

    /// Looks at everything once; called about once a second. A start is not ordered again
    /// before it had the time to show in the fleet.
    pub fn tick(&mut self, now: Now, unix: UnixMs, state: &State, fleet: &Fleet) -> Vec<Order> {
        let me = fleet.members.get(&fleet.me);
        let Some(me) = me.filter(|m| m.alive && m.record.serving) else {
            self.memories.clear();
            (self.roster, self.duties) = (Roster::default(), Duties::default());
            return Vec::new();
        };
        let me = &me.record;
        let Self {
            memories,
            roster,
            duties,
            ..
        } = self;
        roster.renew(fleet, me);
        duties.renew(fleet.me, roster, state);
        roster.search(fleet, duties);
        let watches = scene::watches(state, fleet, roster, duties);
        memories.retain(|key, _| {
            let found = watches.binary_search_by(|watch| watch.key.cmp(key));
            found.is_ok()
        });
        let mut tick = Tick::new((now, unix), state, fleet, me, waiting(fleet, roster));
        tick.doubts = self.doubts;
        for watch in watches {
            let standing = Standing::of(state, watch.key, watch.revision);
            let stays = matches!(standing, Standing::Initial(..) | Standing::Routed(..));
            if self.doubts && !stays {
                continue;
            }
            let Watch {
                key, duty, scene, ..
            } = watch;
            let memory = memories.entry(key.clone()).or_insert_with(|| {
                let used = matches!(standing, Standing::Routed(..)) || !scene.instances.is_empty();
                Memory::new(now, &scene, fleet.me, duty, used)
            });
            memory.assume(now, duty);
            look_after(&mut tick, duty, standing, key, &scene, memory);
        }
        tick.orders
    }

    /// What came of an [`Order::Start`]: an instance that is ready, or why none of the nodes
    /// took it.
    pub fn on_start_result(
        &mut self,
        now: Now,
        revision: &RevisionKey,
        result: Result<(), String>,
    ) {
        if let Some(memory) = self.memories.get_mut(revision) {
            memory.on_start_result(now, result);
        }
    }
}

fn look_after(
    tick: &mut Tick<'_>,
    duty: Duty,
    standing: Standing<'_>,
    key: &RevisionKey,
    scene: &Scene<'_>,
    memory: &mut Memory,
) {
    memory.look(tick.now, scene, matches!(standing, Standing::Initial(..)));
    if !matches!(standing, Standing::Superseded) {
        memory.superseded = None;
    }
    match standing {
        Standing::Initial(revision, service) => {
            if duty.home {
                tick.bring_up(revision, service, scene, memory);
            }
        }
        Standing::Routed(revision, service) => {
            if duty.home {
                tick.keep_minimum(revision, service, scene, memory);
                tick.keep_maximum(service, scene, memory);
            }
            if duty.zone {
                tick.scale_zone(revision, service, scene, memory);
            }
        }
        Standing::Overtaken { by } => {
            if duty.home && memory.may_tell(tick.now) {
                tick.orders.push(Order::Fail {
                    revision: key.clone(),
                    reason: "Superseded".to_owned(),
                    message: format!("{} was deployed before it was ready", by.name),
                });
            }
            if duty.zone {
                tick.stop_all(scene, memory, "a newer revision was deployed");
            }
        }
        Standing::Superseded | Standing::Failed | Standing::Gone if !duty.zone => {}
        Standing::Superseded => tick.retire(scene, memory),
        Standing::Failed => tick.stop_all(scene, memory, "the revision failed"),
        Standing::Gone => tick.stop_all(scene, memory, "the revision is no longer there"),
    }
}
