//! System calls that fail or wait, by strace: rows D3 and D5 on a disk of any kind. Put before a
//! program's start, or on a running process. Owns strace's words and its log.
//!
//! Under strace the process stops at the named calls, and when it was attached to, at every call: it
//! runs several times slower then. strace counts calls per thread: on a daemon with a pool of
//! threads only "every call" says exactly which one fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::prefix::Prefix;
use crate::world::until;

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any test.
const HANG: Duration = Duration::from_hours(1);
/// Every way to ask for durability that Rust's standard library has.
const SYNCS: &str = "fsync,fdatasync,sync_file_range";

/// What the calls meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They are not done and say EIO.
    Eio,
    /// They are done, this much later.
    Slow(Duration),
}

/// A fault on the calls that sync files.
#[derive(Debug, Clone)]
pub struct Strace {
    fault: Fault,
    when: String,
    log: PathBuf,
}

impl Strace {
    /// On every sync. `log` is strace's file: in the world's folder, its reaper finds strace by it.
    pub fn syncs(fault: Fault, log: &Path) -> Self {
        Self {
            fault,
            when: "1+".to_owned(),
            log: log.to_owned(),
        }
    }

    /// Only on each thread's n-th sync, counted from one.
    #[must_use]
    pub fn only(self, nth: u32) -> Self {
        let when = nth.to_string();
        Self { when, ..self }
    }

    fn words(&self) -> Vec<String> {
        let what = match self.fault {
            Fault::Eio => "error=EIO".to_owned(),
            Fault::Slow(time) => format!("delay_enter={}", time.as_micros()),
        };
        let when = &self.when;
        let log = self.log.display();
        // strace injects only into calls that it traces.
        let (trace, inject) = (
            format!("trace={SYNCS}"),
            format!("inject={SYNCS}:{what}:when={when}"),
        );
        ["strace", "-f", "-qq", "-e", &trace, "-e", &inject, "-o"]
            .into_iter()
            .map(ToOwned::to_owned)
            .chain([log.to_string()])
            .collect()
    }

    /// Before a program's words: it meets the fault from its start.
    pub fn prefix(&self) -> Prefix {
        let filter = ["--seccomp-bpf", "--"].map(ToOwned::to_owned);
        Prefix::words(self.words().into_iter().chain(filter))
    }

    /// On a process that runs, until it is healed or dropped. All its threads are held when this
    /// returns.
    pub fn attach(&self, pid: u32) -> Result<Attached> {
        let words = self.words();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("starting strace")?;
        let mut attached = Attached { child };
        until("strace holds every thread", PATIENCE, || {
            ensure!(attached.child.try_wait()?.is_none(), "strace has ended");
            Ok(threads(pid)?.iter().all(|held| *held).then_some(()))
        })?;
        Ok(attached)
    }

    /// How many calls met the fault so far.
    pub fn injected(&self) -> Result<usize> {
        let log = fs::read_to_string(&self.log).context("reading strace's log")?;
        let marks = ["(INJECTED)", "(DELAYED)"];
        let met = |line: &&str| marks.iter().any(|mark| line.contains(mark));
        Ok(log.lines().filter(met).count())
    }

    /// Shows that a call met the fault.
    pub fn check(&self) -> Result<usize> {
        let injected = self.injected()?;
        ensure!(injected > 0, "no call met {:?}", self.fault);
        Ok(injected)
    }
}

/// Holds one thread at its next system call until this is healed or dropped; its process goes on.
/// Returns when the thread stands still.
pub fn hang(tid: u32, log: &Path) -> Result<Attached> {
    let child = Command::new("strace")
        .args(["-qq", "-e", "trace=all", "-e"])
        .arg(format!("inject=all:delay_enter={}", HANG.as_micros()))
        .arg("-o")
        .arg(log)
        .args(["-p", &tid.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .context("starting strace")?;
    let mut attached = Attached { child };
    until("the thread hangs", PATIENCE, || {
        ensure!(attached.child.try_wait()?.is_none(), "strace has ended");
        // In the log once it is held.
        let log = fs::read_to_string(log).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
        Ok((status.contains("State:\tt") && !log.is_empty()).then_some(()))
    })?;
    Ok(attached)
}

/// strace on a running process.
#[derive(Debug)]
pub struct Attached {
    child: Child,
}

impl Attached {
    /// Lets the process go; it runs on as before.
    pub fn heal(mut self) -> Result<()> {
        self.detach()
    }

    fn detach(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, Signal::INT)?;
            until("strace lets go", PATIENCE, || {
                Ok(self.child.try_wait()?.map(drop))
            })?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("{error:#}");
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Of each thread of a process, whether something traces it.
fn threads(pid: u32) -> Result<Vec<bool>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    tasks
        .map(|task| {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
            Ok(tracer.context("no tracer told")?.trim() != "0")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Outcome;

    fn sync_under(strace: &Strace, home: &Path) -> Result<Outcome> {
        let file = format!("of={}", home.join("file").display());
        let words = ["if=/dev/zero", &file, "bs=1k", "count=1", "conv=fsync"];
        let words: Vec<_> = std::iter::once("dd").chain(words).collect();
        strace.prefix().run(&words)
    }

    #[test]
    fn a_program_meets_the_failed_sync_and_strace_tells() -> Result<()> {
        let home = tempfile::tempdir()?;
        let log = home.path().join("log");
        let fails = Strace::syncs(Fault::Eio, &log);
        let failed = sync_under(&fails, home.path())?;
        failed.code(1)?.says("Input/output error")?;
        ensure!(fails.check()? == 1);
        let second = Strace::syncs(Fault::Eio, &log).only(2);
        sync_under(&second, home.path())?.ok()?;
        ensure!(second.check().is_err(), "it synced once");
        Ok(())
    }

    #[test]
    fn a_slow_sync_takes_its_time_and_succeeds() -> Result<()> {
        let home = tempfile::tempdir()?;
        let slow = Strace::syncs(
            Fault::Slow(Duration::from_secs(1)),
            &home.path().join("log"),
        );
        let synced = sync_under(&slow, home.path())?.ok()?;
        ensure!(synced.took >= Duration::from_secs(1), "{synced}");
        ensure!(slow.check()? == 1);
        Ok(())
    }

    #[test]
    fn a_running_process_is_held_and_let_go() -> Result<()> {
        let home = tempfile::tempdir()?;
        let (file, said) = (home.path().join("file"), home.path().join("said"));
        let script = format!(
            "while [ -e {file} ]; do sync {file} 2>/dev/null; echo $? >{said}.new; \
             mv {said}.new {said}; sleep 0.05; done",
            file = file.display(),
            said = said.display()
        );
        fs::write(&file, "")?;
        let mut shell = Command::new("sh").args(["-c", &script]).spawn()?;
        let says = |code: &str| {
            until(&format!("sync ends with {code}"), PATIENCE, || {
                Ok((fs::read_to_string(&said)?.trim() == code).then_some(()))
            })
        };
        let strace = Strace::syncs(Fault::Eio, &home.path().join("log"));
        let seen = says("0").and_then(|()| {
            let attached = strace.attach(shell.id())?;
            says("1")?;
            strace.check()?;
            attached.heal()?;
            says("0")
        });
        fs::remove_file(&file)?;
        shell.wait()?;
        seen
    }
}
