//! Histories: what clients of the registry asked, when, and what they were told. Owns the events,
//! their files (JSON lines, one file a client) and how events pair up to operations; what they
//! prove is the checkers' business.
//!
//! `fail` is written only for what is known not to have happened. An answer that never came, or
//! one that says "not known", is `info`: it may come to hold at any later time, and its process is
//! retired (the client goes on under a new number).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Monotonic nanoseconds, the same for every process of this machine.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Invoke,
    Ok,
    Fail,
    Info,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Put,
    /// A consistent read.
    Get,
    /// A read of the answering node's own copy, which may be old.
    Stale,
    /// A put that names the version it replaces.
    Cas,
    Del,
    /// A put that needs something to be there already.
    Scale,
}

impl Op {
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::Stale)
    }
}

/// One line of a client's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts the client's events.
    pub i: u64,
    /// The process; it has one operation at a time.
    pub p: u64,
    pub e: Phase,
    /// From [`now`].
    pub t: u64,
    pub op: Op,
    pub k: String,
    /// The serial of the value written or read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<u64>,
    /// The version a `cas` wants to replace; 0 is none.
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
    /// The registry index of the value written or read, or of a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<u64>,
    /// The registry index of the state a read was answered from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    pub node: String,
    /// What was said when it was not `ok`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What an `ok` told. A write without `rev` was refused by the registry: there was nothing to
/// delete, or the version a `cas` named was not the present one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    pub value: Option<u64>,
    pub rev: Option<u64>,
    pub at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(Told),
    Fail(String),
    Info(String),
}

/// An invocation with what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub process: u64,
    pub node: String,
    pub op: Op,
    pub key: String,
    pub value: Option<u64>,
    pub expect: Option<u64>,
    pub invoked: u64,
    /// When the answer was there; what never ends has none.
    pub returned: Option<u64>,
    pub outcome: Outcome,
}

impl Operation {
    pub const fn told(&self) -> Option<&Told> {
        match &self.outcome {
            Outcome::Ok(told) => Some(told),
            _ => None,
        }
    }

    /// The index at which it changed something, when that is known.
    pub fn wrote_at(&self) -> Option<u64> {
        self.told()
            .filter(|_| self.op.writes())
            .and_then(|told| told.rev)
    }

    /// Whether it may have changed something without anybody having been told so.
    pub const fn is_open(&self) -> bool {
        self.op.writes() && matches!(self.outcome, Outcome::Info(_))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u64>| n.map_or_else(|| "nothing".to_owned(), |n| format!("#{n}"));
        match (self.op, self.value) {
            (Op::Put, value) => write!(f, "put {}", number(value))?,
            (Op::Cas, value) => {
                let expect = self.expect.unwrap_or_default();
                write!(f, "cas of {expect} to {}", number(value))?;
            }
            (Op::Scale, value) => write!(f, "scale to {}", number(value))?,
            (Op::Del, _) => write!(f, "delete")?,
            (Op::Get, _) => write!(f, "get")?,
            (Op::Stale, _) => write!(f, "stale get")?,
        }
        write!(f, " by p{} at {} ", self.process, self.node)?;
        match &self.outcome {
            Outcome::Ok(Told { value, rev, at }) if !self.op.writes() => {
                let (rev, at) = (rev.unwrap_or_default(), at.unwrap_or_default());
                write!(f, "read {} of {rev} at index {at}", number(*value))
            }
            Outcome::Ok(Told { rev: Some(rev), .. }) => write!(f, "acked at index {rev}"),
            Outcome::Ok(_) => write!(f, "refused"),
            Outcome::Fail(why) => write!(f, "not done ({why})"),
            Outcome::Info(why) => write!(f, "not known ({why})"),
        }
    }
}

/// How many operations ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub ok: usize,
    pub fail: usize,
    pub info: usize,
}

/// All operations of a run, by the time of their invocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub operations: Vec<Operation>,
}

impl History {
    /// Pairs up events. Those of one process must be in order; an operation whose end is missing
    /// (its client died) is `info`.
    pub fn of(events: impl IntoIterator<Item = Event>) -> Result<Self> {
        let mut operations: Vec<Operation> = Vec::new();
        let mut running: BTreeMap<u64, usize> = BTreeMap::new();
        let mut retired = BTreeSet::new();
        for event in events {
            if event.e == Phase::Invoke {
                let free = !retired.contains(&event.p) && !running.contains_key(&event.p);
                ensure!(free, "process {} has something open: {event:?}", event.p);
                running.insert(event.p, operations.len());
                operations.push(invoked(event));
                continue;
            }
            let at = running.remove(&event.p);
            let operation = at.and_then(|at| operations.get_mut(at));
            let operation = operation.with_context(|| format!("nothing to end: {event:?}"))?;
            if event.e == Phase::Info {
                retired.insert(event.p);
            }
            end(operation, event)?;
        }
        operations.sort_by_key(|operation| operation.invoked);
        Ok(Self { operations })
    }

    /// Reads every history file of a folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut events = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != HISTORY) {
                continue;
            }
            let what = || format!("reading {}", path.display());
            for line in BufReader::new(File::open(&path).with_context(what)?).lines() {
                events.push(serde_json::from_str(&line?).with_context(what)?);
            }
        }
        Self::of(events)
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for operation in &self.operations {
            match operation.outcome {
                Outcome::Ok(_) => counts.ok += 1,
                Outcome::Fail(_) => counts.fail += 1,
                Outcome::Info(_) => counts.info += 1,
            }
        }
        counts
    }

    /// The operations on each key.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&Operation>> {
        let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }
}

fn invoked(event: Event) -> Operation {
    Operation {
        process: event.p,
        node: event.node,
        op: event.op,
        key: event.k,
        value: event.v,
        expect: event.expect,
        invoked: event.t,
        returned: None,
        outcome: Outcome::Info("its client never heard of it".to_owned()),
    }
}

fn end(operation: &mut Operation, event: Event) -> Result<()> {
    let same = operation.op == event.op && operation.key == event.k;
    ensure!(
        same && operation.invoked <= event.t,
        "{event:?} does not end {operation:?}"
    );
    operation.returned = (event.e != Phase::Info).then_some(event.t);
    operation.outcome = match event.e {
        Phase::Ok => Outcome::Ok(Told {
            value: event.v,
            rev: event.rev,
            at: event.at,
        }),
        Phase::Fail => Outcome::Fail(event.why),
        Phase::Info | Phase::Invoke => Outcome::Info(event.why),
    };
    Ok(())
}

/// What the files of a history end with.
const HISTORY: &str = "history";

/// Numbers for processes or serials; no number is given twice.
#[derive(Debug)]
pub struct Numbers(AtomicU64);

impl Numbers {
    pub const fn from(first: u64) -> Self {
        Self(AtomicU64::new(first))
    }

    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Writes one client's file. Each event is there at once: a test that is killed leaves its history.
pub struct Recorder {
    file: File,
    events: Vec<Event>,
}

impl Recorder {
    pub fn create(dir: &Path, client: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{client}.{HISTORY}"));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let events = Vec::new();
        Ok(Self { file, events })
    }

    /// Notes an event; its number is set here.
    pub fn note(&mut self, mut event: Event) -> Result<()> {
        event.i = self.events.len() as u64;
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.events.push(event);
        Ok(())
    }

    pub fn into_events(self) -> Vec<Event> {
        self.events
    }
}

/// A key's value as somebody saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its serial.
    pub v: u64,
    pub rev: u64,
}

/// All keys as the registry had them at an index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    pub at: u64,
    pub keys: BTreeMap<String, Seen>,
}

/// One thing that happened to a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchNote {
    pub t: u64,
    pub node: String,
    #[serde(flatten)]
    pub what: WatchEvent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "lowercase")]
pub enum WatchEvent {
    /// It asks for what comes after an index.
    Open { after: u64 },
    /// A step of the registry; of its changes those of the run's keys, `None` for a deletion.
    Step {
        index: u64,
        changes: Vec<(String, Option<Seen>)>,
    },
    /// Everything up to an index was told.
    Beat { index: u64 },
    /// What it missed is no longer held: it listed and goes on after that.
    Listed { scan: Scan },
    /// The connection ended.
    Closed { why: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(p: u64, e: Phase, t: u64, op: Op) -> Event {
        Event {
            i: 0,
            p,
            e,
            t,
            op,
            k: "svc/a".to_owned(),
            v: Some(7),
            expect: None,
            rev: (e == Phase::Ok).then_some(90),
            at: None,
            node: "n1".to_owned(),
            why: String::new(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::create(dir.path(), "c1").unwrap();
        for (phase, t) in [(Phase::Invoke, 1), (Phase::Ok, 2)] {
            recorder.note(event(1, phase, t, Op::Put)).unwrap();
        }
        let history = History::of(recorder.into_events()).unwrap();
        assert_eq!(History::read(dir.path()).unwrap(), history);
        let told = Told {
            value: Some(7),
            rev: Some(90),
            at: None,
        };
        assert_eq!(history.operations[0].outcome, Outcome::Ok(told));
        assert_eq!(history.operations[0].wrote_at(), Some(90));
    }

    #[test]
    fn an_operation_without_an_end_may_come_to_hold() {
        let history = History::of([event(1, Phase::Invoke, 1, Op::Put)]).unwrap();
        assert!(history.operations[0].is_open());
        let counts = Counts {
            info: 1,
            ..Counts::default()
        };
        assert_eq!(history.counts(), counts);
    }

    #[test]
    fn events_that_make_no_sense_are_refused() {
        let (invoke, info) = (Phase::Invoke, Phase::Info);
        let bad = [
            vec![(invoke, 1), (invoke, 2)],
            vec![(Phase::Ok, 1)],
            vec![(invoke, 2), (Phase::Ok, 1)],
            vec![(invoke, 1), (info, 2), (invoke, 3)],
        ];
        for phases in bad {
            let events = phases.iter().map(|(e, t)| event(1, *e, *t, Op::Put));
            assert!(History::of(events).is_err(), "{phases:?}");
        }
    }
}
