//! A node's record as views share it. A view is made anew at every word of a node's, and of two hundred
//! nodes all but one are as they were: what did not change is not copied, and compares by where it lies.
//! What is asked of every record at every look lies beside that: to go to two hundred places for it takes
//! longer than what is then done.

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

    /// Which of so many places it has when all marks are laid out in order. `places` is a power of two.
    #[must_use]
    pub fn leading(self, places: usize) -> usize {
        let first = (u128::from(self.0) * places as u128) >> 64;
        usize::try_from(first).unwrap_or(0)
    }
}

/// A record. Its clones share it until one of them is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    told: Arc<Told>,
    gist: Gist,
    known: Sieve,
}

/// Numbers of what a record names. Two records of a node with the same differ in amounts and states at most,
/// as a rule: strangers choose names, so what is found by it is looked at before it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gist {
    /// Where the node stands, which revisions it runs, and whether it serves and requests wait at its door.
    pub node: u64,
    /// What is asked for at its door.
    pub demand: u64,
}

/// Marks, as far as one number tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sieve(u64);

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

impl Gist {
    fn of(told: &Told) -> Self {
        let (record, marks) = (&told.record, &told.marks);
        let queues = record.demand.iter().any(|d| d.queued > 0);
        let flags = u64::from(record.serving) | (u64::from(queues) << 1);
        let fold = |seed, marks: &[Mark]| marks.iter().fold(seed, |seed, mark| stir(seed, mark.0));
        let place = [marks.region, marks.zone, flags];
        Self {
            node: fold(place.into_iter().fold(0, stir), &marks.instances),
            demand: fold(0, &marks.demand),
        }
    }
}

impl Sieve {
    /// Of what the node runs and ran lately.
    fn of(told: &Told) -> Self {
        let starts = told.record.starts.iter();
        let starts = starts.map(|start| Mark::of(&start.revision));
        let all = told.marks.instances.iter().copied().chain(starts);
        Self(all.fold(0, |sieve, mark| sieve | Self::bit(mark)))
    }

    fn bit(mark: Mark) -> u64 {
        1 << (stir(0, mark.0) % 64)
    }
}

/// The finisher of `SplitMix64`.
fn stir(seed: u64, more: u64) -> u64 {
    let mixed = (seed ^ more).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Word {
    #[must_use]
    pub fn gist(&self) -> Gist {
        self.gist
    }

    /// Whether it may run a revision of that mark, or tell what a start of it took; it is asked of every
    /// record, before those few are read of which it is true.
    #[must_use]
    pub fn may_know(&self, mark: Mark) -> bool {
        self.known.0 & Sieve::bit(mark) != 0
    }

    /// Its instances, each with its revision's mark.
    pub fn marked_instances(&self) -> impl Iterator<Item = (&InstanceReport, Mark)> {
        let marks = self.told.marks.instances.iter().copied();
        self.instances.iter().zip(marks)
    }

    /// What is asked for at its door, each with its revision's mark.
    pub fn marked_demand(&self) -> impl Iterator<Item = (&Demand, Mark)> {
        let marks = self.told.marks.demand.iter().copied();
        self.demand.iter().zip(marks)
    }

    /// Whether both nodes are in one region.
    #[must_use]
    pub fn near(&self, other: &Self) -> bool {
        self.told.marks.region == other.told.marks.region && self.region == other.region
    }

    /// Whether both nodes are in one zone.
    #[must_use]
    pub fn beside(&self, other: &Self) -> bool {
        self.told.marks.zone == other.told.marks.zone && self.near(other) && self.zone == other.zone
    }

    /// Whether both are one and the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.told, &other.told)
    }

    /// To change it. Others that share it keep what they had.
    pub fn edit(&mut self) -> Edit<'_> {
        Edit(self)
    }
}

impl From<NodeRecord> for Word {
    fn from(record: NodeRecord) -> Self {
        let marks = Marks::of(&record);
        let told = Told { record, marks };
        Self {
            gist: Gist::of(&told),
            known: Sieve::of(&told),
            told: Arc::new(told),
        }
    }
}

impl Deref for Word {
    type Target = NodeRecord;

    fn deref(&self) -> &NodeRecord {
        &self.told.record
    }
}

/// A record that is being changed.
pub struct Edit<'a>(&'a mut Word);

impl Deref for Edit<'_> {
    type Target = NodeRecord;

    fn deref(&self) -> &NodeRecord {
        self.0
    }
}

impl DerefMut for Edit<'_> {
    fn deref_mut(&mut self) -> &mut NodeRecord {
        &mut Arc::make_mut(&mut self.0.told).record
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        let told = Arc::make_mut(&mut self.0.told);
        told.marks = Marks::of(&told.record);
        (self.0.gist, self.0.known) = (Gist::of(told), Sieve::of(told));
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
