//! One request's way: host to service, service to revision, revision to an endpoint with room
//! (or the queue), and another endpoint where that can do no harm.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::header::{ALT_SVC, CONNECTION};
use http::{HeaderValue, Method, Request, Response, Version};
use scheduler::activate::Ticket;
use scheduler::model::{InstanceId, NodeId, ServiceKey};
use scheduler::route::replay::{Aim, Target};
use scheduler::route::{Match, RevisionRoute, Routes, Unrouted};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use super::bench::Bench;
use super::body::{Outgoing, Received};
use super::errand::Errand;
use super::headers::{Caller, REQUEST_ID};
use super::lane::hold;
use super::ledger::{Line, Stories, Wait};
use super::offer::{self, Tried};
use super::problem::{Code, Problem, accepts_json};
use super::replay::{Asked, Sender};
use super::sticky::Visitor;
use super::upstream::{Admission, Arrival, Trip};
use super::{Shared, afar, secure};

/// Endpoints one request is sent to at most.
const TRIES: usize = 3;
/// Endpoints that one request finds out of reach at most: nothing was sent to them, so that only
/// its time is lost, and each is left alone for a while.
const DEAD_ENDS: usize = 16;

/// A revision on its way to its first ready instance is waited for this long: a request that
/// follows a deploy at the heels meets a registry that lags by as little.
const FIRST_READY: Duration = Duration::from_secs(2);
const FIRST_READY_LOOK: Duration = Duration::from_millis(25);
/// While a request waits for room where it is meant to go, that is looked for this often.
const AIMED_LOOK: Duration = Duration::from_millis(25);

/// Answers one request of a client; `resume` when its way had begun.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    mut request: Request<Received>,
    caller: Caller<'_>,
    resume: Option<Box<Resume>>,
) -> Response<Outgoing> {
    let arrival = Instant::now();
    let id = resume.as_ref().map_or_else(Ulid::generate, |r| r.quest.id);
    if resume.is_none() {
        shared.counters.asked();
        shared.retries.earn();
    }
    let id_text = HeaderValue::try_from(id.to_string()).unwrap_or(HeaderValue::from_static("-"));
    let (json, version) = (accepts_json(request.headers()), request.version());
    if !caller.secure
        && caller.inside.is_none()
        && let Some(instead) = secure::instead(shared, &request)
    {
        let mut response = instead.response(shared, &id_text, json);
        shared.counters.answered(response.status().as_u16());
        response.headers_mut().insert(REQUEST_ID, id_text);
        return response;
    }
    let switch = hyper::upgrade::on(&mut request);
    let errand = Errand::new(shared, request, caller, (id, &id_text, arrival), resume).await;
    let mut response = match errand {
        Ok(errand) => errand.run(switch, &id_text, json).await,
        Err(problem) => {
            shared.counters.problem(problem.code);
            let mut response = problem.response(&id_text, json);
            let ends = matches!(problem.code, Code::BadRequest | Code::BodyTooLarge);
            if ends && version < Version::HTTP_2 {
                // Whoever says such things may mean something else by what follows, or it is never read.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            shared.counters.answered(response.status().as_u16());
            response
        }
    };
    response.headers_mut().insert(REQUEST_ID, id_text);
    if let Some(alternative) = shared.secure.alternative(caller) {
        let headers = response.headers_mut();
        headers
            .entry(ALT_SVC)
            .or_insert_with(|| alternative.clone());
    }
    response
}

/// A request's search for an endpoint.
pub(super) struct Quest {
    pub(super) shared: Arc<Shared>,
    pub(super) id: Ulid,
    pub(super) deadline: Instant,
    pub(super) route: Arc<RevisionRoute>,
    arrival: Instant,
    /// When the search began, or began anew elsewhere.
    since: Instant,
    bench: Arc<Bench>,
    tried: Tried,
    tries: usize,
    dead_ends: usize,
    ticket: Option<Ticket>,
    wait: Option<Wait>,
    /// The client is to be told which revision of a split it met: the value of a `Set-Cookie`.
    pub(super) cookie: Option<String>,
}

/// A request whose way began on an express connection.
pub(super) struct Resume {
    pub(super) quest: Quest,
    /// The endpoint it has found already.
    pub(super) admission: Option<Admission>,
    /// What was said in the place of an answer.
    pub(super) asked: Option<(Asked, Sender)>,
}

impl Resume {
    pub(super) fn new(quest: Quest, admission: Option<Admission>) -> Self {
        Self {
            quest,
            admission,
            asked: None,
        }
    }

    /// A request that its instance sent on, which is to go by the general way.
    pub(super) fn sent_on(quest: Quest, asked: Asked, from: Sender) -> Self {
        Self {
            quest,
            admission: None,
            asked: Some((asked, from)),
        }
    }
}

/// What a request calls.
#[derive(Debug, Clone, Copy)]
pub(super) enum Called<'a> {
    /// A host, and what of it.
    Host {
        host: &'a str,
        target: &'a str,
    },
    Service(&'a ServiceKey),
}

/// Who answered.
pub(super) struct Source {
    pub(super) instance: Option<Arc<InstanceId>>,
    pub(super) node: NodeId,
}

impl Quest {
    pub(super) async fn new(
        shared: &Arc<Shared>,
        called: Called<'_>,
        visitor: Visitor<'_>,
        (id, arrival): (Ulid, Instant),
    ) -> Result<Self, Problem> {
        let (route, cookie) = revision(shared, called, visitor, arrival).await?;
        let mut quest = Self::on(shared, route, id, arrival);
        quest.cookie = cookie;
        Ok(quest)
    }

    /// A client's request's, unless the client or the service has had its rate: that is written down.
    pub(super) async fn of_request(
        shared: &Arc<Shared>,
        called: Called<'_>,
        visitor: Visitor<'_>,
        client: Option<IpAddr>,
        (id, arrival): (Ulid, Instant),
    ) -> Result<Self, Problem> {
        let now = arrival.saturating_duration_since(shared.epoch);
        if let Some(client) = client
            && let Err(problem) = shared.rates.client(client, now)
        {
            if let Some(quest) = Self::at_once(shared, called, id, arrival) {
                quest.refuse(&problem);
            }
            return Err(problem);
        }
        let quest = Self::new(shared, called, visitor, (id, arrival)).await?;
        if let Some(rate) = quest.route.rate
            && let Err(problem) = shared.rates.service(&quest.route.service, rate, now)
        {
            quest.refuse(&problem);
            return Err(problem);
        }
        Ok(quest)
    }

    /// One that waits for no revision: for what is refused.
    pub(super) fn at_once(
        shared: &Arc<Shared>,
        called: Called<'_>,
        id: Ulid,
        arrival: Instant,
    ) -> Option<Self> {
        let routes = shared.routes.load();
        let Match { service, tag, .. } = called.find(&routes).ok()?;
        let route = service.pick_revision(rand::random(), tag).ok()?;
        Some(Self::on(shared, Arc::clone(route), id, arrival))
    }

    fn on(shared: &Arc<Shared>, route: Arc<RevisionRoute>, id: Ulid, arrival: Instant) -> Self {
        Self {
            shared: Arc::clone(shared),
            id,
            deadline: arrival + allowed(&route),
            arrival,
            since: arrival,
            bench: shared.local.bench(&route.key),
            route,
            tried: Tried::default(),
            tries: 0,
            dead_ends: 0,
            ticket: None,
            wait: None,
            cookie: None,
        }
    }

    /// An endpoint with room: at once when there is one and nobody waits, else from the queue.
    pub(super) async fn admission(&mut self) -> Result<Admission, Problem> {
        let shared = Arc::clone(&self.shared);
        self.refresh();
        if self.tried.aim().is_some() {
            return self.aimed().await;
        }
        if self.bench.waiting() == 0
            && let Some(admission) = self.room()
        {
            return Ok(admission);
        }
        shared.counters.cold.fetch_add(1, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        let next = || Ticket(shared.tickets.fetch_add(1, Ordering::Relaxed));
        let ticket = *self.ticket.get_or_insert_with(next);
        let until = self.deadline.min(self.since + shared.limits.wait);
        let fate = hold(&shared, self.id, ticket, until, &self.route, &self.bench).await;
        self.waited(begun, Arc::clone(&fate.stories));
        let rebuff = match fate.result {
            Ok(admission) => return Ok(admission),
            Err(rebuff) => rebuff,
        };
        if Instant::now() >= self.deadline {
            let late = "no instance had room within the timeout";
            return Err(Problem::new(Code::UpstreamTimeout, late));
        }
        let any = offer::any(&self.route, &self.bench, &shared.nodes, &self.tried);
        any.ok_or_else(|| Problem::refused(&rebuff.reason, rebuff.retry_after_millis))
    }

    /// The revision as it is routed to now.
    fn refresh(&mut self) {
        if let Some(route) = self.shared.routes.load().revision(&self.route.key) {
            self.route = match self.tried.aim() {
                None => Arc::clone(route),
                Some(aim) => aim.narrow(route),
            };
        }
    }

    /// Room at one of those that the request is meant for, as soon as there is some; one is started where
    /// there is none.
    async fn aimed(&mut self) -> Result<Admission, Problem> {
        let shared = Arc::clone(&self.shared);
        let until = self.deadline.min(self.since + shared.limits.wait);
        let begun = std::time::Instant::now();
        let (mut seat, mut woken) = (None, None);
        loop {
            let any = || offer::any(&self.route, &self.bench, &shared.nodes, &self.tried);
            if let Some(admission) = self.room().or_else(any) {
                if let Some(stories) = woken {
                    self.waited(begun, stories);
                }
                return Ok(admission);
            }
            if !self.tried.leaves(&self.route, &self.bench) {
                let aim = self.tried.aim().cloned().unwrap_or_default();
                let key = &self.route.key;
                // When the start it waited for has ended there is one, or there will be none.
                let next = match woken {
                    None => afar::wake(&shared, key, &aim, self.id),
                    Some(_) => shared.afar.going(key, &aim),
                };
                let none = || {
                    let why = format!("{key} is not to be had where the request was sent on to");
                    Problem::new(Code::ReplayNowhere, why)
                };
                woken = Some(next.ok_or_else(none)?);
            }
            if Instant::now() >= until {
                let why = "no instance had room where the request was sent on to";
                return Err(Problem::new(Code::WaitTimeout, why));
            }
            if seat.is_none() {
                let full = |_| {
                    let why = "too many requests wait where they were sent on to";
                    Problem::new(Code::QueueFull, why)
                };
                seat = Some(shared.aimed.try_acquire().map_err(full)?);
            }
            sleep(AIMED_LOOK).await;
            self.refresh();
        }
    }

    /// Which endpoints it is meant for, when not for all.
    pub(super) fn aim(&self) -> Option<&Aim> {
        self.tried.aim()
    }

    /// Looks for an endpoint anew, elsewhere.
    pub(super) fn turn_to(&mut self, target: Target) {
        let Target { revision, aim } = target;
        self.since = Instant::now();
        self.deadline = self.since + allowed(&revision);
        self.bench = self.shared.local.bench(&revision.key);
        self.route = aim.narrow(&revision);
        self.tried = Tried::aimed(aim, self.shared.me());
        (self.tries, self.dead_ends, self.ticket) = (0, 0, None);
    }

    /// An endpoint that was not tried and has room now.
    pub(super) fn room(&self) -> Option<Admission> {
        offer::room(&self.route, &self.bench, &self.shared.nodes, &self.tried)
    }

    fn waited(&mut self, begun: std::time::Instant, stories: Arc<Stories>) {
        let waited = begun.elapsed();
        let wait = self.wait.get_or_insert_with(|| Wait {
            begun,
            waited: Duration::ZERO,
            stories: Arc::default(),
        });
        wait.waited += waited;
        wait.stories = stories;
    }

    /// A try failed. Says whether another may follow: it does no harm when nothing was sent, or
    /// when repeating is harmless by the method's meaning and retries are within their budget; and
    /// when the body is still whole.
    pub(super) fn again(
        &mut self,
        admission: &Admission,
        trip: &Trip,
        idempotent: bool,
        whole: bool,
    ) -> bool {
        self.blame(admission, trip);
        match trip {
            // The node is not asked again for a while; the request has lost nothing but time.
            Trip::Refused { .. } => {}
            Trip::Connect(_) | Trip::Port(_) | Trip::Crowded(_) => self.dead_ends += 1,
            Trip::Broken(_) | Trip::BrokenThere(_) => self.tries += 1,
        }
        if !matches!(trip, Trip::Refused { .. }) {
            self.tried.add(admission);
        }
        let harmless = || idempotent && self.shared.retries.spend();
        let left = self.tries < TRIES && self.dead_ends < DEAD_ENDS;
        let again = left && whole && (!trip.was_sent() || harmless());
        if again {
            self.shared.counters.retries.fetch_add(1, Ordering::Relaxed);
        }
        again
    }

    /// A kept connection was closed as the request was sent on it, which is nobody's fault. Says
    /// whether it may be sent again.
    pub(super) fn again_after_stale(&mut self, method: &Method) -> bool {
        self.tries += 1;
        let again = self.tries < TRIES && method.is_idempotent() && self.shared.retries.spend();
        if again {
            self.shared.counters.retries.fetch_add(1, Ordering::Relaxed);
        }
        again
    }

    /// Leaves an endpoint alone for a while when the fault is its own.
    fn blame(&self, admission: &Admission, trip: &Trip) {
        tracing::debug!(request = %self.id, revision = %self.route.key, %trip, "a try failed");
        match (admission, trip) {
            (Admission::Here(guard), _) => guard.blame(trip),
            // The node may be well and its instance not.
            (Admission::There(_), Trip::Port(_) | Trip::Crowded(_) | Trip::BrokenThere(_)) => {}
            (Admission::There(sent), Trip::Connect(_) | Trip::Broken(_)) => {
                self.shared
                    .nodes
                    .blame(sent.node, sent.since.elapsed(), trip);
            }
            (Admission::There(sent), Trip::Refused { full }) => {
                self.bench.refused_by(sent.node, *full);
            }
        }
    }

    /// An answer began: writes down what became of the request. Status 0 is a connection's, which has
    /// no such thing.
    pub(super) fn record(self, status: u16, source: Option<Source>, problem: Option<&'static str>) {
        if status > 0 {
            self.shared.counters.answered(status);
        }
        self.note(status, source, problem);
    }

    /// Writes down that it was refused; whoever answers counts the answer.
    pub(super) fn refuse(self, problem: &Problem) {
        let status = problem.code.status().as_u16();
        self.note(status, None, Some(problem.code.word()));
    }

    fn note(self, status: u16, source: Option<Source>, problem: Option<&'static str>) {
        let line = Line {
            request: self.id,
            route: self.route,
            node: source.as_ref().map(|s| s.node),
            instance: source.and_then(|s| s.instance),
            status,
            problem,
            took: self.arrival.elapsed(),
        };
        match self.wait {
            Some(wait) => {
                self.shared.counters.cold_starts.note(line.took);
                self.shared.ledger.cold(line, wait);
            }
            None => self.shared.ledger.warm(line),
        }
    }
}

/// How long a request may take.
fn allowed(route: &RevisionRoute) -> Duration {
    Duration::from_secs(route.timeout_seconds.max(1).into())
}

/// The same answer without what the upstream connection left on it.
pub(super) fn fresh(mut response: Response<Arrival>) -> Response<Arrival> {
    response.extensions_mut().clear();
    *response.version_mut() = http::Version::HTTP_11;
    response
}

impl Called<'_> {
    fn find<'r>(&self, routes: &'r Routes) -> Result<Match<'r>, Problem> {
        let found = match self {
            Self::Host { host, target } => routes.lookup(host, target),
            Self::Service(key) => routes.service(key).map(Match::whole),
        };
        found.ok_or_else(|| {
            let name: &dyn Display = match self {
                Self::Host { host, .. } => host,
                Self::Service(key) => key,
            };
            let message = format!("no service is named `{name}` here");
            Problem::new(Code::NoSuchHost, message)
        })
    }
}

/// The revision a request is for, waiting a moment for one that is about to be ready; and what its
/// client is told of it.
async fn revision(
    shared: &Arc<Shared>,
    called: Called<'_>,
    visitor: Visitor<'_>,
    arrival: Instant,
) -> Result<(Arc<RevisionRoute>, Option<String>), Problem> {
    loop {
        let unrouted = {
            let routes = shared.routes.load();
            let Match { service, tag, path } = called.find(&routes)?;
            match service.choose(rand::random(), tag, visitor.tokens()) {
                Ok(chosen) => {
                    let told = chosen.keep.map(|keep| visitor.told(keep, path));
                    return Ok((Arc::clone(chosen.revision), told));
                }
                Err(unrouted) => unrouted,
            }
        };
        let pending = matches!(unrouted, Unrouted::Pending(_));
        let seat = shared.first_ready.try_acquire();
        if !pending || seat.is_err() || arrival.elapsed() >= FIRST_READY {
            return Err(unrouted.into());
        }
        sleep(FIRST_READY_LOOK).await;
    }
}

/// Retries are at most a fifth of requests over time, so that a failing endpoint is not answered
/// with a storm. A burst is allowed for: when a node dies, all its requests come at once.
#[derive(Debug)]
pub(super) struct Retries(AtomicI64);

const RETRY_COST: i64 = 5;
const RETRY_BURST: i64 = 1000;

impl Default for Retries {
    fn default() -> Self {
        Self(AtomicI64::new(RETRY_BURST * RETRY_COST))
    }
}

impl Retries {
    pub(super) fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < RETRY_BURST * RETRY_COST {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn spend(&self) -> bool {
        let afford = |left: i64| left.checked_sub(RETRY_COST).filter(|l| *l >= 0);
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, afford).is_ok()
    }
}
