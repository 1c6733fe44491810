//! This node's instances as the front door sees them: who admits requests, and how many are in.
//!
//! The agent opens and closes; the door admits. Admission is exact: after `close` no request
//! gets in, and `drained` returns when the last one is out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use scheduler::model::{InstanceId, Protocol, RevisionKey};
use tokio::sync::Notify;

use super::bench::Bench;
use super::frost::{Freezer, Frost};
use super::gate::Gate;
use super::health::Health;
use super::meter::Meter;
use super::pool::Pool;
use super::workers;

/// The table of this node's instances, shared by the agent and the door.
#[derive(Debug, Default)]
pub struct Local {
    /// Read on every request, replaced when a revision appears or goes.
    benches: ArcSwap<HashMap<RevisionKey, Arc<Bench>>>,
    slots: Mutex<HashMap<InstanceId, Arc<Slot>>>,
    /// Without one nothing is frozen.
    freezer: OnceLock<Arc<dyn Freezer>>,
}

/// One instance on this node.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: Arc<InstanceId>,
    pub(super) addr: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) health: Health,
    pub(super) frost: Frost,
    pub(super) gate: Gate,
    /// It is told whose connection it gets; no two clients share one.
    pub(super) introduced: bool,
    hard_limit: u32,
    bench: Arc<Bench>,
    born: Instant,
    /// It was ready before it was opened here.
    settled: AtomicBool,
    /// By the door's workers.
    parts: Box<[Part]>,
    drained: Notify,
}

/// One worker's part of an instance: nobody else touches it while requests pass.
#[derive(Debug)]
#[repr(align(128))] // Two cache lines, so that no neighbour's writes slow it down.
struct Part {
    pool: Pool,
    meter: Mutex<Meter>,
    requests: AtomicU64,
}

/// What an instance did for requests since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests it answered.
    pub requests: u64,
    /// The time requests spent in it, until the last byte of their answer, added up.
    pub request_micros: u64,
}

/// A request's admission to an instance; dropping it is the request's leaving.
#[derive(Debug)]
pub struct Guard {
    pub(super) slot: Arc<Slot>,
    /// Whose meter runs.
    part: usize,
    /// When it was admitted, by the slot's clock.
    since: u64,
}

impl Local {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Who holds instances still that open from now on. The first one stays.
    pub fn set_freezer(&self, freezer: Arc<dyn Freezer>) {
        let _ = self.freezer.set(freezer);
    }

    /// The instance is ready: requests may enter, at most `hard_limit` at once (0: no limit). With `introduced` it
    /// is told by the PROXY protocol whose they are. Opening an open instance again changes nothing.
    pub fn open(
        &self,
        id: InstanceId,
        revision: RevisionKey,
        addr: SocketAddr,
        protocol: Protocol,
        hard_limit: u32,
        introduced: bool,
    ) {
        let bench = self.make(revision);
        let mut slots = lock(&self.slots);
        if slots.contains_key(&id) {
            return;
        }
        let slot = Arc::new(Slot {
            id: Arc::new(id.clone()),
            addr,
            protocol,
            health: Health::default(),
            frost: Frost::new(self.freezer.get().cloned()),
            gate: Gate::default(),
            introduced,
            hard_limit,
            bench: Arc::clone(&bench),
            born: Instant::now(),
            settled: AtomicBool::default(),
            parts: (0..workers::parts()).map(|_| Part::new()).collect(),
            drained: Notify::new(),
        });
        slots.insert(id, Arc::clone(&slot));
        bench.change(|list| list.push(Arc::clone(&slot)));
        bench.ring();
    }

    /// No request enters any more; those inside go on. `drained` tells when they are out.
    pub fn close(&self, id: &InstanceId) {
        if let Some(slot) = self.slot(id) {
            slot.gate.close();
        }
    }

    /// The instance was ready before this door was: it is no newcomer here.
    pub fn settle(&self, id: &InstanceId) {
        if let Some(slot) = self.slot(id) {
            slot.settled.store(true, Ordering::Relaxed);
        }
    }

    /// A closed instance admits requests again.
    pub fn reopen(&self, id: &InstanceId) {
        if let Some(slot) = self.slot(id) {
            slot.gate.open();
            slot.bench.ring();
        }
    }

    /// How long no request has been in the open instance, and nobody else needed it; `None` while
    /// somebody does.
    pub fn idle_millis(&self, id: &InstanceId) -> Option<u64> {
        let slot = self.slot(id)?;
        let idle = slot.micros().saturating_sub(slot.gate.left()) / 1_000;
        slot.gate.is_free().then_some(idle)
    }

    /// Closes and forgets the instance.
    pub fn remove(&self, id: &InstanceId) {
        self.close(id);
        let Some(slot) = lock(&self.slots).remove(id) else {
            return;
        };
        slot.bench
            .change(|list| list.retain(|s| !Arc::ptr_eq(s, &slot)));
        for part in &slot.parts {
            part.pool.clear();
        }
    }

    /// Lets one request in, unless the instance is closed, full or unknown.
    pub fn admit(&self, id: &InstanceId) -> Option<Guard> {
        self.slot(id)?.admit()
    }

    /// Requests in the instance now; 0 when unknown.
    pub fn in_flight(&self, id: &InstanceId) -> u32 {
        self.slot(id).map_or(0, |slot| slot.gate.inside())
    }

    /// Requests in the instance now, and on average over the last second times 1000.
    pub fn sample(&self, id: &InstanceId) -> (u32, u32) {
        let Some(slot) = self.slot(id) else {
            return (0, 0);
        };
        let now = slot.micros();
        let average = |part: &Part| lock(&part.meter).average_milli(now);
        let averages = slot.parts.iter().map(average);
        (slot.gate.inside(), averages.fold(0, u32::saturating_add))
    }

    /// Requests that entered the instance in the last second, times 1000.
    pub fn rate_milli(&self, id: &InstanceId) -> u32 {
        let Some(slot) = self.slot(id) else {
            return 0;
        };
        let now = slot.micros();
        let rates = slot
            .parts
            .iter()
            .map(|part| lock(&part.meter).rate_milli(now));
        rates.fold(0, u32::saturating_add)
    }

    /// What it did for requests since it was opened; `None` when unknown.
    pub fn served(&self, id: &InstanceId) -> Option<Served> {
        let slot = self.slot(id)?;
        let now = slot.micros();
        let parts = slot.parts.iter();
        Some(Served {
            requests: slot.requests(),
            request_micros: parts.map(|p| lock(&p.meter).total(now)).sum(),
        })
    }

    /// Returns when no request is in the instance, at once when it is unknown. Bound it with the
    /// grace the instance has: a request may take as long as its revision allows.
    pub async fn drained(&self, id: &InstanceId) {
        let Some(slot) = self.slot(id) else {
            return;
        };
        loop {
            let out = slot.drained.notified();
            slot.gate.await_last();
            if slot.gate.inside() == 0 {
                return;
            }
            out.await;
        }
    }

    pub(super) fn has(&self, id: &InstanceId) -> bool {
        self.slot(id).is_some()
    }

    /// The revision's bench if there is one: never makes one, so that strangers cannot.
    pub(super) fn find(&self, revision: &RevisionKey) -> Option<Arc<Bench>> {
        self.benches.load().get(revision).cloned()
    }

    /// Everything that is known of revisions now.
    pub(super) fn benches(&self) -> Arc<HashMap<RevisionKey, Arc<Bench>>> {
        self.benches.load_full()
    }

    pub(super) fn bench(&self, revision: &RevisionKey) -> Arc<Bench> {
        let found = self.find(revision);
        found.unwrap_or_else(|| self.make(revision.clone()))
    }

    /// Writers take turns; benches that nobody uses any more leave on the way.
    fn make(&self, revision: RevisionKey) -> Arc<Bench> {
        let _turn = lock(&self.slots);
        if let Some(bench) = self.find(&revision) {
            return bench;
        }
        let bench = Arc::new(Bench::default());
        let mut benches = HashMap::clone(&self.benches.load());
        benches.retain(|_, b| Arc::strong_count(b) > 2 || !b.slots().is_empty());
        benches.insert(revision, Arc::clone(&bench));
        self.benches.store(Arc::new(benches));
        bench
    }

    /// The instance at an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<Arc<Slot>> {
        let slots = lock(&self.slots);
        slots.values().find(|s| s.addr.ip() == address).cloned()
    }

    pub(super) fn slot(&self, id: &InstanceId) -> Option<Arc<Slot>> {
        lock(&self.slots).get(id).cloned()
    }
}

impl Slot {
    pub(super) fn admit(self: &Arc<Self>) -> Option<Guard> {
        self.admit_within(self.hard_limit)
    }

    /// Lets one in that was in before this door was: it takes nobody's place.
    pub(super) fn readmit(self: &Arc<Self>) -> Option<Guard> {
        self.admit_within(0)
    }

    fn admit_within(self: &Arc<Self>, limit: u32) -> Option<Guard> {
        if !self.gate.enter(limit) {
            return None;
        }
        let part = self.here();
        let since = self.micros();
        lock(&self.parts[part].meter).enter(since);
        Some(Guard {
            slot: Arc::clone(self),
            part,
            since,
        })
    }

    /// It answered a request: nothing is held against it, and it is paid for.
    pub(super) fn answered(&self) {
        self.health.answered();
        self.paid();
    }

    /// It is paid for a request, which says nothing about its health.
    pub(super) fn paid(&self) {
        let requests = &self.parts[self.here()].requests;
        requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests it was paid for since it was opened.
    pub(super) fn requests(&self) -> u64 {
        let parts = self.parts.iter();
        parts.map(|p| p.requests.load(Ordering::Relaxed)).sum()
    }

    /// Connections of this thread's worker to the instance.
    pub(super) fn pool(&self) -> &Pool {
        &self.parts[self.here()].pool
    }

    fn here(&self) -> usize {
        workers::here() % self.parts.len()
    }

    /// Requests inside; `None` when it admits none.
    pub(super) fn load(&self) -> Option<u32> {
        self.gate.is_open().then(|| self.gate.inside())
    }

    /// For how long it has been ready.
    pub(super) fn age_millis(&self) -> u64 {
        if self.settled.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        self.micros() / 1_000
    }

    pub(super) fn micros(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Part {
    fn new() -> Self {
        Self {
            pool: Pool::default(),
            meter: Mutex::new(Meter::new(0)),
            requests: AtomicU64::new(0),
        }
    }
}

impl Guard {
    /// How long ago it was admitted.
    pub(super) fn held_for(&self) -> Duration {
        Duration::from_micros(self.slot.micros().saturating_sub(self.since))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &self.slot;
        let now = slot.micros();
        lock(&slot.parts[self.part].meter).leave(now);
        if slot.gate.leave(now) {
            slot.drained.notify_waiters();
        }
        slot.bench.ring();
    }
}

/// The tables stay valid after a panic elsewhere: every change to them is a single step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use scheduler::model::Name;
    use tokio::time::timeout;

    use super::*;

    fn revision() -> RevisionKey {
        RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new("web-00001").unwrap(),
        }
    }

    fn opened(hard_limit: u32) -> (Arc<Local>, InstanceId) {
        let local = Local::new();
        let id = InstanceId("web-00001-a".into());
        let addr = "127.0.0.1:9".parse().unwrap();
        local.open(
            id.clone(),
            revision(),
            addr,
            Protocol::Http1,
            hard_limit,
            false,
        );
        (local, id)
    }

    #[test]
    fn admission_keeps_the_limit_and_ends_at_close() {
        let (local, id) = opened(2);
        let first = local.admit(&id).unwrap();
        let _second = local.admit(&id).unwrap();
        assert!(local.admit(&id).is_none(), "full");
        drop(first);
        assert_eq!(local.in_flight(&id), 1);
        local.close(&id);
        assert!(local.admit(&id).is_none(), "closed");
        assert_eq!(local.sample(&id).0, 1);
        local.remove(&id);
        assert_eq!(local.in_flight(&id), 0);
        assert!(local.bench(&revision()).slots().is_empty());
    }

    #[test]
    fn what_is_served_is_counted_until_the_instance_goes() {
        let (local, id) = opened(0);
        assert_eq!(local.served(&id), Some(Served::default()));
        let guard = local.admit(&id).unwrap();
        guard.slot.answered();
        while local.served(&id).unwrap().request_micros == 0 {
            std::hint::spin_loop();
        }
        drop(guard);
        let served = local.served(&id).unwrap();
        assert_eq!(served.requests, 1);
        assert_eq!(
            local.served(&id),
            Some(served),
            "nothing in flight, nothing added"
        );
        // A try that was never answered takes time and is no request.
        drop(local.admit(&id));
        assert_eq!(local.served(&id).unwrap().requests, 1);
        local.remove(&id);
        assert_eq!(local.served(&id), None);
    }

    #[test]
    fn no_limit_admits_all() {
        let (local, id) = opened(0);
        let guards: Vec<_> = (0..1000).filter_map(|_| local.admit(&id)).collect();
        assert_eq!(guards.len(), 1000);
        assert_eq!(local.in_flight(&id), 1000);
    }

    #[tokio::test]
    async fn drained_waits_for_the_last_one_out() {
        let (local, id) = opened(0);
        let guards = [local.admit(&id).unwrap(), local.admit(&id).unwrap()];
        local.close(&id);
        let early = timeout(Duration::from_millis(20), local.drained(&id)).await;
        assert!(early.is_err());
        let waiter = tokio::spawn({
            let (local, id) = (Arc::clone(&local), id.clone());
            async move { local.drained(&id).await }
        });
        drop(guards);
        timeout(Duration::from_secs(5), waiter)
            .await
            .unwrap()
            .unwrap();
        let unknown = InstanceId("none".into());
        timeout(Duration::from_secs(5), local.drained(&unknown))
            .await
            .unwrap();
    }

    #[test]
    fn close_and_admit_race_exactly() {
        let (local, id) = opened(0);
        let admitted: u32 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let admit = |_| local.admit(&id).map(std::mem::forget);
                        u32::try_from((0..10_000).filter_map(admit).count()).unwrap()
                    })
                })
                .collect();
            local.close(&id);
            workers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(local.in_flight(&id), admitted);
    }
}
