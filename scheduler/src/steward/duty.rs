//! Who looks after what: rendezvous hashing over the live nodes. What a node is to each revision is
//! remembered until the live nodes change, because it is asked at every tick for every revision.

use std::collections::BTreeMap;

use crate::fleet::{Fleet, Member};
use crate::model::{Name, NodeId, RevisionKey};

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
    let nodes = fleet.members.values().filter(here).map(|m| m.record.node);
    nodes.max_by_key(|node| (weight(*node, revision), *node))
}

fn stands(member: &Member) -> bool {
    member.alive && member.record.serving
}

/// Rendezvous weight: FNV-1a over the names, stirred so that close numbers come out far apart.
/// It must be the same in every build of every version.
fn weight(node: NodeId, revision: &RevisionKey) -> u64 {
    let key = [revision.namespace.as_str(), "/", revision.name.as_str()];
    let bytes = node
        .0
        .to_be_bytes()
        .into_iter()
        .chain(key.iter().flat_map(|s| s.bytes()));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let stirred = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let stirred = (stirred ^ (stirred >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    stirred ^ (stirred >> 33)
}

/// What this node is to a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Duty {
    pub home: bool,
    pub zone: bool,
}

/// What it is to each, as long as the live nodes are the same.
#[derive(Debug, Default)]
pub(super) struct Duties {
    me: NodeId,
    /// Live nodes by number, and whether they are in this node's zone.
    nodes: Vec<(NodeId, bool)>,
    known: BTreeMap<RevisionKey, Duty>,
}

impl Duties {
    /// Forgets everything if the live nodes are others than before.
    pub fn renew(&mut self, fleet: &Fleet, place: (&Name, &Name)) {
        let live = fleet.members.values().filter(|member| stands(member));
        let here = |m: &Member| (&m.record.region, &m.record.zone) == place;
        let nodes: Vec<(NodeId, bool)> = live.map(|m| (m.record.node, here(m))).collect();
        if (fleet.me, &nodes) != (self.me, &self.nodes) {
            self.known.clear();
            (self.me, self.nodes) = (fleet.me, nodes);
        }
    }

    /// Forgets revisions that are gone; `keys` are those there are, in order.
    pub fn retain(&mut self, keys: &[&RevisionKey]) {
        if self.known.len() > keys.len() {
            self.known.retain(|key, _| keys.binary_search(&key).is_ok());
        }
    }

    pub fn of(&mut self, revision: &RevisionKey) -> Duty {
        if let Some(duty) = self.known.get(revision) {
            return *duty;
        }
        let (mut home, mut zone) = (None, None);
        for (node, here) in &self.nodes {
            let weight = Some((weight(*node, revision), *node));
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
        self.known.insert(revision.clone(), duty);
        duty
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steward::world::{World, rev};

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
            duties.renew(&fleet, here);
            duties.retain(&keys.iter().collect::<Vec<_>>());
            for key in keys.iter().chain(&keys) {
                let want = Duty {
                    home: steward_of(&fleet, key, None) == Some(NodeId(1)),
                    zone: steward_of(&fleet, key, Some(here)) == Some(NodeId(1)),
                };
                assert_eq!(duties.of(key), want, "{key} without {dead:?}");
            }
        }
        duties.retain(&[&keys[7]]);
        assert_eq!(duties.known.len(), 1);
    }
}
