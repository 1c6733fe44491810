//! One host: what the daemon on it holds, with the same cores as the real one. What it does with
//! them is in `agent`, `door` and `orders`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use scheduler::activate::Activation;
use scheduler::converge::Node;
use scheduler::fleet::{Contact, Fleet, Member, Reach, Word};
use scheduler::model::{
    Demand, InstanceId, InstanceReport, InstanceState, MOST_STARTS, Name, NodeId, NodeRecord, Now,
    Resources, Revision, RevisionKey, ServiceKey, StartTime, UnixMs,
};
use scheduler::registry::State;
use scheduler::route::{RevisionRoute, Routes, ServiceRoute};
use scheduler::steward::Steward;

use super::network::Spot;
use super::queue::Millis;

/// A host that was not heard of for so long counts as dead: about five rounds of gossip, as φ 8 comes
/// to with the product's interval of a second.
pub(super) const DEAD_AFTER: Millis = 5_000;
/// A host that was not heard of for so long weighs less (`netfabric::gossip`).
const SILENT_SECONDS: u64 = 3;
/// How long a door tells that it sent requests to other regions.
const AWAY_FOR: Millis = 60_000;
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
    record: Word,
    /// When it was said, and when it came.
    pub said: Millis,
    at: Millis,
    alive: bool,
    silent: u8,
    /// Its view does not have it yet.
    new: bool,
}

impl Heard {
    fn lives(&self, now: Millis) -> bool {
        now < self.at + DEAD_AFTER
    }

    fn silent(&self, now: Millis) -> u8 {
        let seconds = now.saturating_sub(self.at) / 1_000;
        if seconds < SILENT_SECONDS {
            0
        } else {
            u8::try_from(seconds.min(10)).unwrap_or(0)
        }
    }
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
    pub said: VecDeque<(Millis, Word)>,
    /// By the hosts' numbers.
    pub heard: Vec<Option<Heard>>,
    pub fleet: Fleet,
    /// Each service's as of the view that it was last looked up in: a view of two hundred hosts changes
    /// every second, and a door is asked for a few services.
    routes: Routes,
    joined: BTreeMap<ServiceKey, u64>,
    /// Rises with every view that differs from the last.
    views: u64,
    pub lanes: BTreeMap<RevisionKey, Lane>,
    pub sent: BTreeMap<(RevisionKey, NodeId), u32>,
    /// Requests sent to other regions since the daemon began, and when the last was.
    away: BTreeMap<RevisionKey, (u64, Millis)>,
    pub fresh: Vec<Rumour>,
    pub bare: Vec<Rumour>,
    pub ejected: BTreeMap<NodeId, Millis>,
    pub images: BTreeSet<String>,
    /// What the last start of each revision took, without the pull; those of the revisions started last.
    took: VecDeque<(RevisionKey, Millis)>,
    /// Orders of the steward under way and waiting.
    pub errands: usize,
    pub waiting: VecDeque<(RevisionKey, scheduler::place::Receipt)>,
    rolled: Millis,
    pub stale: bool,
    /// When it last heard of the registry's quorum in this life.
    pub quorum: Option<Millis>,
    /// The registry, and the own record, that its view is of.
    viewed: Arc<State>,
    shown: Option<Word>,
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
            heard: Vec::new(),
            fleet: Fleet {
                me: node,
                ..Fleet::default()
            },
            routes: Routes::default(),
            joined: BTreeMap::new(),
            views: 0,
            lanes: BTreeMap::new(),
            sent: BTreeMap::new(),
            away: BTreeMap::new(),
            fresh: Vec::new(),
            bare: Vec::new(),
            ejected: BTreeMap::new(),
            images: BTreeSet::new(),
            took: VecDeque::new(),
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
    pub fn record(&mut self, now: Millis) -> Word {
        if let Some((at, last)) = self.said.back()
            && *at == now
            && !self.stale
        {
            return last.clone();
        }
        let mut record = self.describe(now);
        if let Some((_, last)) = self.said.back() {
            record.seq = last.seq;
            if record == **last {
                return last.clone();
            }
        }
        self.seq += 1;
        record.seq = self.seq;
        record.into()
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
            demand: self.demand(now),
            images: self.images.iter().cloned().collect(),
            starts: self.starts(),
        }
    }

    /// A request goes to another region.
    pub fn send_away(&mut self, now: Millis, revision: &RevisionKey) {
        let (count, last) = self.away.entry(revision.clone()).or_default();
        (*count, *last) = (*count + 1, now);
    }

    /// A start without the pull took so long.
    pub fn learn_start(&mut self, revision: &RevisionKey, took: Millis) {
        self.took.retain(|(known, _)| known != revision);
        self.took.push_back((revision.clone(), took));
        if self.took.len() > MOST_STARTS {
            self.took.pop_front();
        }
    }

    fn starts(&self) -> Vec<StartTime> {
        let starts = self.took.iter().map(|(revision, millis)| StartTime {
            revision: revision.clone(),
            micros: u32::try_from(millis * 1_000).unwrap_or(u32::MAX),
        });
        starts.collect()
    }

    fn demand(&self, now: Millis) -> Vec<Demand> {
        let mut keys: BTreeSet<&RevisionKey> = self.lanes.keys().collect();
        let lately = |(_, last): &&(u64, Millis)| now < last + AWAY_FOR;
        let away = |key: &RevisionKey| self.away.get(key).filter(lately);
        keys.extend(self.away.keys().filter(|key| away(key).is_some()));
        let demand = keys.into_iter().map(|key| Demand {
            revision: key.clone(),
            queued: self
                .lanes
                .get(key)
                .map_or(0, |lane| u32::try_from(lane.held.len()).unwrap_or(u32::MAX)),
            away: away(key).map_or(0, |(count, _)| *count),
        });
        demand.filter(|d| d.queued > 0 || d.away > 0).collect()
    }

    /// When the newest that it heard of another host was said.
    pub fn newest_of(&self, host: usize) -> Millis {
        let heard = self.heard.get(host).and_then(Option::as_ref);
        heard.map_or(0, |heard| heard.said)
    }

    /// Takes in a record of another host that gossip brought, newer than all before it.
    pub fn hear(&mut self, at: Millis, host: usize, said: Millis, record: &Word) {
        if self.heard.len() <= host {
            self.heard.resize_with(host + 1, || None);
        }
        let before = self.heard[host].as_mut();
        if let Some(heard) = before.filter(|heard| heard.record.is(record)) {
            (heard.said, heard.at) = (said, at);
            return;
        }
        self.stale = true;
        let before = self.heard[host].as_ref();
        let (alive, silent) = before.map_or((false, 0), |heard| (heard.alive, heard.silent));
        self.heard[host] = Some(Heard {
            record: record.clone(),
            said,
            at,
            alive,
            silent,
            new: true,
        });
    }

    /// Whether somebody seems to have come or gone since its view was made.
    pub fn notices(&self, now: Millis) -> bool {
        let mut heard = self.heard.iter().flatten();
        heard.any(|heard| heard.alive != heard.lives(now))
    }

    /// Brings its view of the fleet up to date; `rtt` gives round trips from here.
    pub fn view(&mut self, now: Millis, own: &Word, enrolled: usize, rtt: impl Fn(NodeId) -> u32) {
        let mut changed = !Arc::ptr_eq(&self.viewed, &self.state);
        // Both are in the order of the nodes' numbers.
        let mut members = self.fleet.members.iter_mut().peekable();
        let mut new = Vec::new();
        for heard in self.heard.iter_mut().flatten() {
            let (alive, silent) = (heard.lives(now), heard.silent(now));
            if !heard.new && (alive, silent) == (heard.alive, heard.silent) {
                continue;
            }
            (heard.new, heard.alive, heard.silent, changed) = (false, alive, silent, true);
            let node = heard.record.node;
            let (record, rtt) = (heard.record.clone(), Some(rtt(node)));
            while members.next_if(|(known, _)| **known < node).is_some() {}
            match members.next_if(|(known, _)| **known == node) {
                Some((_, known)) => {
                    (known.record, known.rtt_micros) = (record, rtt);
                    (known.alive, known.silent) = (alive, silent);
                }
                None => new.push((node, Member::new(record, alive, rtt))),
            }
        }
        self.fleet.members.extend(new);
        if !self.shown.as_ref().is_some_and(|shown| shown.is(own)) {
            let me = Member::new(own.clone(), true, Some(0));
            self.fleet.members.insert(self.node, me);
            self.shown = Some(own.clone());
            changed = true;
        }
        if !Arc::ptr_eq(&self.viewed, &self.state) {
            self.fleet.volumes = self.state.volumes.clone();
        }
        self.fleet.reach = Reach {
            enrolled: u32::try_from(enrolled).unwrap_or(u32::MAX),
            registry: Contact::of(self.quorum.map(|at| now - at)),
        };
        self.viewed = Arc::clone(&self.state);
        self.views += u64::from(changed);
        self.stale = false;
    }

    /// The service's route in its view.
    pub fn service_route(&mut self, service: &ServiceKey) -> Option<Arc<ServiceRoute>> {
        if self.joined.get(service) != Some(&self.views) {
            self.joined.insert(service.clone(), self.views);
            let services = BTreeSet::from([service.clone()]);
            self.routes.refresh(&self.viewed, &self.fleet, &services);
        }
        self.routes.service(service).cloned()
    }

    /// The revision's, if its service has requests for it.
    pub fn revision_route(&mut self, revision: &RevisionKey) -> Option<Arc<RevisionRoute>> {
        let viewed = Arc::clone(&self.viewed);
        self.service_route(&viewed.revisions.get(revision)?.service)?;
        self.routes.revision(revision).cloned()
    }

    pub fn forget_rumours(&mut self, now: Millis) {
        self.fresh.retain(|rumour| rumour.until > now);
        self.bare.retain(|rumour| rumour.until > now);
        self.ejected.retain(|_, until| *until > now);
    }
}
