//! What starts on this node took lately, by revision: part of its record, so that placement counts with
//! it. Bringing an image here is not part of it; that is counted by who has the image.

use std::collections::{BTreeMap, VecDeque};

use scheduler::model::{RevisionKey, StartTime};

/// Revisions remembered; the ones started last.
const KEPT: usize = 64;
/// Starts differ by a few milliseconds each time; a record is not made anew for those.
const STEP_MICROS: u64 = 5_000;
/// How much of the average a new start is.
const SHARE: u64 = 4;
/// The phase of a start that brings the image.
const PULL: &str = "pull";

#[derive(Debug, Default)]
pub(super) struct Times {
    averages: BTreeMap<RevisionKey, u64>,
    order: VecDeque<RevisionKey>,
}

impl Times {
    /// An instance of the revision became ready; `phases` are what its start was made of.
    pub(super) fn note(&mut self, revision: &RevisionKey, phases: &[(String, u64)]) {
        let own = phases.iter().filter(|(phase, _)| phase != PULL);
        let micros: u64 = own.map(|(_, micros)| micros).sum();
        if let Some(average) = self.averages.get_mut(revision) {
            *average = (*average * (SHARE - 1) + micros) / SHARE;
        } else {
            self.averages.insert(revision.clone(), micros);
        }
        self.order.retain(|known| known != revision);
        self.order.push_back(revision.clone());
        if self.order.len() > KEPT {
            let oldest = self.order.pop_front();
            oldest.map(|revision| self.averages.remove(&revision));
        }
    }

    pub(super) fn told(&self) -> Vec<StartTime> {
        let rounded = |micros: u64| micros.div_ceil(STEP_MICROS) * STEP_MICROS;
        let all = self.averages.iter();
        all.map(|(revision, micros)| StartTime {
            revision: revision.clone(),
            micros: u32::try_from(rounded(*micros)).unwrap_or(u32::MAX),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::Name;

    use super::*;

    fn revision(number: usize) -> RevisionKey {
        RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new(format!("web-{number:05}")).unwrap(),
        }
    }

    #[test]
    fn starts_are_averaged_rounded_and_bounded() {
        let mut times = Times::default();
        let mut told = |number: usize, pull: u64, start: u64| {
            let phases = [("pull".to_owned(), pull), ("start".to_owned(), start)];
            times.note(&revision(number), &phases);
            times
                .told()
                .into_iter()
                .map(|t| t.micros)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(0, 9_000_000, 41_000), [45_000], "without the pull");
        assert_eq!(told(0, 0, 81_000), [55_000], "a quarter of the new one");
        for number in 1..=KEPT {
            told(number, 0, 10_000);
        }
        let told = times.told();
        assert_eq!(told.len(), KEPT);
        assert!(
            told.iter().all(|t| t.revision != revision(0)),
            "the oldest is forgotten"
        );
    }
}
