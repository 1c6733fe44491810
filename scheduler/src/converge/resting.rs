//! Instances held still for long: when the memory that can be read again is taken from them.

use super::slot::Phase;
use super::{Effect, Node, Now};
use crate::autoscale::forecast::{Outlook, Price};
use crate::autoscale::ladder::{Idler, Rung, rung};
use crate::fleet::fullness;
use crate::model::Resources;
use crate::place::START_MICROS;

impl Node {
    /// Looks at those that are frozen; called now and then. What the ladder puts below frozen gives back
    /// what it can, once for each sleep. That it be stopped is its steward's word, who knows the fleet.
    pub fn rest(&mut self, now: Now) -> Vec<Effect> {
        let none = Resources::default();
        let price = Price::at(fullness(&self.capacity(), &self.free(), &none));
        let frozen = self.slots.iter_mut();
        let frozen =
            frozen.filter(|(_, slot)| slot.phase == Phase::Frozen && slot.rung < Rung::Reclaimed);
        let mut effects = Vec::new();
        for (id, slot) in frozen {
            let idler = Idler {
                idle_seconds: now.since(slot.since) / 1000,
                outlook: Outlook::Unknown,
                memory_bytes: slot.admission.needs.memory_bytes,
                image_bytes: 0,
                start_millis: START_MICROS / 1000,
                works: false,
            };
            if rung(&idler, price) >= Rung::Reclaimed {
                slot.rung = Rung::Reclaimed;
                effects.push(Effect::Reclaim(id.clone()));
            }
        }
        effects
    }
}
