//! What the daemon and a shim say to each other: one JSON line each way per connection; and the
//! records a shim leaves in the instance's folder and scratch.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use scheduler::model::{Exit, FailReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::process::Process;
use super::scratch;
use super::spec::SecretEnv;

/// Files in an instance's folder.
pub const SPEC: &str = "spec.json";
pub const EXIT: &str = "exit.json";
pub const FAILED: &str = "failed.json";
pub const LOG: &str = "log";
pub const LOG_BEFORE: &str = "log.1";

/// Files in its scratch.
pub const SHIM: &str = "shim.json";
pub const SOCKET: &str = "shim.sock";
pub const BUNDLE: &str = "bundle";
pub const ETC: &str = "etc";
pub const SHIM_LOG: &str = "shim.log";

/// Everything in the folder but the container's log, which outlives it.
const OWN_FILES: [&str; 3] = [SPEC, EXIT, FAILED];

/// The longest line either side reads.
pub const MAX_LINE: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    State,
    Start,
    Signal {
        signal: i32,
    },
    /// Answered when the container has ended.
    Wait,
    /// Kill what runs, clean up, answer, go.
    Delete,
    /// Go, leaving the records, if the container has ended.
    StopShim,
    /// What [`secrets`] writes, for a further program; the connection's end ends it.
    Secrets,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    State(ShimState),
    Refused(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimState {
    pub phase: Phase,
    /// The container's first process, as the host numbers it.
    pub pid: i32,
    pub exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Namespaces, cgroup and mounts are there; the user's program has not started.
    Created,
    Running,
    Exited,
}

/// The shim's own record, by which a later daemon knows what to look for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimRecord {
    pub shim: Process,
    pub container: Option<Process>,
    pub started: bool,
}

/// Why a container could not be made or started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub code: FailCode,
    pub message: String,
}

impl Failure {
    #[must_use]
    pub fn new(code: FailCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// As instances report it.
    #[must_use]
    pub fn reason(&self) -> FailReason {
        FailReason {
            code: self.code.to_string(),
            message: self.message.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailCode {
    /// The command is not in the image.
    CommandNotFound,
    /// It is, but may not be executed.
    CommandNotExecutable,
    BadUser,
    BadWorkingDir,
    BadCapability,
    /// A ulimit, a bound on the disk or a kernel setting that this node cannot give.
    BadLimit,
    BadSpec,
    BadRootfs,
    Mount,
    Cgroup,
    Namespace,
    /// Anything else on the way to a created container.
    CreateContainer,
    StartContainer,
    /// A request that makes no sense in the container's state.
    WrongState,
}

impl fmt::Display for FailCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Secret variables as a shim reads them from its stdin: the one way they take.
///
/// # Errors
/// They cannot be written, which would be a mistake here.
pub fn secrets(all: &SecretEnv) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let pairs: Vec<_> = all.iter().collect();
    serde_json::to_vec(&pairs).map(Zeroizing::new)
}

/// Reads what [`secrets`] wrote.
///
/// # Errors
/// The pipe broke, or what it carried is no such text.
pub fn read_secrets(from: impl Read) -> io::Result<SecretEnv> {
    let mut text = Zeroizing::new(Vec::new());
    from.take(MAX_SECRETS).read_to_end(&mut text)?;
    let pairs: Vec<(String, String)> = serde_json::from_slice(&text)?;
    let mut all = SecretEnv::default();
    for (name, value) in pairs {
        all.push(name, value);
    }
    Ok(all)
}

/// Writes `value` so that a reader sees all of it or none, and a power cut forgets nothing that was
/// reported.
///
/// # Errors
/// Any of the file operations.
pub fn write_record<T: Serialize>(folder: &Path, name: &str, value: &T) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}

/// Writes `value` so that a reader sees all of it or none. For what a power cut makes void anyway.
///
/// # Errors
/// Any of the file operations.
pub fn write_note<T: Serialize>(folder: &Path, name: &str, value: &T) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(&temporary, folder.join(name))
}

/// Reads a record; `None` when there is none or it is not one.
#[must_use]
pub fn read_record<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    let path: PathBuf = folder.join(name);
    if fs::metadata(&path).ok()?.len() > MAX_RECORD {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// A program takes no more variables than `execve` does, and JSON makes a byte six at most.
const MAX_SECRETS: u64 = 16 << 20;
/// No record of ours is nearly as large.
const MAX_RECORD: u64 = 4 << 20;

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(elapsed.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Removes what the runtime keeps of an instance, but not the container's log.
///
/// # Errors
/// The first removal that failed for another reason than nothing being there.
pub fn remove_own_files(folder: &Path) -> io::Result<()> {
    let absent_is_fine = |result: io::Result<()>| match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    absent_is_fine(fs::remove_dir_all(scratch::of(folder)))?;
    // The specification goes last: while it is there, so is the knowledge of what to clean up.
    for name in OWN_FILES.iter().rev() {
        absent_is_fine(fs::remove_file(folder.join(name)))?;
    }
    Ok(())
}
