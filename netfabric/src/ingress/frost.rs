//! Instances held while nobody asks them anything: still, or at a small share of the processor. A request
//! is admitted to one as to any other, and then lets it go on before it is sent; of a herd the first does
//! so for all.
//!
//! When one is idle for long enough is the agent's affair, and so is the holding still itself.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use scheduler::converge::Froze;
use scheduler::model::InstanceId;
use tokio::sync::Mutex;

use super::local::{Local, Slot};

/// Holds an instance and lets it go on. All is quick: requests wait for the last.
#[async_trait]
pub trait Freezer: Debug + Send + Sync {
    async fn freeze(&self, id: &InstanceId) -> io::Result<()>;

    /// Leaves it a small share of the processor. Who cannot says so.
    async fn throttle(&self, id: &InstanceId) -> io::Result<()> {
        let _ = id;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Undoes either.
    async fn thaw(&self, id: &InstanceId) -> io::Result<()>;
}

/// What holds one instance still. Whether it is held is the gate's to say: the mark is set in the same
/// step that finds nobody inside.
#[derive(Debug)]
pub(super) struct Frost {
    freezer: Option<Arc<dyn Freezer>>,
    /// Freezing and thawing take turns: a thaw must not overtake the freeze before it.
    turn: Mutex<()>,
}

impl Frost {
    pub(super) fn new(freezer: Option<Arc<dyn Freezer>>) -> Self {
        Self {
            freezer,
            turn: Mutex::new(()),
        }
    }
}

/// Somebody's need that the instance goes on, who is no request; dropping it ends the need.
#[derive(Debug)]
pub struct Awake(Arc<Slot>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.gate.let_sleep(self.0.micros());
    }
}

impl Slot {
    /// Returns when the instance is not held still. Call it with an admission in hand, before
    /// anything is sent: as long as that is held, nobody freezes the instance.
    pub(super) async fn thawed(&self) -> io::Result<()> {
        let frost = &self.frost;
        if !self.gate.is_frozen() {
            return Ok(());
        }
        let _turn = frost.turn.lock().await;
        if let Some(freezer) = frost.freezer.as_ref().filter(|_| self.gate.is_frozen()) {
            freezer.thaw(&self.id).await?;
            self.gate.thaw();
        }
        Ok(())
    }

    async fn hold(&self, still: bool) -> Froze {
        let frost = &self.frost;
        let Some(freezer) = &frost.freezer else {
            return Froze::Cannot;
        };
        let _turn = frost.turn.lock().await;
        if !self.gate.freeze() {
            return Froze::Busy;
        }
        let held = if still {
            freezer.freeze(&self.id).await
        } else {
            freezer.throttle(&self.id).await
        };
        let Err(error) = held else {
            return Froze::Still;
        };
        tracing::warn!(instance = %self.id, %error, still, "cannot be held");
        // It may be half frozen; a request that came meanwhile waits for this turn to end.
        if freezer.thaw(&self.id).await.is_ok() {
            self.gate.thaw();
        }
        Froze::Cannot
    }
}

impl Local {
    /// Holds the instance still, unless a request is in it or it is closed. It may be throttled.
    pub async fn freeze(&self, id: &InstanceId) -> Froze {
        match self.slot(id) {
            Some(slot) => slot.hold(true).await,
            None => Froze::Busy,
        }
    }

    /// Leaves the instance a small share of the processor, unless a request is in it or it is closed.
    pub async fn throttle(&self, id: &InstanceId) -> Froze {
        match self.slot(id) {
            Some(slot) => slot.hold(false).await,
            None => Froze::Busy,
        }
    }

    /// Lets the instance go on, and keeps it so as long as the answer is held: whoever runs or asks
    /// something in it beside its requests. `None` when it does not serve here.
    ///
    /// # Errors
    /// What the freezer says.
    pub async fn keep_awake(&self, id: &InstanceId) -> io::Result<Option<Awake>> {
        let Some(slot) = self.slot(id) else {
            return Ok(None);
        };
        slot.gate.keep_awake();
        let awake = Awake(slot);
        awake.0.thawed().await?;
        Ok(Some(awake))
    }

    /// Lets the instance go on, also after a freeze that is under way.
    ///
    /// # Errors
    /// What the freezer says; the instance counts as frozen still.
    pub async fn thaw(&self, id: &InstanceId) -> io::Result<()> {
        let Some(slot) = self.slot(id) else {
            return Ok(());
        };
        drop(slot.frost.turn.lock().await);
        slot.thawed().await
    }

    /// Whether it is held, still or throttled, and no request let it go on since.
    pub fn is_held(&self, id: &InstanceId) -> bool {
        self.slot(id).is_some_and(|slot| slot.gate.is_frozen())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use scheduler::model::{Name, Protocol, RevisionKey};

    use super::*;

    /// A freezer that takes its time, and knows whether its instance stands still.
    #[derive(Debug, Default)]
    struct Slow {
        still: AtomicBool,
        throttled: AtomicBool,
        thaws: AtomicU32,
        refuses: bool,
    }

    #[async_trait]
    impl Freezer for Slow {
        async fn freeze(&self, _: &InstanceId) -> io::Result<()> {
            tokio::task::yield_now().await;
            self.still.store(true, Ordering::SeqCst);
            tokio::task::yield_now().await;
            if self.refuses {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(())
        }

        async fn throttle(&self, _: &InstanceId) -> io::Result<()> {
            self.throttled.store(true, Ordering::SeqCst);
            Ok(())
        }

        async fn thaw(&self, _: &InstanceId) -> io::Result<()> {
            tokio::task::yield_now().await;
            self.throttled.store(false, Ordering::SeqCst);
            self.still.store(false, Ordering::SeqCst);
            self.thaws.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn opened(freezer: &Arc<Slow>) -> (Arc<Local>, InstanceId) {
        let local = Local::new();
        local.set_freezer(Arc::clone(freezer) as Arc<dyn Freezer>);
        let id = InstanceId("web-00001-a".into());
        let revision = RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new("web-00001").unwrap(),
        };
        let addr = "127.0.0.1:9".parse().unwrap();
        local.open(id.clone(), revision, addr, Protocol::Http1, 0, false);
        (local, id)
    }

    #[tokio::test]
    async fn a_herd_thaws_once_and_nobody_enters_before() {
        let freezer = Arc::new(Slow::default());
        let (local, id) = opened(&freezer);
        assert_eq!(local.freeze(&id).await, Froze::Still);
        assert!(local.is_held(&id));
        let enter = || {
            let (local, id, freezer) = (Arc::clone(&local), id.clone(), Arc::clone(&freezer));
            async move {
                let guard = local.admit(&id).unwrap();
                guard.slot.thawed().await.unwrap();
                assert!(!freezer.still.load(Ordering::SeqCst), "it stands still");
                tokio::task::yield_now().await;
                assert!(!freezer.still.load(Ordering::SeqCst), "frozen meanwhile");
            }
        };
        let herd: Vec<_> = (0..200).map(|_| tokio::spawn(enter())).collect();
        for one in herd {
            one.await.unwrap();
        }
        assert_eq!(freezer.thaws.load(Ordering::SeqCst), 1);
        assert_eq!(local.in_flight(&id), 0);
    }

    #[tokio::test]
    async fn a_busy_or_closed_one_is_not_frozen() {
        let freezer = Arc::new(Slow::default());
        let (local, id) = opened(&freezer);
        let guard = local.admit(&id).unwrap();
        assert_eq!(local.idle_millis(&id), None);
        assert_eq!(local.freeze(&id).await, Froze::Busy);
        drop(guard);
        assert!(local.idle_millis(&id).is_some());
        local.close(&id);
        assert_eq!(local.freeze(&id).await, Froze::Busy);
        local.reopen(&id);
        assert_eq!(local.freeze(&id).await, Froze::Still);
        let awake = local.keep_awake(&id).await.unwrap();
        assert!(awake.is_some() && !local.is_held(&id));
        assert_eq!(local.freeze(&id).await, Froze::Busy);
        drop(awake);
        assert_eq!(local.freeze(&id).await, Froze::Still);
    }

    #[tokio::test]
    async fn a_throttled_one_has_its_share_before_a_request_is_sent() {
        let freezer = Arc::new(Slow::default());
        let (local, id) = opened(&freezer);
        assert_eq!(local.throttle(&id).await, Froze::Still);
        assert!(local.is_held(&id) && freezer.throttled.load(Ordering::SeqCst));
        assert!(local.idle_millis(&id).is_some(), "it is idle still");
        let guard = local.admit(&id).unwrap();
        assert_eq!(local.freeze(&id).await, Froze::Busy, "it has a request");
        guard.slot.thawed().await.unwrap();
        assert!(!local.is_held(&id) && !freezer.throttled.load(Ordering::SeqCst));
        assert_eq!(local.throttle(&id).await, Froze::Busy);
        drop(guard);
        // From one rung to the next, and up again in one step.
        assert_eq!(local.throttle(&id).await, Froze::Still);
        assert_eq!(local.freeze(&id).await, Froze::Still);
        local.thaw(&id).await.unwrap();
        assert!(!freezer.throttled.load(Ordering::SeqCst) && !freezer.still.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn what_cannot_be_frozen_goes_on() {
        let freezer = Arc::new(Slow {
            refuses: true,
            ..Slow::default()
        });
        let (local, id) = opened(&freezer);
        assert_eq!(local.freeze(&id).await, Froze::Cannot);
        assert!(!local.is_held(&id) && !freezer.still.load(Ordering::SeqCst));
    }

    /// Requests and freezes at every moment of each other's.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn freezes_and_requests_race_exactly() {
        let freezer = Arc::new(Slow::default());
        let (local, id) = opened(&freezer);
        let freezing = {
            let (local, id) = (Arc::clone(&local), id.clone());
            tokio::spawn(async move {
                for _ in 0..2_000 {
                    local.freeze(&id).await;
                    tokio::task::yield_now().await;
                }
            })
        };
        let asking = (0..4).map(|_| {
            let (local, id, freezer) = (Arc::clone(&local), id.clone(), Arc::clone(&freezer));
            tokio::spawn(async move {
                for _ in 0..2_000 {
                    let guard = local.admit(&id).unwrap();
                    guard.slot.thawed().await.unwrap();
                    assert!(!freezer.still.load(Ordering::SeqCst));
                    drop(guard);
                    tokio::task::yield_now().await;
                }
            })
        });
        let all = asking.chain([freezing]);
        for one in all.collect::<Vec<_>>() {
            let done = tokio::time::timeout(Duration::from_mins(1), one).await;
            done.unwrap().unwrap();
        }
        local.close(&id);
        local.thaw(&id).await.unwrap();
        assert!(!freezer.still.load(Ordering::SeqCst));
    }
}
