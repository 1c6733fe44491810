//! One piece of work for everybody who asks for the same thing at the same time. The work runs in
//! its own task: a caller that goes away does not stop it for the others.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::error::ImageError;

type Outcome<T> = Result<T, ImageError>;
type Landing<T> = Shared<BoxFuture<'static, Outcome<T>>>;

/// Work under way, by what it is for.
pub(super) struct Flights<T> {
    open: Mutex<BTreeMap<String, Landing<T>>>,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::new(BTreeMap::new()),
        })
    }

    /// Joins the work for `key`, starting it when there is none.
    pub(super) async fn join<F>(self: &Arc<Self>, key: &str, work: F) -> Outcome<T>
    where
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let landing = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(landing) = open.get(key) {
                landing.clone()
            } else {
                let landing = self.start(key, work);
                open.insert(key.to_owned(), landing.clone());
                landing
            }
        };
        landing.await
    }

    /// Whether the work for `key` is under way.
    pub(super) fn is_open(&self, key: &str) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.contains_key(key)
    }

    /// Waits until the work on `key` that is under way now has ended, however it does.
    pub(super) async fn landed(&self, key: &str) {
        let open = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get(key).cloned()
        };
        if let Some(landing) = open {
            let _ = landing.await;
        }
    }

    fn start<F>(self: &Arc<Self>, key: &str, work: F) -> Landing<T>
    where
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let entry = Entry {
            flights: Arc::clone(self),
            key: key.to_owned(),
        };
        let task = tokio::spawn(async move {
            // Taken out also when the work panics.
            let _entry = entry;
            work.await
        });
        let what = key.to_owned();
        let landing = async move {
            task.await
                .unwrap_or_else(|_| Err(ImageError::Interrupted { what }))
        };
        landing.boxed().shared()
    }
}

struct Entry<T> {
    flights: Arc<Flights<T>>,
    key: String,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        let mut open = self
            .flights
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn a_herd_shares_one_flight_and_its_outcome() {
        let flights = Flights::new();
        let (ran, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let herd: Vec<_> = (0..50)
            .map(|_| {
                let (ran, go) = (Arc::clone(&ran), Arc::clone(&go));
                let flights = Arc::clone(&flights);
                async move {
                    let work = async move {
                        ran.fetch_add(1, Ordering::Relaxed);
                        go.notified().await;
                        Ok(7)
                    };
                    flights.join("k", work).await
                }
            })
            .collect();
        let release = async { go.notify_one() };
        let (outcomes, ()) = tokio::join!(futures::future::join_all(herd), release);
        assert!(outcomes.into_iter().all(|o| matches!(o, Ok(7))));
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        assert!(
            matches!(flights.join("k", async { Ok(8) }).await, Ok(8)),
            "a new flight"
        );
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_leaves_nothing_behind() {
        let flights: Arc<Flights<u32>> = Flights::new();
        let outcome = flights.join("k", async { panic!("work") }).await;
        assert!(matches!(outcome, Err(ImageError::Interrupted { .. })));
        assert!(matches!(flights.join("k", async { Ok(1) }).await, Ok(1)));
    }
}
