//! The fleet as placement looks things up in it: nodes in groups of equal distance and zone, each
//! ordered by how full they are; who holds an image, has a label, runs a revision. It is kept by
//! changes, one node at a time, and owns no policy: what a distance or a full node costs is
//! `place`'s word.

use std::collections::{BTreeMap, BTreeSet};

use super::lists::{Lapses, Lists};
use super::{Fleet, Member};
use crate::model::{Coordinate, Extent, Name, NodeId, NodeRecord, Resources, RevisionKey};

/// The round trip to a node whose distance nobody knows: a quarter of the globe. It ranks behind
/// measured neighbours and before a node that would have to pull the image.
pub const UNMEASURED_RTT_MICROS: u32 = 150_000;
/// Nodes whose round trips differ by less are as far as each other.
const BAND_MICROS: u32 = 2_000;

/// A node's number within the index; used again after it is gone.
pub type Slot = u32;

/// Where a node stands towards new instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Open,
    Gone,
    Leaving,
    Cordoned,
}

impl Standing {
    #[must_use]
    pub fn of(member: &Member) -> Self {
        match (
            member.is_reachable(),
            member.record.serving,
            member.record.cordoned,
        ) {
            (false, _, _) => Self::Gone,
            (_, false, _) => Self::Leaving,
            (_, _, true) => Self::Cordoned,
            _ => Self::Open,
        }
    }
}

/// What placement reads of every node that it looks at, close together: of ten thousand nodes it is at hand,
/// and the rest is not.
#[derive(Debug, Clone)]
pub struct Row {
    pub node: NodeId,
    pub standing: Standing,
    pub silent: u8,
    pub rtt_micros: Option<u32>,
    pub reckoned_micros: Option<u32>,
    pub capacity: Resources,
    pub free: Resources,
    /// Incarnation and number of the record it is from.
    pub record: (u64, u64),
    pub group: usize,
    pub fullness: u16,
    /// In what share of moments something there waited for its processors, memory or disk.
    pub pressure_permille: u16,
    /// What of images comes there in a second, in KiB.
    pub pull_rate: Option<u32>,
    pub about: Box<About>,
}

/// What it reads of some.
#[derive(Debug, Clone)]
pub struct About {
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    pub labels: BTreeMap<String, String>,
    pub coordinate: Option<Coordinate>,
    /// Hashes of the images it holds, in order.
    images: Vec<u64>,
    /// The sizes of those it tells of, in KiB.
    sizes: BTreeMap<u64, u32>,
    /// Revisions it runs, and how many instances of each serve or will.
    live: BTreeMap<RevisionKey, u32>,
    starts: BTreeMap<RevisionKey, Took>,
}

/// What starts of a revision took on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    pub mean_micros: u64,
    /// How many it is the mean of; none where the node tells no more than that.
    pub count: Option<u32>,
}

impl Took {
    /// Of every revision that the node tells of: by histograms, and by means where it has none.
    #[must_use]
    pub fn of(member: &Member) -> BTreeMap<RevisionKey, Self> {
        let all = Self::told(member);
        all.map(|(revision, took)| (revision.clone(), took))
            .collect()
    }

    /// The same of one revision.
    #[must_use]
    pub fn of_one(member: &Member, revision: &RevisionKey) -> Option<Self> {
        let all = Self::told(member);
        let of_it = all.filter(|(told, _)| *told == revision);
        of_it.map(|(_, took)| took).last()
    }

    /// What a histogram says comes after what a mean says of the same revision.
    fn told(member: &Member) -> impl Iterator<Item = (&RevisionKey, Self)> {
        let means = member.record.starts.iter().map(|s| {
            let took = Self {
                mean_micros: s.micros.into(),
                count: None,
            };
            (&s.revision, took)
        });
        let told = member.measured.starts.iter().filter_map(|s| {
            let took = Self {
                mean_micros: s.sum_micros().checked_div(s.count().into())?,
                count: Some(s.count()),
            };
            Some((&s.revision, took))
        });
        means.chain(told)
    }
}

impl Row {
    /// Whether it holds the image with that hash.
    #[must_use]
    pub fn holds(&self, image: u64) -> bool {
        self.about.images.binary_search(&image).is_ok()
    }
}

/// Nodes of one zone that are about as far away as each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// No node of the group is nearer.
    pub floor_micros: u32,
    pub region: Name,
    pub zone: Name,
}

#[derive(Debug, Clone)]
pub struct Group {
    pub place: Place,
    /// Where its nodes are and were, of those that know it.
    pub extent: Option<Extent>,
    /// The least and the most that a node of it has and had.
    pub least: Resources,
    pub most: Resources,
    /// Its open nodes, emptiest first.
    pub open: BTreeSet<(u16, Slot)>,
    /// All its nodes, counted.
    size: usize,
}

/// Nodes that take no new instances, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    pub gone: u32,
    pub leaving: u32,
    pub cordoned: u32,
}

/// An image, as nodes tell of it.
#[derive(Debug, Clone, Default)]
struct Copies {
    holders: BTreeSet<Slot>,
    /// What its holders say of its size, in KiB.
    sizes: BTreeMap<Slot, u32>,
}

impl Lapses for Copies {
    fn is_over(&self) -> bool {
        self.holders.is_empty() && self.sizes.is_empty()
    }
}

/// A revision, as nodes tell of it.
#[derive(Debug, Clone, Default)]
struct Shown {
    live: BTreeMap<Slot, u32>,
    starts: BTreeMap<Slot, Took>,
}

impl Lapses for Shown {
    fn is_over(&self) -> bool {
        self.live.is_empty() && self.starts.is_empty()
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Index {
    rows: Vec<Option<Row>>,
    slots: BTreeMap<NodeId, Slot>,
    vacant: Vec<Slot>,
    groups: Vec<Group>,
    /// The groups, nearest first.
    near: BTreeMap<Place, usize>,
    /// Numbers of groups that are empty, to be used again.
    spare: Vec<usize>,
    /// By their hashes.
    images: Lists<u64, Copies>,
    labels: BTreeMap<(String, String), BTreeSet<Slot>>,
    revisions: Lists<RevisionKey, Shown>,
    /// How many nodes bring images at that rate.
    rates: BTreeMap<u32, usize>,
    closed: Closed,
    version: u64,
}

impl Index {
    #[must_use]
    pub fn of(fleet: &Fleet) -> Self {
        let mut index = Self::default();
        for member in fleet.members.values() {
            index.set(member);
        }
        index
    }

    /// Takes in what a node says now.
    pub fn set(&mut self, member: &Member) {
        self.version += 1;
        let node = member.record.node;
        let slot = self.slots.get(&node).copied().unwrap_or_else(|| {
            let slot = self.vacant.pop().unwrap_or_else(|| {
                self.rows.push(None);
                slot_of(self.rows.len() - 1)
            });
            self.slots.insert(node, slot);
            slot
        });
        let group = self.group(member);
        let row = row(member, group);
        let old = self.rows[at(slot)].take();
        self.move_in_order(slot, old.as_ref(), Some(&row));
        self.post(slot, old.as_ref(), Some(&row));
        self.rows[at(slot)] = Some(row);
    }

    /// Forgets a node.
    pub fn remove(&mut self, node: NodeId) {
        let Some(slot) = self.slots.remove(&node) else {
            return;
        };
        self.version += 1;
        let old = self.rows[at(slot)].take();
        self.move_in_order(slot, old.as_ref(), None);
        self.post(slot, old.as_ref(), None);
        self.vacant.push(slot);
    }

    /// How many changes it has taken in.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    #[must_use]
    pub fn closed(&self) -> Closed {
        self.closed
    }

    #[must_use]
    pub fn row(&self, slot: Slot) -> Option<&Row> {
        self.rows.get(at(slot))?.as_ref()
    }

    #[must_use]
    pub fn slot(&self, node: NodeId) -> Option<Slot> {
        self.slots.get(&node).copied()
    }

    /// All nodes, by number.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.values().copied()
    }

    /// The groups, nearest first.
    pub fn groups(&self) -> impl Iterator<Item = (usize, &Group)> {
        self.near
            .values()
            .map(|group| (*group, &self.groups[*group]))
    }

    #[must_use]
    pub fn group_at(&self, group: usize) -> &Group {
        &self.groups[group]
    }

    /// All groups' numbers are below this.
    #[must_use]
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The nodes that hold an image.
    #[must_use]
    pub fn holders(&self, image: u64) -> Option<&BTreeSet<Slot>> {
        let copies = self.images.get(image, &image)?;
        Some(&copies.holders)
    }

    /// The nodes with a label of that value.
    #[must_use]
    pub fn labelled(&self, label: &str, value: &str) -> Option<&BTreeSet<Slot>> {
        self.labels.get(&(label.to_owned(), value.to_owned()))
    }

    /// Where instances of a revision serve or will on live nodes, and how many.
    #[must_use]
    pub fn live(&self, revision: &RevisionKey) -> Option<&BTreeMap<Slot, u32>> {
        let shown = self.revisions.get(key_hash(revision), revision)?;
        Some(&shown.live)
    }

    /// What starts of a revision took, where it was started lately.
    #[must_use]
    pub fn starts(&self, revision: &RevisionKey) -> Option<&BTreeMap<Slot, Took>> {
        let shown = self.revisions.get(key_hash(revision), revision)?;
        Some(&shown.starts)
    }

    /// The unpacked size of an image in KiB, where a holder tells it.
    #[must_use]
    pub fn image_kib(&self, image: u64) -> Option<u32> {
        let copies = self.images.get(image, &image)?;
        copies.sizes.values().copied().next()
    }

    /// No node brings images faster, in KiB a second.
    #[must_use]
    pub fn fastest_pull(&self) -> Option<u32> {
        self.rates.last_key_value().map(|(rate, _)| *rate)
    }

    fn group(&mut self, member: &Member) -> usize {
        let place = place_of(member);
        let known = member.measured.coordinate.filter(Coordinate::is_trusted);
        let capacity = member.record.capacity;
        if let Some(group) = self.near.get(&place) {
            let found = &mut self.groups[*group];
            found.least = each(&found.least, &capacity, u64::min);
            found.most = each(&found.most, &capacity, u64::max);
            let extent = &mut found.extent;
            *extent = match (*extent, known) {
                (Some(extent), Some(at)) => Some(extent.with(&at)),
                (extent, at) => extent.or(at.as_ref().map(Extent::around)),
            };
            return *group;
        }
        let made = Group {
            place: place.clone(),
            extent: known.as_ref().map(Extent::around),
            least: capacity,
            most: capacity,
            open: BTreeSet::new(),
            size: 0,
        };
        let group = self.spare.pop().unwrap_or(self.groups.len());
        match self.groups.get_mut(group) {
            Some(empty) => *empty = made,
            None => self.groups.push(made),
        }
        self.near.insert(place, group);
        group
    }

    fn move_in_order(&mut self, slot: Slot, old: Option<&Row>, new: Option<&Row>) {
        self.count(old, new);
        let spot = |row: &Row| (row.standing, row.group, row.fullness);
        if old.map(spot) == new.map(spot) {
            return;
        }
        if let Some(row) = old {
            match row.standing {
                Standing::Open => {
                    self.groups[row.group].open.remove(&(row.fullness, slot));
                }
                closed => *self.closed.of(closed) -= 1,
            }
        }
        if let Some(row) = new {
            match row.standing {
                Standing::Open => {
                    self.groups[row.group].open.insert((row.fullness, slot));
                }
                closed => *self.closed.of(closed) += 1,
            }
        }
    }

    /// A group that nobody is in any more is forgotten: distances wander.
    fn count(&mut self, old: Option<&Row>, new: Option<&Row>) {
        if let Some(row) = new {
            self.groups[row.group].size += 1;
        }
        let Some(row) = old else {
            return;
        };
        let group = &mut self.groups[row.group];
        group.size -= 1;
        if group.size == 0 {
            self.near.remove(&group.place);
            self.spare.push(row.group);
        }
    }

    /// Brings the lists of who has what up to date.
    fn post(&mut self, slot: Slot, old: Option<&Row>, new: Option<&Row>) {
        let rate = |row: Option<&Row>| row.and_then(|r| r.pull_rate);
        if rate(old) != rate(new) {
            if let Some(rate) = rate(new) {
                *self.rates.entry(rate).or_default() += 1;
            }
            if let Some(rate) = rate(old)
                && let Some(count) = self.rates.get_mut(&rate)
            {
                *count -= 1;
                if *count == 0 {
                    self.rates.remove(&rate);
                }
            }
        }
        let [old, new] = [old, new].map(|row| row.into_iter().map(|row| &*row.about));
        let [were, are] = [&old, &new].map(|about| about.clone().flat_map(|a| &a.labels));
        turn(were.map(alone), are.map(alone), |(label, value), told| {
            let label = (label.clone(), value.clone());
            let list = self.labels.entry(label.clone()).or_default();
            enlist(list, slot, told.is_some());
            if list.is_empty() {
                self.labels.remove(&label);
            }
        });
        let [were, are] = [&old, &new].map(|about| about.clone().flat_map(|a| &a.images));
        turn(were.map(alone), are.map(alone), |image, told| {
            let change = |copies: &mut Copies| enlist(&mut copies.holders, slot, told.is_some());
            self.images.change(*image, image, change);
        });
        let [were, are] = [&old, &new].map(|about| about.clone().flat_map(|a| &a.sizes));
        turn(were, are, |image, kib| {
            let change = |copies: &mut Copies| note(&mut copies.sizes, slot, kib);
            self.images.change(*image, image, change);
        });
        let [were, are] = [&old, &new].map(|about| about.clone().flat_map(|a| &a.live));
        turn(were, are, |key, count| {
            let change = |shown: &mut Shown| note(&mut shown.live, slot, count);
            self.revisions.change(key_hash(key), key, change);
        });
        let [were, are] = [old, new].map(|about| about.flat_map(|a| &a.starts));
        turn(were, are, |key, took| {
            let change = |shown: &mut Shown| note(&mut shown.starts, slot, took);
            self.revisions.change(key_hash(key), key, change);
        });
    }
}

/// The amounts of two nodes, each by each.
fn each(a: &Resources, b: &Resources, of: impl Fn(u64, u64) -> u64) -> Resources {
    let small = |a: u32, b: u32| u32::try_from(of(a.into(), b.into())).unwrap_or(u32::MAX);
    Resources {
        cpu_millis: small(a.cpu_millis, b.cpu_millis),
        memory_bytes: of(a.memory_bytes, b.memory_bytes),
        instances: small(a.instances, b.instances),
    }
}

impl Closed {
    fn of(&mut self, standing: Standing) -> &mut u32 {
        match standing {
            Standing::Leaving => &mut self.leaving,
            Standing::Cordoned => &mut self.cordoned,
            Standing::Gone | Standing::Open => &mut self.gone,
        }
    }
}

/// Tells what a node says no more, and what it says now and did not. Both are in the order of their keys.
fn turn<K: Ord, T: PartialEq>(
    old: impl Iterator<Item = (K, T)>,
    new: impl Iterator<Item = (K, T)>,
    mut put: impl FnMut(K, Option<T>),
) {
    let (mut old, mut new) = (old.peekable(), new.peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(was), Some(is)) if was == is => {
                old.next();
                new.next();
            }
            (Some((was, _)), is) if is.is_none_or(|(is, _)| was <= is) => {
                let again = is.is_some_and(|(is, _)| was == is);
                if let Some((key, _)) = old.next().filter(|_| !again) {
                    put(key, None);
                }
            }
            _ => {
                if let Some((key, told)) = new.next() {
                    put(key, Some(told));
                }
            }
        }
    }
}

/// What there is nothing to tell of but that it is there.
fn alone<K>(key: K) -> (K, ()) {
    (key, ())
}

/// Notes what the node tells, or that it tells nothing.
fn note<V: Copy>(list: &mut BTreeMap<Slot, V>, slot: Slot, told: Option<&V>) {
    match told {
        Some(told) => drop(list.insert(slot, *told)),
        None => drop(list.remove(&slot)),
    }
}

fn enlist(list: &mut BTreeSet<Slot>, slot: Slot, is_in: bool) {
    if is_in {
        list.insert(slot);
    } else {
        list.remove(&slot);
    }
}

fn place_of(member: &Member) -> Place {
    let rtt = member.distance_micros();
    Place {
        floor_micros: rtt.map_or(UNMEASURED_RTT_MICROS, |rtt| rtt - rtt % BAND_MICROS),
        region: member.record.region.clone(),
        zone: member.record.zone.clone(),
    }
}

fn row(member: &Member, group: usize) -> Row {
    let record = &member.record;
    let mut images: Vec<u64> = record.images.iter().map(|d| text_hash(d)).collect();
    images.sort_unstable();
    images.dedup();
    let about = About {
        name: record.name.clone(),
        region: record.region.clone(),
        zone: record.zone.clone(),
        labels: record.labels.clone(),
        coordinate: member.measured.coordinate,
        images,
        sizes: member.measured.pulls.images.iter().copied().collect(),
        live: if member.alive {
            live(record)
        } else {
            BTreeMap::new()
        },
        starts: Took::of(member),
    };
    Row {
        node: record.node,
        standing: Standing::of(member),
        silent: member.silent,
        rtt_micros: member.rtt_micros,
        reckoned_micros: member.reckoned_micros,
        capacity: record.capacity,
        free: record.free,
        record: (record.incarnation, record.seq),
        group,
        fullness: fullness(&record.capacity, &record.free, &Resources::default()),
        pressure_permille: member.measured.pressure.map_or(0, |p| p.worst_permille()),
        pull_rate: member.measured.pulls.kib_per_second,
        about: Box::new(about),
    }
}

fn live(record: &NodeRecord) -> BTreeMap<RevisionKey, u32> {
    let mut live = BTreeMap::new();
    for report in record.instances.iter().filter(|i| i.state.is_live()) {
        if let Some(count) = live.get_mut(&report.revision) {
            *count += 1;
        } else {
            live.insert(report.revision.clone(), 1);
        }
    }
    live
}

/// How full a node would be with `needed` more, by the scarcer of its processors and its memory, in
/// thousandths.
#[must_use]
pub fn fullness(capacity: &Resources, free: &Resources, needed: &Resources) -> u16 {
    let share = |capacity: u64, free: u64, needed: u64| {
        let used = capacity.saturating_sub(free).saturating_add(needed);
        // What overflows is more than full.
        let permille = used.checked_mul(1000).map(|n| n / capacity.max(1));
        u16::try_from(permille.unwrap_or(u64::MAX).min(1000)).unwrap_or(1000)
    };
    let cpu = share(
        capacity.cpu_millis.into(),
        free.cpu_millis.into(),
        needed.cpu_millis.into(),
    );
    cpu.max(share(
        capacity.memory_bytes,
        free.memory_bytes,
        needed.memory_bytes,
    ))
}

/// FNV-1a. Two images with the same hash would be taken for each other, which makes an estimate
/// wrong and nothing else.
#[must_use]
pub fn text_hash(text: &str) -> u64 {
    mix(0xcbf2_9ce4_8422_2325, text)
}

/// Puts like names apart, so that looking one up compares numbers first.
pub(super) fn key_hash(revision: &RevisionKey) -> u64 {
    mix(
        text_hash(revision.namespace.as_str()),
        revision.name.as_str(),
    )
}

fn mix(seed: u64, text: &str) -> u64 {
    text.bytes().fold(seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn at(slot: Slot) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

fn slot_of(number: usize) -> Slot {
    Slot::try_from(number).unwrap_or(Slot::MAX)
}
