//! Makes room for what is of higher priority, where the asker found none anywhere. Who goes is this node's
//! own finding, by the same rule and its own registry; whoever goes drains. The room is then kept for a
//! while: who went is started anew somewhere, and must not be back before the one it went for.

use netfabric::wire::peer::StartRefusal;
use scheduler::converge::Effect;
use scheduler::model::{InstanceId, Now, RevisionKey, UnixMs};
use scheduler::place::{Displacement, Occupant, needs, victims};

use super::driver::Driver;
use super::starts::Start;
use crate::clock;

/// How long room is kept for the one it was made for: a drain, and the asker's next try.
const KEPT_MILLIS: u64 = 60_000;

/// For whom room was made last.
#[derive(Debug, Default)]
pub(super) struct Kept(Option<(RevisionKey, Now, Displacement)>);

impl Kept {
    fn keep(&mut self, now: Now, revision: &RevisionKey, displacement: Displacement) {
        self.0 = Some((revision.clone(), now.plus(KEPT_MILLIS), displacement));
    }

    /// Whether the room there is, is not for this one; says for whom it is.
    pub fn withholds(
        &self,
        now: Now,
        revision: &RevisionKey,
        priority: i32,
    ) -> Option<&RevisionKey> {
        let (whose, until, made) = self.0.as_ref()?;
        let others = whose != revision && made.priority > priority;
        (others && now < *until).then_some(whose)
    }

    /// The one it was kept for has it now; says who went.
    pub fn taken(&mut self, revision: &RevisionKey) -> Option<Displacement> {
        let (.., made) = self.0.take_if(|(whose, ..)| whose == revision)?;
        Some(made)
    }
}

impl Driver {
    /// Has those go whose going makes room, if the asker counts on it. What is said to the asker, who
    /// asks again.
    pub(super) fn make_room(&mut self, start: &Start) -> Option<(StartRefusal, Vec<Effect>)> {
        let me = self.base.node;
        start.receipt.displaces.as_ref().filter(|d| d.node == me)?;
        let now = clock::now();
        let state = self.registry.view().state();
        let seen = self.node.seen();
        let occupants = seen.filter_map(|seen| {
            let spec = &state.revisions.get(seen.revision)?.spec;
            Some(Occupant {
                instance: seen.id.clone(),
                revision: seen.revision.clone(),
                priority: spec.place.priority,
                needs: needs(spec),
                state: seen.state,
                in_flight: self.local.sample(seen.id).0,
                since: UnixMs(seen.since.0),
            })
        });
        let occupants: Vec<Occupant> = occupants.collect();
        let spec = &start.revision.spec;
        let priority = spec.place.priority;
        let go = victims(&self.node.free(), &needs(spec), priority, &occupants)?;
        if go.is_empty() {
            let wait = "room is on its way: others are leaving".to_owned();
            return Some((StartRefusal::NoRoom(wait), Vec::new()));
        }
        let mut effects = Vec::new();
        let names: Vec<String> = go.iter().map(|v| v.instance.to_string()).collect();
        for victim in &go {
            let (instance, revision) = (&victim.instance, &start.revision.key);
            tracing::info!(%instance, %revision, priority, "it makes room for this revision");
            effects.extend(self.stop_now(now, instance));
        }
        let displacement = Displacement {
            node: me,
            priority,
            victims: go,
        };
        self.kept.keep(now, &start.revision.key, displacement);
        let made = format!("room is being made: {} leave", names.join(", "));
        Some((StartRefusal::NoRoom(made), effects))
    }

    fn stop_now(&mut self, now: Now, instance: &InstanceId) -> Vec<Effect> {
        self.node.on_stop(now, instance).1
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::{Name, NodeId};

    use super::*;

    fn revision(name: &str) -> RevisionKey {
        RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new(name).unwrap(),
        }
    }

    #[test]
    fn room_that_was_made_is_for_whom_it_was_made() {
        let (high, low) = (revision("high-00001"), revision("low-00001"));
        let mut kept = Kept::default();
        assert_eq!(kept.withholds(Now(0), &low, 0), None);
        let made = Displacement {
            node: NodeId(1),
            priority: 5,
            victims: Vec::new(),
        };
        kept.keep(Now(0), &high, made.clone());
        assert_eq!(kept.withholds(Now(10), &low, 0), Some(&high));
        assert_eq!(
            kept.withholds(Now(10), &low, 5),
            None,
            "its equals may have it"
        );
        assert_eq!(kept.withholds(Now(10), &high, 5), None);
        assert_eq!(
            kept.withholds(Now(KEPT_MILLIS), &low, 0),
            None,
            "not for ever"
        );
        assert_eq!(kept.taken(&low), None);
        assert_eq!(kept.taken(&high), Some(made));
        assert_eq!(kept.withholds(Now(10), &low, 0), None);
    }
}
