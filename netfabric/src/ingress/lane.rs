//! Where requests wait for room: one task per revision that has any waiting, driving
//! `activate`. It starts what the core asks for, offers room as it appears, and ends when nothing
//! is left to remember.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scheduler::activate::{Activation, Bounds, Effect, Refused, Ticket};
use scheduler::model::{Demand, InstanceId, Now, RequestId, RevisionKey};
use scheduler::route::RevisionRoute;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use ulid::Ulid;

use super::Shared;
use super::bench::Bench;
use super::ledger::Stories;
use super::local::lock;
use super::offer::{self, Tried};
use super::start::{Outcome, start};
use super::upstream::Admission;

/// While requests wait, routes are looked at this often: an instance somebody else started shows
/// there and nowhere else.
const LOOK_AT_ROUTES: Duration = Duration::from_millis(25);

/// All lanes of the door.
#[derive(Default)]
pub(super) struct Lanes {
    open: Mutex<HashMap<RevisionKey, Lane>>,
    held: AtomicUsize,
}

struct Lane {
    inbox: mpsc::Sender<Guest>,
    bench: Arc<Bench>,
}

/// A request at the lane's door.
pub(super) struct Guest {
    pub(super) ticket: Ticket,
    pub(super) request: Ulid,
    pub(super) deadline: Instant,
    pub(super) route: Arc<RevisionRoute>,
    pub(super) bench: Arc<Bench>,
    pub(super) reply: oneshot::Sender<Fate>,
}

/// What becomes of a held request, and the starts behind it.
pub(super) struct Fate {
    pub(super) stories: Arc<Stories>,
    pub(super) result: Result<Admission, Rebuff>,
}

#[derive(Debug)]
pub(super) struct Rebuff {
    pub(super) reason: Refused,
    pub(super) retry_after_millis: u64,
}

impl Rebuff {
    fn queue_full() -> Self {
        Self {
            reason: Refused::QueueFull,
            retry_after_millis: 1_000,
        }
    }
}

impl Lanes {
    /// Requests waiting now, over all revisions.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn demand(&self) -> Vec<Demand> {
        let open = lock(&self.open);
        let waiting = open.iter().map(|(revision, lane)| Demand {
            revision: revision.clone(),
            queued: u32::try_from(lane.bench.waiting()).unwrap_or(u32::MAX),
            away: 0,
        });
        waiting.filter(|d| d.queued > 0).collect()
    }

    /// Lets the guest in, opening the lane if need be.
    fn enter(&self, shared: &Arc<Shared>, guest: Guest) -> Result<(), Rebuff> {
        let key = guest.route.key.clone();
        let mut open = lock(&self.open);
        let lane = open.entry(key).or_insert_with(|| {
            let (inbox, guests) = mpsc::channel(shared.limits.queue.max(1));
            let bench = Arc::clone(&guest.bench);
            let task = Task::new(shared, &guest, guests);
            shared.runtime.spawn(task.run());
            Lane { inbox, bench }
        });
        lane.inbox.try_send(guest).map_err(|_| Rebuff::queue_full())
    }
}

/// Waits for room until the guest's fate is known.
pub(super) async fn hold(
    shared: &Arc<Shared>,
    request: Ulid,
    ticket: Ticket,
    deadline: Instant,
    route: &Arc<RevisionRoute>,
    bench: &Arc<Bench>,
) -> Fate {
    let refuse = |rebuff| Fate {
        stories: Arc::default(),
        result: Err(rebuff),
    };
    let held = Held::new(&shared.lanes);
    if shared.lanes.held() > shared.limits.node_queue {
        return refuse(Rebuff::queue_full());
    }
    let _waiting = bench.wait();
    let (reply, fate) = oneshot::channel();
    let guest = Guest {
        ticket,
        request,
        deadline,
        route: Arc::clone(route),
        bench: Arc::clone(bench),
        reply,
    };
    if let Err(rebuff) = shared.lanes.enter(shared, guest) {
        return refuse(rebuff);
    }
    let fate = fate.await;
    drop(held);
    fate.unwrap_or_else(|_| refuse(Rebuff::queue_full()))
}

struct Held<'a>(&'a Lanes);

impl<'a> Held<'a> {
    fn new(lanes: &'a Lanes) -> Self {
        lanes.held.fetch_add(1, Ordering::Relaxed);
        Self(lanes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Task {
    shared: Arc<Shared>,
    /// As routes had it when last seen there.
    route: Arc<RevisionRoute>,
    bench: Arc<Bench>,
    inbox: mpsc::Receiver<Guest>,
    core: Activation,
    guests: BTreeMap<Ticket, Guest>,
    starts: JoinSet<Outcome>,
    stories: Arc<Stories>,
}

impl Task {
    fn new(shared: &Arc<Shared>, first: &Guest, inbox: mpsc::Receiver<Guest>) -> Self {
        Self {
            shared: Arc::clone(shared),
            route: Arc::clone(&first.route),
            bench: Arc::clone(&first.bench),
            inbox,
            core: Activation::new(shared.limits.queue),
            guests: BTreeMap::new(),
            starts: JoinSet::new(),
            stories: Arc::default(),
        }
    }

    async fn run(mut self) {
        let bench = Arc::clone(&self.bench);
        let mut look = interval(LOOK_AT_ROUTES);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let timer = self.core.poll_timeout().map(|now| self.shared.instant(now));
            tokio::select! {
                Some(guest) = self.inbox.recv() => self.welcome(guest),
                Some(done) = self.starts.join_next() => {
                    if let Ok(outcome) = done {
                        self.settle(outcome);
                    }
                }
                () = bench.room.notified() => {}
                _ = look.tick(), if self.core.held() > 0 => self.sweep(),
                () = until(timer) => {}
            }
            self.offer();
            let (now, bounds) = (self.shared.now(), self.bounds());
            let effects = self.core.on_timeout(now, &bounds);
            self.perform(effects);
            if self.core.is_idle() && self.leave() {
                return;
            }
        }
    }

    fn welcome(&mut self, guest: Guest) {
        let ticket = guest.ticket;
        let deadline = self.shared.tick(guest.deadline);
        self.guests.insert(ticket, guest);
        let (now, bounds) = (self.shared.now(), self.bounds());
        let effects = self.core.on_request(now, ticket, deadline, &bounds);
        self.perform(effects);
    }

    /// A start ended. An instance said to be ready here that the door does not know is a failure:
    /// believing it would start one after the other.
    fn settle(&mut self, outcome: Outcome) {
        self.stories.add(outcome.story);
        let reason = match outcome.result {
            Ok((node, started)) if node != self.shared.me() => {
                self.bench.add_fresh(node, started.instance);
                return self.core.on_started();
            }
            Ok((_, started)) if self.shared.local.has(&started.instance) => {
                return self.core.on_started();
            }
            Ok((_, started)) => not_open(&started.instance),
            Err(reason) => reason,
        };
        self.shared
            .counters
            .starts_failed
            .fetch_add(1, Ordering::Relaxed);
        tracing::warn!(revision = %self.route.key, %reason, "an instance did not start");
        let (now, bounds) = (self.shared.now(), self.bounds());
        let effects = self.core.on_start_failed(now, reason, &bounds);
        self.perform(effects);
    }

    /// Forgets guests whose client went away.
    fn sweep(&mut self) {
        let gone = |(ticket, guest): (&Ticket, &Guest)| guest.reply.is_closed().then_some(*ticket);
        let gone: Vec<Ticket> = self.guests.iter().filter_map(gone).collect();
        for ticket in gone {
            self.guests.remove(&ticket);
            self.core.on_cancel(ticket);
        }
    }

    /// Hands out room while there is any, each with its admission in hand.
    fn offer(&mut self) {
        self.look();
        let nobody = Tried::default();
        while self.core.held() > 0 {
            let room = offer::room(&self.route, &self.bench, &self.shared.nodes, &nobody);
            let Some(admission) = room else {
                return;
            };
            let mut admission = Some(admission);
            for effect in self.core.on_room(1) {
                if let Effect::Release { ticket } = effect
                    && let Some(admission) = admission.take()
                {
                    self.tell(ticket, Ok(admission));
                }
            }
        }
    }

    fn look(&mut self) {
        if let Some(route) = self.shared.routes.load().revision(&self.route.key) {
            self.route = Arc::clone(route);
        }
    }

    fn bounds(&mut self) -> Bounds {
        self.look();
        Bounds {
            per_instance: self.route.total,
            max_scale: self.route.max_scale,
            ready: self.bench.ready(&self.route),
            starting: self.route.starting,
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start { count } => self.start(count),
                Effect::Release { .. } => {}
                Effect::Refuse {
                    ticket,
                    reason,
                    retry_after_millis,
                } => {
                    let rebuff = Rebuff {
                        reason,
                        retry_after_millis,
                    };
                    self.tell(ticket, Err(rebuff));
                }
            }
        }
    }

    fn start(&mut self, count: u32) {
        let cause = self.guests.values().next().map(|g| g.request);
        let cause = RequestId(cause.unwrap_or_default().to_string());
        let guests = u32::try_from(self.guests.len()).unwrap_or(u32::MAX);
        let held = guests.div_ceil(count.max(1));
        for _ in 0..count {
            self.shared.counters.starts.fetch_add(1, Ordering::Relaxed);
            let (shared, cause) = (Arc::clone(&self.shared), cause.clone());
            let revision = self.route.key.clone();
            self.starts
                .spawn(async move { start(&shared, &revision, (cause, held), &[]).await });
        }
    }

    /// A guest that is gone hands its admission back by dropping it.
    fn tell(&mut self, ticket: Ticket, result: Result<Admission, Rebuff>) {
        if let Some(guest) = self.guests.remove(&ticket) {
            let stories = Arc::clone(&self.stories);
            let _gone = guest.reply.send(Fate { stories, result });
        }
    }

    /// Closes the lane, unless someone came in meanwhile.
    fn leave(&self) -> bool {
        let mut open = lock(&self.shared.lanes.open);
        let empty = self.inbox.is_empty();
        if empty {
            open.remove(&self.route.key);
        }
        empty
    }
}

fn not_open(instance: &InstanceId) -> Refused {
    Refused::StartFailed {
        code: "NotOpened".to_owned(),
        message: format!("{instance} was said to be ready but admits nothing"),
    }
}

async fn until(timer: Option<Instant>) {
    match timer {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// The door's clock, as the pure cores read it.
    pub(super) fn now(&self) -> Now {
        self.tick(Instant::now())
    }

    /// Rounded up, so that a timer that fired is due.
    fn tick(&self, at: Instant) -> Now {
        let since = at.saturating_duration_since(self.epoch);
        Now(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(&self, now: Now) -> Instant {
        self.epoch + Duration::from_millis(now.0)
    }
}
