//! What this node decided about instances, kept in a ring of files over restarts (`DATA/decisions`), so
//! that `selvedge explain` can tell why also later: what it took on or refused, what its steward had
//! started and ended, what its door found no node for.
//!
//! Whoever decides never waits for the disk: a thread writes, and what it cannot keep up with is left out
//! and counted.

mod ring;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use netfabric::wire::decision::{Decision, Deed};
use scheduler::model::{InstanceId, Name, NodeId, RevisionKey, ServiceKey};
use scheduler::place::Receipt;

use crate::clock;
use ring::Ring;

/// `DATA/decisions`, of two segments of this size: some thousands of decisions.
const SEGMENT: u64 = 16 << 20;
/// On their way to the disk; more are left out.
const QUEUE: usize = 1024;
/// Accepted and refused nodes that are written down of a receipt.
const ACCEPTED: usize = 8;
const REFUSED: usize = 12;
/// Characters of a reason.
const WHY: usize = 2_000;
/// What is written is on the disk after so long at the latest.
const SYNC: Duration = Duration::from_secs(10);
/// A refusal that is the same as one before is written down again after this.
const SAME: Duration = Duration::from_secs(30);
/// Different refusals that are known as written.
const KNOWN: usize = 512;

/// What decisions are asked for.
#[derive(Debug, Clone)]
pub enum Subject {
    Instance(InstanceId),
    Service(ServiceKey),
}

/// Takes decisions; clones are the same.
#[derive(Clone)]
pub struct Decisions {
    node: NodeId,
    name: Name,
    folder: Arc<PathBuf>,
    queue: SyncSender<Decision>,
    lost: Arc<AtomicU64>,
}

impl Decisions {
    /// Opens the ring of this node. One that cannot be written to costs nobody anything but the memory of it.
    pub fn open(data: &Path, node: NodeId, name: Name) -> Self {
        let folder = data.join("decisions");
        let (queue, received) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            folder: folder.clone(),
            ring: None,
            received,
            lost: lost.clone(),
            known: BTreeMap::new(),
            complained: false,
        };
        let thread = std::thread::Builder::new().name("decisions".to_owned());
        if let Err(error) = thread.spawn(move || writer.run()) {
            tracing::warn!(%error, "no thread to write decisions down");
        }
        Self {
            node,
            name,
            folder: Arc::new(folder),
            queue,
            lost,
        }
    }

    /// Writes a decision down by and by. Never waits.
    pub fn note(&self, deed: Deed, (service, revision): (&ServiceKey, &RevisionKey), told: Told) {
        let decision = Decision {
            at: clock::unix(),
            node: self.node,
            node_name: self.name.clone(),
            deed,
            service: service.clone(),
            revision: revision.clone(),
            instance: told.instance,
            why: short(told.why),
            receipt: told.receipt.map(trimmed),
            unwritten: 0,
        };
        if self.queue.try_send(decision).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many decisions were not written down since the daemon began.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The newest decisions about the subject, the oldest of them first. It reads files: keep it from
    /// tasks that others wait for.
    pub fn about(&self, subject: &Subject, most: usize) -> io::Result<Vec<Decision>> {
        about(&self.folder, subject, most)
    }
}

/// What is told of a decision besides its time and place.
#[derive(Debug, Default)]
pub struct Told {
    pub instance: Option<InstanceId>,
    pub why: String,
    pub receipt: Option<Receipt>,
}

fn about(folder: &Path, subject: &Subject, most: usize) -> io::Result<Vec<Decision>> {
    let (needle, is): (&str, &dyn Fn(&Decision) -> bool) = match subject {
        Subject::Instance(id) => (&id.0, &|d| d.instance.as_ref() == Some(id)),
        Subject::Service(key) => (key.name.as_str(), &|d| d.service == *key),
    };
    let mut found = std::collections::VecDeque::new();
    Ring::read(folder, SEGMENT, |text| {
        let named = !needle.is_empty() && memmem(text, needle.as_bytes());
        // What a later version wrote and this one does not understand is left out.
        let decision = named.then(|| serde_json::from_slice(text).ok()).flatten();
        if let Some(decision) = decision.filter(is) {
            found.push_back(decision);
            if found.len() > most {
                found.pop_front();
            }
        }
    })?;
    Ok(found.into())
}

fn memmem(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|part| part == needle)
}

fn short(why: String) -> String {
    match why.char_indices().nth(WHY) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why,
    }
}

/// Of a large fleet a receipt may name every node.
fn trimmed(mut receipt: Receipt) -> Receipt {
    let (mut accepted, mut refused, mut more) = (0, 0, 0_u32);
    receipt.verdicts.retain(|verdict| {
        let (count, most) = match verdict.outcome {
            Ok(_) => (&mut accepted, ACCEPTED),
            Err(_) => (&mut refused, REFUSED),
        };
        *count += 1;
        more += u32::from(*count > most && verdict.outcome.is_err());
        *count <= most
    });
    receipt.passed.refused = receipt.passed.refused.saturating_add(more);
    receipt
}

struct Writer {
    folder: PathBuf,
    ring: Option<Ring>,
    received: Receiver<Decision>,
    lost: Arc<AtomicU64>,
    /// Refusals that are written down: when, and how many came since.
    known: BTreeMap<(RevisionKey, Deed, String), (Instant, u64)>,
    complained: bool,
}

impl Writer {
    /// Runs until every handle is gone.
    fn run(mut self) {
        // Now, so that a daemon has as many files open before its first decision as after it.
        let opened = self.ring().map(drop);
        self.told(opened);
        let mut unsynced: Option<Instant> = None;
        loop {
            let next = match unsynced {
                Some(at) => self
                    .received
                    .recv_timeout(at.saturating_duration_since(Instant::now())),
                None => self
                    .received
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(decision) => {
                    if self.take(decision) {
                        unsynced = unsynced.or_else(|| Some(Instant::now() + SYNC));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    unsynced = None;
                    let synced = self.ring.as_ref().map_or(Ok(()), Ring::sync);
                    self.told(synced);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether it was written.
    fn take(&mut self, mut decision: Decision) -> bool {
        if matches!(decision.deed, Deed::Refused | Deed::Unplaced) {
            let Some(unwritten) = self.is_news(&decision, Instant::now()) else {
                return false;
            };
            decision.unwritten = unwritten;
        }
        let written = self.write(&decision);
        let ok = written.is_ok();
        self.told(written);
        if !ok {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        ok
    }

    /// How many of the same were left out before this one; none when it is left out as well.
    fn is_news(&mut self, decision: &Decision, now: Instant) -> Option<u64> {
        let key = (
            decision.revision.clone(),
            decision.deed,
            decision.why.clone(),
        );
        match self.known.get_mut(&key) {
            Some((at, more)) if now.saturating_duration_since(*at) < SAME => {
                *more += 1;
                None
            }
            Some(known) => Some(std::mem::replace(known, (now, 0)).1),
            None => {
                if self.known.len() >= KNOWN {
                    self.known
                        .retain(|_, (at, _)| now.saturating_duration_since(*at) < SAME);
                }
                if self.known.len() < KNOWN {
                    self.known.insert(key, (now, 0));
                }
                Some(0)
            }
        }
    }

    fn write(&mut self, decision: &Decision) -> io::Result<()> {
        let mut text = serde_json::to_vec(decision)?;
        if text.len() + 64 > ring::LINE {
            let bare = Decision {
                receipt: None,
                ..decision.clone()
            };
            text = serde_json::to_vec(&bare)?;
        }
        self.ring()?.push(&text)
    }

    fn ring(&mut self) -> io::Result<&mut Ring> {
        Ok(match &mut self.ring {
            Some(ring) => ring,
            none => none.insert(Ring::open(&self.folder, SEGMENT)?),
        })
    }

    /// A disk that takes nothing is told of once.
    fn told(&mut self, done: io::Result<()>) {
        match done {
            Ok(()) => self.complained = false,
            Err(error) if !self.complained => {
                self.complained = true;
                let folder = self.folder.display();
                tracing::warn!(%error, %folder, "decisions are not written down");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
