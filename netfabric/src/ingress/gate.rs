//! Who is inside one instance, in one word of memory: admission is exact and takes no lock, for
//! every worker of the door goes through it with every request.

use std::sync::atomic::{AtomicU64, Ordering};

/// Requests inside are counted in the low half.
const INSIDE: u64 = 0xffff_ffff;
/// Others than requests who need the instance to go on, counted above them.
const AWAKE: u64 = 1 << 32;
const AWAKE_ALL: u64 = 0xff_ffff << 32;
/// Held still. Set only when nobody is inside; whoever comes in later sees it.
const FROZEN: u64 = 1 << 61;
/// Somebody waits for the last one out.
const AWAITED: u64 = 1 << 62;
const CLOSED: u64 = 1 << 63;

#[derive(Debug, Default)]
pub(super) struct Gate {
    word: AtomicU64,
    /// When somebody left last, as the slot counts time.
    left: AtomicU64,
}

impl Gate {
    /// Lets one in, unless it is closed or `limit` are inside (0: no limit).
    pub(super) fn enter(&self, limit: u32) -> bool {
        let step = |word: u64| {
            let full = limit > 0 && word & INSIDE >= u64::from(limit);
            (word & CLOSED == 0 && !full).then_some(word + 1)
        };
        self.change(step)
    }

    /// One is out. Says whether that was the last one and somebody waits for it.
    pub(super) fn leave(&self, now: u64) -> bool {
        self.left.fetch_max(now, Ordering::Relaxed);
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        before & INSIDE == 1 && before & AWAITED != 0
    }

    pub(super) fn open(&self) {
        self.word.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    pub(super) fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED == 0
    }

    pub(super) fn inside(&self) -> u32 {
        let word = self.word.load(Ordering::Acquire);
        u32::try_from(word & INSIDE).unwrap_or(u32::MAX)
    }

    /// From now on `leave` tells of the last one out.
    pub(super) fn await_last(&self) {
        self.word.fetch_or(AWAITED, Ordering::AcqRel);
    }

    /// Open, and nobody needs it to go on.
    pub(super) fn is_free(&self) -> bool {
        free(self.word.load(Ordering::Acquire))
    }

    /// When the last one left.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn keep_awake(&self) {
        self.word.fetch_add(AWAKE, Ordering::AcqRel);
    }

    pub(super) fn let_sleep(&self, now: u64) {
        self.left.fetch_max(now, Ordering::Relaxed);
        self.word.fetch_sub(AWAKE, Ordering::AcqRel);
    }

    /// Marks it as held still, unless somebody needs it to go on.
    pub(super) fn freeze(&self) -> bool {
        self.change(|word| free(word).then_some(word | FROZEN))
    }

    pub(super) fn thaw(&self) {
        self.word.fetch_and(!FROZEN, Ordering::AcqRel);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.word.load(Ordering::Acquire) & FROZEN != 0
    }

    fn change(&self, step: impl Fn(u64) -> Option<u64>) -> bool {
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        self.word.fetch_update(set, fetch, step).is_ok()
    }
}

fn free(word: u64) -> bool {
    word & (CLOSED | INSIDE | AWAKE_ALL) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_inside_is_exact_whatever_else_is_said() {
        let gate = Gate::default();
        assert!(gate.enter(2) && gate.enter(2) && !gate.enter(2));
        assert!(gate.enter(0), "no limit");
        gate.keep_awake();
        assert!(!gate.freeze() && !gate.is_free());
        gate.close();
        assert!(!gate.enter(0) && !gate.is_open());
        assert_eq!(gate.inside(), 3);
        assert!(!gate.leave(5) && !gate.leave(7));
        gate.await_last();
        assert!(gate.leave(6), "the last one out is told of");
        assert_eq!((gate.inside(), gate.left()), (0, 7));
        gate.open();
        assert!(!gate.freeze(), "somebody else needs it");
        gate.let_sleep(9);
        assert!(gate.freeze() && gate.is_frozen());
        assert!(
            gate.enter(1),
            "a request comes in and sees that it must thaw"
        );
        assert!(gate.is_frozen() && !gate.freeze());
        gate.thaw();
        assert!(!gate.is_frozen());
    }
}
