//! One host: what the daemon on it holds, with the same cores as the real one. What it does with
//! them is in `agent`, `door` and `orders`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use scheduler::activate::Activation;
use scheduler::converge::Node;
use scheduler::fleet::{Contact, Fleet, Member, Reach, Word};
use scheduler::model::{
    Demand, InstanceId, InstanceReport, InstanceState, MOST_STARTS, Measured, Name, NodeId,
    NodeRecord, Now, Resources, Revision, RevisionKey, ServiceKey, StartTime, UnixMs,
};
use scheduler::registry::State;
use scheduler::route::{RevisionRoute, Routes, ServiceRoute};
use scheduler::steward::Steward;

use super::gossip::SAID;
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

/// What a host said of itself at a moment.
#[derive(Debug)]
pub(super) struct Said {
    pub at: Millis,
    /// The same as long as the record is.
    version: (u64, u64),
    record: Word,
}

/// The newest that was heard of a node.
#[derive(Debug)]
pub(super) struct Heard {
    version: (u64, u64),
    /// When it was said, and when it came.
    pub said: Millis,
    at: Millis,
    alive: bool,
    silent: u8,
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

    /// Whether others think of it otherwise than they did.
    fn turns(&mut self, now: Millis) -> bool {
        let before = (self.alive, self.silent);
        (self.alive, self.silent) = (self.lives(now), self.silent(now));
        before != (self.alive, self.silent)
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
    pub said: VecDeque<Said>,
    /// By the hosts' numbers.
    heard: Vec<Option<Heard>>,
    /// Records that its view does not have yet, in the order of the hosts' numbers.
    news: Vec<(usize, Word)>,
    /// Nothing is measured of others here.
    unmeasured: Arc<Measured>,
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

/// The node that a host is.
pub(super) fn node_of(host: usize) -> NodeId {
    NodeId(u64::try_from(host).unwrap_or(0) + 1)
}

impl Host {
    pub fn new(number: usize, spot: Spot, region: &str, capacity: Resources) -> Self {
        let name = |text: String| Name::new(text).unwrap_or_else(|_| Name::default_namespace());
        let node = node_of(number);
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
            news: Vec::new(),
            unmeasured: Arc::default(),
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
        let last = self.said.back();
        if let Some(last) = last.filter(|last| last.at == now && !self.stale) {
            return last.record.clone();
        }
        let mut record = self.describe(now);
        if let Some(Said { record: last, .. }) = last {
            record.seq = last.seq;
            if record == **last {
                return last.clone();
            }
        }
        self.seq += 1;
        record.seq = self.seq;
        record.into()
    }

    /// Says it to everybody; what it said long ago is nowhere on its way any more.
    pub fn say(&mut self, at: Millis) -> Word {
        let record = self.record(at);
        self.said.push_back(Said {
            at,
            version: (record.incarnation, record.seq),
            record: record.clone(),
        });
        if self.said.len() > SAID {
            self.said.pop_front();
        }
        record
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
        let of = |revision: &RevisionKey, queued: usize, away: u64| Demand {
            revision: revision.clone(),
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
            away,
        };
        let lately = |(_, (_, last)): &(&RevisionKey, &(u64, Millis))| now < last + AWAY_FOR;
        let away = self.away.iter().filter(lately);
        let away = away.map(|(key, (count, _))| of(key, 0, *count));
        let lanes = self.lanes.iter().filter(|(_, lane)| !lane.held.is_empty());
        let held = lanes.map(|(key, lane)| of(key, lane.held.len(), 0));
        let mut demand: Vec<Demand> = away.chain(held).collect();
        demand.sort_by(|a, b| a.revision.cmp(&b.revision));
        demand.dedup_by(|held, away| {
            let one = held.revision == away.revision;
            if one {
                away.queued = held.queued;
            }
            one
        });
        demand
    }

    /// When the newest that it heard of another host was said.
    pub fn newest_of(&self, host: usize) -> Millis {
        let heard = self.heard.get(host).and_then(Option::as_ref);
        heard.map_or(0, |heard| heard.said)
    }

    /// Takes in a record of another host that gossip brought, newer than all before it.
    pub fn hear(&mut self, at: Millis, host: usize, said: &Said) {
        if self.heard.len() <= host {
            self.heard.resize_with(host + 1, || None);
        }
        let version = said.version;
        let before = self.heard[host].as_ref();
        if before.is_none_or(|heard| heard.version != version) {
            self.stale = true;
            self.news.push((host, said.record.clone()));
        }
        let (alive, silent) = before.map_or((false, 0), |heard| (heard.alive, heard.silent));
        self.heard[host] = Some(Heard {
            version,
            said: said.at,
            at,
            alive,
            silent,
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
        // All are in the order of the nodes' numbers.
        let mut members = self.fleet.members.iter_mut().peekable();
        let mut news = self.news.drain(..).peekable();
        let mut new = Vec::new();
        for (host, heard) in self.heard.iter_mut().enumerate() {
            let Some(heard) = heard else { continue };
            let record = news.next_if(|(told, _)| *told == host);
            if !heard.turns(now) && record.is_none() {
                continue;
            }
            changed = true;
            let node = node_of(host);
            let rtt = Some(rtt(node));
            while members.next_if(|(known, _)| **known < node).is_some() {}
            let known = members.next_if(|(known, _)| **known == node);
            match (known, record) {
                (Some((_, known)), record) => {
                    known.rtt_micros = rtt;
                    (known.alive, known.silent) = (heard.alive, heard.silent);
                    if let Some((_, record)) = record {
                        known.record = record;
                    }
                }
                (None, Some((_, record))) => {
                    let measured = Arc::clone(&self.unmeasured);
                    new.push((node, Member::measured(record, measured, heard.alive, rtt)));
                }
                (None, None) => {}
            }
        }
        drop(news);
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
