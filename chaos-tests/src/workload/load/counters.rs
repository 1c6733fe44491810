//! The load's counts while it runs, for whoever looks from another thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::workload::ledger::{Count, Outcome};

#[derive(Debug, Default)]
pub(super) struct Counters {
    sent: AtomicU64,
    ok: AtomicU64,
    declared: AtomicU64,
    broken: AtomicU64,
    timeout: AtomicU64,
    crossed: AtomicU64,
    shed: AtomicU64,
}

impl Counters {
    pub fn send(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub fn shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn settle(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Ok { .. } => &self.ok,
            Outcome::Declared { .. } => &self.declared,
            Outcome::Broken { .. } => &self.broken,
            Outcome::Timeout => &self.timeout,
            Outcome::Crossed { .. } => &self.crossed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> Count {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Count {
            sent: read(&self.sent),
            ok: read(&self.ok),
            declared: read(&self.declared),
            broken: read(&self.broken),
            timeout: read(&self.timeout),
            crossed: read(&self.crossed),
            shed: read(&self.shed),
        }
    }
}
