//! Requests for a revision with no room anywhere: hold them, see to as many instances as they
//! need, let them go as room appears, refuse them when it will not.
//!
//! One [`Activation`] per revision and front door. It decides how many starts and who goes or is
//! refused; which node starts an instance is `place`'s word, which endpoint takes a released
//! request is `route`'s, and the driver performs both.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Now;

/// After a failed start, new requests are refused at once for this long, doubling with every
/// failure in a row: a crash loop is not hammered, and a fixed one is found within the cap.
const COOL_DOWN_MILLIS: u64 = 1_000;
const COOL_DOWN_CAP_MILLIS: u64 = 30_000;

/// What to advise a client whose request met a full queue or waited in vain.
const BUSY_RETRY_MILLIS: u64 = 1_000;

/// Names a held request within its front door; lower ones came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What the revision allows and has, as known when an input arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Requests at once one instance is meant to carry.
    pub per_instance: u32,
    /// Instances there may be over the whole fleet.
    pub max_scale: u32,
    /// Ready instances known.
    pub ready: u32,
    /// Instances seen starting, by whomever; ours appear here too after a moment.
    pub starting: u32,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start `count` instances, each answered by `on_started` or `on_start_failed`.
    Start { count: u32 },
    /// The request goes on. It is not held any more; should it find its room taken, it comes
    /// again with the same ticket and keeps its place.
    Release { ticket: Ticket },
    /// The request is answered with a refusal. It is not held any more.
    Refuse {
        ticket: Ticket,
        reason: Refused,
        retry_after_millis: u64,
    },
}

/// Why a held request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("too many requests are waiting already")]
    QueueFull,
    #[error("no instance had room in time")]
    WaitTimeout,
    #[error("the instance failed to start: {code}: {message}")]
    StartFailed { code: String, message: String },
    #[error("no node can take an instance: {}", reasons.join("; "))]
    NoCapacity { reasons: Vec<String> },
}

/// The state of one revision's waiting room.
#[derive(Debug, Clone)]
pub struct Activation {
    /// Most requests held at once.
    queue: usize,
    held: BTreeMap<Ticket, Now>,
    deadlines: BTreeSet<(Now, Ticket)>,
    /// Starts asked for and not answered yet.
    under_way: u32,
    /// Starts by others, as far as they can be told from ours.
    others: u32,
    failures: u32,
    cool: Option<CoolDown>,
}

#[derive(Debug, Clone)]
struct CoolDown {
    until: Now,
    reason: Refused,
}

impl Activation {
    #[must_use]
    pub fn new(queue: usize) -> Self {
        Self {
            queue,
            held: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            under_way: 0,
            others: 0,
            failures: 0,
            cool: None,
        }
    }

    /// Requests held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Nothing is held, under way or remembered: the state may be forgotten.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.under_way == 0 && self.cool.is_none()
    }

    /// A request found no room. It waits until `deadline` at most.
    pub fn on_request(
        &mut self,
        now: Now,
        ticket: Ticket,
        deadline: Now,
        bounds: &Bounds,
    ) -> Vec<Effect> {
        if self.held.len() >= self.queue {
            return vec![Effect::Refuse {
                ticket,
                reason: Refused::QueueFull,
                retry_after_millis: BUSY_RETRY_MILLIS,
            }];
        }
        if let Some(earlier) = self.held.insert(ticket, deadline) {
            self.deadlines.remove(&(earlier, ticket));
        }
        self.deadlines.insert((deadline, ticket));
        self.settle(now, bounds)
    }

    /// The client of a held request went away.
    pub fn on_cancel(&mut self, ticket: Ticket) {
        self.forget(ticket);
    }

    /// One of our starts succeeded. Its room is offered by `on_room`.
    pub fn on_started(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        self.failures = 0;
        self.cool = None;
    }

    /// One of our starts failed for good: no node is left to ask, or the instance itself failed.
    pub fn on_start_failed(&mut self, now: Now, reason: Refused, bounds: &Bounds) -> Vec<Effect> {
        self.under_way = self.under_way.saturating_sub(1);
        let pause = COOL_DOWN_MILLIS
            .checked_shl(self.failures)
            .map_or(COOL_DOWN_CAP_MILLIS, |p| p.min(COOL_DOWN_CAP_MILLIS));
        self.failures = (self.failures + 1).min(16);
        self.cool = Some(CoolDown {
            until: now.plus(pause),
            reason,
        });
        self.settle(now, bounds)
    }

    /// `room` requests can be taken now: the longest waiting go.
    pub fn on_room(&mut self, room: usize) -> Vec<Effect> {
        let tickets: Vec<Ticket> = self.held.keys().take(room).copied().collect();
        let release = |ticket| {
            self.forget(ticket);
            Effect::Release { ticket }
        };
        tickets.into_iter().map(release).collect()
    }

    /// When `on_timeout` has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        let waits = self.deadlines.first().map(|(at, _)| *at);
        let cool = self.cool.as_ref().map(|c| c.until);
        waits.into_iter().chain(cool).min()
    }

    /// Time passed, or the bounds changed.
    pub fn on_timeout(&mut self, now: Now, bounds: &Bounds) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some((_, ticket)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.forget(ticket);
            effects.push(Effect::Refuse {
                ticket,
                reason: Refused::WaitTimeout,
                retry_after_millis: BUSY_RETRY_MILLIS,
            });
        }
        if self.cool.as_ref().is_some_and(|c| c.until <= now) {
            self.cool = None;
        }
        effects.extend(self.settle(now, bounds));
        effects
    }

    /// Starts what is missing; while cooling down after a failure, refuses instead, unless some
    /// other instance may still make room.
    fn settle(&mut self, now: Now, bounds: &Bounds) -> Vec<Effect> {
        if self.held.is_empty() {
            return Vec::new();
        }
        if let Some(cool) = self.cool.as_ref().filter(|c| c.until > now) {
            if self.under_way > 0 || bounds.ready > 0 || bounds.starting > 0 {
                return Vec::new();
            }
            let (reason, retry_after_millis) = (cool.reason.clone(), cool.until.since(now));
            self.deadlines.clear();
            let refuse = |(ticket, _)| Effect::Refuse {
                ticket,
                reason: reason.clone(),
                retry_after_millis,
            };
            return std::mem::take(&mut self.held)
                .into_iter()
                .map(refuse)
                .collect();
        }
        match self.missing(bounds) {
            0 => Vec::new(),
            count => {
                self.under_way += count;
                vec![Effect::Start { count }]
            }
        }
    }

    /// Starts that the held requests need beyond those under way. Gossip shows ours among all
    /// starting ones, but only after a moment: of the ones seen, those that were more than ours
    /// when first seen are taken for others' until fewer are seen.
    fn missing(&mut self, bounds: &Bounds) -> u32 {
        let surplus = bounds.starting.saturating_sub(self.under_way);
        self.others = self.others.max(surplus).min(bounds.starting);
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let needed = held.div_ceil(bounds.per_instance.max(1));
        let allowed = bounds.max_scale.saturating_sub(bounds.ready);
        let under_way = self.under_way.saturating_add(self.others);
        needed.min(allowed).saturating_sub(under_way)
    }

    fn forget(&mut self, ticket: Ticket) {
        if let Some(deadline) = self.held.remove(&ticket) {
            self.deadlines.remove(&(deadline, ticket));
        }
    }
}

#[cfg(test)]
mod tests;
