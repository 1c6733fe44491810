//! What was just learnt of other nodes, until gossip tells the same.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::local::lock;

/// A few facts, each true for a while. Asking costs nothing while there are none.
#[derive(Debug)]
pub(super) struct Recent<T> {
    count: AtomicUsize,
    facts: Mutex<Vec<(T, Instant)>>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            facts: Mutex::default(),
        }
    }
}

impl<T: Clone + PartialEq> Recent<T> {
    pub(super) fn add(&self, fact: T, length: Duration) {
        let until = Instant::now() + length;
        self.change(|facts| {
            facts.retain(|(f, _)| *f != fact);
            facts.push((fact, until));
        });
    }

    pub(super) fn remove(&self, untrue: impl Fn(&T) -> bool) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|facts| facts.retain(|(f, _)| !untrue(f)));
        }
    }

    pub(super) fn list(&self) -> Vec<T> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        self.change(|facts| facts.iter().map(|(fact, _)| fact.clone()).collect())
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<(T, Instant)>) -> R) -> R {
        let mut facts = lock(&self.facts);
        let now = Instant::now();
        facts.retain(|(_, until)| *until > now);
        let result = change(&mut facts);
        self.count.store(facts.len(), Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_hold_for_a_while() {
        let recent = Recent::default();
        assert!(recent.list().is_empty());
        recent.add(2, Duration::from_secs(9));
        recent.add(2, Duration::from_secs(9));
        recent.add(3, Duration::from_secs(9));
        recent.add(4, Duration::ZERO);
        assert_eq!(recent.list(), [2, 3]);
        recent.remove(|n| *n == 2);
        assert_eq!(recent.list(), [3]);
    }
}
