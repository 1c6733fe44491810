//! The whole simulation: what happens next, to whom. Hosts run the product's cores; this room moves
//! time, carries what they send to each other, plays the plan's traffic, changes and faults, and shows
//! everything to the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use scheduler::converge::Ask;
use scheduler::model::{
    Container, ImagePin, InstanceId, Name, NodeRecord, PlacementRules, Resources, RevisionKey,
    RevisionSpec, ServiceKey, Volume, VolumeMount, VolumeSource,
};
use scheduler::registry::{Action, PutService, Reply};

use super::door::Request;
use super::host::{CAPACITY, Errand, Host, Id};
use super::log::Log;
use super::network::{Network, Spot};
use super::oracle::{Oracle, Report};
use super::orders::Search;
use super::plan::{Bug, Fault, Plan, WARM};
use super::queue::{Millis, Queue};
use super::trace::Trace;
use super::traffic::TICK;

/// Between two looks of a host at what it heard.
const LOOK: Millis = 250;
const SECOND: Millis = 1_000;
/// Services are deployed once hosts have heard of each other.
const DEPLOYED: Millis = 5_000;
/// A change that the registry did not take is proposed again after this.
const AGAIN: Millis = 500;

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
    Heard(usize, Arc<NodeRecord>),
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
#[derive(Debug)]
pub(super) enum Step {
    Prepared,
    Launched,
    Probed(Ask),
    Exited,
    Removed,
}

/// What becomes of a request on its way.
#[derive(Debug)]
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
    pub network: Network,
    pub log: Log,
    pub requests: BTreeMap<Id, Request>,
    pub searches: BTreeMap<Errand, Search>,
    pub oracle: Oracle,
    pub trace: Trace,
    pub services: Vec<ServiceKey>,
    /// How often each service was deployed; 0 when it is deleted.
    versions: Vec<u32>,
    numbers: u64,
    groups: u32,
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
            for zone in 0..site.zones {
                for _ in 0..site.hosts {
                    let capacity = capacity(plan.bug);
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
    fn wake_host(&mut self, host: usize) {
        let life = self.hosts[host].life;
        let offset = self.rng.random_range(1..SECOND);
        self.queue.after(offset, Event::Beat(host, life));
        self.queue.after(offset % LOOK, Event::Look(host, life));
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Beat(host, life) if self.lives(host, life) => self.beat(host),
            Event::Look(host, life) if self.lives(host, life) => {
                if self.hosts[host].stale {
                    self.look(host);
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
            Event::Heard(host, record) => {
                let now = self.queue.now();
                if self.hosts[host].up {
                    self.hosts[host].hear(now, record);
                }
            }
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
        self.look(host);
        self.gossip(host);
        let life = self.hosts[host].life;
        self.queue.after(SECOND, Event::Beat(host, life));
    }

    /// Makes its view anew, and its steward looks at it.
    fn look(&mut self, host: usize) {
        let now = self.queue.now();
        let record = self.hosts[host].record(now);
        let spots: Vec<Spot> = self.hosts.iter().map(|h| h.spot).collect();
        let network = &self.network;
        let mine = self.hosts[host].spot;
        self.hosts[host].forget_rumours(now);
        self.hosts[host].view(now, record, |node| {
            let other = usize::try_from(node.0 - 1).unwrap_or(0);
            u32::try_from(network.rtt_micros(mine, spots[other])).unwrap_or(u32::MAX)
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

    /// Deploys the next version of a service.
    fn deploy(&mut self, service: usize) {
        self.versions[service] += 1;
        let workload = &self.plan.services[service];
        let key = &self.services[service];
        let image = format!("sim/{}:{}", key.name, self.versions[service]);
        let regions = match self.plan.bug {
            Some(Bug::IgnoresResidency) => Vec::new(),
            _ => workload
                .only
                .iter()
                .map(|s| self.plan.sites[*s].name.clone())
                .collect(),
        };
        let mut container = Container {
            image: image.clone(),
            cpu_millis: workload.cpu_millis,
            memory_bytes: workload.memory_bytes,
            ..Container::default()
        };
        let mut volumes = Vec::new();
        if workload.volume {
            container.volume_mounts.push(VolumeMount {
                name: "data".to_owned(),
                mount_path: "/data".to_owned(),
                read_only: false,
                sub_path: None,
            });
            volumes.push(Volume {
                name: "data".to_owned(),
                source: VolumeSource::Local {
                    name: format!("data-{service}"),
                },
            });
        }
        let put = PutService {
            key: key.clone(),
            spec: RevisionSpec {
                container_concurrency: workload.concurrency,
                containers: vec![container],
                volumes,
                place: PlacementRules {
                    regions,
                    spread: workload.spread,
                    ..PlacementRules::default()
                },
                ..RevisionSpec::default()
            },
            image: ImagePin {
                digest: digest(service, self.versions[service]),
                reference: image,
            },
            scale: workload.scale.clone(),
            traffic: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            uid: key.to_string(),
            if_version: None,
        };
        self.change(Action::PutService(Box::new(put)));
    }

    /// Somebody changes the registry, and tries until it is acknowledged.
    fn change(&mut self, action: Action) {
        let now = self.queue.now();
        match self.log.propose(now, action.clone()) {
            Some(Reply::Refused(refusal)) => {
                // A plan asks for nothing wrong; what it deletes may be gone already.
                self.note(format_args!("registry refuses: {refusal}"));
            }
            Some(reply) => {
                let index = self.log.newest().index;
                self.note(format_args!("registry {index} {reply:?}"));
                self.announce();
            }
            None => self.queue.after(AGAIN, Event::Change(Box::new(action))),
        }
    }

    /// Hosts learn of a change after a while.
    pub fn announce(&mut self) {
        for host in 0..self.hosts.len() {
            let delay = self.rng.random_range(5..150);
            self.queue.after(delay, Event::Follow(host));
        }
    }

    fn follow(&mut self, host: usize) {
        let stuck = self.plan.bug == Some(Bug::StopsFollowing) && host == 1;
        if stuck && self.queue.now() > WARM || !self.has_registry(host) {
            return;
        }
        let host = &mut self.hosts[host];
        if host.up && host.state.index < self.log.newest().index {
            host.state = self.log.newest().clone();
            host.stale = true;
        }
    }

    /// Whether the host reaches a majority of the voters, which are spread over all hosts.
    pub fn has_registry(&self, host: usize) -> bool {
        let all = self.hosts.len();
        let voters = [0, all / 3, 2 * all / 3];
        let reached = voters
            .iter()
            .filter(|v| self.hosts[**v].up && self.network.reaches(host, **v));
        reached.count() >= 2
    }

    fn fault(&mut self, number: usize) {
        let fault = self.plan.faults[number].1.clone();
        self.note(format_args!("fault {fault:?}"));
        let now = self.queue.now();
        match fault {
            Fault::Kill(hosts) => hosts.into_iter().for_each(|host| self.kill(host)),
            Fault::Return(hosts) => hosts.into_iter().for_each(|host| self.bring_back(host)),
            Fault::CutOff(hosts) => {
                self.groups += 1;
                self.network.cut_off(hosts, self.groups);
                self.oracle.cut(now);
            }
            Fault::Mend => self.network.heal(),
            Fault::Loss(permille) => self.network.loss_permille = permille,
            Fault::Delay { micros } => self.network.delay_micros = micros,
            Fault::Outage(millis) => self.log.out_until = now + millis,
            Fault::Drift {
                host,
                parts_per_million,
            } => {
                // A clock may be corrected, but a monotonic one does not go back.
                if parts_per_million > self.hosts[host].drift {
                    self.hosts[host].drift = parts_per_million;
                }
            }
            Fault::Slow { host, percent } => self.hosts[host].slow_percent = percent,
            Fault::Deploy(service) => self.deploy(service),
            Fault::Delete(service) => {
                let key = self.services[service].clone();
                self.change(Action::DeleteService { key });
            }
        }
    }

    fn heal(&mut self) {
        self.note("healed");
        self.oracle.cut(self.queue.now());
        self.network.heal();
        self.log.out_until = 0;
        for host in 0..self.hosts.len() {
            self.bring_back(host);
            self.hosts[host].slow_percent = 100;
        }
    }

    fn kill(&mut self, host: usize) {
        if !self.hosts[host].up {
            return;
        }
        self.oracle.cut(self.queue.now());
        self.hosts[host].up = false;
        self.lose_requests(host);
        self.lose_calls(host);
        self.hosts[host].programs.clear();
    }

    fn bring_back(&mut self, host: usize) {
        if self.hosts[host].up {
            return;
        }
        let capacity = capacity(self.plan.bug);
        self.hosts[host].reborn(capacity);
        self.wake_host(host);
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

/// A digest that no other version has.
fn digest(service: usize, version: u32) -> String {
    format!("sha256:{service:032x}{version:032x}")
}

fn capacity(bug: Option<Bug>) -> Resources {
    if bug != Some(Bug::TakesAll) {
        return CAPACITY;
    }
    Resources {
        cpu_millis: CAPACITY.cpu_millis * 100,
        memory_bytes: CAPACITY.memory_bytes * 100,
        instances: CAPACITY.instances * 100,
    }
}
