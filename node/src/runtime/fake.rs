//! A runtime without containers, for tests of what drives one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::{Exit, InstanceId, UnixMs};
use tokio::sync::watch;

use super::{
    Adopted, AdoptedState, ContainerSpec, CopyJob, Exec, ExecSpec, Failure, Handle, Ran, Runtime,
    RuntimeError, Usage,
};

/// Containers that exist only in memory. Signals end them; `refuse` makes the next one fail.
#[derive(Debug)]
pub struct Fake {
    folder: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    containers: BTreeMap<InstanceId, Container>,
    refuse: Option<Failure>,
    last_pid: i32,
    calls: Vec<String>,
}

#[derive(Debug)]
struct Container {
    spec: ContainerSpec,
    pid: i32,
    started: bool,
    usage: Usage,
    exit: watch::Sender<Option<Exit>>,
}

impl Fake {
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            inner: Mutex::default(),
        }
    }

    /// The next `create` fails like this.
    pub fn refuse(&self, failure: Failure) {
        self.lock().refuse = Some(failure);
    }

    /// Ends a container as if its program had.
    pub fn end(&self, id: &InstanceId, code: i32, signal: Option<i32>, oom: bool) {
        if let Some(container) = self.lock().containers.get(id) {
            container.exit.send_replace(Some(Exit {
                code,
                signal,
                oom,
                lost: false,
                at: UnixMs(0),
            }));
        }
    }

    /// From now on the container has used this much.
    pub fn use_up(&self, id: &InstanceId, usage: Usage) {
        if let Some(container) = self.lock().containers.get_mut(id) {
            container.usage = usage;
        }
    }

    /// What was asked so far, as `verb id`.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A program that says nothing and ends well at once.
fn silent() -> Exec {
    Exec {
        stdin: None,
        stdout: Box::new(tokio::io::empty()),
        stderr: None,
        terminal: None,
        ended: Box::pin(std::future::ready(Ok(0))),
    }
}

#[async_trait]
impl Runtime for Fake {
    async fn create(&self, spec: &ContainerSpec) -> Result<Handle, RuntimeError> {
        let mut inner = self.lock();
        inner.calls.push(format!("create {}", spec.id));
        if let Some(failure) = inner.refuse.take() {
            return Err(failure.into());
        }
        if inner.containers.contains_key(&spec.id) {
            return Err(RuntimeError::Exists(spec.id.clone()));
        }
        inner.last_pid += 1;
        let pid = inner.last_pid;
        let exit = watch::Sender::new(None);
        let container = Container {
            spec: spec.clone(),
            pid,
            started: false,
            usage: Usage::default(),
            exit,
        };
        inner.containers.insert(spec.id.clone(), container);
        Ok(Handle {
            id: spec.id.clone(),
            pid,
        })
    }

    async fn start(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        inner.calls.push(format!("start {id}"));
        let unknown = || RuntimeError::Unknown(id.clone());
        inner.containers.get_mut(id).ok_or_else(unknown)?.started = true;
        Ok(())
    }

    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), RuntimeError> {
        self.lock().calls.push(format!("signal {signal} {id}"));
        self.end(id, 128 + signal, Some(signal), false);
        Ok(())
    }

    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.lock().calls.push(format!("freeze {id}"));
        Ok(())
    }

    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.lock().calls.push(format!("thaw {id}"));
        Ok(())
    }

    async fn throttle(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.lock().calls.push(format!("throttle {id}"));
        Ok(())
    }

    async fn reclaim(
        &self,
        id: &InstanceId,
        held: Box<dyn Fn() -> bool + Send>,
    ) -> Result<u64, RuntimeError> {
        if held() {
            self.lock().calls.push(format!("reclaim {id}"));
        }
        Ok(0)
    }

    async fn cpu_micros(&self, id: &InstanceId) -> Result<u64, RuntimeError> {
        self.usage(id, None).await.map(|usage| usage.cpu_micros)
    }

    async fn run(
        &self,
        id: &InstanceId,
        args: &[String],
        _patience: Duration,
    ) -> Result<Ran, RuntimeError> {
        self.lock()
            .calls
            .push(format!("run {} in {id}", args.join(" ")));
        Ok(Ran {
            code: 0,
            said: String::new(),
        })
    }

    async fn usage(&self, id: &InstanceId, _: Option<&Usage>) -> Result<Usage, RuntimeError> {
        let usage = self.lock().containers.get(id).map(|c| c.usage);
        usage.ok_or_else(|| RuntimeError::Unknown(id.clone()))
    }

    async fn exec(&self, id: &InstanceId, spec: &ExecSpec) -> Result<Exec, RuntimeError> {
        self.lock()
            .calls
            .push(format!("exec {} in {id}", spec.args.join(" ")));
        Ok(silent())
    }

    async fn copy(
        &self,
        id: &InstanceId,
        _job: CopyJob,
        _user: Option<String>,
    ) -> Result<Exec, RuntimeError> {
        self.lock().calls.push(format!("copy {id}"));
        Ok(silent())
    }

    async fn exit(&self, id: &InstanceId) -> Result<Exit, RuntimeError> {
        let unknown = || RuntimeError::Unknown(id.clone());
        let mut ended = self
            .lock()
            .containers
            .get(id)
            .map(|container| container.exit.subscribe())
            .ok_or_else(unknown)?;
        let exit = ended
            .wait_for(Option::is_some)
            .await
            .map_err(|_| unknown())?
            .clone();
        exit.ok_or_else(unknown)
    }

    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.lock().calls.push(format!("delete {id}"));
        self.lock().containers.remove(id);
        Ok(())
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, RuntimeError> {
        let inner = self.lock();
        let adopted = inner.containers.iter().map(|(id, container)| {
            let exit = container.exit.borrow().clone();
            let state = match (&exit, container.started) {
                (Some(_), _) => AdoptedState::Exited,
                (None, true) => AdoptedState::Running,
                (None, false) => AdoptedState::Created,
            };
            let pid = exit.is_none().then_some(container.pid);
            Adopted {
                id: id.clone(),
                spec: Some(container.spec.clone()),
                state,
                pid,
                exit,
            }
        });
        Ok(adopted.collect())
    }

    fn pid(&self, id: &InstanceId) -> Option<i32> {
        self.lock().containers.get(id).map(|c| c.pid)
    }

    fn folder(&self, id: &InstanceId) -> PathBuf {
        self.folder.join(&id.0)
    }
}
