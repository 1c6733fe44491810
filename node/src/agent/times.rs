//! What starts on this node took lately, by revision, and what pulls bring: told to the others, so that
//! placement counts with it. Bringing an image here is no part of a start; that is counted by who has the
//! image.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use scheduler::model::{MOST_STARTS, RevisionKey, StartHistogram, StartTime};
use tokio::sync::watch;

/// Revisions remembered; the ones started last.
const KEPT: usize = MOST_STARTS;
/// Starts differ by a few milliseconds each time; a record is not made anew for those.
const STEP_MICROS: u64 = 5_000;
/// How much of the average a new start is.
const SHARE: u64 = 4;
/// The phase of a start that brings the image.
const PULL: &str = "pull";

/// A pull that was shorter, or of a smaller image, found most of it here, and says nothing of the link.
const PULL_LEAST_MICROS: u64 = 50_000;
const PULL_LEAST_BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Times {
    averages: BTreeMap<RevisionKey, u64>,
    order: VecDeque<RevisionKey>,
    histograms: BTreeMap<RevisionKey, StartHistogram>,
    /// What of images comes here in a second.
    bytes_per_second: Option<u64>,
    experience: watch::Sender<Arc<Experience>>,
}

/// What starts and pulls took on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Experience {
    pub starts: Vec<StartHistogram>,
    /// What of images came here in a second, in KiB of their unpacked size.
    pub kib_per_second: Option<u32>,
}

impl Times {
    pub(super) fn experience(&self) -> watch::Receiver<Arc<Experience>> {
        self.experience.subscribe()
    }

    /// An instance of the revision became ready; `phases` are what its start was made of. `image_bytes`
    /// is the unpacked size of its image.
    pub(super) fn note(
        &mut self,
        revision: &RevisionKey,
        phases: &[(String, u64)],
        image_bytes: u64,
    ) {
        let pull = phases.iter().filter(|(phase, _)| phase == PULL);
        let pull: u64 = pull.map(|(_, micros)| micros).sum();
        if pull >= PULL_LEAST_MICROS && image_bytes >= PULL_LEAST_BYTES {
            let rate = image_bytes.saturating_mul(1_000_000) / pull;
            let before = self.bytes_per_second.unwrap_or(rate);
            self.bytes_per_second = Some((before * (SHARE - 1) + rate) / SHARE);
        }
        let own = phases.iter().filter(|(phase, _)| phase != PULL);
        let micros: u64 = own.map(|(_, micros)| micros).sum();
        if let Some(average) = self.averages.get_mut(revision) {
            *average = (*average * (SHARE - 1) + micros) / SHARE;
        } else {
            self.averages.insert(revision.clone(), micros);
        }
        self.histograms
            .entry(revision.clone())
            .or_insert_with(|| StartHistogram::new(revision.clone()))
            .note(micros);
        self.order.retain(|known| known != revision);
        self.order.push_back(revision.clone());
        if self.order.len() > KEPT {
            let oldest = self.order.pop_front();
            if let Some(revision) = oldest {
                self.averages.remove(&revision);
                self.histograms.remove(&revision);
            }
        }
        let kib = |bytes: u64| u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        self.experience.send_replace(Arc::new(Experience {
            starts: self.histograms.values().cloned().collect(),
            kib_per_second: self.bytes_per_second.map(kib),
        }));
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
            times.note(&revision(number), &phases, 180 << 20);
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
        let experience = times.experience().borrow().clone();
        assert_eq!(experience.starts.len(), KEPT);
        assert!(experience.starts.iter().all(|s| s.revision != revision(0)));
        // 180 MiB in nine seconds; the starts that found the image here say nothing of that.
        assert_eq!(experience.kib_per_second, Some(20 << 10));
    }
}
