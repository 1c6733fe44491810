//! The whole simulation: what happens next, to whom. Hosts run the product's cores; this room moves
//! time, carries what they send to each other, lets the plan's traffic come, and shows everything to the
//! oracle; `play` does what else the plan says.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use scheduler::converge::Ask;
use scheduler::fleet::Word;
use scheduler::model::{InstanceId, Name, RevisionKey, ServiceKey};
use scheduler::registry::Action;
use std::collections::BTreeMap;

use super::door::Request;
use super::host::{Errand, Host, Id};
use super::log::Log;
use super::network::{Network, Spot};
use super::oracle::{Oracle, Report};
use super::orders::Search;
use super::plan::{Bug, Plan, WARM};
use super::play::capacity;
use super::queue::{Millis, Queue};
use super::trace::Trace;
use super::traffic::TICK;

/// Between two looks of a host at what it heard.
const LOOK: Millis = 500;
/// In larger fleets a host looks only at its own beat.
const CLOSELY: usize = 50;
const SECOND: Millis = 1_000;
/// Services are deployed once hosts have heard of each other.
const DEPLOYED: Millis = 5_000;

/// What happens. Events of a host are void when it has died since.
#[derive(Debug)]
pub(super) enum Event {
    /// A host's second.
    Beat(usize, u64),
    /// A host looks at what it heard.
    Look(usize, u64),
    /// The oracle looks at everything.
    Sample,
    Traffic,
    Fault(usize),
    /// All faults end.
    Heal,
    Deploy(usize),
    Change(Box<Action>),
    /// The newest of the registry comes to a host.
    Follow(usize),
    Agent(usize, u64, InstanceId, Step),
    AgentTimer(usize, u64),
    LaneTimer(usize, u64, RevisionKey),
    /// A search reaches the node that is asked, and its answer the asker.
    Called(Errand, u64),
    Answered(Errand, u64, Result<InstanceId, String>),
    Stop(usize, InstanceId),
    Request(Id, u64, Hop),
    /// A visit to an instance ends.
    Served(usize, u64, InstanceId, Visit),
}

/// What comes of a step of the agent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Prepared,
    Launched,
    Probed(Ask),
    Exited,
    Removed,
}

/// What becomes of a request on its way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hop {
    /// Its client asks, for the first time or again.
    Client,
    /// It reaches a host.
    Reaches(usize),
    /// That host has no room, or no instance.
    Rebuffed { full: bool },
    /// The door learns that whoever had it is gone.
    Broken,
    /// The answer reaches the door.
    Back,
}

/// A request's stay in an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    pub number: Id,
    pub request: Id,
    pub step: u64,
}

pub(super) struct World {
    pub plan: Plan,
    pub queue: Queue<Event>,
    pub rng: StdRng,
    pub hosts: Vec<Host>,
    spots: Vec<Spot>,
    /// The hosts of each region.
    pub doors: Vec<Vec<usize>>,
    pub network: Network,
    pub log: Log,
    pub requests: BTreeMap<Id, Request>,
    pub searches: BTreeMap<Errand, Search>,
    pub oracle: Oracle,
    pub trace: Trace,
    pub services: Vec<ServiceKey>,
    /// How often each service was deployed; 0 when it is deleted.
    pub versions: Vec<u32>,
    numbers: u64,
    pub groups: u32,
}

/// Plays a plan to its end.
#[must_use]
pub fn run(plan: Plan) -> Report {
    let mut world = World::new(plan);
    world.begin();
    let end = world.plan.end;
    while let Some(event) = world.queue.next(end) {
        world.on(event);
    }
    world.report()
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut hosts = Vec::new();
        for (region, site) in plan.sites.iter().enumerate() {
            for (zone, count) in site.zones.iter().enumerate() {
                for _ in 0..*count {
                    let capacity = capacity(&plan, hosts.len());
                    hosts.push(Host::new(
                        hosts.len(),
                        Spot { region, zone },
                        &site.name,
                        capacity,
                    ));
                }
            }
        }
        let mut network = Network::default();
        network.between.clone_from(&plan.between);
        let namespace = Name::default_namespace();
        let key = |number: usize| ServiceKey {
            namespace: namespace.clone(),
            name: Name::new(format!("svc-{number}")).unwrap_or_else(|_| namespace.clone()),
        };
        let mut seed = plan.seed ^ 0x0dd5;
        if plan.bug == Some(Bug::Unseeded) {
            seed ^= u64::from(std::process::id());
            seed = seed.wrapping_add(u64::try_from(std::ptr::from_ref(&hosts).addr()).unwrap_or(0));
            seed ^= std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |t| u64::from(t.subsec_nanos()));
        }
        Self {
            queue: Queue::new(),
            rng: StdRng::seed_from_u64(seed),
            doors: (0..plan.sites.len())
                .map(|region| {
                    let of = |h: &usize| hosts[*h].spot.region == region;
                    (0..hosts.len()).filter(of).collect()
                })
                .collect(),
            spots: hosts.iter().map(|host| host.spot).collect(),
            hosts,
            network,
            log: Log::new(),
            requests: BTreeMap::new(),
            searches: BTreeMap::new(),
            oracle: Oracle::new(plan.services.len()),
            trace: Trace::begin(),
            services: (0..plan.services.len()).map(key).collect(),
            versions: vec![0; plan.services.len()],
            numbers: 0,
            groups: 0,
            plan,
        }
    }

    fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            let spot = self.hosts[host].spot;
            self.note(format_args!("host {host} {spot:?}"));
            self.wake_host(host);
        }
        for service in 0..self.services.len() {
            let at = DEPLOYED + self.rng.random_range(0..SECOND);
            self.queue.after(at, Event::Deploy(service));
        }
        for fault in 0..self.plan.faults.len() {
            let at = self.plan.faults[fault].0;
            self.queue.after(at, Event::Fault(fault));
        }
        if let Some(at) = self.plan.heal {
            self.queue.after(at, Event::Heal);
        }
        self.queue.after(WARM, Event::Traffic);
        self.queue.after(SECOND, Event::Sample);
    }

    /// A host's periods begin, each somewhere else within a second.
    pub fn wake_host(&mut self, host: usize) {
        let life = self.hosts[host].life;
        let offset = self.rng.random_range(1..SECOND);
        self.queue.after(offset, Event::Beat(host, life));
        if self.hosts.len() <= CLOSELY {
            self.queue.after(offset % LOOK, Event::Look(host, life));
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Beat(host, life) if self.lives(host, life) => self.beat(host),
            Event::Look(host, life) if self.lives(host, life) => {
                let now = self.queue.now();
                self.listen(host);
                if self.hosts[host].stale || self.hosts[host].notices(now) {
                    let record = self.hosts[host].record(now);
                    self.look(host, &record);
                }
                self.queue.after(LOOK, Event::Look(host, life));
            }
            Event::Agent(host, life, id, step) if self.lives(host, life) => {
                self.on_agent(host, &id, step);
            }
            Event::AgentTimer(host, life) if self.lives(host, life) => self.on_agent_timer(host),
            Event::LaneTimer(host, life, key) if self.lives(host, life) => {
                self.on_lane_timer(host, &key);
            }
            Event::Served(host, life, id, visit) if self.lives(host, life) => {
                self.on_served(host, &id, visit);
            }
            // Of a host that has died since.
            Event::Beat(..)
            | Event::Look(..)
            | Event::Agent(..)
            | Event::AgentTimer(..)
            | Event::LaneTimer(..)
            | Event::Served(..) => {}
            Event::Sample => self.sample(),
            Event::Traffic => self.traffic(),
            Event::Fault(number) => self.fault(number),
            Event::Heal => self.heal(),
            Event::Deploy(service) => self.deploy(service),
            Event::Change(action) => self.change(*action),
            Event::Follow(host) => self.follow(host),
            Event::Called(errand, step) => self.on_called(errand, step),
            Event::Answered(errand, step, result) => self.on_answered(errand, step, result),
            Event::Stop(host, id) => self.on_stop(host, &id),
            Event::Request(id, step, hop) => self.on_hop(id, step, hop),
        }
    }

    pub fn lives(&self, host: usize, life: u64) -> bool {
        self.hosts[host].up && self.hosts[host].life == life
    }

    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn note(&mut self, what: impl std::fmt::Display) {
        self.trace.note(self.queue.now(), what);
    }

    fn beat(&mut self, host: usize) {
        let now = self.queue.now();
        self.hosts[host].roll(now);
        self.follow(host);
        self.tend(host);
        self.listen(host);
        let record = self.hosts[host].say(now);
        self.look(host, &record);
        let life = self.hosts[host].life;
        self.queue.after(SECOND, Event::Beat(host, life));
    }

    /// Makes its view anew, in which it has that record itself, and its steward looks at it.
    fn look(&mut self, host: usize, record: &Word) {
        let now = self.queue.now();
        let (network, mine) = (&self.network, self.hosts[host].spot);
        self.hosts[host].forget_rumours(now);
        let (spots, enrolled) = (&self.spots, self.hosts.len());
        self.hosts[host].view(now, record, enrolled, |node| {
            let there = spots[usize::try_from(node.0 - 1).unwrap_or(0)];
            u32::try_from(network.rtt_micros(mine, there)).unwrap_or(u32::MAX)
        });
        if self.plan.bug == Some(Bug::SharesVolumes) {
            self.hosts[host].fleet.volumes.clear();
        }
        self.steward(host);
        self.offer_all(host);
    }

    fn sample(&mut self) {
        let mut oracle = std::mem::take(&mut self.oracle);
        oracle.sample(self);
        self.oracle = oracle;
        self.queue.after(SECOND, Event::Sample);
    }

    fn traffic(&mut self) {
        let now = self.queue.now();
        let calm = self.plan.heal.is_some_and(|at| now >= at);
        let regions = self.plan.sites.len();
        for service in 0..self.services.len() {
            for region in 0..regions {
                let workload = &self.plan.services[service];
                let pattern = if calm {
                    &workload.calm
                } else {
                    &workload.pattern
                };
                let count = pattern.draw(region, regions, now, &mut self.rng);
                for _ in 0..count {
                    let after = self.rng.random_range(0..TICK);
                    self.new_request(service, region, after);
                }
            }
        }
        self.queue.after(TICK, Event::Traffic);
    }

    fn report(mut self) -> Report {
        let oracle = std::mem::take(&mut self.oracle);
        let (findings, figures) = oracle.judge(&self);
        let (digest, lines) = self.trace.end();
        Report {
            digest,
            findings,
            figures,
            lines,
        }
    }
}
