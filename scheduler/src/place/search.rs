//! Placement in a large fleet: looks at the nodes that can be best, and says how much better one
//! that it did not look at could be.
//!
//! No node of a group costs less than the group's distance, and no one less than it with its
//! fullness of now, or where nodes are to be filled up with what it leaves free at least; groups and nodes are walked in the order of these floors until a floor is no
//! less than what the last of the [`KEPT`] best costs. What holds the image is looked at first: for
//! all others the floor is a pull higher. So the walk is short and its winner is the best one, unless
//! it was ended at [`MOST_LOOKED`]; then the next floor bounds the regret.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::judge::{Distance, Held, Site, crowding, in_regions, obstacle, parts, score, volumes};
use super::reckon::Known;
use super::{Ask, Inputs, Passed, Promised, Receipt, Rejection, SPREAD_MICROS};
use crate::fleet::{Fleet, Group, Index, Place, Slot, text_hash};
use crate::model::{Fit, NodeId, Resources, Revision, Spread};

/// Ranked nodes in a receipt: as many as a door asks before it gives up, and a few for the reader.
pub const KEPT: usize = 8;
/// Nodes looked at for one decision.
pub const MOST_LOOKED: u32 = 512;
/// Nodes with something rare (an image, a label) that are all looked at; more of them are met on
/// the walk often enough.
const FEW: usize = 128;
/// Refusals named in a receipt that has a winner.
const REFUSALS_NAMED: usize = 16;

pub(super) struct Search<'a> {
    fleet: &'a Fleet,
    index: &'a Index,
    revision: &'a Revision,
    ask: &'a Ask,
    promised: &'a Promised,
    needs: Resources,
    /// Who holds the image.
    holders: Option<&'a BTreeSet<Slot>>,
    held: Held<'a>,
    known: Known<'a>,
    distance: Distance<'a>,
    /// The best so far, best first: what each costs, and where it is.
    best: Vec<(u64, NodeId, Slot)>,
    refused: Vec<(Slot, Rejection)>,
    refused_more: u32,
    looked: u32,
    /// Those with promises, which were looked at before the walk.
    first: BTreeSet<Slot>,
    /// What the best of those not looked at costs at least.
    floor: u64,
}

impl<'a> Search<'a> {
    pub fn new(
        fleet: &'a Fleet,
        index: &'a Index,
        revision: &'a Revision,
        ask: &'a Ask,
        promised: &'a Promised,
    ) -> Self {
        let image = text_hash(&revision.image.digest);
        Self {
            fleet,
            index,
            revision,
            ask,
            promised,
            needs: super::needs(&revision.spec),
            holders: index.holders(image),
            held: Held::of_index(index, revision, promised),
            known: Known::of(fleet, revision),
            distance: Distance::new(fleet, ask.from),
            best: Vec::with_capacity(KEPT + 1),
            refused: Vec::new(),
            refused_more: 0,
            looked: 0,
            first: BTreeSet::new(),
            floor: u64::MAX,
        }
    }

    /// The receipt, or `None` when what was looked at cannot take it: then all are to be judged.
    pub fn run(mut self) -> Option<Receipt> {
        if let Some((_, node)) = volumes(self.fleet, self.revision).next() {
            self.index
                .slot(node)
                .into_iter()
                .for_each(|slot| self.look(slot));
        } else if let Some(few) = self.rarest_label() {
            few.for_each(|slot| self.look(slot));
        } else {
            // What was promised is not in the order of how full they are.
            let promised = self
                .promised
                .nodes()
                .filter_map(|node| self.index.slot(node));
            if self.revision.spec.place.fit == Fit::Pack {
                self.first = promised.take(FEW).collect();
                for slot in self.first.clone() {
                    self.look(slot);
                }
            }
            let few = self.holders.filter(|holders| holders.len() <= FEW);
            for slot in few.into_iter().flatten() {
                if !self.first.contains(slot) {
                    self.look(*slot);
                }
            }
            self.walk(few.is_some() || self.holders.is_none());
        }
        (!self.best.is_empty()).then(|| self.receipt())
    }

    /// The nodes with the rarest of the labels it requires, when those are few.
    fn rarest_label(&self) -> Option<impl Iterator<Item = Slot> + use<'a>> {
        let required = self.revision.spec.place.require.iter();
        let lists = required.map(|(label, value)| self.index.labelled(label, value));
        let rarest = lists.min_by_key(|list| list.map_or(0, BTreeSet::len))?;
        let few = rarest.is_none_or(|list| list.len() <= FEW);
        few.then(|| rarest.into_iter().flatten().copied())
    }

    /// Walks the groups in the order of their floors. `holders_done`: those that hold the image were
    /// looked at.
    fn walk(&mut self, holders_done: bool) {
        let pull = if holders_done {
            self.known.pulls.least()
        } else {
            0
        };
        let least = self.known.starts.least();
        let index = self.index;
        if self.distance.is_measured() && self.revision.spec.place.spread == Spread::None {
            // The index has them in this order.
            for (_, group) in index.groups() {
                let floor = least + pull + u64::from(group.place.floor_micros);
                if !self.walk_group(group, floor, holders_done) {
                    return;
                }
            }
            return;
        }
        let floor = |group: &Group| least + pull + self.floor_of(group);
        let mut groups: Vec<(u64, &Group)> = index.groups().map(|(_, g)| (floor(g), g)).collect();
        groups.sort_by_key(|(floor, _)| *floor);
        for (floor, group) in groups {
            if !self.walk_group(group, floor, holders_done) {
                return;
            }
        }
    }

    /// Distance and spreading of a group at least.
    fn floor_of(&self, group: &Group) -> u64 {
        let place = &group.place;
        let distance = if self.distance.is_measured() {
            place.floor_micros.into()
        } else if self.is_askers(place) {
            0
        } else {
            self.distance.floor(group)
        };
        let alike = match self.revision.spec.place.spread {
            Spread::None => 0,
            Spread::Zone => self.held.in_zone(&place.region, &place.zone),
            Spread::Region => self.held.in_region(&place.region),
        };
        distance + alike * SPREAD_MICROS
    }

    /// Whether the asker itself, which is at no distance, may be in the group.
    fn is_askers(&self, place: &Place) -> bool {
        let slot = self.index.slot(self.ask.from);
        let row = slot.and_then(|slot| self.index.row(slot));
        row.is_some_and(|row| row.about.region == place.region && row.about.zone == place.zone)
    }

    /// Whether the walk goes on to the next group.
    fn walk_group(&mut self, group: &Group, floor: u64, holders_done: bool) -> bool {
        if self.settled(floor) {
            self.floor = self.floor.min(floor);
            return false;
        }
        let region = &group.place.region;
        let near = self.ask.region.as_ref().is_none_or(|near| near == region);
        if !near || !in_regions(region, &self.revision.spec.place) {
            return true;
        }
        let place = &group.place;
        let ended = if self.revision.spec.place.fit == Fit::Spread {
            let floor = |fullness: u16| floor + crowding(fullness);
            let mut emptiest = group.open.iter().map(|(full, slot)| (floor(*full), *slot));
            emptiest.try_for_each(|node| self.step(node, place, holders_done))
        } else {
            // Where nodes are to be filled up, the fullest that has room is best.
            let (least, most) = self.shares(group);
            let room = ..=(1000_u16.saturating_sub(least), Slot::MAX);
            let slack = |full: u16| 1000_u16.saturating_sub(full.saturating_add(most));
            let floor = |fullness: u16| floor + crowding(slack(fullness));
            let fullest = group.open.range(room).rev();
            let mut fullest = fullest.map(|(full, slot)| (floor(*full), *slot));
            fullest.try_for_each(|node| self.step(node, place, holders_done))
        };
        ended.break_value().unwrap_or(true)
    }

    /// Looks at the next node of a group; or ends with whether the walk goes on to the next group.
    fn step(
        &mut self,
        (floor, slot): (u64, Slot),
        place: &Place,
        holders_done: bool,
    ) -> ControlFlow<bool> {
        let settled = self.settled(floor);
        if settled || self.looked >= MOST_LOOKED {
            self.floor = self.floor.min(floor);
            return ControlFlow::Break(settled);
        }
        if holders_done && self.holds(slot) || self.first.contains(&slot) {
            return ControlFlow::Continue(());
        }
        if self.settled(floor + self.beyond(slot, place)) {
            self.looked += 1;
        } else {
            self.look(slot);
        }
        ControlFlow::Continue(())
    }

    /// How much farther a node is than its group at least.
    fn beyond(&self, slot: Slot, place: &Place) -> u64 {
        let row = self.index.row(slot).filter(|_| self.distance.is_measured());
        let micros = row.and_then(|row| row.rtt_micros.or(row.reckoned_micros));
        micros.map_or(0, |micros| micros.saturating_sub(place.floor_micros).into())
    }

    /// The least and the most that a node of the group becomes fuller by one instance, in thousandths.
    fn shares(&self, group: &Group) -> (u16, u16) {
        let share = |needed: u64, of: u64| needed.saturating_mul(1000) / of.max(1);
        let by = |of: &Resources| {
            let cpu = share(self.needs.cpu_millis.into(), of.cpu_millis.into());
            (cpu, share(self.needs.memory_bytes, of.memory_bytes))
        };
        let ((cpu_least, memory_least), (cpu_most, memory_most)) =
            (by(&group.most), by(&group.least));
        // What is cut off in the division is less than two of a thousand.
        let most = cpu_most.max(memory_most).saturating_add(2);
        let permille = |n: u64| u16::try_from(n.min(1000)).unwrap_or(1000);
        (permille(cpu_least.min(memory_least)), permille(most))
    }

    /// Nothing that costs `floor` or more is worth a look any more.
    fn settled(&self, floor: u64) -> bool {
        let last = self.best.get(KEPT - 1);
        last.is_some_and(|(cost, ..)| *cost <= floor)
    }

    fn look(&mut self, slot: Slot) {
        let Some(site) = self.site(slot) else {
            return;
        };
        self.looked += 1;
        if let Some(why) = obstacle(self.fleet, &site, self.revision, &self.needs, self.ask) {
            if self.refused.len() < REFUSALS_NAMED {
                self.refused.push((slot, why));
            } else {
                self.refused_more += 1;
            }
            return;
        }
        let rules = &self.revision.spec.place;
        let parts = parts(&site, &self.needs, &self.distance, &self.held, rules);
        let key = (parts.sum(), site.node, slot);
        let place = self.best.partition_point(|best| *best < key);
        if place < KEPT {
            self.best.truncate(KEPT - 1);
            self.best.insert(place, key);
        }
    }

    fn site(&self, slot: Slot) -> Option<Site<'a>> {
        let row = self.index.row(slot)?;
        let holds = self.holds(slot);
        Some(Site::of_row((slot, row), holds, self.promised, &self.known))
    }

    fn holds(&self, slot: Slot) -> bool {
        self.holders.is_some_and(|all| all.contains(&slot))
    }

    fn receipt(self) -> Receipt {
        let winner = self.best.first().map_or(u64::MAX, |(cost, ..)| *cost);
        let mut verdicts = Vec::with_capacity(self.best.len() + self.refused.len());
        let accepted = self.best.iter().filter_map(|(_, _, slot)| {
            let site = self.site(*slot)?;
            let rules = &self.revision.spec.place;
            let score = score(&site, &self.needs, &self.distance, &self.held, rules);
            Some(site.verdict(Ok(score)))
        });
        verdicts.extend(accepted);
        let refused = self.refused.iter().filter_map(|(slot, why)| {
            let site = self.site(*slot)?;
            Some(site.verdict(Err(why.clone())))
        });
        verdicts.extend(refused);
        let nodes = u32::try_from(self.index.len()).unwrap_or(u32::MAX);
        let closed = self.index.closed();
        let closed = closed.gone + closed.leaving + closed.cordoned;
        Receipt {
            revision: self.revision.key.clone(),
            decided_by: self.fleet.me,
            cause: self.ask.cause.clone(),
            why: self.ask.why.clone(),
            verdicts,
            displaces: None,
            inputs: Inputs {
                nodes,
                fleet_version: self.index.version(),
            },
            passed: Passed {
                closed,
                refused: self.refused_more,
                unseen: nodes.saturating_sub(closed).saturating_sub(self.looked),
                regret_micros: winner.saturating_sub(self.floor),
            },
        }
    }
}
