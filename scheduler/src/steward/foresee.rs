//! Instances that wait for requests that are to be expected, and what waiting costs.

use super::memory::Memory;
use super::roster::Roster;
use super::scale::Tick;
use super::scene::Scene;
use crate::autoscale::forecast::{Outlook, Price};
use crate::autoscale::{Decision, Reason};
use crate::fleet::Fleet;
use crate::model::{Scale, Service};

impl Tick<'_> {
    /// The first instance of a region follows its history, where that says something: it is there when
    /// requests are likely, and goes when they are not, without waiting for the window to pass.
    pub(super) fn foresee(
        &self,
        service: &Service,
        decision: Decision,
        scene: &Scene<'_>,
        memory: &mut Memory,
        asked: u64,
    ) -> Decision {
        if asked > 0 || decision.wanted > 1 {
            return decision;
        }
        // The window says how long a history that says nothing is waited for. Who asked for a longer one
        // than is usual, or for none to go for a while, has it.
        let usual = service.scale.window_seconds <= Scale::default().window_seconds;
        let waits = matches!(
            decision.reason,
            Reason::Idle | Reason::Stable | Reason::Panic
        );
        let shortens = usual && waits;
        let lead = memory.start_millis.div_ceil(1000) + 1;
        let mut near = scene.live().filter(|s| !s.here);
        let outlook = memory.forecast.outlook(self.now, self.price, lead);
        let (wanted, reason) = match (outlook, decision.wanted) {
            (Outlook::Likely { .. }, 1) => (1, Reason::Expected),
            (Outlook::Likely { .. }, _) if near.all(|s| s.member.record.region != *self.here.0) => {
                (1, Reason::Expected)
            }
            (Outlook::Unlikely { .. }, 1) if shortens => (0, Reason::Unlikely),
            _ => return decision,
        };
        Decision {
            wanted,
            reason,
            ..decision
        }
    }
}

/// The price of waiting in a node's zone, by its nodes' memory.
pub(super) fn waiting(fleet: &Fleet, roster: &Roster) -> Price {
    let (mut all, mut free) = (0_u64, 0_u64);
    for member in roster.here(fleet) {
        all = all.saturating_add(member.record.capacity.memory_bytes);
        free = free.saturating_add(member.record.free.memory_bytes);
    }
    Price::of_memory(all, free)
}
