//! The agent's one task: inputs into the pure machine, its effects performed. No policy here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netfabric::ingress::Local;
use netfabric::wire::peer::StartRefusal;
use scheduler::autoscale::Aim;
use scheduler::converge::{Ask, Effect, Froze, Node};
use scheduler::fleet::Word;
use scheduler::model::{
    Activity, Demand, Exit, FailReason, InstanceId, Metric, NodeId, NodeRecord, StartTime, Used,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::busy::Leases;
use super::displace::Kept;
use super::files::Files;
use super::idle::Hold;
use super::probe::{Asked, Question};
use super::receipts::Receipts;
use super::record::{self, Moment};
use super::starts::{Start, refusal};
use super::steps::{Prepared, Tools, service_address};
use super::times::{Experience, Times};
use super::work::Work;
use super::{AgentParts, RecordBase};
use crate::clock;
use crate::consensus::Registry;
use crate::telemetry::decisions::Decisions;

/// How often loads and held requests are looked at; nothing is published while they stay.
const LOAD_PERIOD: Duration = Duration::from_secs(1);
/// From one record to the next: it names every instance, and hundreds may start within a second.
const RECORD_PAUSE: Duration = Duration::from_millis(50);

/// What instances use is told in so many steps of what they are to use.
const USED_STEPS: u64 = 50;

/// Sentences, by instance.
pub(super) type Doings = Arc<Mutex<BTreeMap<InstanceId, Vec<String>>>>;

pub(super) enum Input {
    Start(Start),
    Stop(InstanceId),
    Prepared(InstanceId, Result<Prepared, FailReason>),
    Launched(InstanceId, Result<(), FailReason>),
    Probed(InstanceId, Ask, Result<(), String>),
    Frozen(InstanceId, Froze),
    Throttled(InstanceId, Froze),
    Exited(InstanceId, Exit, String),
    Drained(InstanceId),
    Unsignalled(InstanceId),
    Removed(InstanceId),
    Publish,
}

pub(super) struct Driver {
    pub(super) base: RecordBase,
    pub(super) node: Node,
    pub(super) work: BTreeMap<InstanceId, Work>,
    times: Times,
    pub(super) kept: Kept,
    pub(super) tools: Arc<Tools>,
    pub(super) registry: Registry,
    pub(super) local: Arc<Local>,
    pub(super) receipts: Receipts,
    pub(super) decisions: Decisions,
    /// What instances do that are not simply at work, for people.
    pub(super) doings: Doings,
    inputs: mpsc::Sender<Input>,
    received: mpsc::Receiver<Input>,
    demand: Arc<dyn Fn() -> Vec<Demand> + Send + Sync>,
    record: watch::Sender<Word>,
}

impl Driver {
    pub(super) fn new(
        parts: AgentParts,
        files: Files,
        receipts: Receipts,
        inputs: mpsc::Sender<Input>,
        received: mpsc::Receiver<Input>,
    ) -> (Self, watch::Receiver<Word>) {
        let tools = Tools {
            images: parts.images,
            runtime: parts.runtime,
            network: parts.network,
            meter: parts.meter,
            files,
            volumes: parts.volumes,
            leases: Leases::new(parts.local.clone()),
            cgroup: parts.cgroup.into(),
        };
        parts
            .local
            .set_freezer(Arc::new(Hold(tools.runtime.clone())));
        let node = Node::new(parts.capacity, parts.parked);
        let first = record::record(
            &parts.base,
            &node,
            moment(
                &parts.registry,
                &tools,
                parts.base.node,
                Vec::new(),
                Vec::new(),
            ),
            |_| (0, 0),
            |_| None,
            |_| Activity::default(),
        );
        let (record, watched) = watch::channel(Word::from(first));
        let driver = Self {
            base: parts.base,
            node,
            work: BTreeMap::new(),
            times: Times::default(),
            kept: Kept::default(),
            tools: Arc::new(tools),
            registry: parts.registry,
            local: parts.local,
            receipts,
            decisions: parts.decisions,
            doings: Doings::default(),
            demand: parts.demand,
            inputs,
            received,
            record,
        };
        (driver, watched)
    }

    /// What starts and pulls took here, kept up to date.
    pub(super) fn experience(&self) -> watch::Receiver<Arc<Experience>> {
        self.times.experience()
    }

    /// Runs until every handle is gone.
    pub(super) async fn run(mut self) {
        let mut load = tokio::time::interval(LOAD_PERIOD);
        load.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut index = self.registry.view().watch();
        self.publish();
        let (mut pause, mut unpublished) = (Instant::now() + RECORD_PAUSE, false);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(pause), if unpublished => {
                    self.publish();
                    (pause, unpublished) = (Instant::now() + RECORD_PAUSE, false);
                    continue;
                }
                input = self.received.recv() => match input {
                    Some(Input::Probed(id, ask, answer)) => {
                        // Comes a thousand times a second and mostly says nothing new to others.
                        if !self.on_answer(&id, ask, answer) {
                            continue;
                        }
                    }
                    Some(input) => self.on_input(input),
                    None => return,
                },
                () = sleep_until(self.node.poll_timeout()) => {
                    let effects = self.node.on_timeout(clock::now());
                    self.perform(effects);
                }
                _ = load.tick() => self.look_for_idle().await,
                changed = index.changed() => if changed.is_err() { return },
            }
            self.tend();
            unpublished = true;
        }
    }

    /// A probe's answer; says whether more follows from it than the next question.
    fn on_answer(&mut self, id: &InstanceId, ask: Ask, answer: Result<(), String>) -> bool {
        let effects = self.node.on_probed(clock::now(), id, ask, answer);
        let routine = |effect: &Effect| matches!(effect, Effect::Probe { .. });
        let news = !effects.iter().all(routine);
        self.perform(effects);
        news
    }

    fn on_input(&mut self, input: Input) {
        let now = clock::now();
        let effects = match input {
            Input::Start(start) => self.start(start),
            Input::Stop(id) => self.node.on_stop(now, &id).1,
            Input::Prepared(id, result) => {
                if let Err(reason) = &result {
                    tracing::debug!(instance = %id, reason = reason.code, "cannot be prepared");
                }
                let result = result.map(|prepared| self.note_prepared(&id, prepared));
                self.node.on_prepared(now, &id, result)
            }
            Input::Launched(id, result) => {
                if result.is_ok() {
                    self.lap(&id, "start");
                    self.watch_exit(&id);
                }
                self.node.on_launched(now, &id, result)
            }
            Input::Probed(id, ask, answer) => {
                self.on_answer(&id, ask, answer);
                return;
            }
            Input::Frozen(id, came) => self.node.on_frozen(now, &id, came),
            Input::Throttled(id, came) => {
                self.node.on_throttled(&id, came);
                Vec::new()
            }
            Input::Exited(id, exit, said) => {
                tracing::info!(instance = %id, code = exit.code, oom = exit.oom, lost = exit.lost, "exited");
                self.node.on_exit(now, &id, &exit, &said)
            }
            Input::Drained(id) => self.node.on_drained(now, &id),
            Input::Unsignalled(id) => {
                self.node.on_unsignalled(now, &id);
                Vec::new()
            }
            Input::Removed(id) => {
                self.work.remove(&id);
                self.node.on_removed(now, &id);
                Vec::new()
            }
            Input::Publish => Vec::new(),
        };
        self.perform(effects);
    }

    fn lap(&mut self, id: &InstanceId, phase: &str) {
        if let Some(work) = self.work.get_mut(id) {
            work.lap(phase);
        }
    }

    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Prepare(id) => self.prepare(id),
                Effect::Park(revision) => self.park(&revision),
                Effect::Parked(id) => self.parked(&id),
                Effect::Again(id) => self.start_again(&id),
                Effect::Launch(id) => {
                    let tools = self.tools.clone();
                    self.spawn(async move {
                        let result = tools.launch(&id).await;
                        Input::Launched(id, result)
                    });
                }
                Effect::Probe { id, ask, after_ms } => self.probe(id, ask, after_ms),
                Effect::Open(id) => self.open(&id),
                Effect::Shut(id) => self.local.close(&id),
                Effect::Reopen(id) => self.local.reopen(&id),
                Effect::Throttle(id) => self.throttle(id),
                Effect::Wake(id) => self.wake(&id),
                Effect::Freeze(id) => self.freeze(id),
                Effect::Reclaim(id) => self.reclaim(id),
                Effect::Close(id) => self.close(id),
                Effect::Terminate(id) => self.signal(id, None),
                Effect::Kill(id) => self.signal(id, Some(libc::SIGKILL)),
                Effect::Remove(id) => self.remove(id),
                Effect::Failed(id) => self.answer_failure(&id),
            }
        }
    }

    /// Runs a step beside the driver; its outcome comes back as an input.
    pub(super) fn spawn(&self, step: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            // The driver is gone only when the process ends.
            let _ = inputs.send(step.await).await;
        });
    }

    fn prepare(&self, id: InstanceId) {
        let Some(work) = self.work.get(&id) else {
            return;
        };
        let (tools, record) = (self.tools.clone(), work.record.clone());
        self.spawn(async move {
            let result = tools.prepare(&record).await;
            Input::Prepared(id, result)
        });
    }

    fn probe(&self, id: InstanceId, ask: Ask, after_ms: u64) {
        let Some(work) = self.work.get(&id) else {
            return;
        };
        let Some(address) = work.address else { return };
        let question = Question::of(&work.record.revision.spec, ask.kind);
        let whom = Asked {
            service: service_address(address, &work.record.revision),
            runtime: self.tools.runtime.clone(),
            id,
        };
        self.spawn(async move {
            if after_ms > 0 {
                let pause = after_ms.max(question.pause_ms());
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let answer = question.ask(&whom).await;
            Input::Probed(whom.id, ask, answer)
        });
    }

    fn open(&mut self, id: &InstanceId) {
        self.lap(id, "ready");
        let Some(work) = self.work.get_mut(id) else {
            return;
        };
        let Some(address) = work.address else { return };
        let spec = &work.record.revision.spec;
        self.local.open(
            id.clone(),
            work.record.revision.key.clone(),
            service_address(address, &work.record.revision),
            spec.port().protocol,
            spec.container_concurrency,
            spec.proxy_protocol(),
        );
        fail::fail_point!("agent::opened");
        tracing::info!(instance = %id, "ready");
        work.open = true;
        if std::mem::take(&mut work.unrecorded) {
            self.tools.record_by_and_by(work.record.clone());
        }
        let started = work.started(id);
        // One that was taken over was not started.
        if started.phases.iter().any(|(phase, _)| phase == "start") {
            let revision = &work.record.revision;
            let images = self.tools.images.list();
            let image = images
                .iter()
                .find(|i| i.pin.digest == revision.image.digest);
            let bytes = image.map_or(0, |image| image.bytes);
            self.times.note(&revision.key, &started.phases, bytes);
        } else {
            self.local.settle(id);
        }
        for reply in work.replies.drain(..) {
            let _ = reply.send(Ok(started.clone()));
        }
    }

    fn close(&self, id: InstanceId) {
        self.local.close(&id);
        fail::fail_point!("agent::closed");
        let (local, thawed) = (self.local.clone(), self.thawed(&id));
        self.spawn(async move {
            thawed.await;
            local.drained(&id).await;
            fail::fail_point!("agent::drained");
            Input::Drained(id)
        });
    }

    fn signal(&self, id: InstanceId, signal: Option<i32>) {
        let stop_signal = self
            .work
            .get(&id)
            .map_or(libc::SIGTERM, |work| work.stop_signal);
        let (tools, signal) = (self.tools.clone(), signal.unwrap_or(stop_signal));
        let (local, inputs) = (self.local.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let sent = async {
                // The frozen hear nothing.
                local.thaw(&id).await.map_err(|e| e.to_string())?;
                let sent = tools.runtime.signal(&id, signal).await;
                sent.map_err(|e| e.to_string())
            };
            if let Err(error) = sent.await {
                tracing::warn!(instance = %id, %error, signal, "cannot be signalled");
                // The driver is gone only when the process ends.
                let _ = inputs.send(Input::Unsignalled(id)).await;
            }
        });
    }

    fn remove(&mut self, id: InstanceId) {
        self.tools.meter.leaving(&id);
        self.local.close(&id);
        let Some(work) = self.work.get_mut(&id) else {
            return;
        };
        for reply in work.replies.drain(..) {
            let _ = reply.send(Err(StartRefusal::NotTaking));
        }
        let (tools, record) = (self.tools.clone(), work.record.clone());
        let (local, thawed) = (self.local.clone(), self.thawed(&id));
        self.spawn(async move {
            // The frozen do not die: version 1 of cgroups keeps even SIGKILL waiting.
            thawed.await;
            local.remove(&id);
            tools.remove(&record).await;
            Input::Removed(id)
        });
    }

    fn answer_failure(&mut self, id: &InstanceId) {
        let Some(reason) = self.node.failure(id).cloned() else {
            return;
        };
        tracing::warn!(instance = %id, reason = reason.code, message = reason.message, "failed");
        let refusal = refusal(reason);
        let work = self.work.get_mut(id);
        for reply in work.into_iter().flat_map(|work| work.replies.drain(..)) {
            let _ = reply.send(Err(refusal.clone()));
        }
    }

    pub(super) fn watch_exit(&mut self, id: &InstanceId) {
        match self.work.get_mut(id) {
            Some(work) if !work.watched => work.watched = true,
            _ => return,
        }
        let (tools, id) = (self.tools.clone(), id.clone());
        self.spawn(async move {
            let (exit, said) = tools.exit(&id).await;
            Input::Exited(id, exit, said)
        });
    }

    /// What of it besides requests others decide by.
    fn activity(&self, id: &InstanceId) -> Activity {
        Activity {
            leases: self.tools.leases.count(id),
            used: self.used(id),
        }
    }

    /// What its service is scaled by, where that is not the number of requests.
    fn used(&self, id: &InstanceId) -> Option<Used> {
        let revision = &self.work.get(id)?.record.revision;
        let state = self.registry.view().state();
        let aim = Aim::of(
            &state.services.get(&revision.service)?.scale,
            &revision.spec,
        );
        let recent = || self.tools.meter.recent(id);
        let (amount, told): (u64, fn(u32) -> Used) = match aim.metric {
            Metric::Concurrency => return None,
            Metric::Rps => (self.local.rate_milli(id).into(), Used::MilliRequests),
            Metric::Cpu => (recent()?.0, Used::CpuMillis),
            Metric::Memory => (recent()?.1 >> 20, Used::MemoryMib),
        };
        // Others need not hear of every change.
        let step = (aim.target_milli / USED_STEPS).max(1);
        let amount = u32::try_from(amount.div_ceil(step) * step).unwrap_or(u32::MAX);
        Some(told(amount))
    }

    /// Publishes the record if anything in it but its number changed.
    pub(super) fn publish(&self) {
        let starts = self.times.told();
        let moment = moment(
            &self.registry,
            &self.tools,
            self.base.node,
            (self.demand)(),
            starts,
        );
        let load = |id: &InstanceId| self.local.sample(id);
        let steward = |id: &InstanceId| self.work.get(id)?.record.receipt.steward();
        let activity = |id: &InstanceId| self.activity(id);
        let mut next = record::record(&self.base, &self.node, moment, load, steward, activity);
        self.record.send_if_modified(|current| {
            next.seq = current.seq;
            same_moments(&mut next, current);
            if **current == next {
                return false;
            }
            next.seq += 1;
            *current = next.into();
            true
        });
    }
}

/// `since` is computed from two clocks and may wobble by a millisecond: that is no change.
fn same_moments(next: &mut NodeRecord, current: &NodeRecord) {
    let before: BTreeMap<_, _> = current.instances.iter().map(|i| (&i.id, i)).collect();
    for report in &mut next.instances {
        let before = before.get(&report.id);
        if let Some(before) = before.filter(|b| b.state == report.state) {
            report.since = before.since;
        }
    }
}

/// Whether the node is to take no new instances, by this node's own registry.
pub(super) fn is_cordoned(registry: &Registry, me: NodeId) -> bool {
    let state = registry.view().state();
    state.nodes.get(&me).is_some_and(|me| me.cordoned)
}

fn moment(
    registry: &Registry,
    tools: &Tools,
    me: NodeId,
    demand: Vec<Demand>,
    starts: Vec<StartTime>,
) -> Moment {
    Moment {
        now: clock::now(),
        unix: clock::unix(),
        registry_index: registry.view().index(),
        demand,
        starts,
        images: tools
            .images
            .list()
            .iter()
            .map(|image| image.pin.digest.clone())
            .collect(),
        serving: true,
        cordoned: is_cordoned(registry, me),
    }
}

async fn sleep_until(deadline: Option<scheduler::model::Now>) {
    match deadline {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.since(clock::now()))).await,
        None => std::future::pending().await,
    }
}
