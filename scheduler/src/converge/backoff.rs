//! Programs that fail again and again are not started again at once: each failure in a row makes
//! this node wait longer before it takes the revision again (Kubernetes' `CrashLoopBackOff`).

use std::collections::BTreeMap;

use crate::model::{FailReason, Now, RevisionKey};

/// The code word of an instance that will not be started again for a while.
pub const CRASH_LOOP: &str = "CrashLoopBackOff";
/// The wait after the second failure in a row, doubled with each one up to the longest. The first
/// is free: programs do end once in a while.
const FIRST_MS: u64 = 10_000;
const LONGEST_MS: u64 = 300_000;
/// An instance that ran for this long ends the row, and so does as long without a failure.
const GOOD_MS: u64 = 600_000;
/// Those that fall together are one failure.
const TOGETHER_MS: u64 = 1_000;

#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    rows: BTreeMap<RevisionKey, Row>,
}

/// Failures in a row.
#[derive(Debug, Clone)]
struct Row {
    count: u32,
    last: Now,
    until: Now,
    reason: FailReason,
}

impl Backoff {
    /// An instance failed after it `ran` so long; returns the reason as it is to be told.
    pub(super) fn failed(
        &mut self,
        now: Now,
        revision: &RevisionKey,
        ran_ms: u64,
        reason: FailReason,
    ) -> FailReason {
        self.rows.retain(|_, row| now.since(row.until) < GOOD_MS);
        let row = self.rows.entry(revision.clone()).or_insert_with(|| Row {
            count: 0,
            last: now,
            until: now,
            reason: reason.clone(),
        });
        if ran_ms >= GOOD_MS {
            row.count = 0;
        }
        let together = row.count > 0 && now.since(row.last) < TOGETHER_MS;
        if !together {
            (row.count, row.last) = (row.count.saturating_add(1), now);
            row.until = now.plus(pause_ms(row.count));
        }
        row.reason = reason;
        row.told(now).unwrap_or_else(|| row.reason.clone())
    }

    /// Why the revision may not be started now.
    pub(super) fn refuses(&self, now: Now, revision: &RevisionKey) -> Option<FailReason> {
        self.rows.get(revision)?.told(now)
    }

    /// Until when it may not be.
    pub(super) fn until(&self, revision: &RevisionKey) -> Option<Now> {
        self.rows.get(revision).map(|row| row.until)
    }
}

impl Row {
    fn told(&self, now: Now) -> Option<FailReason> {
        if self.until <= now {
            return None;
        }
        let (count, FailReason { code, message }) = (self.count, &self.reason);
        let seconds = self.until.since(now).div_ceil(1_000);
        Some(FailReason {
            code: CRASH_LOOP.to_owned(),
            message: format!(
                "it failed {count} times in a row and is not started here for {seconds} s: {code}: {message}"
            ),
        })
    }
}

fn pause_ms(count: u32) -> u64 {
    match count.checked_sub(2) {
        None => 0,
        Some(before) => FIRST_MS
            .saturating_mul(1_u64.checked_shl(before).unwrap_or(u64::MAX))
            .min(LONGEST_MS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[test]
    fn the_first_is_free_and_then_it_doubles_up_to_the_longest() {
        let name = |text: &str| Name::new(text).unwrap();
        let key = RevisionKey {
            namespace: name("default"),
            name: name("web-00001"),
        };
        let reason = FailReason {
            code: "Exited".into(),
            message: "exited with code 1".into(),
        };
        let mut backoff = Backoff::default();
        let mut now = Now(1_000);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let told = backoff.failed(now, &key, 0, reason.clone());
            // Another of the same moment changes nothing.
            let twin = backoff.failed(now.plus(10), &key, 0, reason.clone());
            assert_eq!(twin.code, told.code);
            let until = backoff.until(&key).unwrap();
            waits.push(until.since(now) / 1_000);
            assert_eq!(backoff.refuses(now, &key).is_some(), until > now);
            assert_eq!(backoff.refuses(until, &key), None);
            assert_eq!(told.code == CRASH_LOOP, until > now);
            assert!(told.message.ends_with("exited with code 1"), "{told:?}");
            now = until.plus(TOGETHER_MS);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(
            backoff.failed(now, &key, GOOD_MS, reason.clone()),
            reason,
            "it had run long enough"
        );
        backoff.failed(now.plus(5_000), &key, 0, reason.clone());
        let later = now.plus(5_000 + FIRST_MS + GOOD_MS);
        assert_eq!(backoff.failed(later, &key, 0, reason.clone()), reason);
    }
}
