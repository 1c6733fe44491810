//! What a steward has read of the fleet, kept from look to look: where nodes stand, and where in their records
//! is what this node looks after. A record with the gist of the one before is not searched again.

use std::collections::BTreeMap;

use super::duty::Duties;
use crate::fleet::{Fleet, Gist, Member, Word};
use crate::model::NodeId;

/// How near a node is to the looking one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Zone,
    Region,
    Elsewhere,
}

impl Nearness {
    fn of(record: &Word, me: &Word) -> Self {
        if record.beside(me) {
            Self::Zone
        } else if record.near(me) {
            Self::Region
        } else {
            Self::Elsewhere
        }
    }
}

/// A node as it was last read.
#[derive(Debug)]
pub(super) struct Row {
    node: NodeId,
    gist: Gist,
    alive: bool,
    serving: bool,
    nearness: Nearness,
    /// What is asked for at its door counts: of doors of other regions, what waits there.
    asks: bool,
}

/// Where in a record revisions are named that may be this node's to look after.
#[derive(Debug, Default)]
pub(super) struct Find {
    pub instances: Vec<usize>,
    pub demand: Vec<usize>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    me: Option<Word>,
    /// In the order of the nodes' numbers.
    rows: Vec<Row>,
    /// Rows that were read since `finds` was made.
    read: Vec<usize>,
    /// By the numbers of rows; none is empty.
    finds: BTreeMap<usize, Find>,
    /// Which duties the finds are of.
    era: Option<u64>,
    /// Rises when others may be stewards than before, or stand elsewhere.
    moves: u64,
}

impl Row {
    fn of(node: NodeId, member: &Member, me: &Word) -> Self {
        let record = &member.record;
        let nearness = Nearness::of(record, me);
        let waits = || record.demand.iter().any(|demand| demand.queued > 0);
        Self {
            node,
            gist: record.gist(),
            alive: member.alive,
            serving: record.serving,
            nearness,
            asks: nearness != Nearness::Elsewhere || waits(),
        }
    }

    /// Whether a record with that gist is found to say what was read.
    fn is_as_read(&self, gist: Gist) -> bool {
        self.gist.node == gist.node && (!self.asks || self.gist.demand == gist.demand)
    }

    /// It may be a steward.
    fn stands(&self) -> bool {
        self.alive && self.serving
    }

    /// In the looking node's zone.
    pub fn here(&self) -> bool {
        self.nearness == Nearness::Zone
    }

    /// In its region.
    pub fn near(&self) -> bool {
        self.nearness != Nearness::Elsewhere
    }
}

impl Roster {
    /// Takes in what the fleet shows now.
    pub fn renew(&mut self, fleet: &Fleet, me: &Word) {
        let stays = self.me.as_ref().is_some_and(|before| before.beside(me));
        if stays && self.follow(fleet, me) {
            return;
        }
        let members = fleet.members.iter();
        self.rows = members.map(|(node, m)| Row::of(*node, m, me)).collect();
        self.me = Some(me.clone());
        self.era = None;
        self.moves += 1;
    }

    /// Reads what changed, as long as the nodes are the same.
    fn follow(&mut self, fleet: &Fleet, me: &Word) -> bool {
        if self.rows.len() != fleet.members.len() {
            return false;
        }
        let rows = self.rows.iter_mut().enumerate();
        for ((number, row), (node, member)) in rows.zip(&fleet.members) {
            if row.node != *node {
                return false;
            }
            let before = (row.stands(), row.here());
            if row.is_as_read(member.record.gist()) {
                row.alive = member.alive;
            } else {
                *row = Row::of(*node, member, me);
                self.read.push(number);
            }
            self.moves += u64::from(before != (row.stands(), row.here()));
        }
        true
    }

    /// Finds out where what this node looks after is named.
    pub fn search(&mut self, fleet: &Fleet, duties: &mut Duties) {
        let era = Some(duties.era());
        if self.era != era {
            self.era = era;
            self.read = (0..self.rows.len()).collect();
            self.finds.clear();
        }
        for number in self.read.drain(..) {
            let row = &self.rows[number];
            let member = fleet.members.get(&row.node);
            match member.and_then(|member| Find::of(&member.record, row.asks, duties)) {
                Some(find) => self.finds.insert(number, find),
                None => self.finds.remove(&number),
            };
        }
    }

    /// The live nodes that tell of what may be this node's to look after, and where.
    pub fn finds<'r, 'f>(
        &'r self,
        fleet: &'f Fleet,
    ) -> impl Iterator<Item = (&'r Row, &'f Member, &'r Find)> {
        self.finds.iter().filter_map(|(number, find)| {
            let row = &self.rows[*number];
            let member = fleet.members.get(&row.node)?;
            row.alive.then_some((row, member, find))
        })
    }

    /// The live nodes of this node's zone.
    pub fn here<'a>(&'a self, fleet: &'a Fleet) -> impl Iterator<Item = &'a Member> {
        let members = self.rows.iter().zip(fleet.members.values());
        let here = members.filter(|(row, _)| row.alive && row.here());
        here.map(|(_, member)| member)
    }

    /// Who may be a steward, and whether it is in this node's zone.
    pub fn seats(&self) -> impl Iterator<Item = (NodeId, bool)> {
        let stand = self.rows.iter().filter(|row| row.stands());
        stand.map(|row| (row.node, row.here()))
    }

    /// As long as it is the same, so are the [`seats`](Self::seats).
    pub fn moves(&self) -> u64 {
        self.moves
    }
}

impl Find {
    fn of(word: &Word, asks: bool, duties: &mut Duties) -> Option<Self> {
        let mut find = Self::default();
        for (at, (report, mark)) in word.marked_instances().enumerate() {
            if duties.may_have(mark, &report.revision) {
                find.instances.push(at);
            }
        }
        if asks {
            for (at, (demand, mark)) in word.marked_demand().enumerate() {
                if duties.may_have(mark, &demand.revision) {
                    find.demand.push(at);
                }
            }
        }
        (!find.instances.is_empty() || !find.demand.is_empty()).then_some(find)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Mark;
    use crate::model::{Demand, InstanceState};
    use crate::steward::world::{World, name, rev, scale};

    /// What a steward on the first node finds where, with what it read before and without.
    fn found(world: &World, roster: &mut Roster, duties: &mut Duties) -> [String; 2] {
        let fleet = world.fleet(NodeId(1));
        let look = |roster: &mut Roster, duties: &mut Duties| {
            roster.renew(&fleet, &fleet.members[&NodeId(1)].record);
            duties.renew(fleet.me, roster, &world.state);
            roster.search(&fleet, duties);
            format!("{:?} {:?}", roster.finds, roster.here(&fleet).count())
        };
        let anew = look(&mut Roster::default(), &mut Duties::default());
        [look(roster, duties), anew]
    }

    #[test]
    fn what_is_kept_is_what_would_be_found_anew() {
        let mut world = World::new(4);
        for record in world.records.values_mut() {
            record.region = name(&format!("region-{}", record.node.0 % 2));
            record.zone = name(&format!("zone-{}", record.node.0));
        }
        world.deploy(scale(0, 0));
        let (mut roster, mut duties) = (Roster::default(), Duties::default());
        let mut looks = Vec::new();
        let mut look = |world: &World| {
            let [kept, anew] = found(world, &mut roster, &mut duties);
            assert_eq!(kept, anew, "after {looks:?}");
            looks.push(kept);
        };
        look(&world);
        let first = world.put(2, 1, InstanceState::Ready);
        world.put(3, 7, InstanceState::Ready);
        look(&world);
        world.load(&first, 3);
        look(&world);
        for (node, queued) in [(3, 0), (2, 0), (2, 4), (2, 0)] {
            let demand = [1, 7].map(|generation| Demand {
                revision: rev(generation),
                queued,
                away: 9,
            });
            world.records.get_mut(&NodeId(node)).unwrap().demand = demand.to_vec();
            look(&world);
        }
        world.dead.insert(NodeId(3));
        look(&world);
        world.records.get_mut(&NodeId(2)).unwrap().instances.clear();
        look(&world);
        world.records.get_mut(&NodeId(4)).unwrap().region = name("region-1");
        world.put(4, 7, InstanceState::Ready);
        look(&world);
        world.records.remove(&NodeId(2));
        look(&world);
        looks.dedup();
        assert!(looks.len() > 6, "{looks:?}");
    }

    #[test]
    fn what_only_tells_other_amounts_is_not_searched_again() {
        let mut world = World::new(2);
        let id = world.put(2, 1, InstanceState::Starting);
        let gist = |world: &World| world.fleet(NodeId(1)).members[&NodeId(2)].record.gist();
        let before = gist(&world);
        world.load(&id, 9);
        world.report(&id).state = InstanceState::Ready;
        assert_eq!(gist(&world), before);
        world.put(2, 2, InstanceState::Ready);
        assert_ne!(gist(&world).node, before.node);
        assert_eq!(gist(&world).demand, before.demand);
        let record = &world.fleet(NodeId(1)).members[&NodeId(2)].record;
        assert!(
            [1, 2]
                .iter()
                .all(|number| record.may_know(Mark::of(&rev(*number))))
        );
    }
}
