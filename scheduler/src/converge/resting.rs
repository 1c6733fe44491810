//! Instances that nobody asks anything: whether they work all the same, and how deep they sleep.

use std::collections::VecDeque;

use super::slot::{Phase, Sleep, Slot};
use super::{Effect, Froze, InstanceId, Node, Now};
use crate::autoscale::forecast::Price;
use crate::autoscale::ladder::{FREEZE_AFTER_MS, Idler, Rung, Sleeper, expected_seconds};
use crate::place::START_MICROS;

/// At one look: the kernel goes through all memory of each.
const AT_ONCE: usize = 4;
/// What was used before is past: as long as it takes to be frozen.
const WINDOW_MS: u64 = FREEZE_AFTER_MS;
/// Readings kept: one a second of a window and one before it.
const READINGS: usize = 16;

/// Readings of the processor time an instance used while nobody asked it anything.
#[derive(Debug, Clone, Default)]
pub(super) struct Readings(VecDeque<(Now, u64)>);

impl Readings {
    fn note(&mut self, now: Now, micros: u64) {
        self.0.push_back((now, micros));
        let old = |(at, _): &(Now, u64)| now.since(*at) >= WINDOW_MS;
        // The newest of those that are as old as the window is the beginning of it.
        while self.0.len() > READINGS || self.0.get(1).is_some_and(old) {
            self.0.pop_front();
        }
    }

    /// Of processors, in thousandths of one, on average.
    fn millis(&self) -> Option<u32> {
        let ((from, before), (to, after)) = (self.0.front()?, self.0.back()?);
        let millis = to.since(*from);
        let used = after.saturating_sub(*before);
        let share = used.checked_div(millis)?;
        Some(u32::try_from(share).unwrap_or(u32::MAX))
    }
}

impl Node {
    /// The processor time an instance used so far, or `None` while requests are in it: what it uses for
    /// them says nothing. To be told before [`Node::on_idle`].
    pub fn on_cpu(&mut self, now: Now, id: &InstanceId, micros: Option<u64>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        match micros {
            Some(micros) => slot.readings.note(now, micros),
            None => slot.readings.0.clear(),
        }
    }

    /// It has not been asked anything for so long.
    pub fn on_idle(&mut self, id: &InstanceId, idle_ms: u64) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id).filter(|s| s.phase == Phase::Ready) else {
            return Vec::new();
        };
        let idler = Idler {
            idle_ms,
            cpu_millis: slot.readings.millis(),
            limit_millis: slot.admission.needs.cpu_millis,
            freezes: slot.admission.freezes,
            works_unasked: slot.admission.works_unasked,
        };
        match (idler.rung(), slot.sleep) {
            (Rung::Frozen, Sleep::None | Sleep::Light) => {
                slot.sleep = Sleep::Begins;
                // A question under way would find it frozen and count as a failure.
                slot.round += 1;
                vec![Effect::Freeze(id.clone())]
            }
            (Rung::Throttled, Sleep::None) if slot.yields => {
                slot.sleep = Sleep::Dozes;
                vec![Effect::Throttle(id.clone())]
            }
            _ => Vec::new(),
        }
    }

    pub fn on_throttled(&mut self, id: &InstanceId, came: Froze) {
        let Some(slot) = self.slots.get_mut(id).filter(|s| s.sleep == Sleep::Dozes) else {
            return;
        };
        slot.sleep = match came {
            Froze::Still => Sleep::Light,
            Froze::Busy | Froze::Cannot => Sleep::None,
        };
        slot.yields &= came != Froze::Cannot;
    }

    pub fn on_frozen(&mut self, now: Now, id: &InstanceId, came: Froze) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id).filter(|s| s.sleep == Sleep::Begins) else {
            return Vec::new();
        };
        slot.sleep = Sleep::None;
        if slot.phase != Phase::Ready {
            return Vec::new();
        }
        match came {
            Froze::Still => {
                let asked = Now(now.0.saturating_sub(FREEZE_AFTER_MS));
                slot.forecast.observe(asked, true);
                slot.enter(now, Phase::Frozen);
                return Vec::new();
            }
            Froze::Busy => {}
            Froze::Cannot => slot.admission.freezes = false,
        }
        slot.questions(false)
    }

    /// A request let it go on.
    pub fn on_thawed(&mut self, now: Now, id: &InstanceId) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        if slot.sleep == Sleep::Light {
            slot.sleep = Sleep::None;
        }
        if slot.phase != Phase::Frozen {
            return Vec::new();
        }
        slot.forecast.observe(now, true);
        slot.readings.0.clear();
        slot.enter(now, Phase::Ready);
        slot.questions(false)
    }

    /// Looks at those that are frozen; called now and then. Each gives back once a sleep. That it be
    /// stopped is its steward's word, who knows the fleet.
    pub fn rest(&mut self, now: Now) -> Vec<Effect> {
        let price = Price::of_memory(self.capacity().memory_bytes, self.free().memory_bytes);
        let slots = self.slots.iter_mut();
        let sleeping =
            slots.filter(|(_, slot)| slot.phase == Phase::Frozen && slot.sleep != Sleep::Deep);
        let pays = |slot: &mut Slot| {
            let idle_seconds = now.since(slot.since) / 1000;
            let outlook = slot
                .forecast
                .outlook(now, price, START_MICROS.div_ceil(1_000_000));
            let sleeper = Sleeper {
                expected_seconds: expected_seconds(outlook, idle_seconds),
                memory_bytes: slot.admission.needs.memory_bytes,
                start_millis: START_MICROS / 1000,
            };
            sleeper.pays_to_reclaim(price)
        };
        let due = sleeping.filter_map(|(id, slot)| pays(slot).then_some((id, slot)));
        due.take(AT_ONCE)
            .map(|(id, slot)| {
                slot.sleep = Sleep::Deep;
                Effect::Reclaim(id.clone())
            })
            .collect()
    }

    /// What an instance that nobody asks anything does, for people.
    #[must_use]
    pub fn sleeps(&self, id: &InstanceId) -> Option<&'static str> {
        let slot = self.slots.get(id)?;
        match (slot.phase, slot.sleep) {
            (Phase::Frozen, Sleep::Deep) => Some("it is frozen, and gave its memory back"),
            (Phase::Frozen, _) => Some("it is frozen"),
            (Phase::Ready, Sleep::Light) => {
                Some("it computes unasked, and leaves its processor to those who are asked")
            }
            _ => None,
        }
    }
}

/// A probe of a throttled one failed: it is let go on, and not throttled again, for its probes suffer.
pub(super) fn disturbed(slot: &mut Slot) -> Option<Effect> {
    if slot.sleep != Sleep::Light {
        return None;
    }
    slot.sleep = Sleep::None;
    slot.yields = false;
    Some(Effect::Wake(slot.id()))
}
