//! The steps of an instance's life that take time: each runs in a task of its own and tells the
//! driver how it went.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::model::{Exit, FailReason, InstanceId, Revision};

use super::busy::{self, Leases};
use super::files::{Files, InstanceRecord};
use super::spec::{self, Parts};
use crate::clock;
use crate::image::{ImageConfig, ImageError};
use crate::images::Images;
use crate::meter::Meter;
use crate::network::{Network, NetworkError};
use crate::runtime::{ContainerSpec, Runtime, RuntimeError, logs};
use crate::volumes::Volumes;

/// Log lines told with a failure.
const LAST_LINES: usize = 10;
/// After a removal that left something; twice as long after each.
const REMOVAL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_REMOVAL_PAUSE: Duration = Duration::from_mins(1);

/// What the steps work with; one for all instances.
pub(super) struct Tools {
    pub images: Images,
    pub runtime: Arc<dyn Runtime>,
    pub network: Network,
    pub meter: Meter,
    pub files: Files,
    pub volumes: Volumes,
    pub leases: Leases,
    /// `/selvedge/NODE`
    pub cgroup: PathBuf,
}

/// A prepared instance: everything but its program running.
#[derive(Debug)]
pub(super) struct Prepared {
    pub address: Ipv4Addr,
    pub stop_signal: i32,
    /// Phases of the cold-start bill.
    pub phases: Vec<(String, u64)>,
}

/// Measures the phases of a start.
struct Stopwatch {
    phases: Vec<(String, u64)>,
    last: Instant,
}

impl Stopwatch {
    fn start() -> Self {
        Self {
            phases: Vec::new(),
            last: Instant::now(),
        }
    }

    fn lap(&mut self, phase: &str) {
        let micros = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phases.push((phase.to_owned(), micros));
        self.last = Instant::now();
    }
}

impl Tools {
    /// Image, root filesystem, network, container. What a failed step made before it failed is
    /// taken away by the removal that follows.
    pub(super) async fn prepare(&self, record: &InstanceRecord) -> Result<Prepared, FailReason> {
        let (id, revision) = (&record.id, &record.revision);
        fail::fail_point!("agent::admitted");
        let mut watch = Stopwatch::start();
        let image = self
            .images
            .pull_to_start(revision.key.namespace.as_str(), &revision.image)
            .await
            .map_err(|e| image_failed(&e))?;
        watch.lap("pull");
        self.files
            .record(record)
            .map_err(|e| disk_failed("its record", &e))?;
        let dir = self.files.dir(id);
        self.runtime.expect();
        // The network first: whose the files are follows from it, and the pool has it at once.
        let network_failed = |e: NetworkError| failed("Network", e.to_string());
        let lease = self.network.acquire(id).await.map_err(network_failed)?;
        let egress = &revision.spec.egress;
        if !egress.is_empty() {
            let opened = self.network.open_for(id, egress).await;
            opened.map_err(network_failed)?;
        }
        let owner = lease.owner().map_err(network_failed)?;
        let snapshot = match self.images.store().snapshot(&image, &dir, owner).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.network.release(id);
                return Err(image_failed(&error));
            }
        };
        let parts = Parts {
            id,
            rootfs: &snapshot.rootfs,
            netns: &lease.netns,
            address: lease.address,
            gateway: lease.gateway,
            ids: lease.ids,
            cgroup: self.cgroup.join(&id.0),
        };
        match self.make(revision, &image.config, &parts).await {
            Ok(stop_signal) => {
                fail::fail_point!("agent::prepared");
                watch.lap("create");
                Ok(Prepared {
                    address: lease.address,
                    stop_signal,
                    phases: watch.phases,
                })
            }
            Err(reason) => {
                self.network.release(id);
                Err(reason)
            }
        }
    }

    /// The container with its volumes; what asks its program to end.
    async fn make(
        &self,
        revision: &Revision,
        image: &ImageConfig,
        parts: &Parts<'_>,
    ) -> Result<i32, FailReason> {
        let mut spec = spec::container(revision, image, parts)?;
        let dir = self.files.dir(parts.id);
        let equipped = self.volumes.equip(revision, &dir, &mut spec).await;
        equipped.map_err(|e| e.reason())?;
        if busy::is_wanted(&revision.spec) {
            let mount = self.leases.open(parts.id, &dir);
            spec.mounts
                .push(mount.map_err(|e| disk_failed("its socket", &e))?);
            let said = (busy::VARIABLE.to_owned(), busy::SOCKET.to_owned());
            spec.env.push(said);
        }
        self.create(&spec).await?;
        Ok(spec.stop_signal)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), FailReason> {
        self.runtime
            .create(spec)
            .await
            .map(|_| ())
            .map_err(|e| e.reason())
    }

    pub(super) async fn launch(&self, id: &InstanceId) -> Result<(), FailReason> {
        self.runtime.start(id).await.map_err(|e| e.reason())?;
        fail::fail_point!("agent::launched");
        Ok(())
    }

    /// Writes whose a parked container became, off the way of its start.
    pub(super) fn record_by_and_by(&self, record: InstanceRecord) {
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = files.update(&record) {
                tracing::debug!(instance = %record.id, %error, "its record is not up to date");
            }
        });
    }

    /// Waits for the program's end; a shim that is gone counts as an end of unknown kind.
    pub(super) async fn exit(&self, id: &InstanceId) -> (Exit, String) {
        let exit = self.runtime.exit(id).await.unwrap_or_else(|error| {
            // Removed before it ended: as the parked are that nobody took.
            if !matches!(error, RuntimeError::Unknown(_)) {
                tracing::warn!(instance = %id, %error, "the end of a container is not known");
            }
            Exit {
                code: 255,
                signal: None,
                oom: false,
                lost: true,
                at: clock::unix(),
            }
        });
        fail::fail_point!("agent::exited");
        let folder = self.runtime.folder(id);
        let lines = tokio::task::spawn_blocking(move || logs::tail(&folder, LAST_LINES)).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        let said: Vec<String> = lines.into_iter().map(|line| line.line).collect();
        (exit, said.join("\n"))
    }

    /// Takes away whatever there is of an instance, again and again until nothing is left: what
    /// stands in the way (a full disk, no file descriptor) passes, and nobody else would do it.
    pub(super) async fn remove(&self, record: &InstanceRecord) {
        let mut pause = REMOVAL_PAUSE;
        while let Err(left) = self.remove_once(record).await {
            tracing::warn!(instance = %record.id, left, again_in = ?pause, "an instance is not gone yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_REMOVAL_PAUSE);
        }
    }

    /// One try; says in words what is left and why.
    pub(super) async fn remove_once(&self, record: &InstanceRecord) -> Result<(), String> {
        let id = &record.id;
        // What it used is known only as long as it is there.
        self.meter.end(id, &record.revision).await;
        self.leases.close(id);
        let deleted = self.runtime.delete(id).await;
        deleted.map_err(|error| format!("container: {error}"))?;
        fail::fail_point!("agent::deleted");
        self.network.release(id);
        let dir = self.files.dir(id);
        let unmounted = self.volumes.remove(id, &dir).await;
        unmounted.map_err(|error| format!("volumes: {error}"))?;
        let cleared = self.images.store().remove_snapshot(&dir).await;
        cleared.map_err(|error| format!("root filesystem: {error}"))?;
        fail::fail_point!("agent::cleared");
        let (files, id, service) = (
            self.files.clone(),
            id.clone(),
            record.revision.service.clone(),
        );
        let retired = tokio::task::spawn_blocking(move || files.retire(&id, &service)).await;
        match retired {
            Ok(Err(error)) => Err(format!("folder: {error}")),
            // A panic there is told by itself; asking again would only repeat it.
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

fn failed(code: &str, message: String) -> FailReason {
    FailReason {
        code: code.to_owned(),
        message,
    }
}

fn image_failed(error: &ImageError) -> FailReason {
    failed(error.code(), error.to_string())
}

fn disk_failed(what: &str, error: &std::io::Error) -> FailReason {
    failed("Disk", format!("cannot write {what}: {error}"))
}

/// Where requests to an instance go.
pub(super) fn service_address(address: Ipv4Addr, revision: &Revision) -> SocketAddr {
    SocketAddr::from((address, revision.spec.port().container_port))
}
