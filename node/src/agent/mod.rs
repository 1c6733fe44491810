//! Owns what runs on this node. One task drives the pure machine of `scheduler::converge`: it
//! performs its effects through images, network and runtime, opens and closes instances to the
//! front door, and publishes this node's record.

mod adopt;
mod busy;
mod capacity;
mod displace;
mod driver;
mod expand;
mod files;
mod idle;
mod probe;
mod receipts;
mod record;
mod spec;
mod starts;
mod steps;
mod times;
mod work;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use netfabric::ingress::{Awake, Local};
use netfabric::wire::decision::Deed;
use netfabric::wire::peer::{StartRefusal, StartRequest, Started};
use scheduler::fleet::Word;
use scheduler::model::{Demand, InstanceId, InstanceState, Resources, Revision, ServiceKey};
use scheduler::place::Receipt;
use tokio::sync::{mpsc, oneshot, watch};

pub use capacity::offered;
pub use record::RecordBase;
pub use spec::{INTERNAL, unsupported};
pub use times::Experience;

use crate::clock;
use crate::consensus::Registry;
use crate::images::Images;
use crate::logs::LogQuery;
use crate::meter::Meter;
use crate::network::Network;
use crate::runtime::Runtime;
use crate::telemetry::decisions::{Decisions, Told};
use crate::volumes::{Oversize, Volumes};
use driver::{Doings, Driver, Input};
use files::Files;
use receipts::Receipts;
use starts::Start;

/// Inputs on their way to the driver.
const INPUTS: usize = 1024;
/// How long a start waits for this node's registry to catch up with the asker's.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Oversized folders on their way to being dealt with; found again at the next measurement.
const OVERSIZED: usize = 16;

/// What the agent works with.
pub struct AgentParts {
    /// The unchanging part of this node's record.
    pub base: RecordBase,
    pub data: PathBuf,
    pub capacity: Resources,
    /// Containers kept parked at most.
    pub parked: u32,
    /// Instances' cgroups are made below it.
    pub cgroup: String,
    pub registry: Registry,
    pub images: Images,
    pub runtime: Arc<dyn Runtime>,
    pub network: Network,
    pub meter: Meter,
    pub volumes: Volumes,
    pub local: Arc<Local>,
    pub decisions: Decisions,
    /// Requests held at this node's front door.
    pub demand: Arc<dyn Fn() -> Vec<Demand> + Send + Sync>,
}

/// A handle to the agent; cheap to clone.
#[derive(Clone)]
pub struct Agent {
    shared: Arc<Shared>,
    inputs: mpsc::Sender<Input>,
}

/// What readers may see without asking the driver.
struct Shared {
    node_name: String,
    registry: Registry,
    files: Files,
    local: Arc<Local>,
    record: watch::Receiver<Word>,
    experience: watch::Receiver<Arc<Experience>>,
    receipts: Receipts,
    decisions: Decisions,
    doings: Doings,
}

/// Where one instance's log is.
#[derive(Debug, Clone)]
pub struct LogFolder {
    pub instance: InstanceId,
    pub path: PathBuf,
}

impl Agent {
    /// Takes over what an earlier daemon left, then runs until the process ends.
    pub async fn start_up(parts: AgentParts) -> anyhow::Result<Self> {
        let files = Files::open(&parts.data)?;
        let (inputs, received) = mpsc::channel(INPUTS);
        let (volumes, runtime) = (parts.volumes.clone(), parts.runtime.clone());
        let images = parts.images.clone();
        let (node_name, registry) = (parts.base.name.to_string(), parts.registry.clone());
        let (receipts, local) = (Receipts::default(), parts.local.clone());
        let decisions = parts.decisions.clone();
        let (mut driver, record) = Driver::new(
            parts,
            files.clone(),
            receipts.clone(),
            inputs.clone(),
            received,
        );
        driver.adopt().await?;
        // The first record that others see has what runs here.
        driver.publish();
        let shared = Arc::new(Shared {
            node_name,
            registry,
            files,
            local,
            record,
            experience: driver.experience(),
            receipts,
            decisions,
            doings: driver.doings.clone(),
        });
        let agent = Self { shared, inputs };
        tokio::spawn(driver.run());
        let (oversized, heard) = mpsc::channel(OVERSIZED);
        tokio::spawn(volumes.run(oversized));
        tokio::spawn(agent.clone().evict(runtime.clone(), heard));
        tokio::spawn(end_broken(runtime, images.resume()));
        Ok(agent)
    }

    /// Ends instances whose folders on disk outgrow their limits: drained, but at once when it is
    /// twice as much, because the disk is everybody's.
    async fn evict(self, runtime: Arc<dyn Runtime>, mut oversized: mpsc::Receiver<Oversize>) {
        while let Some(over) = oversized.recv().await {
            let Oversize {
                instance,
                volume,
                bytes,
                limit,
            } = over;
            let cause = format!("evicted: its volume `{volume}` has {bytes} bytes of {limit}");
            if bytes < limit.saturating_mul(2) {
                self.stop(&instance, &cause);
            } else {
                tracing::warn!(%instance, cause, "killing an instance");
                if let Err(error) = runtime.kill(&instance).await {
                    tracing::warn!(%instance, %error, "cannot be killed");
                }
            }
        }
    }

    /// Starts one instance and answers when it is ready or has failed.
    pub async fn start(&self, request: StartRequest) -> Result<Started, StartRefusal> {
        let patience = Duration::from_millis(request.patience_millis);
        let revision = self.revision(&request).await?;
        let (reply, answer) = oneshot::channel();
        let capacity = self.capacity(&revision);
        let start = Input::Start(Start {
            revision,
            receipt: request.receipt,
            asked: clock::now(),
            held: request.held,
            capacity,
            replies: vec![reply],
        });
        if self.inputs.send(start).await.is_err() {
            return Err(StartRefusal::NotTaking);
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(StartRefusal::NotTaking),
            Err(_) => Err(StartRefusal::Unreachable(format!(
                "it was not ready within {} s; it goes on starting",
                patience.as_secs()
            ))),
        }
    }

    /// Requests at once that one instance of the revision carries.
    fn capacity(&self, revision: &Revision) -> u32 {
        let state = self.shared.registry.view().state();
        let scale = state
            .services
            .get(&revision.service)
            .map(|s| s.scale.clone());
        scale
            .unwrap_or_default()
            .total_concurrency(revision.spec.container_concurrency)
    }

    async fn revision(&self, request: &StartRequest) -> Result<Arc<Revision>, StartRefusal> {
        let view = self.shared.registry.view();
        let known = || {
            view.state()
                .revisions
                .get(&request.revision)
                .cloned()
                .map(Arc::new)
        };
        if known().is_none() {
            let _ = tokio::time::timeout(CATCH_UP, view.reached(request.index)).await;
        }
        known().ok_or_else(|| StartRefusal::UnknownRevision(request.revision.clone()))
    }

    /// Drains and ends an instance. False when it is not here or over already.
    pub fn stop(&self, id: &InstanceId, cause: &str) -> bool {
        let record = self.shared.record.borrow().clone();
        let here = record.instances.iter().find(|i| i.id == *id);
        let Some(here) = here.filter(|i| !i.state.is_over()) else {
            return false;
        };
        tracing::info!(instance = %id, cause, "stopping an instance");
        // A full queue means a busy driver; the steward asks again.
        let taken = self.inputs.try_send(Input::Stop(id.clone())).is_ok();
        // What drains already is asked for again.
        if taken && here.state != InstanceState::Draining {
            let told = Told {
                instance: Some(id.clone()),
                why: cause.to_owned(),
                receipt: None,
            };
            self.shared
                .decisions
                .note(Deed::Retired, (&here.service, &here.revision), told);
        }
        taken
    }

    /// Keeps an instance here from being frozen while the answer is held, and thaws it: for whoever
    /// runs something in it. `None` when it does not serve.
    ///
    /// # Errors
    /// It cannot be thawed.
    pub async fn keep_awake(&self, id: &InstanceId) -> std::io::Result<Option<Awake>> {
        self.shared.local.keep_awake(id).await
    }

    /// Publishes the record anew: something outside the agent changed.
    pub fn publish(&self) {
        // When the queue is full, a publication follows anyway.
        let _ = self.inputs.try_send(Input::Publish);
    }

    /// This node's record as it changes.
    pub fn record(&self) -> watch::Receiver<Word> {
        self.shared.record.clone()
    }

    /// What starts and pulls took here.
    pub fn experience(&self) -> watch::Receiver<Arc<Experience>> {
        self.shared.experience.clone()
    }

    pub fn node_name(&self) -> String {
        self.shared.node_name.clone()
    }

    /// Why the instance is on this node.
    pub fn receipt(&self, id: &InstanceId) -> Option<Receipt> {
        self.shared.receipts.of(id)
    }

    /// What the instance does where that is more than to wait for requests, in sentences.
    pub fn doing(&self, id: &InstanceId) -> Vec<String> {
        let doings = self.shared.doings.lock();
        let doings = doings.unwrap_or_else(PoisonError::into_inner);
        doings.get(id).cloned().unwrap_or_default()
    }

    /// The logs a query is about: of instances here and of those gone a while ago.
    pub fn log_folders(&self, query: &LogQuery) -> Vec<LogFolder> {
        let record = self.shared.record.borrow().clone();
        let files = &self.shared.files;
        let here = record.instances.iter().filter(|i| {
            i.service.namespace == query.namespace
                && query.service.as_ref().is_none_or(|s| *s == i.service.name)
        });
        let here = here.map(|i| LogFolder {
            instance: i.id.clone(),
            path: files.dir(&i.id),
        });
        let gone = query.service.iter().flat_map(|service| {
            let key = ServiceKey {
                namespace: query.namespace.clone(),
                name: service.clone(),
            };
            let retired = files.retired(&key).into_iter();
            retired.map(|(instance, path)| LogFolder { instance, path })
        });
        let mut folders: Vec<LogFolder> = gone.chain(here).collect();
        folders.retain(|f| {
            query
                .instance
                .as_ref()
                .is_none_or(|wanted| *wanted == f.instance)
        });
        folders
    }
}

/// Ends instances that can read nothing more of their image: they end as one that was killed does, and
/// others take their place.
async fn end_broken(runtime: Arc<dyn Runtime>, mut broken: mpsc::Receiver<PathBuf>) {
    while let Some(folder) = broken.recv().await {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let instance = InstanceId(name.to_owned());
        tracing::warn!(%instance, "killing an instance: its image cannot be read any more");
        if let Err(error) = runtime.kill(&instance).await {
            tracing::warn!(%instance, %error, "cannot be killed");
        }
        // A frozen one dies when it goes on.
        let _ = runtime.thaw(&instance).await;
    }
}
