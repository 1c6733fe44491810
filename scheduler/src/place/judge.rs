//! One node and one revision: what speaks against it, and what an instance there would cost. The
//! same rules for a member of the fleet and for a row of its index.

use super::reckon::Known;
use super::{
    Ask, BESIDE_MICROS, CROWDED_MICROS, Candidate, ENERGY_LABEL, ENERGY_MICROS, ENERGY_UNKNOWN,
    PREFER_MICROS, PRESSED_MICROS, Parts, Promised, REGION_RTT_MICROS, Rejection, SILENT_MICROS,
    SPREAD_MICROS, Verdict, ZONE_RTT_MICROS,
};
use crate::fleet::{
    Fleet, Group, Index, Member, Row, Slot, Standing, UNMEASURED_RTT_MICROS, fullness, text_hash,
};
use crate::model::{
    Coordinate, Fit, Name, NodeId, NodeRecord, ObjectKey, PlacementRules, Preference, Resources,
    Revision, Spread,
};
use std::collections::BTreeMap;

/// A node as it is judged.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub node: NodeId,
    pub name: &'a Name,
    pub region: &'a Name,
    pub zone: &'a Name,
    pub labels: &'a BTreeMap<String, String>,
    pub standing: Standing,
    pub silent: u8,
    pub rtt_micros: Option<u32>,
    pub reckoned_micros: Option<u32>,
    pub coordinate: &'a Option<Coordinate>,
    pub capacity: Resources,
    pub free: Resources,
    pub record: (u64, u64),
    pub image_present: bool,
    /// What a start takes there.
    pub start_micros: u64,
    /// What bringing the image takes there, if it is not.
    pub pull_micros: u64,
    pub pressure_permille: u16,
}

impl<'a> Site<'a> {
    pub fn of_member(
        member: &'a Member,
        revision: &Revision,
        promised: &Promised,
        known: &Known<'_>,
    ) -> Self {
        let record = &member.record;
        let pressure = member.measured.pressure.unwrap_or_default();
        Self {
            node: record.node,
            name: &record.name,
            region: &record.region,
            zone: &record.zone,
            labels: &record.labels,
            standing: Standing::of(member),
            silent: member.silent,
            rtt_micros: member.rtt_micros,
            reckoned_micros: member.reckoned_micros,
            coordinate: &member.measured.coordinate,
            capacity: record.capacity,
            free: promised.left(record.node, &record.free),
            record: (record.incarnation, record.seq),
            image_present: record.images.contains(&revision.image.digest),
            start_micros: known.starts.at(record.node),
            pull_micros: known.pulls.at(member.measured.pulls.kib_per_second),
            pressure_permille: pressure.worst_permille(),
        }
    }

    pub fn of_row(
        (slot, row): (Slot, &'a Row),
        image_present: bool,
        promised: &Promised,
        known: &Known<'_>,
    ) -> Self {
        Self {
            node: row.node,
            name: &row.about.name,
            region: &row.about.region,
            zone: &row.about.zone,
            labels: &row.about.labels,
            standing: row.standing,
            silent: row.silent,
            rtt_micros: row.rtt_micros,
            reckoned_micros: row.reckoned_micros,
            coordinate: &row.about.coordinate,
            capacity: row.capacity,
            free: promised.left(row.node, &row.free),
            record: row.record,
            image_present,
            start_micros: known.starts.at_slot(slot),
            pull_micros: known.pulls.at(row.pull_rate),
            pressure_permille: row.pressure_permille,
        }
    }

    pub fn verdict(&self, outcome: Result<Candidate, Rejection>) -> Verdict {
        Verdict {
            node: self.node,
            name: self.name.clone(),
            region: self.region.clone(),
            record: self.record,
            outcome,
        }
    }
}

/// All nodes, by number.
pub(super) fn sites<'a>(
    fleet: &'a Fleet,
    revision: &Revision,
    promised: &Promised,
) -> Vec<Site<'a>> {
    let known = Known::of(fleet, revision);
    let Some(index) = &fleet.index.0 else {
        let members = fleet.members.values();
        let site = |member| Site::of_member(member, revision, promised, &known);
        return members.map(site).collect();
    };
    let image = text_hash(&revision.image.digest);
    let rows = index
        .slots()
        .filter_map(|slot| Some((slot, index.row(slot)?)));
    let site = |(slot, row): (Slot, &'a Row)| {
        Site::of_row((slot, row), row.holds(image), promised, &known)
    };
    rows.map(site).collect()
}

/// The first reason why the node cannot take it.
pub(super) fn obstacle(
    fleet: &Fleet,
    site: &Site<'_>,
    revision: &Revision,
    needs: &Resources,
    ask: &Ask,
) -> Option<Rejection> {
    match site.standing {
        Standing::Gone => return Some(Rejection::NotAlive),
        Standing::Leaving => return Some(Rejection::Leaving),
        Standing::Cordoned => return Some(Rejection::Cordoned),
        Standing::Open => {}
    }
    if ask.avoid.contains(&site.node) {
        return Some(Rejection::Avoided);
    }
    if let Some(region) = ask.region.as_ref().filter(|r| *r != site.region) {
        return Some(Rejection::Far {
            from: region.clone(),
        });
    }
    misplaced(site.region, site.labels, &revision.spec.place)
        .or_else(|| elsewhere(fleet, site.node, revision))
        .or_else(|| lacking(&site.free, needs))
}

/// The nodes that have one of the revision's local volumes. One that nobody has yet is made where
/// the first instance starts.
pub(super) fn volumes<'a>(
    fleet: &'a Fleet,
    revision: &'a Revision,
) -> impl Iterator<Item = (ObjectKey, NodeId)> + 'a {
    let locals = revision.spec.volumes.iter().filter_map(|v| v.local());
    locals.filter_map(|name| {
        let key = ObjectKey {
            namespace: revision.key.namespace.clone(),
            name: Name::new(name).ok()?,
        };
        let held = fleet.volumes.get(&key)?;
        Some((key, held.node))
    })
}

/// A local volume of the revision that another node has.
fn elsewhere(fleet: &Fleet, node: NodeId, revision: &Revision) -> Option<Rejection> {
    if revision.spec.volumes.is_empty() {
        return None;
    }
    let (key, on) = volumes(fleet, revision).find(|(_, on)| *on != node)?;
    let holder = fleet.members.get(&on);
    Some(Rejection::Volume {
        volume: key.name.to_string(),
        on: holder.map_or_else(|| on.to_string(), |m| m.record.name.to_string()),
    })
}

/// Why a node of that region with those labels may not run what has these rules, whoever asks.
#[must_use]
pub fn misplaced(
    region: &Name,
    labels: &BTreeMap<String, String>,
    rules: &PlacementRules,
) -> Option<Rejection> {
    if rules.regions.is_empty() && rules.require.is_empty() {
        return None;
    }
    if !in_regions(region, rules) {
        return Some(Rejection::Region {
            want: rules.regions.join(", "),
            have: region.to_string(),
        });
    }
    let differs = |(label, want): &(&String, &String)| labels.get(*label) != Some(*want);
    let (label, want) = rules.require.iter().find(differs)?;
    Some(Rejection::Label {
        label: label.clone(),
        want: want.clone(),
        have: labels.get(label).map_or("unset", String::as_str).to_owned(),
    })
}

pub(super) fn in_regions(region: &Name, rules: &PlacementRules) -> bool {
    let allows = |pattern: &String| match pattern.strip_suffix('*') {
        Some(prefix) => region.as_str().starts_with(prefix),
        None => region.as_str() == pattern,
    };
    rules.regions.is_empty() || rules.regions.iter().any(allows)
}

/// Why `free` does not hold `needs`; the node that is asked judges by the same rule.
#[must_use]
pub fn lacking(free: &Resources, needs: &Resources) -> Option<Rejection> {
    if free.instances < needs.instances {
        return Some(Rejection::Instances);
    }
    if free.cpu_millis < needs.cpu_millis {
        return Some(Rejection::Cpu {
            want: needs.cpu_millis,
            free: free.cpu_millis,
        });
    }
    if free.memory_bytes < needs.memory_bytes {
        return Some(Rejection::Memory {
            want: needs.memory_bytes,
            free: free.memory_bytes,
        });
    }
    None
}

/// What an instance on the site would cost who asks.
pub(super) fn parts(
    site: &Site<'_>,
    needs: &Resources,
    distance: &Distance<'_>,
    held: &Held<'_>,
    rules: &PlacementRules,
) -> Parts {
    let (_, round_trip) = distance.to(site);
    let spread = match rules.spread {
        Spread::None => 0,
        Spread::Zone => held.in_zone(site.region, site.zone),
        Spread::Region => held.in_region(site.region),
    };
    let full = fullness(&site.capacity, &site.free, needs);
    let (crowding, slack) = match rules.fit {
        Fit::Spread => (crowding(full), 0),
        Fit::Pack => (0, crowding(1000 - full)),
    };
    Parts {
        round_trip,
        start: site.start_micros,
        pull: if site.image_present {
            0
        } else {
            site.pull_micros
        },
        crowding,
        beside: u64::from(held.on_node(site.node)) * BESIDE_MICROS,
        spread: spread * SPREAD_MICROS,
        slack,
        prefer: prefer(site.labels, &rules.prefer),
        energy: energy(site.labels, rules.energy),
        pressure: u64::from(site.pressure_permille) * PRESSED_MICROS / 1000,
        silence: u64::from(site.silent) * SILENT_MICROS,
    }
}

/// The same in full.
pub(super) fn score(
    site: &Site<'_>,
    needs: &Resources,
    distance: &Distance<'_>,
    held: &Held<'_>,
    rules: &PlacementRules,
) -> Candidate {
    let parts = parts(site, needs, distance, held, rules);
    let (rtt_micros, _) = distance.to(site);
    Candidate {
        cost_micros: parts.sum(),
        rtt_micros,
        image_present: site.image_present,
        same_revision: held.on_node(site.node),
        free_cpu_millis: site.free.cpu_millis,
        free_memory_bytes: site.free.memory_bytes,
        parts,
    }
}

/// The preferences that the node does not meet.
fn prefer(labels: &BTreeMap<String, String>, preferences: &[Preference]) -> u64 {
    let unmet = preferences.iter().filter(|preference| {
        let has = labels.get(&preference.label) == Some(&preference.value);
        has != (preference.weight > 0)
    });
    let weights = unmet.map(|preference| u64::from(preference.weight.unsigned_abs()));
    weights.sum::<u64>() * PREFER_MICROS
}

/// What the node's energy is counted as, at a service's weight.
fn energy(labels: &BTreeMap<String, String>, weight: u32) -> u64 {
    if weight == 0 {
        return 0;
    }
    let figure = labels.get(ENERGY_LABEL).and_then(|text| text.parse().ok());
    let figure: u64 = figure.unwrap_or(ENERGY_UNKNOWN).min(1000);
    u64::from(weight) * figure * ENERGY_MICROS
}

/// What so full a node adds.
pub(super) fn crowding(fullness: u16) -> u64 {
    u64::from(fullness) * CROWDED_MICROS / 1000
}

/// From where the demand is.
pub(super) struct Distance<'a> {
    from: NodeId,
    /// Round trips are measured from this node alone.
    measured: bool,
    /// Region and zone of the asker, if it is known.
    asker: Option<(&'a Name, &'a Name)>,
    /// Where the asker is on the map of round trips.
    coordinate: Option<Coordinate>,
}

impl<'a> Distance<'a> {
    pub fn new(fleet: &'a Fleet, from: NodeId) -> Self {
        let asker = fleet.members.get(&from);
        Self {
            from,
            measured: from == fleet.me,
            asker: asker.map(|m| (&m.record.region, &m.record.zone)),
            coordinate: asker.and_then(|m| m.measured.coordinate),
        }
    }

    pub fn is_measured(&self) -> bool {
        self.measured
    }

    /// The measured round trip, when there is one, and the one to count with.
    pub fn to(&self, site: &Site<'_>) -> (Option<u32>, u64) {
        if site.node == self.from {
            return (Some(0), 0);
        }
        if self.measured {
            let known = site.rtt_micros.or(site.reckoned_micros);
            let counted = known.unwrap_or(UNMEASURED_RTT_MICROS);
            return (site.rtt_micros, counted.into());
        }
        let reckoned = self.coordinate.zip(*site.coordinate);
        let reckoned = reckoned.and_then(|(from, to)| from.round_trip_to(&to));
        let guess = || self.guess(site.region, site.zone);
        (None, reckoned.map_or_else(guess, u64::from))
    }

    /// No node of the group is nearer to an asker that nothing was measured from.
    pub fn floor(&self, group: &Group) -> u64 {
        let guess = self.guess(&group.place.region, &group.place.zone);
        let reckoned = self.coordinate.zip(group.extent);
        reckoned.map_or(guess, |(from, extent)| guess.min(extent.nearest(&from)))
    }

    /// By names, where nothing else is known.
    fn guess(&self, region: &Name, zone: &Name) -> u64 {
        match self.asker {
            Some((r, z)) if r == region && z == zone => ZONE_RTT_MICROS,
            Some((r, _)) if r == region => REGION_RTT_MICROS,
            _ => UNMEASURED_RTT_MICROS.into(),
        }
    }
}

/// Where instances of the revision are that serve or will, and how many.
#[derive(Default)]
pub(super) struct Held<'a> {
    /// In the order of their nodes.
    counts: Vec<(NodeId, u32, &'a Name, &'a Name)>,
}

impl<'a> Held<'a> {
    pub fn of(fleet: &'a Fleet, revision: &'a Revision, promised: &Promised) -> Self {
        match &fleet.index.0 {
            Some(index) => Self::of_index(index, revision, promised),
            None => Self::of_members(fleet, revision, promised),
        }
    }

    fn of_members(fleet: &'a Fleet, revision: &'a Revision, promised: &Promised) -> Self {
        let key = &revision.key;
        let mut held = Self::default();
        for record in live_hosts(fleet, revision) {
            held.add(record.node, 1, &record.region, &record.zone);
        }
        for (node, count) in promised.of(key) {
            if let Some(member) = fleet.members.get(&node) {
                held.add(node, count, &member.record.region, &member.record.zone);
            }
        }
        held
    }

    pub fn of_index(index: &'a Index, revision: &Revision, promised: &Promised) -> Self {
        let key = &revision.key;
        let mut held = Self::default();
        for (slot, count) in index.live(key).into_iter().flatten() {
            if let Some(row) = index.row(*slot) {
                held.counts
                    .push((row.node, *count, &row.about.region, &row.about.zone));
            }
        }
        held.counts.sort_unstable_by_key(|(node, ..)| *node);
        for (node, count) in promised.of(key) {
            if let Some(row) = index.slot(node).and_then(|slot| index.row(slot)) {
                held.add(node, count, &row.about.region, &row.about.zone);
            }
        }
        held
    }

    fn add(&mut self, node: NodeId, count: u32, region: &'a Name, zone: &'a Name) {
        match self.find(node) {
            Ok(known) => self.counts[known].1 += count,
            Err(place) => self.counts.insert(place, (node, count, region, zone)),
        }
    }

    fn find(&self, node: NodeId) -> Result<usize, usize> {
        self.counts.binary_search_by_key(&node, |(node, ..)| *node)
    }

    fn on_node(&self, node: NodeId) -> u32 {
        self.find(node).map_or(0, |known| self.counts[known].1)
    }

    pub fn in_zone(&self, region: &Name, zone: &Name) -> u64 {
        let here = self
            .counts
            .iter()
            .filter(|(_, _, r, z)| *r == region && *z == zone);
        here.map(|(_, count, ..)| u64::from(*count)).sum()
    }

    pub fn in_region(&self, region: &Name) -> u64 {
        let here = self.counts.iter().filter(|(_, _, r, _)| *r == region);
        here.map(|(_, count, ..)| u64::from(*count)).sum()
    }
}

/// The nodes of live instances of the revision, once for each.
pub(super) fn live_hosts<'a>(
    fleet: &'a Fleet,
    revision: &'a Revision,
) -> impl Iterator<Item = &'a NodeRecord> {
    let instances = fleet.instances(&revision.key);
    instances
        .filter(|(_, i)| i.state.is_live())
        .map(|(m, _)| &*m.record)
}
