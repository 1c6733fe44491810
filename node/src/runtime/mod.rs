//! Containers on this node: made, started, signalled, awaited, removed, and found again after the
//! daemon was gone.
//!
//! Owns nothing but what is in the instances' folders, beside them in memory (`scratch`) and below their
//! cgroups. What should run
//! is the agent's business, root filesystems the image room's, addresses the network's.

mod adopt;
mod bundle;
pub mod cgroup;
pub mod copy;
mod disk;
pub mod exec;
pub mod fake;
pub mod logs;
mod nursery;
pub mod process;
pub mod scratch;
mod seccomp;
pub mod shim;
mod shims;
mod spec;
mod streams;
mod usage;
mod user;
pub mod wire;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::{Exit, FailReason, InstanceId};

pub use copy::CopyJob;
pub use exec::{Exec, ExecSpec};
pub use shim::parked::NAME as PARKED;
pub use shims::{Shims, ShimsConfig};
pub use spec::{BindMount, ContainerSpec, DEFAULT_PIDS, SecretEnv, is_safe_id};
pub use usage::Usage;
pub use user::resolve as resolve_user;
pub use wire::{FailCode, Failure};

/// What runs containers.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes the container up to the point where only its program has to start. A failure leaves
    /// nothing behind but the container's folder.
    async fn create(&self, spec: &ContainerSpec) -> Result<Handle, RuntimeError>;

    /// A container will be made within moments: what the kernel takes long for may begin now, while
    /// the network and the root file system are made.
    fn expect(&self) {}

    /// Starts the program of a created container.
    async fn start(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Signals the program. One that has ended needs none.
    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), RuntimeError>;

    /// Ends the container and everything in it at once.
    async fn kill(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        self.signal(id, libc::SIGKILL).await
    }

    /// Stops every process of the container in its tracks; connections stay. Frozen already is fine.
    async fn freeze(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Leaves the container a small share of the processors where others want them too.
    async fn throttle(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Lets a frozen or throttled container go on. One that is neither is fine.
    async fn thaw(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Takes back the memory of a container that can be read again, as far as `held` says that it is
    /// still worth it, and says how much that was.
    async fn reclaim(
        &self,
        id: &InstanceId,
        held: Box<dyn Fn() -> bool + Send>,
    ) -> Result<u64, RuntimeError>;

    /// The processor time the container used since it was made: the quick part of [`Runtime::usage`].
    async fn cpu_micros(&self, id: &InstanceId) -> Result<u64, RuntimeError>;

    /// Runs a further program in a running container, as its user, and waits for its end, at most
    /// `patience`; then it is killed.
    async fn run(
        &self,
        id: &InstanceId,
        args: &[String],
        patience: Duration,
    ) -> Result<Ran, RuntimeError>;

    /// What the container used since it was made, also after its program ended. An earlier reading
    /// makes this one cheaper.
    async fn usage(&self, id: &InstanceId, before: Option<&Usage>) -> Result<Usage, RuntimeError>;

    /// Starts a further program in a running container and hands out its streams.
    async fn exec(&self, id: &InstanceId, spec: &ExecSpec) -> Result<Exec, RuntimeError>;

    /// Packs files of a running container as a tar on stdout, or unpacks the tar on stdin there, as
    /// the container's user or another one.
    async fn copy(
        &self,
        id: &InstanceId,
        job: CopyJob,
        user: Option<String>,
    ) -> Result<Exec, RuntimeError>;

    /// Waits for the program's end, however long, and says how it ended.
    async fn exit(&self, id: &InstanceId) -> Result<Exit, RuntimeError>;

    /// Ends what still runs and removes all that was made, but the log. Nothing there is fine.
    async fn delete(&self, id: &InstanceId) -> Result<(), RuntimeError>;

    /// Finds the containers of an earlier daemon and cleans up after those half made.
    async fn adopt(&self) -> Result<Vec<Adopted>, RuntimeError>;

    /// The first process of a container, as the host numbers it.
    fn pid(&self, id: &InstanceId) -> Option<i32>;

    /// Where a container's log is kept.
    fn folder(&self, id: &InstanceId) -> PathBuf;
}

/// The address of the container whose folder this is, if it has one.
#[must_use]
pub fn address(folder: &Path) -> Option<IpAddr> {
    wire::read_record::<ContainerSpec>(folder, wire::SPEC)?.address
}

/// A created container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    pub id: InstanceId,
    pub pid: i32,
}

/// What a further program in a container came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code, or 128 + signal.
    pub code: i32,
    /// The end of what it wrote, both streams.
    pub said: String,
}

/// A container an earlier daemon left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    pub id: InstanceId,
    /// `None` when it cannot be read any more.
    pub spec: Option<ContainerSpec>,
    pub state: AdoptedState,
    pub pid: Option<i32>,
    pub exit: Option<Exit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdoptedState {
    /// Its program was never started.
    Created,
    Running,
    /// Ended; its `exit` says how, as far as that is known.
    Exited,
    /// Was never made.
    Failed(FailReason),
    /// Half made when the daemon went. What there was of it has been removed.
    Leftover,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container was refused, and why is the operator's business.
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("there is no container {0} here")]
    Unknown(InstanceId),
    #[error("there is a container {0} already")]
    Exists(InstanceId),
    #[error("{what} of container {id}: {source}")]
    Io {
        id: InstanceId,
        what: &'static str,
        source: io::Error,
    },
    #[error("the shim of container {id} did not answer within {waited:?} ({what})")]
    Deadline {
        id: InstanceId,
        what: &'static str,
        waited: Duration,
    },
    #[error("the shim of container {0} said something unreadable")]
    Unreadable(InstanceId),
    #[error("the folder of instances cannot be read: {0}")]
    Folder(#[source] io::Error),
}

impl RuntimeError {
    /// As an instance that failed by it reports it.
    #[must_use]
    pub fn reason(&self) -> FailReason {
        match self {
            Self::Failed(failure) => failure.reason(),
            other => FailReason {
                code: "Runtime".to_owned(),
                message: other.to_string(),
            },
        }
    }
}
