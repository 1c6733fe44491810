//! Containers whose shim is gone: what their folders, processes and cgroups still say, and taking
//! all of it away. Everything here blocks; the caller gives it a thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use scheduler::model::{Exit, FailReason, UnixMs};

use super::cgroup::Cgroup;
use super::process::Process;
use super::scratch;
use super::wire::{self, EXIT, FAILED, FailCode, Failure, LOG, SHIM, ShimRecord};
use super::{AdoptedState, ContainerSpec};

const KILLED: i32 = 128 + libc::SIGKILL;
/// The end of a container nobody saw end.
const UNKNOWN: i32 = 255;
const DYING: Duration = Duration::from_secs(5);

/// What a container without a shim is. One that still runs is ended: nobody reads its output or
/// will learn how it ends.
pub fn orphan(folder: &Path, spec: Option<&ContainerSpec>) -> (AdoptedState, Option<Exit>) {
    if let Some(failure) = wire::read_record::<Failure>(folder, FAILED) {
        clean(folder, spec);
        return (AdoptedState::Failed(failure.reason()), None);
    }
    let record: Option<ShimRecord> = wire::read_record(&scratch::of(folder), SHIM);
    // A restart of the machine takes the record; a log is begun with the container and stays.
    let made = record.as_ref().is_some_and(|r| r.container.is_some());
    let made = made || [LOG, EXIT].iter().any(|name| folder.join(name).exists());
    if let (Some(_), true) = (spec, made) {
        return match end_orphan(folder) {
            Some(exit) => (AdoptedState::Exited, Some(exit)),
            None => (AdoptedState::Failed(lost()), None),
        };
    }
    clean(folder, spec);
    unmount_below(folder);
    (AdoptedState::Leftover, None)
}

fn lost() -> FailReason {
    Failure::new(
        FailCode::CreateContainer,
        "the shim is gone and left no record",
    )
    .reason()
}

fn clean(folder: &Path, spec: Option<&ContainerSpec>) {
    if let Err(error) = sweep(folder, spec) {
        tracing::warn!(folder = %folder.display(), %error, "a container left something behind");
    }
}

/// Ends a container whose shim is gone and says how it ended, as far as that is known.
pub fn end_orphan(folder: &Path) -> Option<Exit> {
    let spec: Option<ContainerSpec> = wire::read_record(folder, wire::SPEC);
    if let Some(exit) = wire::read_record::<Exit>(folder, EXIT) {
        return Some(exit);
    }
    let record: Option<ShimRecord> = wire::read_record(&scratch::of(folder), SHIM);
    let alive = record
        .as_ref()
        .and_then(|r| r.container)
        .is_some_and(Process::is_alive);
    let group = spec.as_ref().map(|spec| Cgroup::at(&spec.cgroup));
    let oom = !alive && group.as_ref().is_some_and(|group| group.oom_kills() > 0);
    thaw(spec.as_ref());
    end_processes(record.as_ref());
    if let Some(Err(error)) = group.map(|group| group.remove(DYING)) {
        tracing::warn!(folder = %folder.display(), %error, "a cgroup stays");
    }
    // Someone else's record, written meanwhile, is better than a guess.
    if let Some(exit) = wire::read_record::<Exit>(folder, EXIT) {
        return Some(exit);
    }
    let (code, signal) = if alive {
        (KILLED, Some(libc::SIGKILL))
    } else {
        (UNKNOWN, None)
    };
    let exit = Exit {
        code,
        signal,
        oom,
        lost: true,
        at: UnixMs(wire::unix_ms()),
    };
    wire::write_record(folder, EXIT, &exit).ok()?;
    Some(exit)
}

/// Removes all that was made for a container, but its log.
///
/// # Errors
/// What could not be removed.
pub fn sweep(folder: &Path, spec: Option<&ContainerSpec>) -> io::Result<()> {
    let record: Option<ShimRecord> = wire::read_record(&scratch::of(folder), SHIM);
    thaw(spec);
    end_processes(record.as_ref());
    if let Some(spec) = spec {
        Cgroup::at(&spec.cgroup).remove(DYING)?;
    }
    wire::remove_own_files(folder)
}

/// The frozen would not die. One that is not frozen, or has no group any more, does not mind.
fn thaw(spec: Option<&ContainerSpec>) {
    if let Some(spec) = spec {
        let _ = Cgroup::at(&spec.cgroup).freeze(false);
    }
}

/// Kills the shim first: it must not report an end that we caused.
fn end_processes(record: Option<&ShimRecord>) {
    let Some(record) = record else { return };
    let all = [Some(record.shim), record.container];
    let end = Instant::now() + DYING;
    for process in all.into_iter().flatten() {
        process.kill();
        while process.is_alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Unmounts what was mounted in a folder whose container never was, the innermost first.
fn unmount_below(folder: &Path) {
    let mounts = mount_points();
    for path in mounts.iter().rev().filter(|path| path.starts_with(folder)) {
        if let Err(error) = rustix::mount::unmount(path, UnmountFlags::DETACH) {
            tracing::warn!(path = %path.display(), %error, "a mount stays");
        }
    }
}

/// Where something is mounted in this process's namespace, in the order it was.
pub(super) fn mount_points() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    paths
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .collect()
}
