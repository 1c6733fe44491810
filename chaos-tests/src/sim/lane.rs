//! Requests that wait at a host's door, one lane for each revision: `activate` says how many instances
//! they need, who goes and who is refused.

use std::collections::BTreeSet;

use scheduler::activate::{Activation, Bounds, Effect, Refused, Ticket};
use scheduler::model::RevisionKey;

use super::door::{Outcome, Stage};
use super::host::{Id, Lane};
use super::plan::Bug;
use super::queue::Millis;
use super::sight::fresh;
use super::world::{Event, World};

/// Requests that one door holds for one revision.
const QUEUE: usize = 1_000;
/// While requests wait, routes are looked at this often.
const LOOK: Millis = 50;

impl World {
    pub(super) fn hold(&mut self, id: Id) {
        if self.plan.bug == Some(Bug::ForgetsRequests) && id.is_multiple_of(50) {
            return;
        }
        self.advance(id, Stage::Held);
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let Some(key) = request.revision.clone() else {
            return;
        };
        let (door, now) = (request.door, self.queue.now());
        let deadline = self.hosts[door].clock(request.deadline);
        let (clock, life) = (self.hosts[door].clock(now), self.hosts[door].life);
        let bounds = self.bounds(door, &key);
        let lane = self.hosts[door]
            .lanes
            .entry(key.clone())
            .or_insert_with(|| Lane {
                core: Activation::new(QUEUE),
                held: BTreeSet::new(),
            });
        if lane.held.is_empty() {
            self.queue
                .after(LOOK, Event::LaneTimer(door, life, key.clone()));
        }
        lane.held.insert(id);
        let effects = lane.core.on_request(clock, Ticket(id), deadline, &bounds);
        self.settle(door, &key, effects);
    }

    fn bounds(&mut self, door: usize, key: &RevisionKey) -> Bounds {
        let Some(route) = self.hosts[door].revision_route(key) else {
            return Bounds {
                per_instance: 1,
                max_scale: 1,
                ready: 0,
                starting: 0,
            };
        };
        let host = &self.hosts[door];
        let here = host
            .programs
            .values()
            .filter(|p| p.open && p.revision.key == *key);
        let shown = route
            .away
            .iter()
            .filter(|a| a.alive)
            .map(|a| a.instances.len());
        let fresh: u32 = fresh(host, &route).iter().map(|(_, count)| count).sum();
        let known = u32::try_from(here.count() + shown.sum::<usize>()).unwrap_or(u32::MAX);
        Bounds {
            per_instance: route.total,
            max_scale: route.max_scale,
            ready: known.saturating_add(fresh),
            starting: route.starting,
        }
    }

    fn settle(&mut self, door: usize, key: &RevisionKey, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start { count } => {
                    let held = self.hosts[door]
                        .lanes
                        .get(key)
                        .map_or(0, |lane| lane.held.len());
                    let held = u32::try_from(held)
                        .unwrap_or(u32::MAX)
                        .div_ceil(count.max(1));
                    for _ in 0..count {
                        self.door_search(door, key, held);
                    }
                }
                Effect::Release { .. } => {}
                Effect::Refuse { ticket, reason, .. } => self.refuse(door, key, ticket.0, &reason),
            }
        }
    }

    /// A refusal, unless there is still an endpoint to try however doubtful.
    fn refuse(&mut self, door: usize, key: &RevisionKey, id: Id, reason: &Refused) {
        if let Some(lane) = self.hosts[door].lanes.get_mut(key) {
            lane.held.remove(&id);
        }
        let in_time = self
            .requests
            .get(&id)
            .is_some_and(|r| self.queue.now() < r.deadline);
        if in_time && let Some((revision, choice)) = self.choose(id, true) {
            return self.send_to(id, door, &revision, choice);
        }
        let why = match reason {
            Refused::QueueFull => "queue full",
            Refused::WaitTimeout => "waited in vain",
            Refused::StartFailed { .. } => "start failed",
            Refused::NoCapacity { .. } => "no capacity",
        };
        self.answered(id, &Outcome::Refused(why));
    }

    pub(super) fn on_lane_timer(&mut self, door: usize, key: &RevisionKey) {
        self.offer(door, key);
        let clock = self.hosts[door].clock(self.queue.now());
        let bounds = self.bounds(door, key);
        let Some(lane) = self.hosts[door].lanes.get_mut(key) else {
            return;
        };
        let effects = lane.core.on_timeout(clock, &bounds);
        self.settle(door, key, effects);
        let life = self.hosts[door].life;
        let Some(lane) = self.hosts[door].lanes.get_mut(key) else {
            return;
        };
        if lane.held.is_empty() && lane.core.is_idle() {
            self.hosts[door].lanes.remove(key);
        } else if !lane.held.is_empty() {
            self.queue
                .after(LOOK, Event::LaneTimer(door, life, key.clone()));
        }
    }

    pub(super) fn offer_all(&mut self, door: usize) {
        let keys: Vec<RevisionKey> = self.hosts[door].lanes.keys().cloned().collect();
        for key in keys {
            self.offer(door, &key);
        }
    }

    /// Hands out room while there is any to those who wait longest.
    pub(super) fn offer(&mut self, door: usize, key: &RevisionKey) {
        loop {
            let lane = self.hosts[door].lanes.get(key);
            let Some(first) = lane.and_then(|lane| lane.held.first().copied()) else {
                return;
            };
            if let Some(request) = self.requests.get_mut(&first) {
                request.tried.clear();
                request.tried_here.clear();
                request.dead_ends = 0;
            }
            let Some((revision, choice)) = self.choose(first, false) else {
                return;
            };
            let Some(lane) = self.hosts[door].lanes.get_mut(key) else {
                return;
            };
            let released = lane.core.on_room(1);
            for effect in released {
                if let Effect::Release { ticket } = effect {
                    lane.held.remove(&ticket.0);
                    self.send_to(ticket.0, door, &revision, choice.clone());
                    break;
                }
            }
        }
    }

    /// What came of a start that the lane asked for.
    pub(super) fn on_search_ended(
        &mut self,
        door: usize,
        key: &RevisionKey,
        result: Result<(), Refused>,
    ) {
        let clock = self.hosts[door].clock(self.queue.now());
        let bounds = self.bounds(door, key);
        let Some(lane) = self.hosts[door].lanes.get_mut(key) else {
            return;
        };
        match result {
            Ok(()) => lane.core.on_started(),
            Err(reason) => {
                let effects = lane.core.on_start_failed(clock, reason, &bounds);
                self.settle(door, key, effects);
            }
        }
        self.offer(door, key);
    }
}
