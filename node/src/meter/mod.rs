//! Meters what instances use, for graphs and for bills: CPU, memory, io, network, requests and the
//! time spent, by instance, revision and service, kept by this node alone.
//!
//! `ledger` does the sums and knows no clock; here the counters are read, every [`PERIOD`] and when
//! an instance ends, and the books are written down. A daemon that is killed loses at most one
//! period of what rose in it and counts nothing twice. A node without instances does nothing.

mod file;
mod ledger;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use netfabric::ingress::Local;
use scheduler::fleet::Word;
use scheduler::model::{InstanceId, InstanceReport, InstanceState, Revision};
use scheduler::place;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::consensus::Registry;
use crate::network::{Network, Traffic};
use crate::runtime::Runtime;
use file::Files;
use ledger::{Ledger, Owner, Reading};
pub use view::UsageQuery;

/// Between two readings of everything, and the most a killed daemon loses.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Every so many writings of the books one is synced: a power cut loses five minutes.
const SYNC_EVERY: u32 = 30;
/// Books are written at least this often while there are instances.
const LONGEST_UNWRITTEN: Duration = Duration::from_mins(5);

/// Where the network's counters are read.
#[async_trait]
pub trait Cables: Send + Sync {
    /// Of all instances in one reading.
    fn all(&self) -> io::Result<BTreeMap<InstanceId, Traffic>>;

    async fn one(&self, id: &InstanceId) -> Option<Traffic>;
}

#[async_trait]
impl Cables for Network {
    fn all(&self) -> io::Result<BTreeMap<InstanceId, Traffic>> {
        self.traffic()
    }

    async fn one(&self, id: &InstanceId) -> Option<Traffic> {
        self.traffic_of(id).await
    }
}

/// A handle to the meter; cheap to clone.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    cables: Arc<dyn Cables>,
    local: Arc<Local>,
    ledger: Mutex<Ledger>,
    /// The machine's age when this process began to count.
    born: u64,
    /// When everything was read last. Readers take turns.
    read: tokio::sync::Mutex<Option<Instant>>,
    books: tokio::sync::Mutex<Books>,
}

/// How the writing goes.
struct Books {
    files: Files,
    count: u32,
    written: Instant,
    failing: bool,
}

impl Meter {
    /// Opens the books of an earlier daemon, or new ones.
    pub fn open(
        data: &Path,
        runtime: Arc<dyn Runtime>,
        cables: Arc<dyn Cables>,
        local: Arc<Local>,
    ) -> io::Result<Self> {
        let files = Files::open(data)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let ledger = Ledger::open(files.load(), boot.trim());
        let born = uptime()?.saturating_sub(clock::now().0);
        let books = Books {
            files,
            count: 0,
            written: Instant::now(),
            failing: false,
        };
        let shared = Shared {
            runtime,
            cables,
            local,
            ledger: Mutex::new(ledger),
            born,
            read: tokio::sync::Mutex::new(None),
            books: tokio::sync::Mutex::new(books),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.shared.born.saturating_add(clock::now().0)
    }

    /// Follows the node's record, reads and writes, until the agent is gone. Begin it when the
    /// agent has taken over what an earlier daemon left: what its record does not show then is over.
    pub async fn run(self, mut record: watch::Receiver<Word>, registry: Registry) {
        let mut next: Option<Instant> = None;
        loop {
            let busy = {
                let ledger = self.ledger();
                ledger.dirty || !ledger.book.live.is_empty()
            };
            next = busy.then(|| next.unwrap_or_else(|| Instant::now() + PERIOD));
            tokio::select! {
                changed = record.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let record = record.borrow_and_update().clone();
                    let state = registry.view().state();
                    self.observe(&record.instances, |report| {
                        owner(state.revisions.get(&report.revision), report)
                    });
                }
                () = rest_until(next) => {
                    next = None;
                    self.read_all().await;
                    let state = registry.view().state();
                    self.ledger().tidy(clock::unix(), |key| state.services.contains_key(key));
                    self.write(false).await;
                }
            }
        }
    }

    /// Takes note of which instances there are, and in which state.
    fn observe(&self, instances: &[InstanceReport], owner: impl Fn(&InstanceReport) -> Owner) {
        let (now, unix) = (self.now(), clock::unix());
        let mut ledger = self.ledger();
        for report in instances {
            let since = unix.0.saturating_sub(report.since.0);
            ledger.on_state(now, &report.id, report.state, since, || owner(report));
        }
        let present: BTreeSet<&InstanceId> = instances.iter().map(|i| &i.id).collect();
        ledger.on_present(&present);
    }

    /// Reads the counters of all instances and ends a window.
    async fn read_all(&self) {
        *self.shared.read.lock().await = Some(Instant::now());
        let known: Vec<_> = {
            let live = &self.ledger().book.live;
            live.iter().map(|(id, l)| (id.clone(), l.usage)).collect()
        };
        if known.is_empty() {
            return;
        }
        let traffic = self.traffic();
        for (id, before) in known {
            let reading = Reading {
                usage: self.shared.runtime.usage(&id, Some(&before)).await.ok(),
                traffic: traffic.get(&id).copied(),
                served: self.shared.local.served(&id),
            };
            let now = self.now();
            self.ledger().on_reading(now, &id, &reading);
            // Hundreds of instances are not to hold up a request.
            tokio::task::yield_now().await;
        }
        let now = self.now();
        self.ledger().on_window(now);
    }

    /// What an instance used lately: thousandths of a processor on average over the last window, and bytes
    /// of memory at its end. `None` before the first.
    #[must_use]
    pub fn recent(&self, id: &InstanceId) -> Option<(u64, u64)> {
        let ledger = self.ledger();
        let live = ledger.book.live.get(id)?;
        let used = live
            .window
            .amounts
            .cpu_micros
            .checked_div(live.window.millis)?;
        Some((used, live.usage.memory_bytes))
    }

    /// Reads everything, unless that was done a moment ago.
    pub async fn refresh(&self, at_most: Duration) {
        let last = *self.shared.read.lock().await;
        if last.is_none_or(|at| at.elapsed() > at_most) {
            self.read_all().await;
        }
    }

    /// An instance is about to leave the front door, which then no longer knows what it served.
    pub fn leaving(&self, id: &InstanceId) {
        let reading = Reading {
            served: self.shared.local.served(id),
            ..Reading::default()
        };
        let now = self.now();
        self.ledger().on_reading(now, id, &reading);
    }

    /// An instance is over and about to be removed: the last reading, and it joins its revision.
    /// Asked again, nothing happens.
    pub async fn end(&self, id: &InstanceId, revision: &Revision) {
        let usage = self.shared.runtime.usage(id, None).await.ok();
        let reading = Reading {
            usage,
            traffic: self.shared.cables.one(id).await,
            served: self.shared.local.served(id),
        };
        let now = self.now();
        let mut ledger = self.ledger();
        if !ledger.book.live.contains_key(id) {
            // It came and went between two looks at the record. One that no request could enter was
            // parked, or as good as that.
            let state = match reading.served {
                Some(_) => InstanceState::Stopped,
                None => InstanceState::Parked,
            };
            ledger.on_state(now, id, state, 0, || Owner {
                service: revision.service.clone(),
                revision: revision.key.name.clone(),
                limit_bytes: place::needs(&revision.spec).memory_bytes,
            });
        }
        ledger.on_end(now, id, &reading);
    }

    /// Reads and writes everything a last time. What goes on without the daemon, the next one finds.
    pub async fn close(&self) {
        self.read_all().await;
        self.ledger().dirty = true;
        self.write(true).await;
    }

    fn traffic(&self) -> BTreeMap<InstanceId, Traffic> {
        self.shared.cables.all().unwrap_or_else(|error| {
            tracing::debug!(%error, "the network's counters cannot be read");
            BTreeMap::new()
        })
    }

    /// Writes the books if anything but time has moved.
    async fn write(&self, synced: bool) {
        let mut books = self.shared.books.lock().await;
        let late = books.written.elapsed() >= LONGEST_UNWRITTEN;
        let text = {
            let mut ledger = self.ledger();
            if !ledger.dirty && !late {
                return;
            }
            ledger.dirty = false;
            serde_json::to_vec(&ledger.book)
        };
        let synced = synced || late || books.count.is_multiple_of(SYNC_EVERY);
        let files = books.files.clone();
        let save = move || {
            text.map_err(io::Error::from)
                .and_then(|t| files.save(&t, synced))
        };
        let saved = tokio::task::spawn_blocking(save).await;
        match saved.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => {
                books.count = books.count.wrapping_add(1);
                books.written = Instant::now();
                books.failing = false;
            }
            Err(error) => {
                self.ledger().dirty = true;
                if !std::mem::replace(&mut books.failing, true) {
                    tracing::warn!(%error, "what instances used cannot be written down; it is tried again");
                }
            }
        }
    }
}

/// Whose an instance is. A revision not known yet counts without its limit.
fn owner(revision: Option<&Revision>, report: &InstanceReport) -> Owner {
    Owner {
        service: report.service.clone(),
        revision: report.revision.name.clone(),
        limit_bytes: revision.map_or(0, |r| place::needs(&r.spec).memory_bytes),
    }
}

async fn rest_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Milliseconds since the machine was booted.
fn uptime() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    parse_uptime(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `350735.47 234388.90`: seconds and hundredths.
fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, rest) = text.split_once('.')?;
    let hundredths: u64 = rest.get(..2)?.parse().ok()?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths * 10)
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
