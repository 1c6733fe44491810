//! What is going to happen, in order: by time, and at the same time in the order in which it was
//! asked for. Nothing else decides what comes first.

use std::collections::BTreeMap;

/// Virtual milliseconds since the simulation began.
pub type Millis = u64;

#[derive(Debug)]
pub(super) struct Queue<E> {
    now: Millis,
    asked: u64,
    events: BTreeMap<(Millis, u64), E>,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self {
            now: 0,
            asked: 0,
            events: BTreeMap::new(),
        }
    }

    pub fn now(&self) -> Millis {
        self.now
    }

    pub fn after(&mut self, millis: Millis, event: E) {
        self.asked += 1;
        let at = self.now.saturating_add(millis);
        self.events.insert((at, self.asked), event);
    }

    /// The next event that is not later than `until`; its time is now.
    pub fn next(&mut self, until: Millis) -> Option<E> {
        let entry = self.events.first_entry()?;
        let (at, _) = *entry.key();
        if at > until {
            return None;
        }
        self.now = at;
        Some(entry.remove())
    }
}
