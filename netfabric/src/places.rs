//! How many may be in at once: of all, and of one address, so that nobody takes every place.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// While all must leave: how soon it is seen that the last one has.
pub(crate) const LOOK_WHO_IS_IN: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    size: usize,
    of_one: usize,
    by: Mutex<HashMap<IpAddr, usize>>,
}

/// Somebody's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    of: IpAddr,
    _one: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new(size: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(size)),
            size,
            of_one,
            by: Mutex::default(),
        })
    }

    /// A place for one who comes from `address`, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let one = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let mut by = self.by();
        let count = by.get(&address).copied().unwrap_or(0);
        if count >= self.of_one {
            return None;
        }
        by.insert(address, count + 1);
        Some(Place {
            places: Arc::clone(self),
            of: address,
            _one: one,
        })
    }

    /// One for a peer, which bounds its own clients.
    pub(crate) fn enter_peer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).try_acquire_owned().ok()
    }

    /// Returns when there is a place for somebody.
    pub(crate) async fn free(&self) {
        // Never closed: it cannot fail.
        let _ = self.all.acquire().await;
    }

    /// Returns when nobody is in.
    pub(crate) async fn empty(&self) {
        all_back(&self.all, self.size).await;
    }

    pub(crate) fn taken(&self) -> usize {
        self.size.saturating_sub(self.all.available_permits())
    }

    /// Valid after a panic elsewhere: every change to it is a single step.
    fn by(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until nobody has a permit. It takes none itself: who may still come in is let in as long as
/// somebody is inside.
pub(crate) async fn all_back(permits: &Semaphore, all: usize) {
    while permits.available_permits() < all {
        sleep(LOOK_WHO_IS_IN).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by = self.places.by();
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

    fn from(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn nobody_takes_every_place() {
        let places = Places::new(3, 2);
        let first = places.enter(from(1)).unwrap();
        let second = places.enter(from(1)).unwrap();
        assert!(places.enter(from(1)).is_none(), "enough of that one");
        assert_eq!(places.taken(), 2, "who is not let in takes nothing");
        let third = places.enter(from(2)).unwrap();
        assert!(places.enter(from(3)).is_none() && places.enter_peer().is_none());
        drop((first, second, third));
        assert_eq!(places.taken(), 0);
        assert!(places.by().is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_the_last_one_takes_nobody_s_place() {
        let places = Places::new(3, 3);
        let last = places.enter(from(1)).unwrap();
        let waiting = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.empty().await }
        });
        tokio::task::yield_now().await;
        assert!(places.enter(from(2)).is_some() && places.enter_peer().is_some());
        assert!(!waiting.is_finished());
        drop(last);
        let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        waited.unwrap().unwrap();
    }
}
