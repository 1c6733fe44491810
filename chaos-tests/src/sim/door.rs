//! What a host's front door does with a request: it sends it to an endpoint that `route` picks, tries
//! elsewhere what broke, and answers. What waits for room is `lane`'s.

use rand::RngExt as _;
use scheduler::model::{InstanceId, NodeId, RevisionKey};
use scheduler::route::{Pick, last_resort, pick};

use super::host::{Id, Rumour};
use super::network::SILENCE;
use super::orders::number_of;
use super::plan::Bug;
use super::queue::Millis;
use super::sight::{Choice, Sight};
use super::world::{Event, Hop, Visit, World};

/// A client whose door is gone asks another one after this.
const CLIENT_AGAIN: Millis = 1_000;
/// A node that said it has no instance is believed for so long, one that is full for so long.
const BARE: Millis = 2_000;
const FULL: Millis = 200;
const EJECTED: Millis = 5_000;
/// Endpoints that are tried before a request is held.
const DEAD_ENDS: u32 = 16;

/// A request, wherever it is.
#[derive(Debug)]
pub(super) struct Request {
    pub service: usize,
    pub region: usize,
    pub born: Millis,
    /// It changes something: it is not sent again once an instance may have seen it.
    pub changes: bool,
    pub door: usize,
    life: u64,
    /// When its door refuses it.
    pub deadline: Millis,
    pub revision: Option<RevisionKey>,
    pub stage: Stage,
    /// Rises with every move: what was meant for an earlier one is void.
    step: u64,
    pub tried: Vec<NodeId>,
    pub tried_here: Vec<InstanceId>,
    pub dead_ends: u32,
    /// An instance had it.
    seen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Client,
    Held,
    /// On its way to a host, or in an instance there.
    Sent(usize),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    /// A declared refusal: its cause.
    Refused(&'static str),
    /// It changes something, an instance may have seen it, and its host or door was lost.
    Lost,
    /// The same, while its host lived: somebody ended the instance under it.
    Broken,
}

impl World {
    pub(super) fn new_request(&mut self, service: usize, region: usize, after: Millis) {
        let id = self.number();
        let request = Request {
            service,
            region,
            born: self.queue.now() + after,
            changes: self.rng.random_range(0..5) == 0,
            door: 0,
            life: 0,
            deadline: 0,
            revision: None,
            stage: Stage::Client,
            step: 0,
            tried: Vec::new(),
            tried_here: Vec::new(),
            dead_ends: 0,
            seen: false,
        };
        self.requests.insert(id, request);
        self.queue.after(after, Event::Request(id, 0, Hop::Client));
    }

    pub(super) fn on_hop(&mut self, id: Id, step: u64, hop: Hop) {
        let Some(request) = self.requests.get(&id).filter(|r| r.step == step) else {
            return;
        };
        let (door, life) = (request.door, request.life);
        match hop {
            Hop::Client => self.enter_door(id),
            Hop::Reaches(host) => self.reaches(host, id),
            _ if !self.lives(door, life) => {}
            Hop::Rebuffed { full } => self.rebuffed(id, full),
            Hop::Broken => self.broken(id),
            Hop::Back => {
                self.unsend(id);
                self.answered(id, &Outcome::Ok);
            }
        }
    }

    /// The client asks the nearest door that lives.
    fn enter_door(&mut self, id: Id) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let regions = self.plan.sites.len();
        let mut order = (0..regions).map(|step| (request.region + step) % regions);
        let up = |host: &&usize| self.hosts[**host].up;
        let count = |region: &usize| self.doors[*region].iter().filter(up).count();
        let Some((region, count)) = order
            .by_ref()
            .map(|region| (region, count(&region)))
            .find(|(_, count)| *count > 0)
        else {
            let step = self.advance(id, Stage::Client);
            return self
                .queue
                .after(CLIENT_AGAIN, Event::Request(id, step, Hop::Client));
        };
        let drawn = self.rng.random_range(0..count);
        let mut doors = self.doors[region]
            .iter()
            .filter(|host| self.hosts[**host].up);
        let Some(door) = doors.nth(drawn).copied() else {
            return;
        };
        let (now, life) = (self.queue.now(), self.hosts[door].life);
        let patience = self.patience(id);
        if let Some(request) = self.requests.get_mut(&id) {
            (request.door, request.life) = (door, life);
            request.deadline = now + patience;
            request.tried.clear();
            request.tried_here.clear();
            request.dead_ends = 0;
        }
        self.route(id);
    }

    fn patience(&self, id: Id) -> Millis {
        let service = self.requests.get(&id).map_or(0, |r| r.service);
        self.plan.services[service].patience()
    }

    /// The request moves on: what was under way for it before is void.
    pub(super) fn advance(&mut self, id: Id, stage: Stage) -> u64 {
        self.requests.get_mut(&id).map_or(0, |request| {
            request.step += 1;
            request.stage = stage;
            request.step
        })
    }

    /// Finds its revision; then an endpoint.
    fn route(&mut self, id: Id) {
        let draw = self.rng.random_range(0..100);
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        let key = &self.services[request.service];
        let route = self.hosts[request.door].service_route(key);
        let revision = route.as_ref().map(|route| route.pick_revision(draw, None));
        match revision {
            Some(Ok(route)) => {
                request.revision = Some(route.key.clone());
                self.send(id);
            }
            Some(Err(_)) => self.answered(id, &Outcome::Refused("unrouted")),
            None => self.answered(id, &Outcome::Refused("no service")),
        }
    }

    /// Sends it to an endpoint, or holds it.
    fn send(&mut self, id: Id) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (door, given_up) = (request.door, request.dead_ends >= DEAD_ENDS);
        match self.choose(id, false) {
            Some(_) if given_up => self.hold(id),
            Some((route, choice)) => self.send_to(id, door, &route, choice),
            None => self.hold(id),
        }
    }

    pub(super) fn choose(&mut self, id: Id, anyone: bool) -> Option<(RevisionKey, Choice)> {
        let draw = self.rng.random();
        let request = self.requests.get(&id)?;
        let route = self.hosts[request.door].revision_route(request.revision.as_ref()?)?;
        let host = &self.hosts[request.door];
        let sight = Sight::new(host, &route, &request.tried, &request.tried_here);
        let picked = if anyone {
            last_resort(&route, &sight)
        } else {
            pick(&route, &sight, draw)
        };
        let choice = match picked {
            Pick::Local(number) => Choice::Here(sight.slots[number].0.clone()),
            Pick::Remote(node) => Choice::There(node),
            Pick::None => return None,
        };
        Some((route.key.clone(), choice))
    }

    pub(super) fn send_to(&mut self, id: Id, door: usize, revision: &RevisionKey, choice: Choice) {
        match choice {
            Choice::Here(instance) => {
                self.advance(id, Stage::Sent(door));
                self.enter(door, &instance, id);
            }
            Choice::There(node) => {
                let to = number_of(node);
                let step = self.advance(id, Stage::Sent(to));
                let far = self.hosts[door].spot.region != self.hosts[to].spot.region;
                let own = &mut self.hosts[door];
                *own.sent.entry((revision.clone(), node)).or_default() += 1;
                if far {
                    own.send_away(self.queue.now(), revision);
                }
                let gone = !self.hosts[to].up || !self.network.reaches(door, to);
                let way = self
                    .network
                    .one_way(self.hosts[door].spot, self.hosts[to].spot);
                let (after, hop) = if gone {
                    (SILENCE, Hop::Broken)
                } else {
                    (way, Hop::Reaches(to))
                };
                self.queue.after(after, Event::Request(id, step, hop));
            }
        }
    }

    /// It arrives at a host that is said to have an instance.
    fn reaches(&mut self, host: usize, id: Id) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (door, step) = (request.door, request.step);
        if !self.hosts[host].up {
            let hop = Hop::Broken;
            return self.queue.after(SILENCE, Event::Request(id, step, hop));
        }
        let mixes = self.plan.bug == Some(Bug::Mixes);
        let own = &self.hosts[host];
        let fits = |p: &super::host::Program| {
            p.open && (mixes || request.revision.as_ref() == Some(&p.revision.key))
        };
        let mut open = own.programs.iter().filter(|(_, p)| fits(p)).peekable();
        let any = open.peek().is_some();
        let room = open.filter(|(_, p)| {
            let hard = usize::try_from(p.revision.spec.container_concurrency).unwrap_or(0);
            hard == 0 || p.inside.len() < hard
        });
        let best = room.min_by_key(|(id, p)| (p.inside.len(), *id));
        if let Some(instance) = best.map(|(id, _)| id.clone()) {
            return self.enter(host, &instance, id);
        }
        let way = self
            .network
            .one_way(self.hosts[door].spot, self.hosts[host].spot);
        let hop = Hop::Rebuffed { full: any };
        self.queue.after(way, Event::Request(id, step, hop));
    }

    /// It is in an instance.
    fn enter(&mut self, host: usize, instance: &InstanceId, id: Id) {
        let (now, number) = (self.queue.now(), self.number());
        let drawn = self.rng.random_range(50..150);
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        request.seen = true;
        let visit = Visit {
            number,
            request: id,
            step: request.step,
        };
        let service = request.service;
        let work = self.plan.services[service].work * drawn / 100;
        let own = &mut self.hosts[host];
        let (clock, life, work) = (own.clock(now), own.life, own.slowed(work));
        let Some(program) = own.programs.get_mut(instance) else {
            return;
        };
        if program.revision.service != self.services[service] {
            self.oracle.find(
                now,
                format!("{instance} got a request to {}", self.services[service]),
            );
        }
        program.count(now);
        program.inside.insert(number);
        if std::mem::take(&mut program.frozen) {
            let effects = own.agent.on_thawed(clock, instance);
            self.perform(host, effects);
        }
        let served = Event::Served(host, life, instance.clone(), visit);
        self.queue.after(work, served);
    }

    /// Its visit ends.
    pub(super) fn on_served(&mut self, host: usize, instance: &InstanceId, visit: Visit) {
        let now = self.queue.now();
        let Some(program) = self.hosts[host].programs.get_mut(instance) else {
            return;
        };
        program.count(now);
        if !program.inside.remove(&visit.number) {
            return;
        }
        let revision = program.revision.key.clone();
        let request = self
            .requests
            .get(&visit.request)
            .filter(|r| r.step == visit.step);
        if let Some(door) = request.map(|r| r.door) {
            let event = |hop| Event::Request(visit.request, visit.step, hop);
            let way = self
                .network
                .one_way(self.hosts[host].spot, self.hosts[door].spot);
            if door == host {
                self.on_hop(visit.request, visit.step, Hop::Back);
            } else if self.network.reaches(host, door) {
                self.queue.after(way, event(Hop::Back));
            } else {
                self.queue.after(SILENCE, event(Hop::Broken));
            }
        }
        self.drained(host, instance);
        self.offer(host, &revision);
    }

    /// The bug of an instance that is ended with requests in it.
    pub(super) fn break_visits(&mut self, host: usize, instance: &InstanceId) {
        let now = self.queue.now();
        let Some(program) = self.hosts[host].programs.get_mut(instance) else {
            return;
        };
        program.count(now);
        if std::mem::take(&mut program.inside).is_empty() {
            return;
        }
        let there = |r: &&Request| r.stage == Stage::Sent(host) && r.seen;
        let lost = self.requests.iter().filter(|(_, r)| there(r));
        let lost: Vec<Id> = lost.map(|(id, _)| *id).take(1).collect();
        for id in lost {
            self.unsend(id);
            self.answered(id, &Outcome::Broken);
        }
    }

    /// It is no longer at the node that it was sent to.
    fn unsend(&mut self, id: Id) {
        let Some(request) = self.requests.get(&id) else {
            return;
        };
        let (Stage::Sent(to), Some(revision)) = (&request.stage, &request.revision) else {
            return;
        };
        let key = (revision.clone(), self.hosts[*to].node);
        let own = &mut self.hosts[request.door];
        if let Some(sent) = own.sent.get_mut(&key) {
            *sent = sent.saturating_sub(1);
            if *sent == 0 {
                own.sent.remove(&key);
            }
        }
    }

    fn rebuffed(&mut self, id: Id, full: bool) {
        self.unsend(id);
        let now = self.queue.now();
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        let (Stage::Sent(to), Some(revision)) = (&request.stage, &request.revision) else {
            return;
        };
        let node = self.hosts[*to].node;
        request.dead_ends += 1;
        request.tried.push(node);
        let own = &mut self.hosts[request.door];
        if !full {
            own.fresh
                .retain(|r| r.node != node || r.revision != *revision);
        }
        own.bare.push(Rumour {
            until: now + if full { FULL } else { BARE },
            revision: revision.clone(),
            node,
            instance: None,
        });
        self.send(id);
    }

    fn broken(&mut self, id: Id) {
        self.unsend(id);
        let until = self.queue.now() + EJECTED;
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if let Stage::Sent(to) = request.stage {
            let node = self.hosts[to].node;
            self.hosts[request.door].ejected.insert(node, until);
            request.tried.push(node);
        }
        if request.seen && request.changes {
            return self.answered(id, &Outcome::Lost);
        }
        self.send(id);
    }

    /// All that was at a host that died, and all that its door had.
    pub(super) fn lose_requests(&mut self, host: usize) {
        let mut at_door = Vec::new();
        let mut there = Vec::new();
        for (id, request) in &self.requests {
            if request.stage == Stage::Client {
            } else if request.door == host && request.life == self.hosts[host].life {
                at_door.push(*id);
            } else if request.stage == Stage::Sent(host) {
                there.push((*id, request.step));
            }
        }
        for (id, step) in there {
            self.queue
                .after(SILENCE, Event::Request(id, step, Hop::Broken));
        }
        for id in at_door {
            let request = self.requests.get(&id);
            if request.is_some_and(|r| r.seen && r.changes) {
                self.answered(id, &Outcome::Lost);
            } else {
                let step = self.advance(id, Stage::Client);
                self.queue
                    .after(CLIENT_AGAIN, Event::Request(id, step, Hop::Client));
            }
        }
    }

    pub(super) fn answered(&mut self, id: Id, outcome: &Outcome) {
        let now = self.queue.now();
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        self.note(format_args!(
            "request {id} of {} {outcome:?} in {}",
            request.service,
            now - request.born
        ));
        self.oracle.answered(now, &request, outcome);
    }
}
