//! Instances held still for long: when the memory that can be read again is taken from them.

use super::slot::{Phase, Sleep};
use super::{Effect, Node, Now};
use crate::autoscale::forecast::Price;
use crate::autoscale::ladder::Sleeper;
use crate::place::START_MICROS;

/// At one look: the kernel goes through all memory of each.
const AT_ONCE: usize = 4;

impl Node {
    /// Looks at those that are frozen; called now and then. Each gives back once a sleep. That it be
    /// stopped is its steward's word, who knows the fleet.
    pub fn rest(&mut self, now: Now) -> Vec<Effect> {
        let price = Price::of_memory(self.capacity().memory_bytes, self.free().memory_bytes);
        let slots = self.slots.iter_mut();
        let sleeping =
            slots.filter(|(_, slot)| slot.phase == Phase::Frozen && slot.sleep != Sleep::Deep);
        let pays = |slot: &super::slot::Slot| {
            let sleeper = Sleeper {
                idle_seconds: now.since(slot.since) / 1000,
                memory_bytes: slot.admission.needs.memory_bytes,
                start_millis: START_MICROS / 1000,
            };
            sleeper.pays_to_reclaim(price)
        };
        let due = sleeping.filter(|(_, slot)| pays(slot)).take(AT_ONCE);
        due.map(|(id, slot)| {
            slot.sleep = Sleep::Deep;
            Effect::Reclaim(id.clone())
        })
        .collect()
    }
}
