//! Which streams are served beside their connection, on the thread that drives it. While those that began a moment
//! ago are few, the thread keeps up with them; the next ones are served by whichever thread is free. Who takes longer
//! mostly waits, and does not count.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Kind, lock};

const MOST: usize = 64;
/// Until then one has begun a moment ago.
const YOUNG: Duration = Duration::from_millis(10);

/// When those began that are young and not done, oldest first.
#[derive(Debug, Default)]
pub(super) struct Beside(Mutex<VecDeque<Instant>>);

/// One that is served there, as long as it is held.
#[derive(Debug)]
pub(super) struct Served {
    beside: Arc<Beside>,
    began: Instant,
}

impl Beside {
    /// `None`: it is to be served elsewhere.
    pub(super) fn enter(self: &Arc<Self>, kind: Kind, now: Instant) -> Option<Served> {
        if !kind.is_light() {
            return None;
        }
        let mut young = lock(&self.0);
        while young.front().is_some_and(|began| now - *began >= YOUNG) {
            young.pop_front();
        }
        if young.len() >= MOST {
            return None;
        }
        young.push_back(now);
        Some(Served {
            beside: self.clone(),
            began: now,
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut young = lock(&self.beside.0);
        if let Ok(at) = young.binary_search(&self.began) {
            young.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_that_began_a_moment_ago_and_any_number_that_wait() {
        let beside = Arc::<Beside>::default();
        let start = Instant::now();
        let enter = |ms| beside.enter(Kind::Proxy, start + Duration::from_millis(ms));
        let mut inside: Vec<_> = (0..MOST).map_while(|_| enter(0)).collect();
        assert_eq!(inside.len(), MOST);
        assert!(enter(1).is_none(), "as many as there may be");
        inside.pop();
        let next = enter(1).expect("one is done");
        assert!(enter(9).is_none());
        let later = enter(10).expect("the others are not young any more");
        drop(inside);
        assert_eq!(lock(&beside.0).len(), 2);
        drop((next, later));
        assert_eq!(lock(&beside.0).len(), 0);
        let images = beside.enter(Kind::Images, start + YOUNG);
        assert!(images.is_none(), "it waits for a disk");
    }
}
