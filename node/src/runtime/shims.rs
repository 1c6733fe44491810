//! The runtime that is used: one shim process per container, spoken to over its socket.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::{Exit, InstanceId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cgroup::{self, Cgroup};
use super::copy::CopyJob;
use super::exec::{self, Exec, ExecSpec, Place};
use super::nursery::Nursery;
use super::scratch;
use super::spec::{SecretEnv, is_safe_id};
use super::wire::{
    self, FailCode, Failure, MAX_LINE, Phase, Reply, Request, SOCKET, SPEC, ShimState,
};
use super::{
    Adopted, AdoptedState, ContainerSpec, Handle, Ran, Runtime, RuntimeError, Usage, adopt,
};

/// Containers made at once. Making one mostly waits for the kernel, so this is above the number of
/// cores; it bounds memory and the wait of the last.
const MAX_CREATES: usize = 16;
/// A container takes tens of milliseconds to make; a machine under load, seconds.
const CREATE_DEADLINE: Duration = Duration::from_secs(30);
/// What a throttled container keeps of its share: so little that those who are asked hardly notice, and
/// enough that its probes are answered while they use all there is.
const THROTTLED_PART: u64 = 10;
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Deleting waits for the dying.
const DELETE_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct ShimsConfig {
    /// Holds one folder per container, named by its id. Made when missing.
    pub instances: PathBuf,
    /// The binary whose `shim` command runs a container: this one.
    pub binary: PathBuf,
}

impl ShimsConfig {
    #[must_use]
    pub fn new(instances: impl Into<PathBuf>) -> Self {
        // Through /proc the binary is found even after an upgrade replaced it.
        Self {
            instances: instances.into(),
            binary: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// Containers behind shims.
#[derive(Debug)]
pub struct Shims {
    config: ShimsConfig,
    nursery: Nursery,
    creates: Semaphore,
    rousing: Arc<AtomicBool>,
    known: Mutex<BTreeMap<InstanceId, Known>>,
}

/// What is asked of a container too often to be read from its folder each time.
#[derive(Debug, Clone)]
struct Known {
    pid: i32,
    cgroup: PathBuf,
    /// Its share of the processors when it is asked something.
    shares: Option<u64>,
    /// It may have less now.
    throttled: bool,
}

impl Shims {
    /// # Errors
    /// [`RuntimeError::Folder`] when the folder of instances cannot be made.
    pub fn open(mut config: ShimsConfig) -> Result<Self, RuntimeError> {
        make_folder(&config.instances).map_err(RuntimeError::Folder)?;
        // Containers' roots pass through to their own folder below; nobody can look around.
        fs::set_permissions(&config.instances, Permissions::from_mode(0o711))
            .map_err(RuntimeError::Folder)?;
        // Shims leave our working folder.
        config.instances = fs::canonicalize(&config.instances).map_err(RuntimeError::Folder)?;
        scratch::open(&config.instances).map_err(RuntimeError::Folder)?;
        Ok(Self {
            nursery: Nursery::new(&config.binary, &config.instances),
            config,
            creates: Semaphore::new(MAX_CREATES),
            rousing: Arc::default(),
            known: Mutex::new(BTreeMap::new()),
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `found`: as an earlier daemon left it, whatever it did with it.
    fn remember(&self, spec: &ContainerSpec, pid: i32, found: bool) {
        let known = Known {
            pid,
            cgroup: spec.cgroup.clone(),
            shares: spec.cpu_shares(),
            throttled: found,
        };
        self.known().insert(spec.id.clone(), known);
    }

    /// As [`Shims::set_frozen`].
    fn set_throttled(&self, id: &InstanceId, throttled: bool) -> Result<(), RuntimeError> {
        let known = self.known().get(id).cloned();
        let known = known.ok_or_else(|| RuntimeError::Unknown(id.clone()))?;
        if known.throttled == throttled {
            return Ok(());
        }
        let (part, what) = if throttled {
            (THROTTLED_PART, "throttling")
        } else {
            (1, "giving its share")
        };
        let set = Cgroup::at(&known.cgroup).set_shares(known.shares, part);
        set.map_err(failed(id, what))?;
        if let Some(known) = self.known().get_mut(id) {
            known.throttled = throttled;
        }
        Ok(())
    }

    /// A write to a file of the kernel's: too short for a thread of its own.
    fn set_frozen(&self, id: &InstanceId, frozen: bool) -> Result<(), RuntimeError> {
        let known = self.known().get(id).cloned();
        let Known { cgroup, .. } = known.ok_or_else(|| RuntimeError::Unknown(id.clone()))?;
        let what = if frozen { "freezing" } else { "thawing" };
        Cgroup::at(&cgroup).freeze(frozen).map_err(failed(id, what))
    }

    /// Has a shim forked, tells it the secrets, and waits for its report.
    async fn spawn(
        &self,
        id: &InstanceId,
        folder: &Path,
        secrets: &SecretEnv,
    ) -> Result<ShimState, RuntimeError> {
        let report = self.nursery.shim(folder);
        let mut report = report.map_err(failed(id, "starting the shim"))?;
        fail::fail_point!("runtime::shim_spawned");
        let told = wire::secrets(secrets).map_err(|e| failed(id, "telling secrets")(e.into()))?;
        // A shim that is gone says why in its report, or says nothing.
        let _ = report.write_all(&told).await;
        let _ = report.shutdown().await;
        let mut line = String::new();
        // One line, not to its end: others may hold the pipe open.
        BufReader::new(report.take(MAX_LINE))
            .read_line(&mut line)
            .await
            .map_err(failed(id, "reading the shim's report"))?;
        match serde_json::from_str(&line) {
            Ok(Reply::State(state)) => Ok(state),
            Ok(Reply::Refused(failure)) => Err(failure.into()),
            Err(_) => Err(died(id, folder)),
        }
    }

    async fn call(&self, id: &InstanceId, request: &Request) -> Result<ShimState, RuntimeError> {
        let what = describe(request);
        let limit = if *request == Request::Delete {
            DELETE_DEADLINE
        } else {
            CALL_DEADLINE
        };
        timeout(limit, call(id, &self.folder(id), request))
            .await
            .unwrap_or_else(|_| {
                Err(RuntimeError::Deadline {
                    id: id.clone(),
                    what,
                    waited: limit,
                })
            })
    }
}

#[async_trait]
impl Runtime for Shims {
    async fn create(&self, spec: &ContainerSpec) -> Result<Handle, RuntimeError> {
        let id = &spec.id;
        spec.check()
            .map_err(|message| Failure::new(FailCode::BadSpec, message))?;
        let _one = self.creates.acquire().await;
        self.expect();
        let folder = self.folder(id);
        make_folder(&folder).map_err(failed(id, "making the folder"))?;
        if folder.join(SPEC).exists() {
            return Err(RuntimeError::Exists(id.clone()));
        }
        Cgroup::at(&spec.cgroup)
            .make_above()
            .map_err(failed(id, "making its cgroup"))?;
        // A crash of the machine ends the container too: no fsync.
        let text =
            serde_json::to_vec(spec).map_err(|e| failed(id, "writing the spec")(e.into()))?;
        fs::write(folder.join(SPEC), text).map_err(failed(id, "writing the spec"))?;
        fail::fail_point!("runtime::spec_written");
        scratch::make(&folder).map_err(failed(id, "making the scratch"))?;
        let made = timeout(CREATE_DEADLINE, self.spawn(id, &folder, &spec.secret_env))
            .await
            .unwrap_or_else(|_| {
                Err(RuntimeError::Deadline {
                    id: id.clone(),
                    what: "create",
                    waited: CREATE_DEADLINE,
                })
            });
        match made {
            Ok(state) => {
                fail::fail_point!("runtime::created");
                self.remember(spec, state.pid, false);
                Ok(Handle {
                    id: id.clone(),
                    pid: state.pid,
                })
            }
            Err(error) => {
                let spec = spec.clone();
                let swept = move || adopt::sweep(&folder, Some(&spec));
                if !matches!(tokio::task::spawn_blocking(swept).await, Ok(Ok(()))) {
                    tracing::warn!(instance = %id, "a container that was not made left something");
                }
                Err(error)
            }
        }
    }

    /// Beside those who wait for nothing of it; one at a time, as one is enough.
    fn expect(&self) {
        if self.rousing.swap(true, Ordering::AcqRel) {
            return;
        }
        let rousing = Arc::clone(&self.rousing);
        tokio::task::spawn_blocking(move || {
            // What is not ready takes longer.
            let _ = cgroup::rouse();
            rousing.store(false, Ordering::Release);
        });
    }

    async fn start(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.call(id, &Request::Start).await?;
        fail::fail_point!("runtime::started");
        Ok(())
    }

    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), RuntimeError> {
        self.call(id, &Request::Signal { signal }).await?;
        fail::fail_point!("runtime::signalled");
        Ok(())
    }

    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.set_frozen(id, true)
    }

    async fn throttle(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.set_throttled(id, true)
    }

    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        if let Err(error) = self.set_throttled(id, false) {
            // It is slow, and answers.
            tracing::warn!(instance = %id, %error, "cannot be given its share of the processors");
        }
        self.set_frozen(id, false)
    }

    async fn cpu_micros(&self, id: &InstanceId) -> Result<u64, RuntimeError> {
        let known = self.known().get(id).map(|known| known.cgroup.clone());
        let cgroup = known.ok_or_else(|| RuntimeError::Unknown(id.clone()))?;
        let used = Cgroup::at(&cgroup).cpu_micros();
        used.map_err(failed(id, "reading the processor time"))
    }

    async fn reclaim(
        &self,
        id: &InstanceId,
        held: Box<dyn Fn() -> bool + Send>,
    ) -> Result<u64, RuntimeError> {
        let known = self.known().get(id).cloned();
        let Known { cgroup, .. } = known.ok_or_else(|| RuntimeError::Unknown(id.clone()))?;
        // The kernel looks at every page of it.
        let reclaim = move || Cgroup::at(&cgroup).reclaim(held);
        let reclaimed = tokio::task::spawn_blocking(reclaim).await;
        let reclaimed = reclaimed.unwrap_or_else(|gone| Err(io::Error::other(gone)));
        reclaimed.map_err(failed(id, "reclaiming memory"))
    }

    async fn run(
        &self,
        id: &InstanceId,
        args: &[String],
        patience: Duration,
    ) -> Result<Ran, RuntimeError> {
        let spec = ExecSpec {
            args: args.to_vec(),
            ..ExecSpec::default()
        };
        let folder = self.folder(id);
        let place = self.place(id, &folder).await?;
        let began = place.run(&spec, Duration::ZERO).await?;
        exec::finish(began, patience).await
    }

    async fn exec(&self, id: &InstanceId, spec: &ExecSpec) -> Result<Exec, RuntimeError> {
        let folder = self.folder(id);
        let place = self.place(id, &folder).await?;
        place.run(spec, exec::HANGUP_GRACE).await
    }

    async fn copy(
        &self,
        id: &InstanceId,
        job: CopyJob,
        user: Option<String>,
    ) -> Result<Exec, RuntimeError> {
        let folder = self.folder(id);
        self.place(id, &folder).await?.copy(job, user).await
    }

    /// A few files of the kernel's: too short for a thread of its own.
    async fn usage(&self, id: &InstanceId, before: Option<&Usage>) -> Result<Usage, RuntimeError> {
        let known = self.known().get(id).map(|known| known.cgroup.clone());
        // One that ended before this daemon came is known by its folder only.
        let read = || wire::read_record::<ContainerSpec>(&self.folder(id), SPEC);
        let cgroup = known.or_else(|| read().map(|spec| spec.cgroup));
        let cgroup = cgroup.ok_or_else(|| RuntimeError::Unknown(id.clone()))?;
        let usage = Cgroup::at(&cgroup).usage(before);
        usage.map_err(failed(id, "reading the usage"))
    }

    async fn exit(&self, id: &InstanceId) -> Result<Exit, RuntimeError> {
        let folder = self.folder(id);
        let answered = call(id, &folder, &Request::Wait).await;
        if let Ok(ShimState {
            exit: Some(exit), ..
        }) = answered
        {
            fail::fail_point!("runtime::exit_told");
            return Ok(exit);
        }
        // The shim is gone. The record is there, or the container goes with it.
        if !folder.join(SPEC).exists() {
            return Err(RuntimeError::Unknown(id.clone()));
        }
        let ended = tokio::task::spawn_blocking(move || adopt::end_orphan(&folder)).await;
        ended
            .ok()
            .flatten()
            .ok_or_else(|| RuntimeError::Unknown(id.clone()))
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.known().remove(id);
        let folder = self.folder(id);
        if !is_safe_id(&id.0) || !folder.join(SPEC).exists() {
            return Ok(());
        }
        fail::fail_point!("runtime::deleting");
        match self.call(id, &Request::Delete).await {
            Err(RuntimeError::Io { .. } | RuntimeError::Unknown(_)) => {
                let spec = wire::read_record(&folder, SPEC);
                tokio::task::spawn_blocking(move || adopt::sweep(&folder, spec.as_ref()))
                    .await
                    .map_err(|e| failed(id, "cleaning up")(io::Error::other(e)))?
                    .map_err(failed(id, "cleaning up"))
            }
            other => other.map(drop),
        }
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, RuntimeError> {
        // The first start should not have to wait for it; should it fail, that start says why.
        let _ = self.nursery.warm();
        if let Err(error) = scratch::sweep(&self.config.instances) {
            tracing::warn!(%error, "passing files of instances that are gone stay");
        }
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.config.instances).map_err(RuntimeError::Folder)? {
            let entry = entry.map_err(RuntimeError::Folder)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if is_safe_id(&name) && entry.file_type().is_ok_and(|t| t.is_dir()) {
                all.push(self.adopt_one(InstanceId(name), entry.path()).await);
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    fn pid(&self, id: &InstanceId) -> Option<i32> {
        self.known().get(id).map(|known| known.pid)
    }

    fn folder(&self, id: &InstanceId) -> PathBuf {
        self.config.instances.join(&id.0)
    }
}

impl Shims {
    /// Where a further program goes: only into a container that runs, which a frozen one must first.
    async fn place<'a>(
        &'a self,
        id: &'a InstanceId,
        folder: &'a Path,
    ) -> Result<Place<'a>, RuntimeError> {
        let why = match self.call(id, &Request::State).await? {
            ShimState {
                phase: Phase::Running,
                pid,
                ..
            } => {
                self.thaw(id).await?;
                let binary = &self.config.binary;
                return Ok(Place {
                    id,
                    folder,
                    binary,
                    pid,
                });
            }
            ShimState {
                phase: Phase::Created,
                ..
            } => "the instance's program has not been started",
            ShimState {
                phase: Phase::Exited,
                ..
            } => "the instance has ended",
        };
        Err(Failure::new(FailCode::WrongState, why).into())
    }

    async fn adopt_one(&self, id: InstanceId, folder: PathBuf) -> Adopted {
        let spec: Option<ContainerSpec> = wire::read_record(&folder, SPEC);
        let Ok(shim) = self.call(&id, &Request::State).await else {
            let orphan = spec.clone();
            let found =
                tokio::task::spawn_blocking(move || adopt::orphan(&folder, orphan.as_ref()));
            let (state, exit) = found.await.unwrap_or((AdoptedState::Leftover, None));
            return Adopted {
                id,
                spec,
                state,
                pid: None,
                exit,
            };
        };
        let (state, pid) = match shim.phase {
            Phase::Created => (AdoptedState::Created, Some(shim.pid)),
            Phase::Running => (AdoptedState::Running, Some(shim.pid)),
            Phase::Exited => (AdoptedState::Exited, None),
        };
        if let (Some(pid), Some(spec)) = (pid, &spec) {
            self.remember(spec, pid, true);
        }
        Adopted {
            id,
            spec,
            state,
            pid,
            exit: shim.exit,
        }
    }
}

/// One request on a connection of its own; waits as long as the shim does.
async fn call(
    id: &InstanceId,
    folder: &Path,
    request: &Request,
) -> Result<ShimState, RuntimeError> {
    if !is_safe_id(&id.0) {
        return Err(RuntimeError::Unknown(id.clone()));
    }
    let what = describe(request);
    let mut stream = connect(folder).await.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => RuntimeError::Unknown(id.clone()),
        _ => failed(id, "reaching the shim")(e),
    })?;
    let mut line = serde_json::to_vec(request).map_err(|e| failed(id, what)(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(failed(id, what))?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(MAX_LINE));
    if reader
        .read_line(&mut answer)
        .await
        .map_err(failed(id, what))?
        == 0
    {
        let gone = io::Error::new(io::ErrorKind::UnexpectedEof, "the shim is gone");
        return Err(failed(id, what)(gone));
    }
    match serde_json::from_str(&answer) {
        Ok(Reply::State(state)) => Ok(state),
        Ok(Reply::Refused(failure)) => Err(failure.into()),
        Err(_) => Err(RuntimeError::Unreadable(id.clone())),
    }
}

/// Connects through the folder's descriptor: a socket's path has room for 108 bytes only.
async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let folder: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(scratch::of(folder))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())).await
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn describe(request: &Request) -> &'static str {
    match request {
        Request::State => "asking for the state",
        Request::Start => "starting",
        Request::Signal { .. } => "signalling",
        Request::Wait => "waiting for the end",
        Request::Delete => "deleting",
        Request::StopShim => "ending the shim",
        Request::Secrets => "asking for the secrets",
    }
}

fn failed(id: &InstanceId, what: &'static str) -> impl FnOnce(io::Error) -> RuntimeError {
    let id = id.clone();
    move |source| RuntimeError::Io { id, what, source }
}

/// A shim that ended without a report: what it wrote before is all there is to say.
fn died(id: &InstanceId, folder: &Path) -> RuntimeError {
    let said = fs::read_to_string(scratch::of(folder).join(wire::SHIM_LOG)).unwrap_or_default();
    let said = said.trim();
    let message = if said.is_empty() {
        format!("the shim of {id} ended without a word")
    } else {
        format!(
            "the shim of {id} ended: {}",
            &said[said.floor_char_boundary(said.len().saturating_sub(500))..]
        )
    };
    Failure::new(FailCode::CreateContainer, message).into()
}
