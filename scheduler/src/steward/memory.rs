//! What a steward remembers of one revision between ticks: starts and stops the fleet does not
//! show yet, failures and how long to hold off after them, and the autoscaler. It is lost when
//! another node becomes the steward, which costs a little time and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::afar::Afar;
use super::duty::Duty;
use super::scale::FAILURES_TO_GIVE_UP;
use super::scene::{Scene, Seen};
use crate::autoscale::Autoscaler;
use crate::autoscale::forecast::Forecast;
use crate::autoscale::schedule::Timetable;
use crate::converge::{CRASH_LOOP, NEVER_READY, SHIM_LOST};
use crate::model::{FailReason, InstanceId, InstanceState, NodeId, Now};
use crate::place::START_MICROS;

/// A start nobody reported on is forgotten after this: longer than an instance may take to
/// become ready.
const FLIGHT_MILLIS: u64 = 90_000;
/// A start that succeeded shows in gossip within this.
const LANDED_MILLIS: u64 = 5_000;
/// Requests that came within this came together: as a rule they take no longer than that, and what came
/// before would be answered by now.
const TOGETHER_MILLIS: u64 = 2_000;
/// Who begins to look after a revision that is in use starts nothing for so long: what the steward before
/// ordered shows within it. A door does not wait for that.
const HANDOVER_MILLIS: u64 = 3_000;
/// A stop not seen to have begun within this is ordered again.
const STOP_MILLIS: u64 = 5_000;
/// Hold-off after failed instances, doubling to the longest; forgotten after a quiet spell. As
/// with Kubernetes' `CrashLoopBackOff`, the first one after such a spell is replaced at once.
const CRASH_MILLIS: u64 = 10_000;
const CRASH_MOST_MILLIS: u64 = 300_000;
const CRASH_FORGOTTEN_MILLIS: u64 = 600_000;
/// Hold-off after every node refused, doubling to the longest.
const REFUSED_MILLIS: u64 = 1_000;
const REFUSED_MOST_MILLIS: u64 = 60_000;
/// How long requests must have been held before a steward acts on them: the door that holds them
/// starts an instance itself, and records of other nodes are a moment old.
const SETTLED_MILLIS: u64 = 1_500;
/// What a start takes is looked up anew after this.
const LEARNT_MILLIS: u64 = 5_000;
/// A proposal is repeated after this when the registry does not show it.
const TOLD_MILLIS: u64 = 3_000;

/// A start that was ordered and is not seen yet.
#[derive(Debug, Clone, Copy)]
struct Flight {
    deadline: Now,
    /// Ordered for this zone's load, not for the whole revision.
    zonal: bool,
}

/// The scheduled minimum of a second, by a version of the service.
#[derive(Debug)]
pub(super) struct Scheduled {
    pub version: u64,
    pub table: Timetable,
    pub second: u64,
    pub min: u32,
}

#[derive(Debug)]
pub(super) struct Memory {
    /// When it was first looked after.
    pub since: Now,
    /// Since when it has the duties it has.
    assumed: Now,
    /// Another node, or this one before its daemon began anew, may have had them before.
    taken_over: bool,
    duty: Duty,
    me: NodeId,
    pub autoscaler: Option<Autoscaler>,
    pub forecast: Forecast,
    /// What a start took when it was last looked up, and when that was.
    pub start_millis: u64,
    learnt: Option<Now>,
    pub scheduled: Option<Scheduled>,
    /// When nothing was routed to it any more.
    pub superseded: Option<Now>,
    /// Instances elsewhere that were started for this zone because it had no room.
    pub outside: BTreeSet<InstanceId>,
    /// Since when each instance was seen serving.
    serving: BTreeMap<InstanceId, Now>,
    /// Failed instances since one was last seen ready.
    pub failed_in_row: u32,
    pub last_failure: Option<FailReason>,
    /// Starts that nobody took, since one was last taken.
    pub refused_in_row: u32,
    pub last_refusal: String,
    /// What the region asks of others.
    pub afar: Afar,
    flights: VecDeque<Flight>,
    known: BTreeMap<InstanceId, InstanceState>,
    stopping: BTreeMap<InstanceId, Now>,
    crashes: u32,
    last_crash: Now,
    hold_until: Now,
    refused_until: Now,
    queue: VecDeque<(Now, u32)>,
    shares: Recent<(u32, u32)>,
    missing: Recent<u32>,
    /// Starts for this zone.
    starts: Recent<u32>,
    /// New requests held, look by look.
    rises: VecDeque<(Now, u32)>,
    /// The most of them that came together; while something boots, since it does.
    herd: u32,
    booting: bool,
    told: Option<Now>,
    /// When one was last stopped because its node drains.
    pub vacated: Option<Now>,
    leaving: Recent<u32>,
}

/// What was so since what others started shows.
#[derive(Debug)]
struct Recent<T>(VecDeque<(Now, T)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy> Recent<T> {
    fn note(&mut self, now: Now, value: T) -> impl Iterator<Item = T> + '_ {
        let late = |(at, _): &(Now, T)| now.since(*at) > HANDOVER_MILLIS;
        while self.0.front().is_some_and(late) {
            self.0.pop_front();
        }
        self.0.push_back((now, value));
        self.0.iter().map(|(_, value)| *value)
    }
}

impl Memory {
    pub fn new(now: Now, scene: &Scene<'_>, me: NodeId, duty: Duty, taken_over: bool) -> Self {
        // Failures from before are left unknown, so that they count: a new steward learns from
        // them what the old one knew.
        let seen = scene
            .instances
            .iter()
            .map(|s| (s.report.id.clone(), s.report.state));
        let known = seen
            .filter(|(_, state)| *state != InstanceState::Failed)
            .collect();
        let serving = scene.live().filter(|s| s.ready());
        let serving = serving.map(|s| (s.report.id.clone(), now)).collect();
        Self {
            since: now,
            assumed: now,
            taken_over,
            duty,
            me,
            autoscaler: None,
            forecast: Forecast::default(),
            start_millis: START_MICROS / 1000,
            learnt: None,
            scheduled: None,
            superseded: None,
            outside: BTreeSet::new(),
            serving,
            failed_in_row: 0,
            last_failure: None,
            refused_in_row: 0,
            last_refusal: String::new(),
            afar: Afar::default(),
            flights: VecDeque::new(),
            known,
            stopping: BTreeMap::new(),
            crashes: 0,
            last_crash: now,
            hold_until: Now(0),
            refused_until: Now(0),
            queue: VecDeque::new(),
            shares: Recent::default(),
            missing: Recent::default(),
            starts: Recent::default(),
            rises: VecDeque::new(),
            herd: 0,
            booting: false,
            told: None,
            vacated: None,
            leaving: Recent::default(),
        }
    }

    /// Takes in what the fleet shows now. A revision in its `initial` phase does not hold off
    /// after a crash: it is given up soon, and whoever deploys it waits.
    pub fn look(&mut self, now: Now, scene: &Scene<'_>, initial: bool) {
        self.flights.retain(|f| f.deadline > now);
        self.afar.note(now, &scene.away);
        self.stopping.retain(|_, deadline| *deadline > now);
        if now.since(self.last_crash) > CRASH_FORGOTTEN_MILLIS {
            self.crashes = 0;
        }
        // They come in the order of their ids. As a rule nobody came or went.
        let seen = scene.instances.iter();
        let seen = seen.map(|s| (&s.report.id, &s.report.state));
        if !self.known.iter().eq(seen) {
            self.meet(now, scene, initial);
        }
        let before = self.queue.back().map_or(0, |(_, queued)| *queued);
        self.rise(now, scene.queued.saturating_sub(before));
        self.queue.push_back((now, scene.queued));
        while self
            .queue
            .get(1)
            .is_some_and(|(at, _)| now.since(*at) >= SETTLED_MILLIS)
        {
            self.queue.pop_front();
        }
    }

    /// Some instances are others than before, or in other states.
    fn meet(&mut self, now: Now, scene: &Scene<'_>, initial: bool) {
        for seen in &scene.instances {
            let (id, state) = (&seen.report.id, seen.report.state);
            let before = self.known.get(id).copied();
            if before.is_none() {
                self.land(seen);
            }
            if before == Some(state) {
                continue;
            }
            match state {
                InstanceState::Ready | InstanceState::Frozen => self.failed_in_row = 0,
                InstanceState::Failed => self.crashed(now, seen.report.failure.clone(), initial),
                _ => {}
            }
        }
        let seen = scene.instances.iter();
        let seen = seen.map(|s| (s.report.id.clone(), s.report.state));
        self.known = seen.collect();
        let live: BTreeSet<_> = scene.live().map(|s| &s.report.id).collect();
        self.outside.retain(|id| live.contains(id));
        self.serving.retain(|id, _| live.contains(id));
        for seen in scene.live().filter(|s| s.ready()) {
            self.serving.entry(seen.report.id.clone()).or_insert(now);
        }
    }

    /// A new instance that this steward ordered is one of those on their way: for this zone if it is
    /// here.
    fn land(&mut self, seen: &Seen<'_>) {
        if seen.report.steward != Some(self.me) {
            return;
        }
        let here = seen.here;
        let fitting = self.flights.iter().position(|f| f.zonal == here);
        let Some(flight) = self.flights.remove(fitting.unwrap_or(0)) else {
            return;
        };
        if flight.zonal && !here {
            self.outside.insert(seen.report.id.clone());
        }
    }

    fn crashed(&mut self, now: Now, failure: Option<FailReason>, initial: bool) {
        if failure.as_ref().is_some_and(|f| f.code == SHIM_LOST) {
            return;
        }
        // One that had all its time and never listened will not do better the second time.
        let conclusive = failure.as_ref().is_some_and(|f| f.code == NEVER_READY);
        self.failed_in_row += if conclusive { FAILURES_TO_GIVE_UP } else { 1 };
        // That it is not started again for a while says less than why it failed before.
        let held = failure.as_ref().is_some_and(|f| f.code == CRASH_LOOP);
        let before = self.last_failure.take();
        self.last_failure = if held {
            before.or(failure)
        } else {
            failure.or(before)
        };
        // Those that fall together are one crash.
        let together = self.crashes > 0 && (now < self.hold_until || now == self.last_crash);
        self.last_crash = now;
        if initial || together {
            return;
        }
        if let Some(before) = self.crashes.checked_sub(1) {
            self.hold_until = now.plus(doubled(CRASH_MILLIS, before, CRASH_MOST_MILLIS));
        }
        self.crashes += 1;
    }

    pub fn on_start_result(&mut self, now: Now, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.refused_in_row = 0;
                // Each result is another flight's.
                let landed = now.plus(LANDED_MILLIS);
                if let Some(flight) = self.flights.iter_mut().find(|f| f.deadline > landed) {
                    flight.deadline = landed;
                }
            }
            Err(message) => {
                self.flights.pop_front();
                self.refused(now, message);
            }
        }
    }

    /// No node took it, or none could.
    pub fn refused(&mut self, now: Now, message: String) {
        // Those refused together are one refusal.
        if now >= self.refused_until {
            let wait = doubled(REFUSED_MILLIS, self.refused_in_row, REFUSED_MOST_MILLIS);
            self.refused_until = now.plus(wait);
            self.refused_in_row += 1;
        }
        self.last_refusal = message;
    }

    /// Looks up what a start takes, if that was not done a moment ago: all nodes are asked for it.
    pub fn learn_start(&mut self, now: Now, look: impl FnOnce() -> u64) {
        if self.learnt.is_none_or(|at| now.since(at) >= LEARNT_MILLIS) {
            (self.learnt, self.start_millis) = (Some(now), look());
        }
    }

    pub fn may_start(&self, now: Now) -> bool {
        now >= self.hold_until && now >= self.refused_until
    }

    /// Duties change with the live nodes.
    pub fn assume(&mut self, now: Now, duty: Duty) {
        if duty.home && !self.duty.home || duty.zone && !self.duty.zone {
            (self.assumed, self.taken_over) = (now, true);
        }
        self.duty = duty;
    }

    fn rise(&mut self, now: Now, more: u32) {
        let late = |(at, _): &(Now, u32)| now.since(*at) >= TOGETHER_MILLIS;
        while self.rises.front().is_some_and(late) {
            self.rises.pop_front();
        }
        self.rises.push_back((now, more));
        let together = self.rises.iter().map(|(_, more)| *more).sum();
        self.herd = if self.booting {
            self.herd.max(together)
        } else {
            together
        };
    }

    /// Whether anything is on its way.
    pub fn boots(&mut self, booting: bool) {
        self.booting = booting;
    }

    /// The most requests that came together, since something is on its way for them.
    pub fn herd(&self) -> u32 {
        self.herd
    }

    /// What a zone may have of the maximum and take of what it leaves, given its shares now: the least
    /// they were since what others started shows.
    pub fn entitled(&mut self, now: Now, shares: (u32, u32)) -> (u32, u32) {
        let all = self.shares.note(now, shares);
        all.fold(shares, |least, now| {
            (least.0.min(now.0), least.1.min(now.1))
        })
    }

    /// Starts for this zone that were ordered since what others ordered shows.
    pub fn lately(&mut self, now: Now) -> u32 {
        self.starts.note(now, 0).sum()
    }

    /// What the home steward may have started for the minimum lately, given what is missing of it now.
    pub fn missing(&mut self, now: Now, missing: u32) -> u32 {
        self.missing.note(now, missing).max().unwrap_or(missing)
    }

    /// Whether what another steward ordered may not show yet.
    pub fn is_new(&self, now: Now) -> bool {
        self.taken_over && now.since(self.assumed) < HANDOVER_MILLIS
    }

    pub fn started(&mut self, now: Now, zonal: bool) {
        if zonal {
            let _ = self.starts.note(now, 1);
        }
        self.flights.push_back(Flight {
            deadline: now.plus(FLIGHT_MILLIS),
            zonal,
        });
    }

    /// Starts not seen yet: all of them, or this zone's.
    pub fn flights(&self, zonal_only: bool) -> u32 {
        let counted = self.flights.iter().filter(|f| f.zonal || !zonal_only);
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    }

    /// Whether an instance has served for so long that its load says something. One that a door
    /// started a moment ago has not shown yet what it is for: stopping it would only have it started
    /// again at the next burst.
    pub fn is_proven(&self, now: Now, id: &InstanceId, millis: u64) -> bool {
        self.serving
            .get(id)
            .is_some_and(|since| now.since(*since) >= millis)
    }

    pub fn stopped(&mut self, now: Now, id: &InstanceId) {
        self.stopping.insert(id.clone(), now.plus(STOP_MILLIS));
    }

    pub fn is_stopping(&self, id: &InstanceId) -> bool {
        self.stopping.contains_key(id)
    }

    /// Requests that have been held for a while: the fewest of the last moments.
    pub fn settled_queue(&self, now: Now) -> u32 {
        match self.queue.front() {
            Some((at, _)) if now.since(*at) >= SETTLED_MILLIS => self
                .queue
                .iter()
                .map(|(_, queued)| *queued)
                .min()
                .unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether a proposal is due; says so once in a while.
    /// How many the minimum needed in the place of those that leave, at least, since what others ordered
    /// shows.
    pub fn leaving(&mut self, now: Now, needed: u32) -> u32 {
        self.leaving.note(now, needed).min().unwrap_or(needed)
    }

    pub fn may_vacate(&self, now: Now, pause: u64) -> bool {
        self.vacated.is_none_or(|at| now.since(at) >= pause)
    }

    pub fn may_tell(&mut self, now: Now) -> bool {
        let due = self.told.is_none_or(|at| now.since(at) >= TOLD_MILLIS);
        if due {
            self.told = Some(now);
        }
        due
    }
}

fn doubled(base: u64, times: u32, most: u64) -> u64 {
    base.saturating_mul(1_u64.checked_shl(times).unwrap_or(u64::MAX))
        .min(most)
}
