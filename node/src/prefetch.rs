//! Brings images to this node before it is asked to start anything from them. Which ones is
//! `scheduler::place`'s word; here is how fast, and that nothing else suffers: one at a time, within
//! so many bytes an hour, and only while the disk has room to spare.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::fleet::Fleet;
use scheduler::model::{ImagePin, Name, NodeId, Revision};
use scheduler::place;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::Agent;
use crate::consensus::Registry;
use crate::images::{Images, deployed};

/// Nobody waits for what is brought here.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// An image that could not be brought.
const AGAIN_AFTER: Duration = Duration::from_mins(10);
const HOUR: Duration = Duration::from_hours(1);

pub struct Prefetch {
    pub me: NodeId,
    pub images: Images,
    pub registry: Registry,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub agent: Agent,
    /// Bytes of unpacked images.
    pub per_hour: u64,
}

impl Prefetch {
    /// Runs until the daemon ends.
    pub async fn run(self) {
        if self.per_hour == 0 {
            return;
        }
        let mut allowance = Allowance::new(self.per_hour, Instant::now());
        let mut failed = BTreeMap::new();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            failed.retain(|_, at: &mut Instant| at.elapsed() < AGAIN_AFTER);
            while allowance.has_left(Instant::now())
                && let Some((namespace, pin)) = self.next(|digest| failed.contains_key(digest))
                && self.images.is_roomy().await.unwrap_or(false)
            {
                match self.images.pull_for(namespace.as_str(), &pin).await {
                    Ok(image) => {
                        allowance.spend(image.bytes);
                        tracing::info!(image = %pin.reference, bytes = image.bytes, "an image was brought ahead of its need");
                        self.agent.publish();
                    }
                    Err(error) => {
                        tracing::info!(image = %pin.reference, %error, "an image could not be brought ahead");
                        failed.insert(pin.digest, Instant::now());
                    }
                }
            }
        }
    }

    /// An image that this node should have and does not, and in which namespace it is to run.
    fn next(&self, failed: impl Fn(&str) -> bool) -> Option<(Name, ImagePin)> {
        let state = self.registry.view().state();
        let fleet = self.fleet.borrow().clone();
        let held = self.images.list();
        let is_held = |pin: &ImagePin| held.iter().any(|image| image.pin.digest == pin.digest);
        let mut missing = deployed(&state)
            .filter(|revision| may_pull(revision))
            .filter(|revision| !is_held(&revision.image) && !failed(&revision.image.digest));
        let next = missing.find(|r| place::ahead(&fleet, r).contains(&self.me))?;
        Some((next.key.namespace.clone(), next.image.clone()))
    }
}

fn may_pull(revision: &Revision) -> bool {
    let main = revision.spec.main();
    main.is_none_or(|container| container.image_pull_policy != "Never")
}

/// So many bytes an hour. What one image takes too much is waited off before the next.
struct Allowance {
    per_hour: u64,
    left: i128,
    at: Instant,
}

impl Allowance {
    fn new(per_hour: u64, at: Instant) -> Self {
        Self {
            per_hour,
            left: per_hour.into(),
            at,
        }
    }

    fn has_left(&mut self, now: Instant) -> bool {
        let most = i128::from(self.per_hour);
        let since = now.saturating_duration_since(self.at).min(HOUR);
        let earned = most * i128::try_from(since.as_micros()).unwrap_or(0)
            / i128::try_from(HOUR.as_micros()).unwrap_or(1);
        if earned > 0 {
            self.left = (self.left + earned).min(most);
            self.at = now;
        }
        self.left > 0
    }

    fn spend(&mut self, bytes: u64) {
        self.left -= i128::from(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_earned_by_the_hour_and_not_saved_up() {
        let start = Instant::now();
        let after = |minutes| start + Duration::from_mins(minutes);
        let mut allowance = Allowance::new(600, start);
        assert!(allowance.has_left(start));
        allowance.spend(1000);
        assert!(!allowance.has_left(after(30)), "100 are owed still");
        assert!(!allowance.has_left(after(40)));
        assert!(allowance.has_left(after(41)));
        assert!(allowance.has_left(after(1000)));
        allowance.spend(600);
        assert!(!allowance.has_left(after(1000)), "no more than an hour's");
    }
}
