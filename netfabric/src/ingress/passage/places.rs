//! How many may be in at once: of all, and of one address, so that nobody takes every place; and
//! containers have places of their own, which nobody outside can take.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::local::lock;

/// Connections and flows at once, from clients and peers; each holds two buffers.
pub(in super::super) const OUTSIDE: usize = 10_000;
/// A load balancer before the nodes is one address too.
const OUTSIDE_OF_ONE: usize = 5_000;
/// The same of containers.
pub(in super::super) const INSIDE: usize = 5_000;
const INSIDE_OF_ONE: usize = 1_000;

#[derive(Debug)]
pub(in super::super) struct Places {
    all: Semaphore,
    size: usize,
    of_one: usize,
    by: Mutex<HashMap<IpAddr, usize>>,
}

/// Somebody's place, until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Place<'a> {
    places: &'a Places,
    of: IpAddr,
    _one: SemaphorePermit<'a>,
}

impl Places {
    pub(super) fn outside() -> Self {
        Self::new(OUTSIDE, OUTSIDE_OF_ONE)
    }

    pub(super) fn inside() -> Self {
        Self::new(INSIDE, INSIDE_OF_ONE)
    }

    fn new(size: usize, of_one: usize) -> Self {
        Self {
            all: Semaphore::new(size),
            size,
            of_one,
            by: Mutex::default(),
        }
    }

    /// A place for one who comes from `address`, if there is one.
    pub(in super::super) fn enter(&self, address: IpAddr) -> Option<Place<'_>> {
        let one = self.all.try_acquire().ok()?;
        let mut by = lock(&self.by);
        let count = by.get(&address).copied().unwrap_or(0);
        if count >= self.of_one {
            return None;
        }
        by.insert(address, count + 1);
        Some(Place {
            places: self,
            of: address,
            _one: one,
        })
    }

    /// One for a peer, which bounds its own clients.
    pub(super) fn enter_peer(&self) -> Option<SemaphorePermit<'_>> {
        self.all.try_acquire().ok()
    }

    /// Returns when there is a place for somebody.
    pub(super) async fn free(&self) {
        // Never closed: it cannot fail.
        let _ = self.all.acquire().await;
    }

    /// Returns when nobody is in.
    pub(in super::super) async fn empty(&self) {
        let all = u32::try_from(self.size).unwrap_or(u32::MAX);
        let _ = self.all.acquire_many(all).await;
    }

    pub(in super::super) fn taken(&self) -> usize {
        self.size.saturating_sub(self.all.available_permits())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut by = lock(&self.places.by);
        if let Some(count) = by.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                by.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_every_place() {
        let places = Places::new(3, 2);
        let from = |last: u8| IpAddr::from([192, 0, 2, last]);
        let first = places.enter(from(1)).unwrap();
        let second = places.enter(from(1)).unwrap();
        assert!(places.enter(from(1)).is_none(), "enough of that one");
        assert_eq!(places.taken(), 2, "who is not let in takes nothing");
        let third = places.enter(from(2)).unwrap();
        assert!(places.enter(from(3)).is_none() && places.enter_peer().is_none());
        drop((first, second, third));
        assert_eq!(places.taken(), 0);
        assert!(lock(&places.by).is_empty());
    }
}
