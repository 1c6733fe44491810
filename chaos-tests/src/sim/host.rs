//! One host: what the daemon on it holds, with the same cores as the real one. What it does with
//! them is in `agent`, `door` and `orders`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use scheduler::activate::Activation;
use scheduler::converge::Node;
use scheduler::fleet::{Contact, Fleet, Index, Indexed, Member, Reach};
use scheduler::model::{
    Demand, InstanceId, InstanceReport, InstanceState, Name, NodeId, NodeRecord, Now, Resources,
    Revision, RevisionKey, StartTime, UnixMs,
};
use scheduler::registry::State;
use scheduler::route::Routes;
use scheduler::steward::Steward;

use super::network::Spot;
use super::queue::Millis;

/// A host that was not heard of for so long counts as dead: about five rounds of gossip, as φ 8 comes
/// to with the product's interval of a second.
pub(super) const DEAD_AFTER: Millis = 5_000;
/// Wall clocks begin here, so that times before the start are times too.
pub(super) const EPOCH: u64 = 1_700_000_000_000;
/// What each host has for instances.
pub(super) const CAPACITY: Resources = Resources {
    cpu_millis: 4_000,
    memory_bytes: 4 << 30,
    instances: 60,
};

/// A request's number, which is its ticket too.
pub(super) type Id = u64;
/// The number of a search for a node.
pub(super) type Errand = u64;

/// What runs of one instance.
#[derive(Debug)]
pub(super) struct Program {
    pub revision: Arc<Revision>,
    /// Who ordered it, if no door did.
    pub steward: Option<NodeId>,
    /// Its image was there.
    pub prepared: Millis,
    /// It answers probes from then on.
    pub listens: Millis,
    pub open: bool,
    pub frozen: bool,
    pub inside: BTreeSet<Id>,
    /// Searches that wait until it is ready.
    pub askers: Vec<Errand>,
    /// Request-milliseconds of this second, and until when they are counted.
    area: u64,
    counted: Millis,
    /// Requests in it on average over the last second, times 1000.
    average_milli: u32,
    pub idle_since: Millis,
}

impl Program {
    pub fn new(now: Millis, revision: Arc<Revision>, askers: Vec<Errand>) -> Self {
        Self {
            revision,
            steward: None,
            prepared: now,
            listens: Millis::MAX,
            open: false,
            frozen: false,
            inside: BTreeSet::new(),
            askers,
            area: 0,
            counted: now,
            average_milli: 0,
            idle_since: now,
        }
    }

    /// Call it before `inside` changes.
    pub fn count(&mut self, now: Millis) {
        let load = u64::try_from(self.inside.len()).unwrap_or(0);
        self.area += load * (now - self.counted);
        self.counted = now;
        self.idle_since = now;
    }

    /// The average load since the last time is what records say from now on.
    fn roll(&mut self, now: Millis, since: Millis) {
        let idle = self.idle_since;
        self.count(now);
        self.idle_since = idle;
        let area = std::mem::take(&mut self.area);
        let average = area * 1_000 / (now - since).max(1);
        self.average_milli = u32::try_from(average).unwrap_or(u32::MAX);
    }
}

/// Requests of one revision that wait at a door.
#[derive(Debug)]
pub(super) struct Lane {
    pub core: Activation,
    pub held: BTreeSet<Id>,
}

/// Something that is believed for a while.
#[derive(Debug, Clone)]
pub(super) struct Rumour {
    pub until: Millis,
    pub revision: RevisionKey,
    pub node: NodeId,
    pub instance: Option<InstanceId>,
}

/// The newest that was heard of a node.
#[derive(Debug)]
pub(super) struct Heard {
    record: Arc<NodeRecord>,
    /// When it was said, and when it came.
    pub said: Millis,
    at: Millis,
    alive: bool,
}

#[derive(Debug)]
pub(super) struct Host {
    pub node: NodeId,
    pub spot: Spot,
    name: Name,
    region: Name,
    zone: Name,
    pub up: bool,
    /// Rises with every death: what was meant for an earlier life is nobody's.
    pub life: u64,
    seq: u64,
    /// Its clock, in parts per million.
    pub drift: i64,
    pub slow_percent: u64,
    pub agent: Node,
    pub programs: BTreeMap<InstanceId, Program>,
    pub steward: Steward,
    pub state: Arc<State>,
    /// Its records of the last seconds, with the times it said them at.
    pub said: VecDeque<(Millis, Arc<NodeRecord>)>,
    pub heard: BTreeMap<NodeId, Heard>,
    /// Of whom it heard something new since its view was made.
    changed: BTreeSet<NodeId>,
    pub fleet: Fleet,
    index: Arc<Index>,
    pub routes: Arc<Routes>,
    pub lanes: BTreeMap<RevisionKey, Lane>,
    pub sent: BTreeMap<(RevisionKey, NodeId), u32>,
    /// Requests sent to other regions since the daemon began.
    pub away: BTreeMap<RevisionKey, u64>,
    pub fresh: Vec<Rumour>,
    pub bare: Vec<Rumour>,
    pub ejected: BTreeMap<NodeId, Millis>,
    pub images: BTreeSet<String>,
    /// What the last start of each revision took, without the pull.
    pub took: BTreeMap<RevisionKey, Millis>,
    /// Orders of the steward under way and waiting.
    pub errands: usize,
    pub waiting: VecDeque<(RevisionKey, scheduler::place::Receipt)>,
    rolled: Millis,
    pub stale: bool,
    /// When it last heard of the registry's quorum in this life.
    pub quorum: Option<Millis>,
    /// The registry, and the own record, that its view is of.
    viewed: Arc<State>,
    shown: Option<Arc<NodeRecord>>,
}

impl Host {
    pub fn new(number: usize, spot: Spot, region: &str, capacity: Resources) -> Self {
        let name = |text: String| Name::new(text).unwrap_or_else(|_| Name::default_namespace());
        let node = NodeId(u64::try_from(number).unwrap_or(0) + 1);
        Self {
            node,
            spot,
            name: name(format!("{region}-{}-{number}", spot.zone)),
            region: name(region.to_owned()),
            zone: name(format!("zone-{}", spot.zone)),
            up: true,
            life: 1,
            seq: 0,
            drift: 0,
            slow_percent: 100,
            agent: Node::new(capacity, 0),
            programs: BTreeMap::new(),
            steward: Steward::new(),
            state: Arc::default(),
            said: VecDeque::new(),
            heard: BTreeMap::new(),
            changed: BTreeSet::new(),
            index: Arc::default(),
            fleet: Fleet {
                me: node,
                ..Fleet::default()
            },
            routes: Arc::default(),
            lanes: BTreeMap::new(),
            sent: BTreeMap::new(),
            away: BTreeMap::new(),
            fresh: Vec::new(),
            bare: Vec::new(),
            ejected: BTreeMap::new(),
            images: BTreeSet::new(),
            took: BTreeMap::new(),
            errands: 0,
            waiting: VecDeque::new(),
            rolled: 0,
            stale: true,
            quorum: None,
            viewed: Arc::default(),
            shown: None,
        }
    }

    /// Begins anew with what was on the disk: the registry as it was known, and the images.
    pub fn reborn(&mut self, capacity: Resources) {
        let number = usize::try_from(self.node.0 - 1).unwrap_or(0);
        let fresh = Self::new(number, self.spot, self.region.as_str(), capacity);
        let old = std::mem::replace(self, fresh);
        self.life = old.life + 1;
        self.state = old.state;
        self.images = old.images;
        (self.drift, self.slow_percent) = (old.drift, old.slow_percent);
    }

    /// Its own monotonic clock.
    pub fn clock(&self, now: Millis) -> Now {
        let skew = i64::try_from(now).unwrap_or(0) * self.drift / 1_000_000;
        Now(now.saturating_add_signed(skew))
    }

    /// When its clock will show `at`, in the simulation's time.
    pub fn when(&self, now: Millis, at: Now) -> Millis {
        // Far enough that it is due then by either clock.
        let away = at.since(self.clock(now));
        away + away.saturating_mul(self.drift.unsigned_abs()) / 1_000_000 + 1
    }

    pub fn slowed(&self, millis: Millis) -> Millis {
        (millis * self.slow_percent / 100).max(1)
    }

    pub fn region(&self) -> &Name {
        &self.region
    }

    /// Its second is over: what its instances carried on average is known.
    pub fn roll(&mut self, now: Millis) {
        let since = std::mem::replace(&mut self.rolled, now);
        for program in self.programs.values_mut() {
            program.roll(now, since);
        }
    }

    /// What it says of itself now. A record that says nothing new is the one before.
    pub fn record(&mut self, now: Millis) -> Arc<NodeRecord> {
        if let Some((at, last)) = self.said.back()
            && *at == now
            && !self.stale
        {
            return Arc::clone(last);
        }
        let mut record = self.describe(now);
        if let Some((_, last)) = self.said.back() {
            record.seq = last.seq;
            if record == **last {
                return Arc::clone(last);
            }
        }
        self.seq += 1;
        record.seq = self.seq;
        Arc::new(record)
    }

    fn describe(&self, now: Millis) -> NodeRecord {
        let (own, unix) = (self.clock(now), EPOCH + self.clock(now).0);
        let mut instances = Vec::new();
        for seen in self.agent.seen() {
            let busy = seen.state.serves() || seen.state == InstanceState::Draining;
            let program = self.programs.get(seen.id).filter(|_| busy);
            let (in_flight, concurrency_milli) = program.map_or((0, 0), |p| {
                let in_flight = u32::try_from(p.inside.len()).unwrap_or(u32::MAX);
                (in_flight, p.average_milli)
            });
            instances.push(InstanceReport {
                id: seen.id.clone(),
                service: seen.service.clone(),
                revision: seen.revision.clone(),
                state: seen.state,
                since: UnixMs(unix.saturating_sub(own.since(seen.since))),
                in_flight,
                concurrency_milli,
                failure: seen.failure.cloned(),
                steward: self.programs.get(seen.id).and_then(|p| p.steward),
                activity: scheduler::model::Activity::default(),
            });
        }
        NodeRecord {
            node: self.node,
            name: self.name.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            labels: BTreeMap::new(),
            incarnation: self.life,
            seq: self.seq,
            version: String::new(),
            mesh: SocketAddr::from((Ipv4Addr::LOCALHOST, 8422)),
            ingress: Vec::new(),
            serving: true,
            cordoned: false,
            capacity: self.agent.capacity(),
            free: self.agent.free(),
            registry_index: self.state.index,
            instances,
            demand: self.demand(),
            images: self.images.iter().cloned().collect(),
            starts: self.starts(),
        }
    }

    fn starts(&self) -> Vec<StartTime> {
        let starts = self.took.iter().map(|(revision, millis)| StartTime {
            revision: revision.clone(),
            micros: u32::try_from(millis * 1_000).unwrap_or(u32::MAX),
        });
        starts.collect()
    }

    fn demand(&self) -> Vec<Demand> {
        let mut keys: BTreeSet<&RevisionKey> = self.lanes.keys().collect();
        keys.extend(self.away.keys());
        let demand = keys.into_iter().map(|key| Demand {
            revision: key.clone(),
            queued: self
                .lanes
                .get(key)
                .map_or(0, |lane| u32::try_from(lane.held.len()).unwrap_or(u32::MAX)),
            away: self.away.get(key).copied().unwrap_or(0),
        });
        demand.filter(|d| d.queued > 0 || d.away > 0).collect()
    }

    /// Takes in a record that gossip brought; an older one says nothing.
    pub fn hear(&mut self, at: Millis, said: Millis, record: Arc<NodeRecord>) {
        let node = record.node;
        let heard = self.heard.get(&node);
        if heard.is_some_and(|heard| heard.said >= said) {
            return;
        }
        let same = heard.is_some_and(|heard| Arc::ptr_eq(&heard.record, &record));
        let alive = heard.is_some_and(|heard| heard.alive);
        if !same {
            self.changed.insert(node);
            self.stale = true;
        }
        let heard = Heard {
            record,
            said,
            at,
            alive,
        };
        self.heard.insert(node, heard);
    }

    /// Whether somebody seems to have come or gone since its view was made.
    pub fn notices(&mut self, now: Millis) -> bool {
        let turned = |heard: &&Heard| heard.alive != (now < heard.at + DEAD_AFTER);
        self.heard.values().any(|heard| turned(&heard))
    }

    /// Brings its view of the fleet up to date; `rtt` gives round trips from here.
    pub fn view(
        &mut self,
        now: Millis,
        own: &Arc<NodeRecord>,
        enrolled: usize,
        rtt: impl Fn(NodeId) -> u32,
    ) {
        let mut moved: BTreeSet<RevisionKey> = BTreeSet::new();
        let mut changed: Vec<NodeId> = Vec::new();
        let mut came_or_went = false;
        for (node, heard) in &mut self.heard {
            let alive = now < heard.at + DEAD_AFTER;
            let turned = alive != heard.alive;
            if !turned && !self.changed.contains(node) {
                continue;
            }
            heard.alive = alive;
            came_or_went |= turned;
            changed.push(*node);
            let member = Member::new(NodeRecord::clone(&heard.record), alive, Some(rtt(*node)));
            moved.extend(runs(&member));
            let before = self.fleet.members.insert(*node, member);
            moved.extend(before.iter().flat_map(runs));
        }
        if !self
            .shown
            .as_ref()
            .is_some_and(|shown| Arc::ptr_eq(shown, own))
        {
            let me = Member::new(NodeRecord::clone(own), true, Some(0));
            moved.extend(runs(&me));
            let before = self.fleet.members.insert(self.node, me);
            moved.extend(before.iter().flat_map(runs));
            changed.push(self.node);
            self.shown = Some(Arc::clone(own));
        }
        self.changed.clear();
        if !Arc::ptr_eq(&self.viewed, &self.state) {
            self.fleet.volumes = self.state.volumes.clone();
        }
        self.fleet.reach = Reach {
            enrolled: u32::try_from(enrolled).unwrap_or(u32::MAX),
            registry: Contact::of(self.quorum.map(|at| now - at)),
        };
        if enrolled > scheduler::place::SMALL_FLEET {
            self.fleet.index = Indexed::default();
            let index = Arc::make_mut(&mut self.index);
            for node in &changed {
                if let Some(member) = self.fleet.members.get(node) {
                    index.set(member);
                }
            }
            self.fleet.index = Indexed(Some(Arc::clone(&self.index)));
        }
        let anew = came_or_went || !Arc::ptr_eq(&self.viewed, &self.state);
        if anew {
            self.routes = Arc::new(Routes::build(&self.state, &self.fleet, "sim.test"));
        } else if !moved.is_empty() {
            let routes = self.routes.follow_moved(&self.state, &moved, &self.fleet);
            self.routes = Arc::new(routes);
        }
        self.viewed = Arc::clone(&self.state);
        self.stale = false;
    }

    pub fn forget_rumours(&mut self, now: Millis) {
        self.fresh.retain(|rumour| rumour.until > now);
        self.bare.retain(|rumour| rumour.until > now);
        self.ejected.retain(|_, until| *until > now);
    }
}

/// The revisions that a member shows instances of.
fn runs(member: &Member) -> impl Iterator<Item = RevisionKey> {
    member.record.instances.iter().map(|i| i.revision.clone())
}
