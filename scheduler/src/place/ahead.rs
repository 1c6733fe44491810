//! Which nodes should have a revision's image before they are asked to start it. Every node comes to
//! the same answer from the same gossip, and acts for itself alone.

use std::collections::{BTreeMap, BTreeSet};

use super::judge::{Site, live_hosts, obstacle};
use super::reckon::Known;
use super::{Ask, Promised, needs};
use crate::fleet::{Fleet, fullness};
use crate::model::{Name, NodeId, NodeRecord, Revision};

/// Nodes that are to be able to start the next instance without a pull, wherever instances are
/// asked for: the one that would, and the one for when that is gone or full.
pub const LIKELY: usize = 2;
/// A node is told from another by its load in so many steps: the image is not moved for less.
const LOAD_STEPS: u16 = 10;

/// The likely next hosts of `revision` that do not have its image yet.
#[must_use]
pub fn ahead(fleet: &Fleet, revision: &Revision) -> BTreeSet<NodeId> {
    let (needs, ask, promised) = (needs(&revision.spec), Ask::default(), Promised::default());
    let known = Known::of(fleet, revision);
    let able = fleet.members.values().filter(|member| {
        let site = Site::of_member(member, revision, &promised, &known);
        obstacle(fleet, &site, revision, &needs, &ask).is_none()
    });
    let able: Vec<&NodeRecord> = able.map(|m| &*m.record).collect();
    let load = |node: &NodeRecord| fullness(&node.capacity, &node.free, &needs) * LOAD_STEPS / 1000;
    let mut missing = BTreeSet::new();
    for origin in origins(fleet, revision).into_values() {
        let mut hosts = able.clone();
        hosts.sort_by_key(|node| {
            let away = (node.region != origin.region, node.zone != origin.zone);
            (away, !holds(node, revision), load(node), node.node)
        });
        let likely = hosts.into_iter().take(LIKELY);
        missing.extend(likely.filter(|n| !holds(n, revision)).map(|n| n.node));
    }
    missing
}

fn holds(node: &NodeRecord, revision: &Revision) -> bool {
    node.images.contains(&revision.image.digest)
}

/// A node of each region where the revision runs or is waited for; when it rests everywhere, of
/// each that has its image.
fn origins<'a>(fleet: &'a Fleet, revision: &'a Revision) -> BTreeMap<&'a Name, &'a NodeRecord> {
    let alive = || fleet.members.values().filter(|m| m.alive);
    let waits = |node: &NodeRecord| {
        let mut asked = node.demand.iter();
        asked.any(|d| d.revision == revision.key && d.queued > 0)
    };
    let mut wanted: Vec<&NodeRecord> = live_hosts(fleet, revision).collect();
    wanted.extend(alive().map(|m| &*m.record).filter(|node| waits(node)));
    if wanted.is_empty() {
        let records = alive().map(|m| &*m.record);
        wanted.extend(records.filter(|node| holds(node, revision)));
    }
    // The first in number, whoever counts.
    wanted.sort_by_key(|node| std::cmp::Reverse(node.node));
    wanted
        .into_iter()
        .map(|node| (&node.region, node))
        .collect()
}
