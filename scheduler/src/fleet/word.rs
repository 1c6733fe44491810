//! A node's record as views share it. A view is made anew at every word of a node's, and of two hundred
//! nodes all but one are as they were: what did not change is not copied, and compares by where it lies.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::index::{key_hash, text_hash};
use crate::model::{Demand, InstanceReport, NodeRecord, RevisionKey};

/// A revision's number, for finding out fast what is not looked for: reading the names of everything in every
/// record at every look costs more than what is then done. Two revisions may have the same, and strangers
/// choose their names: what is looked for is told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl Mark {
    #[must_use]
    pub fn of(revision: &RevisionKey) -> Self {
        Self(key_hash(revision))
    }
}

/// A record. Its clones share it until one of them is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(Arc<Told>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    record: NodeRecord,
    marks: Marks,
}

/// Numbers of what a record names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marks {
    region: u64,
    zone: u64,
    /// Of the revisions, in the record's order.
    instances: Box<[Mark]>,
    demand: Box<[Mark]>,
}

impl Marks {
    fn of(record: &NodeRecord) -> Self {
        let instances = record.instances.iter();
        let demand = record.demand.iter();
        Self {
            region: text_hash(record.region.as_str()),
            zone: text_hash(record.zone.as_str()),
            instances: instances.map(|i| Mark::of(&i.revision)).collect(),
            demand: demand.map(|d| Mark::of(&d.revision)).collect(),
        }
    }
}

impl Word {
    /// Its instances, each with its revision's mark.
    pub fn marked_instances(&self) -> impl Iterator<Item = (&InstanceReport, Mark)> {
        let marks = self.0.marks.instances.iter().copied();
        self.instances.iter().zip(marks)
    }

    /// What is asked for at its door, each with its revision's mark.
    pub fn marked_demand(&self) -> impl Iterator<Item = (&Demand, Mark)> {
        let marks = self.0.marks.demand.iter().copied();
        self.demand.iter().zip(marks)
    }

    /// Whether both nodes are in one region.
    #[must_use]
    pub fn near(&self, other: &Self) -> bool {
        self.0.marks.region == other.0.marks.region && self.region == other.region
    }

    /// Whether both nodes are in one zone.
    #[must_use]
    pub fn beside(&self, other: &Self) -> bool {
        self.0.marks.zone == other.0.marks.zone && self.near(other) && self.zone == other.zone
    }

    /// Whether both are one and the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// To change it. Others that share it keep what they had.
    pub fn edit(&mut self) -> Edit<'_> {
        Edit(Arc::make_mut(&mut self.0))
    }
}

impl From<NodeRecord> for Word {
    fn from(record: NodeRecord) -> Self {
        let marks = Marks::of(&record);
        Self(Arc::new(Told { record, marks }))
    }
}

impl Deref for Word {
    type Target = NodeRecord;

    fn deref(&self) -> &NodeRecord {
        &self.0.record
    }
}

/// A record that is being changed.
pub struct Edit<'a>(&'a mut Told);

impl Deref for Edit<'_> {
    type Target = NodeRecord;

    fn deref(&self) -> &NodeRecord {
        &self.0.record
    }
}

impl DerefMut for Edit<'_> {
    fn deref_mut(&mut self) -> &mut NodeRecord {
        &mut self.0.record
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        self.0.marks = Marks::of(&self.0.record);
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
