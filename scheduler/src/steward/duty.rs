//! Who looks after what: rendezvous hashing over the live nodes. What a node is to each revision is
//! remembered until the live nodes change, because it is asked at every tick for every report of every
//! node.

use std::collections::BTreeMap;

use crate::fleet::{Fleet, Mark, Member, Word};
use crate::model::{Name, NodeId, RevisionKey};
use crate::registry::State;

/// The node that looks after a revision: in the zone given as region and zone, or, with `None`,
/// its home steward. `None` when no live node is there.
#[must_use]
pub fn steward_of(
    fleet: &Fleet,
    revision: &RevisionKey,
    zone: Option<(&Name, &Name)>,
) -> Option<NodeId> {
    let here = |m: &&Member| {
        let place = (&m.record.region, &m.record.zone);
        stands(m) && zone.is_none_or(|zone| zone == place)
    };
    let seats = fleet
        .members
        .values()
        .filter(here)
        .map(|m| Seat::of(m.record.node));
    let key = named(revision);
    seats
        .map(|seat| seat.weight(key))
        .max()
        .map(|(_, node)| node)
}

fn stands(member: &Member) -> bool {
    member.alive && member.record.serving
}

/// A node as rendezvous hashing sees it. What comes of it must be the same in every build of every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    node: NodeId,
    stirred: u64,
}

impl Seat {
    fn of(node: NodeId) -> Self {
        Self {
            node,
            stirred: stir(node.0.wrapping_add(1)),
        }
    }

    /// How much a revision is this node's. Each is made of both once they are numbers: it is asked for every
    /// revision and every node.
    fn weight(self, revision: u64) -> (u64, NodeId) {
        (stir(revision ^ self.stirred), self.node)
    }
}

/// A revision's number: FNV-1a over its names.
fn named(revision: &RevisionKey) -> u64 {
    let names = [revision.namespace.as_str(), "/", revision.name.as_str()];
    let bytes = names.iter().flat_map(|name| name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Brings close numbers far apart (the finisher of `MurmurHash3`).
fn stir(number: u64) -> u64 {
    let stirred = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let stirred = (stirred ^ (stirred >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    stirred ^ (stirred >> 33)
}

/// What this node is to a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Duty {
    pub home: bool,
    pub zone: bool,
}

/// Revisions beside the registry's that are remembered: records may name ever new ones.
const MET_MOST: usize = 4096;

/// What it is to each, as long as the live nodes are the same.
#[derive(Debug, Default)]
pub(super) struct Duties {
    me: NodeId,
    /// Live nodes by number, and whether they are in this node's zone.
    nodes: Vec<(Seat, bool)>,
    /// Which registry's revisions are all known.
    index: Option<u64>,
    /// Whether one of the revisions with that mark is this node's to look after: in order those of the
    /// registry, and others that were met.
    known: Vec<(Mark, bool)>,
    met: BTreeMap<Mark, bool>,
    /// Those that are.
    mine: BTreeMap<RevisionKey, Duty>,
}

impl Duties {
    /// Forgets everything if the live nodes are others than before, and learns what the registry has now.
    pub fn renew(&mut self, fleet: &Fleet, me: &Word, state: &State) {
        let live = fleet.members.values().filter(|member| stands(member));
        let here = |m: &Member| m.record.beside(me);
        let nodes: Vec<(Seat, bool)> = live.map(|m| (Seat::of(m.record.node), here(m))).collect();
        if (fleet.me, &nodes) != (self.me, &self.nodes) {
            *self = Self {
                me: fleet.me,
                nodes,
                ..Self::default()
            };
        }
        if self.index == Some(state.index) && self.met.len() <= MET_MOST {
            return;
        }
        self.index = Some(state.index);
        self.met.clear();
        self.mine.retain(|key, _| state.revisions.contains_key(key));
        let before = std::mem::take(&mut self.known);
        let find = |mark| before.binary_search_by_key(&mark, |(mark, _)| *mark).ok();
        let keys = state.revisions.keys();
        let mut marked: Vec<(Mark, &RevisionKey)> = keys.map(|key| (Mark::of(key), key)).collect();
        marked.sort_unstable();
        let mut known = Vec::with_capacity(marked.len());
        for alike in marked.chunk_by(|a, b| a.0 == b.0) {
            let (mark, _) = alike[0];
            let before = find(mark).map(|at| before[at].1);
            let mine = match before {
                Some(false) if alike.len() == 1 => false,
                _ => alike
                    .iter()
                    .fold(false, |mine, (_, key)| self.take(key) || mine),
            };
            known.push((mark, mine));
        }
        self.known = known;
    }

    /// Whether the revision is this node's to look after, also one that the registry does not have.
    pub fn has(&mut self, mark: Mark, key: &RevisionKey) -> bool {
        let known = self.known.binary_search_by_key(&mark, |(mark, _)| *mark);
        let known = known.map_or_else(
            |_| self.met.get(&mark).copied(),
            |at| Some(self.known[at].1),
        );
        if let Some(mine) = known {
            return mine && self.mine.contains_key(key);
        }
        let mine = self.take(key);
        self.met.insert(mark, mine);
        mine
    }

    /// Finds out about one.
    fn take(&mut self, key: &RevisionKey) -> bool {
        if self.mine.contains_key(key) {
            return true;
        }
        let duty = self.reckon(key);
        if let Some(duty) = duty {
            self.mine.insert(key.clone(), duty);
        }
        duty.is_some()
    }

    /// What is this node's, in the order of the keys.
    pub fn all(&self) -> impl Iterator<Item = (&RevisionKey, Duty)> {
        self.mine.iter().map(|(key, duty)| (key, *duty))
    }

    pub fn of(&self, key: &RevisionKey) -> Option<Duty> {
        self.mine.get(key).copied()
    }

    fn reckon(&self, revision: &RevisionKey) -> Option<Duty> {
        let key = named(revision);
        let (mut home, mut zone) = (None, None);
        for (seat, here) in &self.nodes {
            let weight = Some(seat.weight(key));
            home = home.max(weight);
            if *here {
                zone = zone.max(weight);
            }
        }
        let mine = |best: Option<(u64, NodeId)>| best.is_some_and(|(_, node)| node == self.me);
        let duty = Duty {
            home: mine(home),
            zone: mine(zone),
        };
        (duty.home || duty.zone).then_some(duty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steward::world::{World, rev, scale};

    #[test]
    fn what_is_remembered_is_what_the_hash_says() {
        let mut world = World::new(6);
        for (id, record) in &mut world.records {
            record.region = Name::new(format!("r{}", id.0 % 2)).unwrap();
        }
        let mut duties = Duties::default();
        let keys: Vec<RevisionKey> = (1..=200).map(rev).collect();
        let here = world.zone(1);
        let here = (&here.0, &here.1);
        for dead in [None, Some(3), Some(2), None] {
            world.dead = dead.into_iter().map(NodeId).collect();
            let fleet = world.fleet(NodeId(1));
            let me = &fleet.members[&NodeId(1)].record;
            duties.renew(&fleet, me, &world.state);
            for key in keys.iter().chain(&keys) {
                let want = Duty {
                    home: steward_of(&fleet, key, None) == Some(NodeId(1)),
                    zone: steward_of(&fleet, key, Some(here)) == Some(NodeId(1)),
                };
                let want = (want.home || want.zone).then_some(want);
                assert_eq!(duties.has(Mark::of(key), key), want.is_some());
                assert_eq!(duties.of(key), want, "{key} without {dead:?}");
            }
            let mine = duties.all().map(|(key, _)| key.clone());
            let want = keys.iter().filter(|key| duties.of(key).is_some());
            assert!(mine.eq(want.cloned()), "in the order of the keys");
        }
        assert_eq!(duties.met.len(), keys.len());
        for other in (1_000..).take(MET_MOST).map(rev) {
            duties.has(Mark::of(&other), &other);
        }
        let fleet = world.fleet(NodeId(1));
        duties.renew(&fleet, &fleet.members[&NodeId(1)].record, &world.state);
        assert_eq!(
            duties.met.len(),
            0,
            "they are found out anew, if they still show"
        );
        world.deploy(scale(0, 1));
        let fleet = world.fleet(NodeId(1));
        duties.renew(&fleet, &fleet.members[&NodeId(1)].record, &world.state);
        assert_eq!(
            duties.known.len(),
            1,
            "the registry has one, and no other shows"
        );
    }
}
