//! A node's record as views share it. A view is made anew at every word of a node's, and of two hundred
//! nodes all but one are as they were: what did not change is not copied, and compares by where it lies.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock, OnceLock};

use crate::model::{Demand, InstanceReport, NodeRecord, RevisionKey};

/// A name's fingerprint, for comparing and looking it up as a number: reading the names of everything in every
/// record at every look costs more than what is then done. Names are strangers' choice, so each process
/// has a seed of its own: nobody can make two that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u64);

impl Mark {
    #[must_use]
    pub fn of(revision: &RevisionKey) -> Self {
        Self::drawn(revision)
    }

    fn drawn(what: impl Hash) -> Self {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(SEED.hash_one(what))
    }
}

/// A record. Its clones share it until one of them is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(Arc<Told>);

#[derive(Debug, Clone)]
struct Told {
    record: NodeRecord,
    marks: OnceLock<Marks>,
}

/// Of what a record names; made when first asked for.
#[derive(Debug, Clone)]
struct Marks {
    region: Mark,
    zone: Mark,
    /// Of the revisions, in the record's order.
    instances: Box<[Mark]>,
    demand: Box<[Mark]>,
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        self.record == other.record
    }
}

impl Eq for Told {}

impl Word {
    /// Its instances, each with its revision's mark.
    pub fn marked_instances(&self) -> impl Iterator<Item = (&InstanceReport, Mark)> {
        self.instances
            .iter()
            .zip(self.marks().instances.iter().copied())
    }

    /// What is asked for at its door, each with its revision's mark.
    pub fn marked_demand(&self) -> impl Iterator<Item = (&Demand, Mark)> {
        self.demand.iter().zip(self.marks().demand.iter().copied())
    }

    /// Whether both nodes are in one region.
    #[must_use]
    pub fn near(&self, other: &Self) -> bool {
        self.marks().region == other.marks().region
    }

    /// Whether both nodes are in one zone.
    #[must_use]
    pub fn beside(&self, other: &Self) -> bool {
        self.marks().zone == other.marks().zone
    }

    fn marks(&self) -> &Marks {
        let record = &self.0.record;
        self.0.marks.get_or_init(|| Marks {
            region: Mark::drawn(&record.region),
            zone: Mark::drawn((&record.region, &record.zone)),
            instances: record
                .instances
                .iter()
                .map(|i| Mark::of(&i.revision))
                .collect(),
            demand: record
                .demand
                .iter()
                .map(|d| Mark::of(&d.revision))
                .collect(),
        })
    }

    /// Whether both are one and the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<NodeRecord> for Word {
    fn from(record: NodeRecord) -> Self {
        Self(Arc::new(Told {
            record,
            marks: OnceLock::new(),
        }))
    }
}

impl Deref for Word {
    type Target = NodeRecord;

    fn deref(&self) -> &NodeRecord {
        &self.0.record
    }
}

/// Others that share it keep what they had.
impl DerefMut for Word {
    fn deref_mut(&mut self) -> &mut NodeRecord {
        let told = Arc::make_mut(&mut self.0);
        told.marks = OnceLock::new();
        &mut told.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;
    use crate::model::NodeId;
    use crate::route::fixture;

    #[test]
    fn who_shares_a_word_keeps_it_when_another_one_writes() {
        let mut fleet = fixture::fleet();
        let ready = crate::model::InstanceState::Ready;
        for _ in 0..2 {
            fixture::run(&mut fleet, 1, "web-00001", ready, 0);
        }
        let own = |fleet: &Fleet| fleet.members[&NodeId(1)].record.clone();
        let before = own(&fleet);
        assert!(before.is(&own(&fleet)));
        let marks = |word: &Word| {
            word.marked_instances()
                .map(|(_, mark)| mark)
                .collect::<Vec<_>>()
        };
        let web = marks(&before)[0];
        assert_eq!(marks(&before), [web, web], "two of one revision");
        fixture::run(&mut fleet, 1, "shop-00001", ready, 0);
        let after = own(&fleet);
        assert!(!before.is(&after));
        assert_eq!(before.instances.len(), 2);
        assert_eq!(marks(&after)[..2], [web, web]);
        assert_ne!(marks(&after)[2], web);
        let again = Word::from(NodeRecord::clone(&before));
        assert!(
            again == before && !again.is(&before),
            "alike by what they say"
        );
    }
}
