//! Revisions that are to go: what of them is stopped, and when.

use super::memory::Memory;
use super::scale::Tick;
use super::scene::{Scene, Seen};

/// A superseded revision's idle instances stay this long: doors still learn of the new routes.
const SUPERSEDED_MILLIS: u64 = 5_000;
/// And busy ones this long: a connection that never ends must not hold them for ever.
const SUPERSEDED_MOST_MILLIS: u64 = 600_000;

impl Tick<'_> {
    /// Clears away a superseded revision: idle instances soon, busy ones late.
    pub(super) fn retire(&mut self, scene: &Scene<'_>, memory: &mut Memory) {
        let since = *memory.superseded.get_or_insert(self.now);
        let age = self.now.since(since);
        for seen in self.clearable(scene) {
            let idle = seen.report.in_flight == 0 && !seen.works() && age >= SUPERSEDED_MILLIS;
            if idle || age >= SUPERSEDED_MOST_MILLIS {
                self.stop(seen, memory, "nothing is sent to this revision any more");
            }
        }
    }

    /// Clears away a revision at once.
    pub(super) fn stop_all(&mut self, scene: &Scene<'_>, memory: &mut Memory, cause: &str) {
        for seen in self.clearable(scene) {
            self.stop(seen, memory, cause);
        }
    }

    /// A node that knows more of the registry than this one may run what this one has yet to hear of.
    fn clearable<'s>(&self, scene: &'s Scene<'_>) -> Vec<&'s Seen<'s>> {
        let known = self.state.index;
        let here = scene.live().filter(|s| s.here);
        here.filter(|s| s.member.record.registry_index <= known)
            .collect()
    }
}
