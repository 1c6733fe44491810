//! Who looks after what: rendezvous hashing over the live nodes. What a node is to each revision is
//! remembered until the live nodes change, because it is asked at every tick for every report of every
//! node.

use std::collections::BTreeMap;

use super::roster::Roster;
use crate::fleet::{Fleet, Mark, Member};
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

/// Marks, and whether one of the revisions with that mark is this node's to look after. It is asked for every
/// revision in every record: marks are numbers spread evenly, so that each has its place near where its
/// first digits say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    /// In order.
    marks: Vec<(Mark, bool)>,
    /// Where marks with the same first digits begin.
    starts: Vec<u32>,
}

impl Known {
    /// `marks` are in order.
    fn of(marks: Vec<(Mark, bool)>) -> Self {
        let mut starts = Vec::new();
        if !marks.is_empty() {
            let places = marks.len().next_power_of_two();
            let begin = |place| marks.partition_point(|(mark, _)| mark.leading(places) < place);
            let begin = |place| u32::try_from(begin(place)).unwrap_or(u32::MAX);
            starts.extend((0..=places).map(begin));
        }
        Self { marks, starts }
    }

    fn get(&self, mark: Mark) -> Option<bool> {
        let places = self.starts.len().checked_sub(1)?;
        let place = mark.leading(places);
        let start = |place: usize| usize::try_from(self.starts[place]).unwrap_or(usize::MAX);
        let alike = self.marks.get(start(place)..start(place + 1))?;
        let found = alike.binary_search_by_key(&mark, |(mark, _)| *mark);
        found.ok().map(|found| alike[found].1)
    }
}

/// Revisions beside the registry's that are remembered: records may name ever new ones.
const MET_MOST: usize = 4096;

/// What it is to each, as long as the live nodes are the same.
#[derive(Debug, Default)]
pub(super) struct Duties {
    me: NodeId,
    /// Which of the roster's moves the nodes are of.
    moves: u64,
    /// Rises with everything that may change what is this node's.
    era: u64,
    /// Live nodes, and whether they are in this node's zone: those first.
    nodes: Vec<(Seat, bool)>,
    /// Which registry's revisions are all known.
    index: Option<u64>,
    /// Whether one of the revisions with that mark is this node's to look after: in order those of the
    /// registry, and others that were met.
    known: Known,
    met: BTreeMap<Mark, bool>,
    /// Those that are.
    mine: BTreeMap<RevisionKey, Duty>,
}

impl Duties {
    /// Forgets everything if the live nodes are others than before, and learns what the registry has now.
    pub fn renew(&mut self, me: NodeId, roster: &Roster, state: &State) {
        if (me, roster.moves()) != (self.me, self.moves) {
            let seats = roster.seats().map(|(node, here)| (Seat::of(node), here));
            let mut nodes: Vec<(Seat, bool)> = seats.collect();
            nodes.sort_by_key(|(_, here)| !here);
            *self = Self {
                me,
                moves: roster.moves(),
                era: self.era + 1,
                nodes,
                ..Self::default()
            };
        }
        if self.index == Some(state.index) && self.met.len() <= MET_MOST {
            return;
        }
        self.index = Some(state.index);
        let forgets = !self.met.is_empty();
        self.met.clear();
        self.mine.retain(|key, _| state.revisions.contains_key(key));
        let before = std::mem::take(&mut self.known);
        self.known = Known::of(self.learn(state, &before));
        self.era += u64::from(forgets || self.known != before);
    }

    /// The marks of the registry's revisions, where those before are known.
    fn learn(&mut self, state: &State, before: &Known) -> Vec<(Mark, bool)> {
        let keys = state.revisions.keys();
        let mut marked: Vec<(Mark, &RevisionKey)> = keys.map(|key| (Mark::of(key), key)).collect();
        marked.sort_unstable();
        let mut known = Vec::with_capacity(marked.len());
        for alike in marked.chunk_by(|a, b| a.0 == b.0) {
            let (mark, _) = alike[0];
            let mine = match before.get(mark) {
                Some(false) if alike.len() == 1 => false,
                _ => alike
                    .iter()
                    .fold(false, |mine, (_, key)| self.take(key) || mine),
            };
            known.push((mark, mine));
        }
        known
    }

    /// As long as it is the same, so is what may be this node's.
    pub fn era(&self) -> u64 {
        self.era
    }

    /// Whether a revision of that mark is this node's to look after, also one that the registry does not
    /// have. Which one it is tells its name.
    pub fn may_have(&mut self, mark: Mark, key: &RevisionKey) -> bool {
        let known = self.known.get(mark);
        if let Some(mine) = known.or_else(|| self.met.get(&mark).copied()) {
            return mine;
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

    #[cfg(test)]
    fn of(&self, key: &RevisionKey) -> Option<Duty> {
        self.mine.get(key).copied()
    }

    fn reckon(&self, revision: &RevisionKey) -> Option<Duty> {
        let key = named(revision);
        let mine = self.nodes.iter().find(|(seat, _)| seat.node == self.me);
        let weight = mine?.0.weight(key);
        // As a rule one of the first few weighs more.
        let wins = |(seat, _): &(Seat, bool)| seat.weight(key) <= weight;
        let zone = self.nodes.iter().take_while(|(_, here)| *here).all(wins);
        let duty = Duty {
            home: zone && self.nodes.iter().all(wins),
            zone,
        };
        (duty.home || duty.zone).then_some(duty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steward::world::{World, rev, scale};

    fn look(roster: &mut Roster, duties: &mut Duties, world: &World) -> Fleet {
        let fleet = world.fleet(NodeId(1));
        roster.renew(&fleet, &fleet.members[&NodeId(1)].record);
        duties.renew(fleet.me, roster, &world.state);
        fleet
    }

    #[test]
    fn what_is_remembered_is_what_the_hash_says() {
        let mut world = World::new(6);
        for (id, record) in &mut world.records {
            record.region = Name::new(format!("r{}", id.0 % 2)).unwrap();
        }
        let (mut roster, mut duties) = (Roster::default(), Duties::default());
        let keys: Vec<RevisionKey> = (1..=200).map(rev).collect();
        let here = world.zone(1);
        let here = (&here.0, &here.1);
        for dead in [None, Some(3), Some(2), None] {
            world.dead = dead.into_iter().map(NodeId).collect();
            let fleet = look(&mut roster, &mut duties, &world);
            for key in keys.iter().chain(&keys) {
                let want = Duty {
                    home: steward_of(&fleet, key, None) == Some(NodeId(1)),
                    zone: steward_of(&fleet, key, Some(here)) == Some(NodeId(1)),
                };
                let want = (want.home || want.zone).then_some(want);
                assert_eq!(duties.may_have(Mark::of(key), key), want.is_some());
                assert_eq!(duties.of(key), want, "{key} without {dead:?}");
            }
            let mine = duties.all().map(|(key, _)| key.clone());
            let want = keys.iter().filter(|key| duties.of(key).is_some());
            assert!(mine.eq(want.cloned()), "in the order of the keys");
        }
        assert_eq!(duties.met.len(), keys.len());
        for other in (1_000..).take(MET_MOST).map(rev) {
            duties.may_have(Mark::of(&other), &other);
        }
        look(&mut roster, &mut duties, &world);
        assert_eq!(
            duties.met.len(),
            0,
            "they are found out anew, if they still show"
        );
        world.deploy(scale(0, 1));
        look(&mut roster, &mut duties, &world);
        assert_eq!(
            duties.known.marks.len(),
            1,
            "the registry has one, and no other shows"
        );
    }
}
