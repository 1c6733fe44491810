//! What starts and pulls of a revision are expected to take, from what nodes tell of theirs.

use std::collections::BTreeMap;

use super::{
    BELIEVED_STARTS, LEAST_PULL_MICROS, MOST_PULL_MICROS, PULL_MICROS, START_MICROS,
    USUAL_KIB_PER_SECOND,
};
use crate::fleet::{Fleet, Mark, Slot, Took, text_hash};
use crate::model::{NodeId, Revision, RevisionKey};

/// Both, for one decision.
pub(super) struct Known<'a> {
    pub starts: Starts<'a>,
    pub pulls: Pulls,
}

impl<'a> Known<'a> {
    pub fn of(fleet: &'a Fleet, revision: &Revision) -> Self {
        Self {
            starts: Starts::of(fleet, &revision.key),
            pulls: Pulls::of(fleet, revision),
        }
    }
}

/// What starts of a revision take: where it was started lately, and anywhere else.
pub(super) struct Starts<'a> {
    index: Option<&'a BTreeMap<Slot, Took>>,
    members: BTreeMap<NodeId, Took>,
    usual: u64,
    least: u64,
}

impl<'a> Starts<'a> {
    pub fn of(fleet: &'a Fleet, revision: &RevisionKey) -> Self {
        let index = fleet.index.0.as_deref();
        let shown = index.and_then(|index| index.starts(revision));
        let mut members = BTreeMap::new();
        if index.is_none() {
            let mark = Mark::of(revision);
            let all = fleet.members.iter();
            for (node, member) in all.filter(|(_, member)| member.may_tell_starts(mark)) {
                let took = Took::of_one(member, revision);
                members.extend(took.map(|took| (*node, took)));
            }
        }
        let told = || {
            members
                .values()
                .chain(shown.into_iter().flat_map(BTreeMap::values))
        };
        // Each node counts as one: what is usual is what a node that never did it is to expect.
        let count = u64::try_from(told().count()).unwrap_or(u64::MAX);
        let sum: u64 = told()
            .map(|took| took.mean_micros)
            .fold(0, u64::saturating_add);
        let usual = sum.checked_div(count).unwrap_or(START_MICROS);
        let least = told().map(|took| believed(took, usual)).min();
        Self {
            index: shown,
            usual,
            least: least.map_or(usual, |least| least.min(usual)),
            members,
        }
    }

    /// The mean of those known.
    pub fn usual(&self) -> u64 {
        self.usual
    }

    /// No start takes less anywhere.
    pub fn least(&self) -> u64 {
        self.least
    }

    pub fn at(&self, node: NodeId) -> u64 {
        let took = self.members.get(&node);
        took.map_or(self.usual, |took| believed(took, self.usual))
    }

    pub fn at_slot(&self, slot: Slot) -> u64 {
        let took = self.index.and_then(|shown| shown.get(&slot));
        took.map_or(self.usual, |took| believed(took, self.usual))
    }
}

/// What a node is to be expected to take: its own mean, the less of it the fewer starts that is the mean
/// of. One slow start makes no slow node.
fn believed(took: &Took, usual: u64) -> u64 {
    let Some(count) = took.count else {
        return took.mean_micros;
    };
    let count = u64::from(count);
    let own = took.mean_micros.saturating_mul(count);
    let rest = usual.saturating_mul(BELIEVED_STARTS);
    own.saturating_add(rest) / (count + BELIEVED_STARTS)
}

/// What bringing the image takes.
pub(super) struct Pulls {
    /// Its size, where a holder tells it.
    kib: Option<u32>,
    least: u64,
}

impl Pulls {
    pub fn of(fleet: &Fleet, revision: &Revision) -> Self {
        let image = text_hash(&revision.image.digest);
        let (kib, fastest) = if let Some(index) = fleet.index.0.as_deref() {
            (index.image_kib(image), index.fastest_pull())
        } else {
            let members = || fleet.members.values().map(|m| &m.measured.pulls);
            let size = members().find_map(|pulls| {
                let told = pulls.images.iter().find(|(hash, _)| *hash == image);
                told.map(|(_, kib)| *kib)
            });
            let fastest = members().filter_map(|pulls| pulls.kib_per_second).max();
            (size, fastest)
        };
        let mut pulls = Self { kib, least: 0 };
        // A node that tells no rate may have the usual one.
        pulls.least = pulls.at(fastest).min(pulls.at(None));
        pulls
    }

    /// No pull takes less anywhere.
    pub fn least(&self) -> u64 {
        self.least
    }

    /// What it takes a node that brings so many KiB in a second.
    pub fn at(&self, rate: Option<u32>) -> u64 {
        let Some(kib) = self.kib else {
            return PULL_MICROS;
        };
        let rate = u64::from(rate.unwrap_or(USUAL_KIB_PER_SECOND).max(1));
        (u64::from(kib) * 1_000_000 / rate).clamp(LEAST_PULL_MICROS, MOST_PULL_MICROS)
    }
}
