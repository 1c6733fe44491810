//! What nodes say of themselves, as one immutable view taken at a moment.

mod index;
mod lists;
mod reach;
mod word;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use index::{
    Closed, Group, Index, Place, Row, Slot, Standing, Took, UNMEASURED_RTT_MICROS, fullness,
    text_hash,
};

pub use reach::{Contact, Island, Reach};
pub use word::{Edit, Gist, Mark, Word};

use crate::model::{InstanceReport, LocalVolume, Measured, NodeId, ObjectKey, RevisionKey};

/// This node's view of all nodes, itself included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    pub me: NodeId,
    pub members: BTreeMap<NodeId, Member>,
    /// Where local volumes are, as agreed in the registry.
    pub volumes: BTreeMap<ObjectKey, LocalVolume>,
    /// The members as placement looks them up; `None` looks at each.
    pub index: Indexed,
    /// How much of the cluster this is made from.
    pub reach: Reach,
}

/// What is derived from the members: two fleets do not differ by it.
#[derive(Debug, Clone, Default)]
pub struct Indexed(pub Option<Arc<Index>>);

impl PartialEq for Indexed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Indexed {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub record: Word,
    /// The failure detector's word; false members are kept for display only.
    pub alive: bool,
    /// For how many rounds of gossip, a second each, nothing was heard of it, where that is longer than it takes as a rule. What is
    /// old weighs less, and is never a reason to let go of the only one there is.
    pub silent: u8,
    /// It gave no answer when it was last asked directly: nothing is sent there, and nothing placed. What it has counts
    /// until it is dead, for it may be only this node that does not reach it, and only for a moment.
    pub lost: bool,
    /// Smoothed round trip from here in microseconds; `None` until measured, 0 for this node.
    pub rtt_micros: Option<u32>,
    /// The same by its coordinate and this node's, where it is not measured.
    pub reckoned_micros: Option<u32>,
    /// What the node measures.
    pub measured: Arc<Measured>,
}

impl Member {
    /// A node by its record, of which nothing else is known.
    #[must_use]
    pub fn new(record: impl Into<Word>, alive: bool, rtt_micros: Option<u32>) -> Self {
        Self::measured(record, Arc::default(), alive, rtt_micros)
    }

    /// A node by its record and what it measures.
    #[must_use]
    pub fn measured(
        record: impl Into<Word>,
        measured: Arc<Measured>,
        alive: bool,
        rtt_micros: Option<u32>,
    ) -> Self {
        Self {
            record: record.into(),
            alive,
            silent: 0,
            lost: false,
            rtt_micros,
            reckoned_micros: None,
            measured,
        }
    }

    /// Whether requests can be sent there, as far as is known.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.alive && !self.lost
    }

    /// Whether it may tell what starts of a revision of that mark took.
    #[must_use]
    pub fn may_tell_starts(&self, mark: Mark) -> bool {
        self.record.may_know(mark) || !self.measured.starts.is_empty()
    }

    /// The round trip from here as well as it is known, in microseconds: measured, or reckoned.
    #[must_use]
    pub fn distance_micros(&self) -> Option<u32> {
        self.rtt_micros.or(self.reckoned_micros)
    }
}

impl Fleet {
    /// The same with an index made anew.
    #[must_use]
    pub fn indexed(mut self) -> Self {
        self.index = Indexed(Some(Arc::new(Index::of(&self))));
        self
    }

    /// Reckons how far those members are that no round trip was measured to, by their coordinates and
    /// this node's.
    #[must_use]
    pub fn reckoned(mut self) -> Self {
        let own = self.members.get(&self.me);
        let Some(own) = own.and_then(|me| me.measured.coordinate) else {
            return self;
        };
        for member in self.members.values_mut() {
            let reckon = || own.round_trip_to(member.measured.coordinate.as_ref()?);
            member.reckoned_micros = if member.rtt_micros.is_some() {
                None
            } else {
                reckon()
            };
        }
        self
    }

    /// Members that are alive, this node first, then by silence, by round trip (unknown last), and number.
    #[must_use]
    pub fn nearest(&self) -> Vec<&Member> {
        let mut alive: Vec<_> = self.members.values().filter(|m| m.alive).collect();
        alive.sort_by_key(|m| {
            let me = m.record.node == self.me;
            (
                !me,
                m.silent,
                m.distance_micros().unwrap_or(u32::MAX),
                m.record.node,
            )
        });
        alive
    }

    /// Instances of a revision on live members.
    pub fn instances<'a>(
        &'a self,
        revision: &'a RevisionKey,
    ) -> impl Iterator<Item = (&'a Member, &'a InstanceReport)> {
        self.members
            .values()
            .filter(|m| m.alive)
            .flat_map(move |m| {
                m.record
                    .instances
                    .iter()
                    .filter(|i| i.revision == *revision)
                    .map(move |i| (m, i))
            })
    }
}
