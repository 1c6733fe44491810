//! The agent's one task: inputs into the pure machine, its effects performed. No policy here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfabric::wire::peer::{StartRefusal, Started};
use scheduler::converge::{Admission, Effect, Node};
use scheduler::model::{Demand, Exit, FailReason, InstanceId, NodeRecord, Revision};
use scheduler::place::{self, Receipt};
use tokio::sync::{mpsc, oneshot, watch};

use super::files::{Files, InstanceRecord};
use super::probe::Question;
use super::record::{self, Moment};
use super::steps::{Prepared, Tools, service_address};
use super::{AgentParts, RecordBase};
use crate::clock;
use crate::consensus::Registry;
use netfabric::ingress::Local;

/// Launch to ready. Kubernetes gives a default startup probe less, Cloud Run four minutes; a
/// program that takes longer can say so with a readiness probe's thresholds.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often loads and held requests are looked at; nothing is published while they stay.
const LOAD_PERIOD: Duration = Duration::from_secs(1);

type Reply = oneshot::Sender<Result<Started, StartRefusal>>;

/// A wish for an instance.
pub(super) struct Start {
    /// The name of a new one.
    pub id: InstanceId,
    pub revision: Arc<Revision>,
    pub receipt: Receipt,
    /// Requests that wait for it, and what one instance carries at once.
    pub held: u32,
    pub capacity: u32,
    pub reply: Reply,
}

pub(super) enum Input {
    Start(Start),
    Stop(InstanceId),
    Prepared(InstanceId, Result<Prepared, FailReason>),
    Launched(InstanceId, Result<(), FailReason>),
    Probed(InstanceId, bool),
    Exited(InstanceId, Exit, String),
    Drained(InstanceId),
    Removed(InstanceId),
    Publish,
}

/// What the machine does not need to know of an instance.
pub(super) struct Work {
    pub(super) record: InstanceRecord,
    /// Of its network, once it has one.
    pub(super) address: Option<Ipv4Addr>,
    stop_signal: i32,
    phases: Vec<(String, u64)>,
    lap: Instant,
    /// Requests may enter, or could once.
    open: bool,
    /// Who waits for it to be ready.
    replies: Vec<Reply>,
}

pub(super) struct Driver {
    base: RecordBase,
    pub(super) node: Node,
    pub(super) work: BTreeMap<InstanceId, Work>,
    pub(super) tools: Arc<Tools>,
    registry: Registry,
    local: Arc<Local>,
    inputs: mpsc::Sender<Input>,
    received: mpsc::Receiver<Input>,
    demand: Arc<dyn Fn() -> Vec<Demand> + Send + Sync>,
    record: watch::Sender<Arc<NodeRecord>>,
}

impl Driver {
    pub(super) fn new(
        parts: AgentParts,
        files: Files,
        inputs: mpsc::Sender<Input>,
        received: mpsc::Receiver<Input>,
    ) -> (Self, watch::Receiver<Arc<NodeRecord>>) {
        let tools = Tools {
            images: parts.images,
            runtime: parts.runtime,
            network: parts.network,
            files,
            volumes: parts.volumes,
            cgroup: parts.cgroup.into(),
        };
        let node = Node::new(parts.capacity);
        let first = record::record(
            &parts.base,
            &node,
            moment(&parts.registry, &tools, Vec::new()),
            |_| (0, 0),
        );
        let (record, watched) = watch::channel(Arc::new(first));
        let driver = Self {
            base: parts.base,
            node,
            work: BTreeMap::new(),
            tools: Arc::new(tools),
            registry: parts.registry,
            local: parts.local,
            demand: parts.demand,
            inputs,
            received,
            record,
        };
        (driver, watched)
    }

    /// Runs until every handle is gone.
    pub(super) async fn run(mut self) {
        let mut load = tokio::time::interval(LOAD_PERIOD);
        load.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut index = self.registry.view().watch();
        self.publish();
        loop {
            tokio::select! {
                input = self.received.recv() => match input {
                    Some(input) => {
                        // Comes a thousand times a second and says nothing new to others; what
                        // follows from the last of them, a removal, comes as an input too.
                        let routine = matches!(input, Input::Probed(_, false));
                        self.on_input(input);
                        if routine {
                            continue;
                        }
                    }
                    None => return,
                },
                () = sleep_until(self.node.poll_timeout()) => {
                    let effects = self.node.on_timeout(clock::now());
                    self.perform(effects);
                }
                _ = load.tick() => {}
                changed = index.changed() => if changed.is_err() { return },
            }
            self.publish();
        }
    }

    fn on_input(&mut self, input: Input) {
        let now = clock::now();
        let effects = match input {
            Input::Start(start) => self.start(start),
            Input::Stop(id) => self.node.on_stop(now, &id).1,
            Input::Prepared(id, result) => {
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
            Input::Probed(id, ready) => self.node.on_probe(now, &id, ready),
            Input::Exited(id, exit, said) => {
                tracing::info!(instance = %id, code = exit.code, oom = exit.oom, "exited");
                self.node.on_exit(now, &id, &exit, &said)
            }
            Input::Drained(id) => self.node.on_drained(now, &id),
            Input::Removed(id) => {
                self.work.remove(&id);
                self.node.on_removed(now, &id);
                Vec::new()
            }
            Input::Publish => Vec::new(),
        };
        self.perform(effects);
    }

    fn start(&mut self, start: Start) -> Vec<Effect> {
        let now = clock::now();
        let key = &start.revision.key;
        if start.held > 0
            && let Some(id) = self.node.share(now, key, start.held, start.capacity)
        {
            self.join_start(&id, start.reply);
            return Vec::new();
        }
        let admission = Admission {
            promised: start.held,
            ..admission(&start.id, &start.revision)
        };
        match self.node.admit(now, admission) {
            Ok(effects) => {
                let Start {
                    id,
                    revision,
                    receipt,
                    reply,
                    ..
                } = start;
                tracing::info!(instance = %id, cause = receipt.cause, "starting an instance");
                let record = InstanceRecord {
                    id: id.clone(),
                    revision,
                    receipt,
                };
                self.work
                    .insert(id, Work::new(record, libc::SIGTERM, Some(reply)));
                effects
            }
            Err(no_room) => {
                // The asker may be gone already; then nobody needs the answer.
                let _ = start
                    .reply
                    .send(Err(StartRefusal::NoRoom(no_room.to_string())));
                Vec::new()
            }
        }
    }

    /// Another asker for an instance on its way; one that is there is answered at once.
    fn join_start(&mut self, id: &InstanceId, reply: Reply) {
        let Some(work) = self.work.get_mut(id) else {
            return;
        };
        if work.open {
            let _ = reply.send(Ok(work.started(id)));
        } else {
            work.replies.push(reply);
        }
    }

    fn note_prepared(&mut self, id: &InstanceId, prepared: Prepared) {
        if let Some(work) = self.work.get_mut(id) {
            work.address = Some(prepared.address);
            work.stop_signal = prepared.stop_signal;
            work.phases = prepared.phases;
            work.lap = Instant::now();
        }
    }

    fn lap(&mut self, id: &InstanceId, phase: &str) {
        if let Some(work) = self.work.get_mut(id) {
            let micros = u64::try_from(work.lap.elapsed().as_micros()).unwrap_or(u64::MAX);
            work.phases.push((phase.to_owned(), micros));
            work.lap = Instant::now();
        }
    }

    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Prepare(id) => self.prepare(id),
                Effect::Launch(id) => {
                    let tools = self.tools.clone();
                    self.spawn(async move {
                        let result = tools.launch(&id).await;
                        Input::Launched(id, result)
                    });
                }
                Effect::Probe { id, after_ms } => self.probe(id, after_ms),
                Effect::Open(id) => self.open(&id),
                Effect::Close(id) => self.close(id),
                Effect::Terminate(id) => self.signal(id, None),
                Effect::Kill(id) => self.signal(id, Some(libc::SIGKILL)),
                Effect::Remove(id) => self.remove(id),
                Effect::Failed(id) => self.answer_failure(&id),
            }
        }
    }

    /// Runs a step beside the driver; its outcome comes back as an input.
    fn spawn(&self, step: impl Future<Output = Input> + Send + 'static) {
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

    fn probe(&self, id: InstanceId, after_ms: u64) {
        let Some(work) = self.work.get(&id) else {
            return;
        };
        let Some(address) = work.address else { return };
        let question = Question::of(&work.record.revision.spec);
        let address = service_address(address, &work.record.revision);
        self.spawn(async move {
            if after_ms > 0 {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
            }
            let ready = question.ask(address).await;
            Input::Probed(id, ready)
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
        );
        fail::fail_point!("agent::opened");
        tracing::info!(instance = %id, "ready");
        work.open = true;
        let started = work.started(id);
        for reply in work.replies.drain(..) {
            let _ = reply.send(Ok(started.clone()));
        }
    }

    fn close(&self, id: InstanceId) {
        self.local.close(&id);
        fail::fail_point!("agent::closed");
        let local = self.local.clone();
        self.spawn(async move {
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
        tokio::spawn(async move {
            if let Err(error) = tools.runtime.signal(&id, signal).await {
                tracing::warn!(instance = %id, %error, signal, "cannot be signalled");
            }
        });
    }

    fn remove(&mut self, id: InstanceId) {
        self.local.remove(&id);
        let Some(work) = self.work.get_mut(&id) else {
            return;
        };
        for reply in work.replies.drain(..) {
            let _ = reply.send(Err(StartRefusal::NotTaking));
        }
        let (tools, record) = (self.tools.clone(), work.record.clone());
        self.spawn(async move {
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

    pub(super) fn watch_exit(&self, id: &InstanceId) {
        let (tools, id) = (self.tools.clone(), id.clone());
        self.spawn(async move {
            let (exit, said) = tools.exit(&id).await;
            Input::Exited(id, exit, said)
        });
    }

    /// Publishes the record if anything in it but its number changed.
    fn publish(&self) {
        let moment = moment(&self.registry, &self.tools, (self.demand)());
        let mut next = record::record(&self.base, &self.node, moment, |id| self.local.sample(id));
        self.record.send_if_modified(|current| {
            next.seq = current.seq;
            same_moments(&mut next, current);
            if **current == next {
                return false;
            }
            next.seq += 1;
            *current = Arc::new(next);
            true
        });
    }
}

/// `since` is computed from two clocks and may wobble by a millisecond: that is no change.
fn same_moments(next: &mut NodeRecord, current: &NodeRecord) {
    for report in &mut next.instances {
        let before = current.instances.iter().find(|i| i.id == report.id);
        if let Some(before) = before.filter(|b| b.state == report.state) {
            report.since = before.since;
        }
    }
}

fn moment(registry: &Registry, tools: &Tools, demand: Vec<Demand>) -> Moment {
    Moment {
        now: clock::now(),
        unix: clock::unix(),
        registry_index: registry.view().index(),
        demand,
        images: tools
            .images
            .list()
            .iter()
            .map(|image| image.pin.digest.clone())
            .collect(),
        serving: true,
    }
}

pub(super) fn admission(id: &InstanceId, revision: &Revision) -> Admission {
    let millis = |seconds: u32| u64::from(seconds) * 1000;
    Admission {
        id: id.clone(),
        service: revision.service.clone(),
        revision: revision.key.clone(),
        needs: place::needs(&revision.spec),
        port: revision.spec.port().container_port,
        promised: 0,
        start_deadline_ms: u64::try_from(START_DEADLINE.as_millis()).unwrap_or(u64::MAX),
        drain_ms: millis(revision.spec.timeout_seconds),
        grace_ms: millis(revision.spec.termination_grace_seconds),
    }
}

/// Whether it was the node's fault, so that another one may do better, or the program's.
fn refusal(FailReason { code, message }: FailReason) -> StartRefusal {
    match code.as_str() {
        code if code.starts_with("Image") || code == "RegistryUnavailable" => {
            StartRefusal::Image(message)
        }
        "Network" | "Disk" | "Runtime" | "Volume" => StartRefusal::NoRoom(message),
        _ => StartRefusal::Failed {
            code,
            message,
            exit: None,
        },
    }
}

async fn sleep_until(deadline: Option<scheduler::model::Now>) {
    match deadline {
        Some(at) => tokio::time::sleep(Duration::from_millis(at.since(clock::now()))).await,
        None => std::future::pending().await,
    }
}

impl Work {
    pub(super) fn new(record: InstanceRecord, stop_signal: i32, reply: Option<Reply>) -> Self {
        let (address, phases, lap) = (None, Vec::new(), Instant::now());
        Self {
            record,
            address,
            stop_signal,
            phases,
            lap,
            open: false,
            replies: reply.into_iter().collect(),
        }
    }

    fn started(&self, id: &InstanceId) -> Started {
        Started {
            instance: id.clone(),
            phases: self.phases.clone(),
        }
    }
}
