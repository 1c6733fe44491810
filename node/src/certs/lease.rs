//! The lease of who orders certificates, by this node's own clock: when another's is free to be taken,
//! and how long its own is held. Asking the registry is `issuer`'s.

use std::time::Duration;

use scheduler::model::Lease;
use scheduler::registry::Refusal;
use tokio::time::Instant;

use super::issuer::Unmade;

/// How long a lease is its holder's that is not renewed.
pub(super) const TERM: Duration = Duration::from_secs(15);
pub(super) const RENEWAL: Duration = Duration::from_secs(5);
/// After a renewal that nobody answered.
const AGAIN: Duration = Duration::from_secs(1);

/// Another node's lease, and since when it stands still.
#[derive(Default)]
pub(super) struct Watched(Option<(u64, Instant)>);

impl Watched {
    /// How much is left of it: its term, from when its version was first seen.
    pub(super) fn left(&mut self, lease: &Lease, now: Instant) -> Duration {
        let since = match self.0 {
            Some((version, since)) if version == lease.version => since,
            _ => now,
        };
        self.0 = Some((lease.version, since));
        (since + TERM).saturating_duration_since(now)
    }
}

/// This node's lease.
pub(super) struct Held {
    lease: Lease,
    until: Instant,
}

impl Held {
    /// As it was taken by who asked for it then.
    pub(super) fn new(lease: Lease, asked: Instant) -> Self {
        let until = asked + TERM;
        Self { lease, until }
    }

    pub(super) fn version(&self) -> u64 {
        self.lease.version
    }

    /// What is done later is done without it.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// After a renewal that was asked for then, and with what the registry shows now: how long to wait
    /// before the next. `None` when it is lost.
    pub(super) fn on_answer(
        &mut self,
        asked: Instant,
        now: Instant,
        answer: Result<Lease, Unmade>,
        shown: Option<&Lease>,
    ) -> Option<Duration> {
        match answer {
            Ok(renewed) if self.is_same(&renewed) => {
                *self = Self::new(renewed, asked);
                return Some(RENEWAL);
            }
            // It may be what an earlier renewal of ours came to, whose answer was lost.
            Err(Unmade::Refused(Refusal::Conflict { .. }) | Unmade::Propose(_)) => {}
            Ok(_) | Err(Unmade::Refused(_)) => return None,
        }
        if let Some(newer) = shown.filter(|lease| lease.version > self.lease.version) {
            if !self.is_same(newer) {
                return None;
            }
            self.lease = newer.clone();
        }
        (now < self.until).then_some(AGAIN)
    }

    fn is_same(&self, other: &Lease) -> bool {
        (other.holder, other.epoch) == (self.lease.holder, self.lease.epoch)
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::NodeId;
    use scheduler::registry::ISSUER;

    use super::*;
    use crate::consensus::ProposeError;

    fn lease(holder: u64, epoch: u64, version: u64) -> Lease {
        Lease {
            name: ISSUER.to_owned(),
            holder: Some(NodeId(holder)),
            epoch,
            version,
        }
    }

    #[test]
    fn a_lease_is_anothers_until_it_stood_still_for_its_term() {
        let (mut watched, begin) = (Watched::default(), Instant::now());
        let mut left = |version, after| watched.left(&lease(2, 1, version), begin + after);
        assert_eq!(left(7, Duration::ZERO), TERM);
        assert_eq!(left(7, TERM.saturating_sub(RENEWAL)), RENEWAL);
        assert_eq!(left(8, TERM), TERM, "it was renewed");
        assert_eq!(left(8, TERM * 2), Duration::ZERO);
    }

    #[test]
    fn a_lease_is_held_until_it_is_anothers_or_its_term_is_over() {
        let conflict = || {
            Err(Unmade::Refused(Refusal::Conflict {
                what: String::new(),
                expected: 7,
                found: 8,
            }))
        };
        let unknown = || Err(Unmade::Propose(ProposeError::Unknown));
        let gone = || Err(Unmade::Refused(Refusal::NotFound(String::new())));
        let begin = Instant::now();
        let table = [
            (
                "renewed",
                Ok(lease(1, 3, 8)),
                lease(1, 3, 8),
                Some(RENEWAL),
                8,
            ),
            ("renewed anew", Ok(lease(1, 4, 8)), lease(1, 4, 8), None, 7),
            ("nobody knows", unknown(), lease(1, 3, 7), Some(AGAIN), 7),
            (
                "its answer was lost",
                unknown(),
                lease(1, 3, 8),
                Some(AGAIN),
                8,
            ),
            (
                "and found at the next",
                conflict(),
                lease(1, 3, 8),
                Some(AGAIN),
                8,
            ),
            (
                "or is not seen yet",
                conflict(),
                lease(1, 3, 7),
                Some(AGAIN),
                7,
            ),
            ("another's", conflict(), lease(2, 4, 8), None, 7),
            ("another's, not asked", unknown(), lease(2, 4, 8), None, 7),
            ("no node any more", gone(), lease(1, 3, 7), None, 7),
        ];
        for (what, answer, shown, pause, version) in table {
            let mut held = Held::new(lease(1, 3, 7), begin);
            let got = held.on_answer(begin, begin, answer, Some(&shown));
            assert_eq!((got, held.version()), (pause, version), "{what}");
        }
        let mut held = Held::new(lease(1, 3, 7), begin);
        let soon = begin + RENEWAL;
        let renewed = Ok(lease(1, 3, 8));
        assert!(held.on_answer(soon, soon, renewed, None).is_some());
        let until = soon + TERM;
        let mut left = |now, shown| held.on_answer(now, now, unknown(), Some(&shown)).is_some();
        assert!(left(until - AGAIN, lease(1, 3, 8)));
        assert!(
            !left(until, lease(1, 3, 9)),
            "what is shown says not since when"
        );
    }
}
