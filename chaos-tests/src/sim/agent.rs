//! What a host's agent does: it performs what `converge` decides, with the times that the plan gives
//! containers and programs, and tells it what came of it.

use std::sync::Arc;

use rand::RngExt as _;
use scheduler::converge::{Admission, Effect, Probes};
use scheduler::model::{Exit, InstanceId, NodeId, Revision, UnixMs};
use scheduler::place::{misplaced, needs};

use super::host::{Errand, Program};
use super::plan::Bug;
use super::queue::Millis;
use super::world::{Event, Step, World};

/// A network, a root filesystem and a container.
const CREATE: Millis = 25;
const LAUNCH: Millis = 10;
const END: Millis = 30;
const REMOVE: Millis = 15;
/// From the launch; then an instance has failed.
const START_DEADLINE: Millis = 30_000;
/// What a request gets to end in an instance that is to go, and then the program.
const DRAIN: Millis = 60_000;
const GRACE: Millis = 10_000;

/// A wish for an instance that reached its node.
pub(super) struct Wish {
    pub errand: Errand,
    pub revision: Arc<Revision>,
    pub held: u32,
    pub capacity: u32,
    pub steward: Option<NodeId>,
}

impl World {
    /// Admits a wish, or says why not. The answer comes when the instance is ready.
    pub(super) fn admit(&mut self, host: usize, wish: &Wish) -> Result<(), String> {
        let now = self.queue.now();
        let revision = &wish.revision;
        if self.plan.bug != Some(Bug::IgnoresResidency) {
            let labels = std::collections::BTreeMap::new();
            let here = self.hosts[host].region();
            if let Some(veto) = misplaced(here, &labels, &revision.spec.place) {
                return Err(veto.to_string());
            }
        }
        self.claim_volumes(host, revision)?;
        let clock = self.hosts[host].clock(now);
        if wish.held > 0 {
            let agent = &mut self.hosts[host].agent;
            let shared = agent.share(clock, &revision.key, wish.held, wish.capacity);
            if let Some(id) = shared {
                self.join(host, &id, wish.errand);
                return Ok(());
            }
        }
        let twice = self.plan.bug == Some(Bug::StartsTwice);
        for _ in 0..=u32::from(twice) {
            let number = self.number();
            let admission = admission(number, revision, wish.held);
            let agent = &mut self.hosts[host].agent;
            let (id, effects) = agent
                .admit(clock, admission)
                .map_err(|why| why.to_string())?;
            let mut program = Program::new(now, Arc::clone(revision), vec![wish.errand]);
            program.steward = wish.steward;
            self.hosts[host].programs.insert(id.clone(), program);
            self.oracle.started(now, revision, (wish.errand, host));
            self.note(format_args!("host {host} admits {id}"));
            self.perform(host, effects);
        }
        Ok(())
    }

    /// More askers for an instance on its way; of one that is there they are told at once.
    fn join(&mut self, host: usize, id: &InstanceId, errand: Errand) {
        let Some(program) = self.hosts[host].programs.get_mut(id) else {
            return;
        };
        if program.open {
            self.answer(host, errand, Ok(id.clone()));
        } else {
            program.askers.push(errand);
        }
    }

    pub(super) fn on_agent(&mut self, host: usize, id: &InstanceId, step: Step) {
        let now = self.queue.now();
        let clock = self.hosts[host].clock(now);
        let agent = &mut self.hosts[host].agent;
        let effects = match step {
            Step::Prepared => {
                let effects = agent.on_prepared(clock, id, Ok(()));
                if let Some(program) = self.hosts[host].programs.get_mut(id) {
                    program.prepared = now;
                    let image = program.revision.image.digest.clone();
                    self.hosts[host].images.insert(image);
                }
                effects
            }
            Step::Launched => {
                let effects = agent.on_launched(clock, id, Ok(()));
                let service = self.service_of(host, id);
                let usual = self.plan.services[service].start;
                let drawn = self.rng.random_range(usual * 7 / 10..=usual * 13 / 10);
                let listens = now + self.hosts[host].slowed(drawn);
                if let Some(program) = self.hosts[host].programs.get_mut(id) {
                    program.listens = listens;
                }
                effects
            }
            Step::Probed(ask) => {
                let program = self.hosts[host].programs.get(id);
                let listens = program.is_some_and(|p| p.listens <= now);
                let answer = if listens {
                    Ok(())
                } else {
                    Err("connection refused".to_owned())
                };
                self.hosts[host].agent.on_probed(clock, id, ask, answer)
            }
            Step::Exited => {
                let exit = Exit {
                    code: 0,
                    signal: None,
                    oom: false,
                    lost: false,
                    at: UnixMs(now),
                };
                agent.on_exit(clock, id, &exit, "")
            }
            Step::Removed => {
                agent.on_removed(clock, id);
                self.hosts[host].programs.remove(id);
                Vec::new()
            }
        };
        self.perform(host, effects);
    }

    pub(super) fn on_agent_timer(&mut self, host: usize) {
        let clock = self.hosts[host].clock(self.queue.now());
        let effects = self.hosts[host].agent.on_timeout(clock);
        self.perform(host, effects);
    }

    /// Once a second: what nobody asks anything is frozen.
    pub(super) fn tend(&mut self, host: usize) {
        let now = self.queue.now();
        let own = &mut self.hosts[host];
        let idlers: Vec<InstanceId> = own.agent.idlers().map(|(id, _)| id.clone()).collect();
        let mut effects = Vec::new();
        for id in idlers {
            let idle = own.programs.get(&id).filter(|p| p.inside.is_empty());
            if let Some(program) = idle {
                effects.extend(own.agent.on_idle(&id, now - program.idle_since));
            }
        }
        self.perform(host, effects);
        self.on_agent_timer(host);
    }

    pub(super) fn on_stop(&mut self, host: usize, id: &InstanceId) {
        if !self.hosts[host].up {
            return;
        }
        let now = self.queue.now();
        let clock = self.hosts[host].clock(now);
        let (known, effects) = self.hosts[host].agent.on_stop(clock, id);
        if known {
            self.oracle.stopped(now, self.service_of(host, id));
            self.note(format_args!("host {host} stops {id}"));
        }
        if self.plan.bug == Some(Bug::KillsBusy) {
            self.break_visits(host, id);
        }
        self.perform(host, effects);
    }

    pub(super) fn perform(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            self.perform_one(host, effect);
        }
        self.hosts[host].stale = true;
        let (now, life) = (self.queue.now(), self.hosts[host].life);
        if let Some(at) = self.hosts[host].agent.poll_timeout() {
            let after = self.hosts[host].when(now, at);
            self.queue.after(after, Event::AgentTimer(host, life));
        }
    }

    fn perform_one(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Prepare(id) => {
                let service = self.service_of(host, &id);
                let program = self.hosts[host].programs.get(&id);
                let held = program.is_some_and(|program| {
                    self.hosts[host]
                        .images
                        .contains(&program.revision.image.digest)
                });
                let pull = if held {
                    0
                } else {
                    self.plan.services[service].pull
                };
                self.later(host, id, CREATE + pull, Step::Prepared);
            }
            Effect::Launch(id) => self.later(host, id, LAUNCH, Step::Launched),
            Effect::Probe { id, ask, after_ms } => self.probe(host, id, ask, after_ms),
            Effect::Open(id) => self.open(host, &id),
            Effect::Shut(id) => self.shut(host, &id),
            Effect::Reopen(id) => {
                if let Some(program) = self.hosts[host].programs.get_mut(&id) {
                    program.open = true;
                }
            }
            Effect::Freeze(id) => self.freeze(host, &id),
            Effect::Close(id) => {
                self.shut(host, &id);
                self.drained(host, &id);
            }
            Effect::Terminate(id) | Effect::Kill(id) => self.later(host, id, END, Step::Exited),
            Effect::Remove(id) => self.later(host, id, REMOVE, Step::Removed),
            Effect::Failed(id) => {
                let why = self.hosts[host].agent.failure(&id).map(|f| f.code.clone());
                self.answer_all(host, &id, &Err(why.unwrap_or_default()));
            }
            // Nothing is parked and memory is not what is looked at here.
            Effect::Park(_)
            | Effect::Parked(_)
            | Effect::Again(_)
            | Effect::Throttle(_)
            | Effect::Wake(_)
            | Effect::Reclaim(_) => {}
        }
    }

    fn later(&mut self, host: usize, id: InstanceId, millis: Millis, step: Step) {
        let (life, after) = (self.hosts[host].life, self.hosts[host].slowed(millis));
        self.queue.after(after, Event::Agent(host, life, id, step));
    }

    /// An answer that would only be "not yet" is left out: a question of a program that starts soon
    /// waits for it.
    fn probe(&mut self, host: usize, id: InstanceId, ask: scheduler::converge::Ask, after: Millis) {
        const LONGEST: Millis = 200;
        let now = self.queue.now();
        let listens = self.hosts[host]
            .programs
            .get(&id)
            .map_or(now, |p| p.listens);
        let at = (now + after.max(1)).max(listens.min(now + after + LONGEST));
        let life = self.hosts[host].life;
        let event = Event::Agent(host, life, id, Step::Probed(ask));
        self.queue.after(at - now, event);
    }

    fn open(&mut self, host: usize, id: &InstanceId) {
        let now = self.queue.now();
        let Some(program) = self.hosts[host].programs.get_mut(id) else {
            return;
        };
        program.open = true;
        program.idle_since = now;
        let revision = program.revision.key.clone();
        let took = now - program.prepared + CREATE;
        self.hosts[host].learn_start(&revision, took);
        self.note(format_args!("host {host} opens {id}"));
        self.answer_all(host, id, &Ok(id.clone()));
        self.offer(host, &revision);
    }

    fn shut(&mut self, host: usize, id: &InstanceId) {
        if let Some(program) = self.hosts[host].programs.get_mut(id) {
            program.open = false;
        }
    }

    fn freeze(&mut self, host: usize, id: &InstanceId) {
        let clock = self.hosts[host].clock(self.queue.now());
        let own = &mut self.hosts[host];
        let Some(program) = own.programs.get_mut(id) else {
            return;
        };
        program.frozen = program.inside.is_empty();
        let came = if program.frozen {
            scheduler::converge::Froze::Still
        } else {
            scheduler::converge::Froze::Busy
        };
        let effects = own.agent.on_frozen(clock, id, came);
        self.perform(host, effects);
    }

    /// Tells the agent when the last request has left a closed instance.
    pub(super) fn drained(&mut self, host: usize, id: &InstanceId) {
        let clock = self.hosts[host].clock(self.queue.now());
        let own = &mut self.hosts[host];
        let closed = |p: &Program| !p.open && p.inside.is_empty();
        if !own.programs.get(id).is_some_and(closed) {
            return;
        }
        let effects = own.agent.on_drained(clock, id);
        self.perform(host, effects);
    }

    fn answer_all(&mut self, host: usize, id: &InstanceId, result: &Result<InstanceId, String>) {
        let program = self.hosts[host].programs.get_mut(id);
        let askers = program.map_or_else(Vec::new, |p| std::mem::take(&mut p.askers));
        for errand in askers {
            self.answer(host, errand, result.clone());
        }
    }

    pub(super) fn service_of(&self, host: usize, id: &InstanceId) -> usize {
        let program = self.hosts[host].programs.get(id);
        let key = program.map(|p| &p.revision.service);
        let known = self
            .services
            .iter()
            .position(|service| Some(service) == key);
        known.unwrap_or(0)
    }
}

fn admission(number: u64, revision: &Revision, held: u32) -> Admission {
    Admission {
        id: InstanceId(format!("{}-{number}", revision.key.name)),
        service: revision.service.clone(),
        revision: revision.key.clone(),
        needs: needs(&revision.spec),
        asked: None,
        port: 8080,
        promised: held,
        start_deadline_ms: START_DEADLINE,
        drain_ms: DRAIN,
        grace_ms: GRACE,
        probes: Probes::default(),
        freezes: true,
        works_unasked: true,
    }
}
