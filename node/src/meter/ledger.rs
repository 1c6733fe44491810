//! The books: what every instance used, folded into its revision when it ends, and into its service
//! when the revision is old. Pure: counters and moments come in, sums come out. Moments are
//! milliseconds since the machine's boot, so that neither a restart of the daemon nor a wall clock
//! that jumps bends them.
//!
//! Nothing is counted twice, because the sums and the counters they were taken from are one book,
//! kept in one file: whoever reads it goes on from exactly there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use netfabric::ingress::Served;
use netfabric::wire::usage::Amounts;
use scheduler::model::InstanceState::Parked;
use scheduler::model::{InstanceId, InstanceState, Name, ServiceKey, UnixMs};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::network::Traffic;
use crate::runtime::Usage;

/// Revisions of a service kept apart; the one longest without an instance joins the old ones.
const MAX_REVISIONS: usize = 20;
/// How long a deleted service is remembered, and how many of them at most.
const REMEMBERED: u64 = 90 * 24 * 3600 * 1000;
const MAX_DELETED: usize = 1000;
/// A window shorter than this goes on: its rates would be noise.
const MIN_WINDOW: u64 = 1000;
/// Ended instances whose late news is known to be late.
const MAX_ENDED: usize = 1024;

/// Whose usage it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    pub service: ServiceKey,
    pub revision: Name,
    /// 0 is no limit.
    pub limit_bytes: u64,
}

/// One reading of an instance's counters. `None` could not be read, and changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    pub usage: Option<Usage>,
    pub traffic: Option<Traffic>,
    /// Since this daemon opened the instance.
    pub served: Option<Served>,
}

/// An instance that is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Live {
    pub owner: Owner,
    pub state: InstanceState,
    pub total: Amounts,
    /// The counters as last read.
    pub usage: Usage,
    traffic: Traffic,
    requests: u64,
    request_micros: u64,
    /// Its time is accounted for until here, its memory until there.
    at: u64,
    memory_at: u64,
    #[serde(skip)]
    mark: Mark,
    #[serde(skip)]
    pub window: Window,
}

/// Where the window that is being measured began.
#[derive(Debug, Clone, Default)]
struct Mark {
    at: Option<u64>,
    total: Amounts,
}

/// The last time measured.
#[derive(Debug, Clone, Default)]
pub struct Window {
    pub millis: u64,
    pub amounts: Amounts,
}

/// A service's ended instances.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Folder {
    pub revisions: BTreeMap<Name, Closed>,
    /// Of revisions no longer kept apart.
    pub older: Amounts,
    /// Since when the registry does not know the service.
    deleted: Option<UnixMs>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Closed {
    pub total: Amounts,
    /// Rises with every instance that ends on this node.
    turn: u64,
}

/// Everything that is kept, and the whole content of its file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Book {
    /// The boot of the machine that moments count from.
    boot: String,
    pub live: BTreeMap<InstanceId, Live>,
    #[serde(serialize_with = "as_pairs", deserialize_with = "from_pairs")]
    pub services: BTreeMap<ServiceKey, Folder>,
    ended: VecDeque<InstanceId>,
    turn: u64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub book: Book,
    /// Whether the file's book would leave out more than the passing of time.
    pub dirty: bool,
}

impl Ledger {
    /// Goes on from what an earlier daemon wrote. After a boot of the machine none of its instances
    /// is left; after a restart of the daemon its doors count from zero.
    #[must_use]
    pub fn open(book: Book, boot: &str) -> Self {
        let mut ledger = Self { book, dirty: false };
        if ledger.book.boot != boot {
            boot.clone_into(&mut ledger.book.boot);
            let lost: Vec<InstanceId> = ledger.book.live.keys().cloned().collect();
            for id in &lost {
                ledger.fold(id);
            }
        }
        for live in ledger.book.live.values_mut() {
            (live.requests, live.request_micros) = (0, 0);
        }
        ledger
    }

    /// An instance is in this state, since so long. What ended stays ended.
    pub fn on_state(
        &mut self,
        now: u64,
        id: &InstanceId,
        state: InstanceState,
        for_millis: u64,
        owner: impl FnOnce() -> Owner,
    ) {
        if let Some(live) = self.book.live.get_mut(id) {
            if live.state != state {
                // The change happened a while ago: until then it was in the state before.
                live.pass(now.saturating_sub(for_millis).max(live.at));
                // A parked container is an instance only once it is started.
                live.total.instances += u64::from(live.state == Parked && state.is_live());
                live.state = state;
            }
            live.pass(now);
        } else if !self.book.ended.contains(id) {
            let mut live = Live::new(owner(), state, now.saturating_sub(for_millis));
            live.pass(now);
            self.book.live.insert(id.clone(), live);
            self.dirty = true;
        }
    }

    /// Counters were read.
    pub fn on_reading(&mut self, now: u64, id: &InstanceId, reading: &Reading) {
        if let Some(live) = self.book.live.get_mut(id) {
            self.dirty |= live.read(now, reading);
        }
    }

    /// An instance is over: it becomes part of its revision, once.
    pub fn on_end(&mut self, now: u64, id: &InstanceId, reading: &Reading) {
        self.on_reading(now, id, reading);
        if let Some(live) = self.book.live.get_mut(id) {
            live.pass(now);
        }
        self.fold(id);
    }

    /// These are all instances there are: any other was lost without a word.
    pub fn on_present(&mut self, present: &BTreeSet<&InstanceId>) {
        let lost: Vec<InstanceId> = self.book.live.keys().cloned().collect();
        let lost = lost.iter().filter(|id| !present.contains(id));
        lost.for_each(|id| self.fold(id));
    }

    /// Ends the measuring of a window for every instance and begins the next.
    pub fn on_window(&mut self, now: u64) {
        for live in self.book.live.values_mut() {
            live.pass(now);
            let short = |begun| now.saturating_sub(begun) < MIN_WINDOW;
            if live.mark.at.is_some_and(short) {
                continue;
            }
            // Taken over from an earlier daemon: its first window begins here.
            if let Some(begun) = live.mark.at {
                live.window = Window {
                    millis: now.saturating_sub(begun),
                    amounts: live.total.since(&live.mark.total),
                };
            }
            live.mark = Mark {
                at: Some(now),
                total: live.total.clone(),
            };
        }
    }

    /// Forgets what is too old, given which services there are.
    pub fn tidy(&mut self, now: UnixMs, exists: impl Fn(&ServiceKey) -> bool) {
        for (key, folder) in &mut self.book.services {
            let gone = (!exists(key)).then(|| folder.deleted.unwrap_or(now));
            folder.deleted = gone;
            while folder.revisions.len() > MAX_REVISIONS {
                folder.retire_one();
            }
        }
        let services = &mut self.book.services;
        services.retain(|_, f| {
            f.deleted
                .is_none_or(|at| now.0.saturating_sub(at.0) < REMEMBERED)
        });
        let deleted = services
            .iter()
            .filter_map(|(k, f)| Some((f.deleted?, k.clone())));
        let mut deleted: Vec<_> = deleted.collect();
        deleted.sort();
        let surplus = deleted.len().saturating_sub(MAX_DELETED);
        for (_, key) in deleted.drain(..surplus) {
            services.remove(&key);
        }
    }

    /// The sum of all instances by revision, those that are there included. `None` is the sum of
    /// old revisions.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<(ServiceKey, Option<Name>), Amounts> {
        let mut totals: BTreeMap<(ServiceKey, Option<Name>), Amounts> = BTreeMap::new();
        for (key, folder) in &self.book.services {
            for (name, closed) in &folder.revisions {
                let entry = totals.entry((key.clone(), Some(name.clone()))).or_default();
                entry.add(&closed.total);
            }
            if folder.older != Amounts::default() {
                totals
                    .entry((key.clone(), None))
                    .or_default()
                    .add(&folder.older);
            }
        }
        for live in self.book.live.values() {
            let key = (
                live.owner.service.clone(),
                Some(live.owner.revision.clone()),
            );
            totals.entry(key).or_default().add(&live.total);
        }
        totals
    }

    fn fold(&mut self, id: &InstanceId) {
        let Some(live) = self.book.live.remove(id) else {
            return;
        };
        self.dirty = true;
        self.book.turn += 1;
        let folder = self.book.services.entry(live.owner.service).or_default();
        let closed = folder.revisions.entry(live.owner.revision).or_default();
        closed.total.add(&live.total);
        closed.turn = self.book.turn;
        self.book.ended.push_back(id.clone());
        while self.book.ended.len() > MAX_ENDED {
            self.book.ended.pop_front();
        }
    }
}

impl Folder {
    /// The revision longest without an ended instance joins the old ones.
    fn retire_one(&mut self) {
        let oldest = self.revisions.iter().min_by_key(|(_, closed)| closed.turn);
        if let Some(name) = oldest.map(|(name, _)| name.clone())
            && let Some(closed) = self.revisions.remove(&name)
        {
            self.older.add(&closed.total);
        }
    }
}

impl Live {
    fn new(owner: Owner, state: InstanceState, at: u64) -> Self {
        Self {
            owner,
            state,
            total: Amounts {
                instances: u64::from(state != Parked),
                ..Amounts::default()
            },
            usage: Usage::default(),
            traffic: Traffic::default(),
            requests: 0,
            request_micros: 0,
            at,
            memory_at: at,
            mark: Mark {
                at: Some(at),
                total: Amounts::default(),
            },
            window: Window::default(),
        }
    }

    /// Time went by in the state it is in.
    fn pass(&mut self, now: u64) {
        use InstanceState::{Draining, Failed, Frozen, Ready, Starting, Stopped};
        let millis = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        if millis == 0 || matches!(self.state, Stopped | Failed) {
            return;
        }
        self.total.spend(self.state, millis);
        if matches!(self.state, Starting | Ready | Frozen | Draining) {
            let held = byte_seconds(self.owner.limit_bytes, millis);
            self.total.limit_byte_seconds = self.total.limit_byte_seconds.saturating_add(held);
        }
    }

    /// Adds what the counters rose by. Says whether any did.
    fn read(&mut self, now: u64, reading: &Reading) -> bool {
        let before = self.total.clone();
        if let Some(usage) = &reading.usage {
            self.read_usage(now, usage);
        }
        let total = &mut self.total;
        if let Some(new) = reading.traffic {
            let old = std::mem::replace(&mut self.traffic, new);
            total.net_in_bytes += risen(old.in_bytes, new.in_bytes);
            total.net_in_packets += risen(old.in_packets, new.in_packets);
            total.net_out_bytes += risen(old.out_bytes, new.out_bytes);
            total.net_out_packets += risen(old.out_packets, new.out_packets);
        }
        if let Some(new) = reading.served {
            total.requests += risen(self.requests, new.requests);
            total.request_micros += risen(self.request_micros, new.request_micros);
            (self.requests, self.request_micros) = (new.requests, new.request_micros);
        }
        let memory_byte_seconds = self.total.memory_byte_seconds;
        // The mere passing of time need not be written down: a later daemon knows how long it was.
        self.total
            != Amounts {
                memory_byte_seconds,
                ..before
            }
    }

    fn read_usage(&mut self, now: u64, new: &Usage) {
        let total = &mut self.total;
        let anew = self.usage.origin != new.origin;
        let first = self.usage.origin == 0;
        if anew && !first {
            total.restarts += 1;
        }
        let old = if anew { Usage::default() } else { self.usage };
        total.cpu_micros += risen(old.cpu_micros, new.cpu_micros);
        total.throttled_micros += risen(old.throttled_micros, new.throttled_micros);
        total.throttled_periods += risen(old.throttled_periods, new.throttled_periods);
        total.oom_kills += risen(old.oom_kills, new.oom_kills);
        total.io_read_bytes += risen(old.io_read_bytes, new.io_read_bytes);
        total.io_write_bytes += risen(old.io_write_bytes, new.io_write_bytes);
        // Between two readings memory is taken to go in a straight line.
        let earlier = if first { new } else { &self.usage };
        let between = earlier.memory_bytes.midpoint(new.memory_bytes);
        let used = byte_seconds(between, now.saturating_sub(self.memory_at));
        total.memory_byte_seconds = total.memory_byte_seconds.saturating_add(used);
        self.memory_at = self.memory_at.max(now);
        self.usage = *new;
    }
}

/// How far a counter rose; one that fell was begun anew.
fn risen(old: u64, new: u64) -> u64 {
    new.checked_sub(old).unwrap_or(new)
}

fn byte_seconds(bytes: u64, millis: u64) -> u64 {
    let product = u128::from(bytes) * u128::from(millis) / 1000;
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// A map by keys that are no text.
fn as_pairs<S: Serializer>(
    map: &BTreeMap<ServiceKey, Folder>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}

fn from_pairs<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<ServiceKey, Folder>, D::Error> {
    let pairs = Vec::<(ServiceKey, Folder)>::deserialize(deserializer)?;
    Ok(pairs.into_iter().collect())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
