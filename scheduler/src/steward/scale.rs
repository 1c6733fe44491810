//! What a steward does about one revision: bring it up, keep its minimum and maximum, follow its load.

use std::fmt::Write as _;

use super::Order;
use super::memory::Memory;
use super::scene::{Scene, Seen, Zone};
use super::vacate::Need;
use crate::autoscale::forecast::{PAUSE_SECONDS, Price};
use crate::autoscale::{Aim, Autoscaler, Bounds, Decision, Reason, Sample, measured};
use crate::fleet::{Fleet, Word};
use crate::model::{
    InstanceState, Metric, Name, NodeId, Now, Revision, RevisionKey, Service, UnixMs,
};
use crate::place::{Ask, Promised, Receipt, displace, needs, place_beside};
use crate::registry::State;

/// Failed instances in a row after which a revision that was never ready is given up.
pub(super) const FAILURES_TO_GIVE_UP: u32 = 2;
/// Rounds in which no node took it, after which it is given up; with their doubling pauses, a
/// quarter of a minute.
const REFUSALS_TO_GIVE_UP: u32 = 5;
/// The longest a revision may take to come up (Knative's progress deadline).
const PROGRESS_MILLIS: u64 = 600_000;
/// Starts of one revision in one tick, and so in one second. What one tick starts is laid out beside
/// itself (`promised`), what the ticks of other stewards start is not: with ten a node that several of them
/// like best is asked for a few too many, and refuses. From 0 to 200 are twenty ticks. The doors start beside this what requests wait for.
const STARTS_PER_TICK: u32 = 10;

/// One tick in the making.
pub(super) struct Tick<'a> {
    pub now: Now,
    pub state: &'a State,
    /// The same moment by the clock on the wall.
    pub unix: UnixMs,
    pub orders: Vec<Order>,
    pub fleet: &'a Fleet,
    /// Region and zone of the looking node.
    pub here: Zone<'a>,
    /// What waiting costs in this zone.
    pub price: Price,
    /// This tick's starts, which the fleet does not show yet.
    pub promised: Promised,
    /// The state may be older than what is there.
    pub doubts: bool,
}

/// Why and from where starts are asked for.
struct Wish<'a> {
    count: u32,
    from: NodeId,
    /// The only region it is for.
    region: Option<&'a Name>,
    cause: &'a str,
    /// The same in full, for whoever asks.
    why: String,
    zonal: bool,
}

impl<'a> Tick<'a> {
    pub fn new(
        (now, unix): (Now, UnixMs),
        state: &'a State,
        fleet: &'a Fleet,
        me: &'a Word,
        price: Price,
    ) -> Self {
        Self {
            now,
            unix,
            price,
            state,
            orders: Vec::new(),
            fleet,
            here: (&me.region, &me.zone),
            promised: Promised::default(),
            doubts: false,
        }
    }

    /// Starts the first instances of a revision and judges it by them.
    pub fn bring_up(
        &mut self,
        revision: &Revision,
        service: &Service,
        scene: &Scene<'_>,
        memory: &mut Memory,
    ) {
        let bounds = self.bounds(service, memory);
        let wanted = service.scale.initial.max(1).max(bounds.min).min(bounds.max);
        let ready = count(scene.live().filter(|s| s.ready()));
        let key = &revision.key;
        if ready >= wanted {
            if memory.may_tell(self.now) {
                let revision = key.clone();
                self.orders.push(Order::Ready { revision });
            }
            return;
        }
        if let Some((reason, message)) = self.hopeless(memory) {
            if memory.may_tell(self.now) {
                self.orders.push(Order::Fail {
                    revision: key.clone(),
                    reason,
                    message,
                });
            }
            return;
        }
        let have = count(scene.live()) + memory.flights(false);
        let wish = Wish {
            count: wanted.saturating_sub(have),
            from: self.fleet.me,
            region: None,
            cause: "initial",
            why: format!("{have} of the first {wanted} there"),
            zonal: false,
        };
        self.start(revision, scene, memory, &wish);
    }

    /// Why a revision that is not ready yet will not be.
    fn hopeless(&self, memory: &Memory) -> Option<(String, String)> {
        if memory.failed_in_row >= FAILURES_TO_GIVE_UP {
            let failure = memory.last_failure.clone();
            return Some(failure.map_or_else(
                || ("Failed".to_owned(), "its instances failed".to_owned()),
                |f| (f.code, f.message),
            ));
        }
        if memory.refused_in_row >= REFUSALS_TO_GIVE_UP {
            return Some(("CannotStart".to_owned(), memory.last_refusal.clone()));
        }
        if self.now.since(memory.since) >= PROGRESS_MILLIS {
            let message = "it was not ready within ten minutes".to_owned();
            return Some(("ProgressDeadlineExceeded".to_owned(), message));
        }
        None
    }

    /// Keeps the service's minimum, wherever its instances are.
    pub fn keep_minimum(
        &mut self,
        revision: &Revision,
        service: &Service,
        scene: &Scene<'_>,
        memory: &mut Memory,
    ) {
        let bounds = self.bounds(service, memory);
        let (min, have) = (bounds.min, self.staying(scene, memory));
        let missing = self.missing(bounds, scene, memory);
        // Who leaves counts against the maximum still: what other stewards started just before they saw it
        // leave must show before another is started in its place.
        let lost = missing.min(min.saturating_sub(count(scene.live())));
        let missing = lost + memory.leaving(self.now, missing - lost);
        let scheduled = min > service.scale.min;
        let wish = Wish {
            count: missing.saturating_sub(memory.flights(false)),
            from: self.fleet.me,
            region: None,
            cause: if scheduled {
                "scheduled minimum"
            } else {
                "minimum"
            },
            why: format!("{have} of at least {min} there"),
            zonal: false,
        };
        self.start(revision, scene, memory, &wish);
    }

    /// Keeps the service's maximum, over all zones: each of them alone may have fewer, and all
    /// together more, when it was lowered or when they started at the same time.
    pub fn keep_maximum(&mut self, service: &Service, scene: &Scene<'_>, memory: &mut Memory) {
        let bounds = self.bounds(service, memory);
        let staying = |s: &&Seen<'_>| !memory.is_stopping(&s.report.id);
        let live: Vec<Seen<'_>> = scene.live().filter(staying).copied().collect();
        let surplus = live
            .len()
            .saturating_sub(usize::try_from(bounds.max).unwrap_or(usize::MAX));
        let spared = self.spared(scene, memory, bounds.min);
        let mut idle = live;
        idle.retain(|s| s.ready() && !spared.contains(&s.report.id));
        least_loaded_first(&mut idle);
        idle.sort_by_key(|s| !self.leaves(s));
        let cause = format!("more than the maximum of {}", bounds.max);
        for seen in idle.into_iter().take(surplus) {
            self.stop(&seen, memory, &cause);
        }
    }

    /// Follows the load of this zone.
    pub fn scale_zone(
        &mut self,
        revision: &Revision,
        service: &Service,
        scene: &Scene<'_>,
        memory: &mut Memory,
    ) {
        let of_zone = |s: &&Seen<'_>| s.here || memory.outside.contains(&s.report.id);
        let staying = |s: &&Seen<'_>| !memory.is_stopping(&s.report.id);
        let all = scene.live().filter(of_zone).filter(staying).copied();
        let (leaving, mine): (Vec<Seen<'_>>, Vec<_>) = all.partition(|s| self.leaves(s));
        let ready = count(mine.iter().filter(|s| s.ready()));
        // Where the zone has nothing yet, what is on its way for the minimum may land here.
        let coming = count(&mine) - ready + memory.flights(!mine.is_empty());
        if ready + coming > 0 || scene.queued > 0 {
            memory.learn_start(self.now, || self.start_millis(&revision.key));
        }
        memory.boots(coming > 0);
        let held = self.demand(revision, service, scene, memory, (ready, coming));
        let serving = mine.iter().chain(&leaving).filter(|s| s.ready());
        let serving: Vec<&Seen<'_>> = serving.collect();
        let busy: u64 = serving.iter().map(|s| s.concurrency_milli()).sum();
        let asked = busy + held * 1000;
        memory
            .forecast
            .observe(self.now, busy > 0 || scene.queued > 0);
        let aim = Aim::of(&service.scale, &revision.spec).for_starts_of(memory.start_millis);
        let each = service
            .scale
            .total_concurrency(revision.spec.container_concurrency);
        let sample = sample(&aim, &serving, (asked, held), each);
        let decision = self.decide(service, aim, memory, sample);
        let decision = self.foresee(service, decision, scene, memory, asked);
        let decision = kept_by_leases(decision, &mine);
        let bounds = self.bounds(service, memory);
        let there = count(&mine) + count(&leaving);
        let room = self.room(service, bounds, scene, memory, there);
        let spoken_for = count(scene.live()) + memory.flights(false);
        let left = bounds.max.saturating_sub(spoken_for);
        // Where nobody asks, a zone has no share.
        let room = if decision.reason == Reason::Expected {
            left
        } else {
            room
        };
        let have = ready + coming;
        if let Some(from) = self.traffic_from_here(scene, memory).filter(|_| have == 0) {
            let wish = Wish {
                count: 1.min(left),
                from,
                region: Some(self.here.0),
                cause: "traffic from here",
                why: "other regions answer what is asked here".to_owned(),
                zonal: true,
            };
            self.start(revision, scene, memory, &wish);
        } else if have < decision.wanted {
            let wish = Wish {
                count: (decision.wanted - have).min(room),
                from: scene.hottest.map_or(self.fleet.me, |(_, node)| node),
                region: None,
                cause: match (decision.reason, have) {
                    _ if !leaving.is_empty() => "its node drains",
                    (Reason::Expected, _) => "expected requests",
                    (_, 0) => "held requests",
                    _ => "scale-up",
                },
                why: why(decision, have, (asked, &aim, sample), room),
                zonal: true,
            };
            self.start(revision, scene, memory, &wish);
        } else if coming == 0 && ready > decision.wanted {
            let spared = self.spared(scene, memory, bounds.min);
            let mut idle = mine;
            // What nobody is expected to ask has nothing to prove.
            let window = match decision.reason {
                Reason::Unlikely => PAUSE_SECONDS * 1000,
                _ => u64::from(service.scale.window_seconds) * 1000,
            };
            idle.retain(|s| {
                let id = &s.report.id;
                s.ready()
                    && s.here
                    && !s.works()
                    && !spared.contains(id)
                    && memory.is_proven(self.now, id, window)
            });
            self.shrink(idle, scene, memory, ready, decision);
        }
        let need = Need {
            wanted: decision.wanted,
            ready,
            coming,
            room,
            min: bounds.min,
            staying: self.staying(scene, memory),
        };
        self.vacate(revision, leaving, scene, memory, &need);
    }

    /// The door with the most requests that another region answers, when they keep coming, most of
    /// them in this zone, and the region has no instance of its own.
    fn traffic_from_here(&self, scene: &Scene<'_>, memory: &Memory) -> Option<NodeId> {
        let (region, zone) = self.here;
        let mut near = scene.live().filter(|s| s.member.record.region == *region);
        if near.next().is_some() {
            return None;
        }
        memory.afar.asks(zone)
    }

    /// The requests held at this zone's doors that call for more instances.
    fn demand(
        &self,
        revision: &Revision,
        service: &Service,
        scene: &Scene<'_>,
        memory: &Memory,
        (ready, coming): (u32, u32),
    ) -> u64 {
        // What gathers behind a boot is no load: it is as long as the boot, not as the requests are
        // many. As many as came together are.
        let together = if coming > 0 { memory.herd() } else { u32::MAX };
        // With none ready and one on its way the door has acted; what exceeds what that one can
        // carry need not wait to be believed.
        let hard = revision.spec.container_concurrency;
        let carried = coming.saturating_mul(service.scale.total_concurrency(hard));
        let urgent = ready == 0 && coming > 0 && scene.queued > carried;
        let settled = memory.settled_queue(self.now);
        u64::from(if urgent { scene.queued } else { settled }.min(together))
    }

    fn decide(&self, service: &Service, aim: Aim, memory: &mut Memory, sample: Sample) -> Decision {
        let fresh = || Autoscaler::new(aim, self.now, sample.ready);
        let autoscaler = memory.autoscaler.get_or_insert_with(fresh);
        autoscaler.set_aim(aim);
        autoscaler.observe(self.now, sample);
        // The minimum is the home steward's, over all zones.
        let bounds = Bounds {
            min: 0,
            ..Bounds::of(&service.scale)
        };
        autoscaler.decide(self.now, &bounds)
    }

    /// Stops the least loaded until the wanted number is left; the last one stays while
    /// anything waits for it.
    fn shrink(
        &mut self,
        mut idle: Vec<Seen<'_>>,
        scene: &Scene<'_>,
        memory: &mut Memory,
        ready: u32,
        decision: Decision,
    ) {
        let left = decision.wanted.max(u32::from(scene.queued > 0));
        let surplus = usize::try_from(ready.saturating_sub(left)).unwrap_or(usize::MAX);
        least_loaded_first(&mut idle);
        let cause = format!("scale {ready} to {left}: {}", decision.reason);
        for seen in idle.into_iter().take(surplus) {
            self.stop(&seen, memory, &cause);
        }
    }

    pub(super) fn stop(&mut self, seen: &Seen<'_>, memory: &mut Memory, cause: &str) {
        if memory.is_stopping(&seen.report.id) {
            return;
        }
        memory.stopped(self.now, &seen.report.id);
        self.orders.push(Order::Stop {
            instance: seen.report.id.clone(),
            node: seen.member.record.node,
            cause: cause.to_owned(),
        });
    }

    fn start(
        &mut self,
        revision: &Revision,
        scene: &Scene<'_>,
        memory: &mut Memory,
        wish: &Wish<'_>,
    ) {
        if wish.count == 0 || !memory.may_start(self.now) || memory.is_new(self.now) {
            return;
        }
        for _ in 0..wish.count.min(STARTS_PER_TICK) {
            let receipt = placed(self.fleet, &self.promised, revision, scene, wish);
            let receipt = self.displacing(receipt, revision, wish);
            let Some((node, _)) = receipt.ranked().next() else {
                let message = format!("no node can take it: {}", receipt.refusals().join("; "));
                memory.refused(self.now, message);
                return;
            };
            let needs = needs(&revision.spec);
            self.promised.add(node, &revision.key, &needs);
            memory.started(self.now, wish.zonal);
            let displaces = receipt.displaces.is_some();
            self.orders.push(Order::Start {
                revision: revision.key.clone(),
                receipt,
            });
            if displaces {
                // What comes of it shows before more has to go.
                return;
            }
        }
    }

    /// Where no node has room, who of lower priority makes it.
    fn displacing(&self, receipt: Receipt, revision: &Revision, wish: &Wish<'_>) -> Receipt {
        let ask = Ask {
            from: wish.from,
            ..Ask::default()
        };
        let known = |key: &RevisionKey| self.state.revisions.get(key);
        displace(receipt, self.fleet, revision, &ask, &self.promised, known)
    }
}

/// Placement that avoids nodes where the revision failed a moment ago, if others are left.
fn placed(
    fleet: &Fleet,
    promised: &Promised,
    revision: &Revision,
    scene: &Scene<'_>,
    wish: &Wish<'_>,
) -> Receipt {
    let failed = scene
        .instances
        .iter()
        .filter(|s| s.report.state == InstanceState::Failed);
    let mut ask = Ask {
        from: wish.from,
        avoid: failed.map(|s| s.member.record.node).collect(),
        region: wish.region.cloned(),
        cause: wish.cause.to_owned(),
        why: wish.why.clone(),
    };
    let receipt = place_beside(fleet, revision, &ask, promised);
    if ask.avoid.is_empty() || receipt.ranked().next().is_some() {
        return receipt;
    }
    ask.avoid.clear();
    place_beside(fleet, revision, &ask, promised)
}

/// What those that serve show, and what waits for them, in the units of the aim. `each` is what an
/// instance carries at once.
fn sample(aim: &Aim, serving: &[&Seen<'_>], (asked, held): (u64, u64), each: u32) -> Sample {
    let used = |s: &&Seen<'_>| measured(aim.metric, s.report.activity.used);
    let amount = match aim.metric {
        Metric::Concurrency => asked,
        // What waits is asked this second.
        Metric::Rps => serving.iter().map(used).sum::<u64>() + held * 1000,
        // What waits uses nothing yet: it will as those do that are as full as may be.
        _ => {
            serving.iter().map(used).sum::<u64>() + held * aim.target_milli / u64::from(each.max(1))
        }
    };
    Sample {
        amount,
        // Answers may take too little time to be met at once.
        asked: asked > 0 || aim.metric == Metric::Rps && amount > 0,
        ready: count(serving),
    }
}

/// Nobody stops for little load what says that it works.
fn kept_by_leases(decision: Decision, mine: &[Seen<'_>]) -> Decision {
    let working = count(mine.iter().filter(|s| s.ready() && s.works()));
    if working <= decision.wanted {
        return decision;
    }
    Decision {
        wanted: working,
        reason: Reason::Leased,
        ..decision
    }
}

/// Of those alike, the youngest.
pub(super) fn least_loaded_first(instances: &mut [Seen<'_>]) {
    instances.sort_by_key(|s| {
        let load = (s.works(), s.report.in_flight, s.report.concurrency_milli);
        (load, std::cmp::Reverse(s.report.since), &s.report.id)
    });
}

/// Why so many are wanted.
fn why(
    decision: Decision,
    have: u32,
    (asked, aim, sample): (u64, &Aim, Sample),
    room: u32,
) -> String {
    let (wanted, reason) = (decision.wanted, decision.reason);
    let mut why = format!("{wanted} wanted, {have} there: {reason}");
    let (amount, target) = (sample.amount, aim.target_milli);
    // Writing to a text cannot fail.
    let _ = match aim.metric {
        Metric::Concurrency => Ok(()),
        Metric::Rps => {
            let (rate, target) = (amount / 1000, target.div_ceil(1000));
            write!(
                why,
                ", {rate} requests a second of {target} aimed at in each"
            )
        }
        Metric::Cpu => write!(why, ", {amount} mCPU of {target} aimed at in each"),
        Metric::Memory => write!(why, ", {amount} MiB of {target} aimed at in each"),
    };
    if asked > 0 {
        let _ = write!(why, ", {}.{} at once", asked / 1000, asked % 1000 / 100);
    }
    if wanted - have > room {
        let _ = write!(why, "; the maximum leaves {room} for this zone");
    }
    why
}

pub(super) fn count<T>(items: impl IntoIterator<Item = T>) -> u32 {
    u32::try_from(items.into_iter().count()).unwrap_or(u32::MAX)
}
