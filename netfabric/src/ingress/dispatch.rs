//! One request's way: host to service, service to revision, revision to an endpoint with room
//! (or the queue), the try, another try where that can do no harm, and the answer.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, SET_COOKIE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use scheduler::activate::Ticket;
use scheduler::model::{InstanceId, Name, NodeId, ServiceKey};
use scheduler::route::{RevisionRoute, Routes, ServiceRoute, Unrouted};
use tokio::time::{Instant, sleep, timeout_at};
use ulid::Ulid;

use super::bench::Bench;
use super::body::{Outbound, Outgoing, Spool};
use super::headers::{
    Caller, Head, INSTANCE, PATIENCE, REQUEST_ID, REVISION, clean_response, switched_on_stream,
};
use super::lane::{Fate, hold};
use super::ledger::{Line, Wait, micros};
use super::offer::{self, Tried};
use super::problem::{Code, Problem, accepts_json};
use super::sticky::Visitor;
use super::upstream::{self, Admission, Answer, Arrival, Escort, Trip};
use super::{Shared, secure, tunnel};

/// Endpoints one request is sent to at most.
const TRIES: usize = 3;
/// Endpoints that one request finds out of reach at most: nothing was sent to them, so that only
/// its time is lost, and each is left alone for a while.
const DEAD_ENDS: usize = 16;

/// A revision on its way to its first ready instance is waited for this long: a request that
/// follows a deploy at the heels meets a registry that lags by as little.
const FIRST_READY: Duration = Duration::from_secs(2);
const FIRST_READY_LOOK: Duration = Duration::from_millis(25);

/// Answers one request of a client; `resume` when its way had begun.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
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
            if problem.code == Code::BadRequest && version < Version::HTTP_2 {
                // Whoever says such things may mean something else by what follows.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            shared.counters.answered(response.status().as_u16());
            response
        }
    };
    response.headers_mut().insert(REQUEST_ID, id_text);
    response
}

/// A request's search for an endpoint.
pub(super) struct Quest {
    pub(super) shared: Arc<Shared>,
    pub(super) id: Ulid,
    pub(super) deadline: Instant,
    pub(super) route: Arc<RevisionRoute>,
    arrival: Instant,
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
    quest: Quest,
    /// The endpoint it has found already.
    admission: Option<Admission>,
}

impl Resume {
    pub(super) fn new(quest: Quest, admission: Option<Admission>) -> Self {
        Self { quest, admission }
    }
}

/// What a request calls.
#[derive(Debug, Clone, Copy)]
pub(super) enum Called<'a> {
    Host(&'a str),
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
        let seconds = u64::from(route.timeout_seconds.max(1));
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            deadline: arrival + Duration::from_secs(seconds),
            arrival,
            bench: shared.local.bench(&route.key),
            route,
            tried: Tried::default(),
            tries: 0,
            dead_ends: 0,
            ticket: None,
            wait: None,
            cookie,
        })
    }

    /// An endpoint with room: at once when there is one and nobody waits, else from the queue.
    pub(super) async fn admission(&mut self) -> Result<Admission, Problem> {
        let shared = Arc::clone(&self.shared);
        if let Some(route) = shared.routes.load().revision(&self.route.key) {
            self.route = Arc::clone(route);
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
        let until = self.deadline.min(self.arrival + shared.limits.wait);
        let fate = hold(&shared, self.id, ticket, until, &self.route, &self.bench).await;
        self.waited(begun, &fate);
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

    /// An endpoint that was not tried and has room now.
    pub(super) fn room(&self) -> Option<Admission> {
        offer::room(&self.route, &self.bench, &self.shared.nodes, &self.tried)
    }

    fn waited(&mut self, begun: std::time::Instant, fate: &Fate) {
        let waited = begun.elapsed();
        let wait = self.wait.get_or_insert_with(|| Wait {
            begun,
            waited: Duration::ZERO,
            stories: Arc::clone(&fate.stories),
        });
        wait.waited += waited;
        wait.stories = Arc::clone(&fate.stories);
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
            Trip::Connect(_) | Trip::Port(_) => self.dead_ends += 1,
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
            // A program may serve requests and not that port; a node may be well and its instance not.
            (_, Trip::Port(_)) | (Admission::There(_), Trip::BrokenThere(_)) => {}
            (Admission::Here(guard), _) => guard.slot.health.broke(),
            (Admission::There(sent), Trip::Connect(_) | Trip::Broken(_)) => {
                let took = sent.since.elapsed();
                self.shared.nodes.of(sent.node).broke_after(took);
            }
            (Admission::There(sent), Trip::Refused { full }) => {
                self.bench.refused_by(sent.node, *full);
            }
        }
    }

    /// An answer began: writes down what became of the request. Status 0 is a connection's, which has
    /// no such thing.
    pub(super) fn record(self, status: u16, source: Option<Source>, problem: Option<&'static str>) {
        let line = Line {
            request: self.id,
            route: self.route,
            node: source.as_ref().map(|s| s.node),
            instance: source.and_then(|s| s.instance),
            status,
            problem,
            took: self.arrival.elapsed(),
        };
        if status > 0 {
            self.shared.counters.answered(status);
        }
        match self.wait {
            Some(wait) => {
                self.shared.counters.cold_starts.note(line.took);
                self.shared.ledger.cold(line, wait);
            }
            None => self.shared.ledger.warm(line),
        }
    }
}

/// A request on its way.
struct Errand {
    quest: Quest,
    /// An endpoint that was found before.
    found: Option<Admission>,
    head: Head,
    body: Option<Arc<Spool>>,
}

impl Errand {
    async fn new(
        shared: &Arc<Shared>,
        mut request: Request<Incoming>,
        caller: Caller<'_>,
        (id, id_text, arrival): (Ulid, &HeaderValue, Instant),
        resume: Option<Box<Resume>>,
    ) -> Result<Self, Problem> {
        let mut head = Head::vet(&mut request)?;
        head.introduce(caller, id_text);
        let Resume { quest, admission } = if let Some(resume) = resume {
            *resume
        } else {
            let called = match caller.inside {
                Some(call) => Called::Service(call.admitted(shared)?),
                None => Called::Host(head.host.to_str().unwrap_or_default()),
            };
            let visitor = Visitor {
                cookies: head.cookies(),
                secure: caller.secure,
            };
            let quest = Quest::new(shared, called, visitor, (id, arrival)).await?;
            Resume::new(quest, None)
        };
        Ok(Self {
            quest,
            found: admission,
            head,
            body: Spool::new(request.into_body()),
        })
    }

    /// Sends it until it is answered, and puts the answer into the client's form.
    async fn run(
        mut self,
        switch: OnUpgrade,
        id_text: &HeaderValue,
        json: bool,
    ) -> Response<Outgoing> {
        match self.send().await {
            Ok((answer, admission)) => {
                let source = source(&self.quest.shared, &answer, &admission);
                let response = self.respond(answer, admission, switch);
                self.quest
                    .record(response.status().as_u16(), Some(source), None);
                response
            }
            Err(problem) => {
                self.quest.shared.counters.problem(problem.code);
                let response = problem.response(id_text, json);
                let status = response.status().as_u16();
                self.quest.record(status, None, Some(problem.code.word()));
                response
            }
        }
    }

    /// Tries endpoints until one answers.
    async fn send(&mut self) -> Result<(Answer, Admission), Problem> {
        loop {
            let admission = match self.found.take() {
                Some(admission) => admission,
                None => self.quest.admission().await?,
            };
            let sent = timeout_at(self.quest.deadline, self.attempt(&admission)).await;
            let trip = match sent.map_err(|_| Problem::late())? {
                Ok(answer) => return Ok((answer, admission)),
                Err(trip) => trip,
            };
            let whole = self.body.as_ref().is_none_or(|b| b.can_repeat());
            let idempotent = self.head.is_idempotent();
            if !self.quest.again(&admission, &trip, idempotent, whole) {
                return Err(trip.problem());
            }
        }
    }

    async fn attempt(&self, admission: &Admission) -> Result<Answer, Trip> {
        let gone = || Trip::Connect("the request's body was read already".to_owned());
        let body = match &self.body {
            None => Outbound::Empty,
            Some(spool) => spool.read().ok_or_else(gone)?,
        };
        let mut request = self.head.request(body);
        let switch = self.head.upgrade.is_some();
        let answer = match admission {
            Admission::Here(guard) => {
                let answer = upstream::here(&guard.slot, request, switch).await?;
                guard.slot.answered();
                answer
            }
            Admission::There(sent) => {
                self.address(&mut request);
                self.quest
                    .shared
                    .counters
                    .sent_to_peers
                    .fetch_add(1, Ordering::Relaxed);
                let protocol = self.quest.route.protocol;
                let answer =
                    upstream::there(&self.quest.shared, sent.node, protocol, request, switch)
                        .await?;
                self.quest.shared.nodes.of(sent.node).answered();
                answer
            }
        };
        if let Some(body) = &self.body {
            body.settle();
        }
        Ok(answer)
    }

    /// Says to a peer what is meant and how long there is.
    fn address(&self, request: &mut Request<Outbound>) {
        let left = self
            .quest
            .deadline
            .saturating_duration_since(Instant::now());
        let headers = request.headers_mut();
        headers.insert(PATIENCE, HeaderValue::from(micros(left) / 1000));
        if let Ok(revision) = HeaderValue::try_from(self.quest.route.key.to_string()) {
            headers.insert(REVISION, revision);
        }
    }

    fn respond(
        &self,
        answer: Answer,
        admission: Admission,
        switch: OnUpgrade,
    ) -> Response<Outgoing> {
        let Answer {
            mut response,
            lease,
        } = answer;
        let status = response.status();
        clean_response(status, response.headers_mut());
        let cookie = self.quest.cookie.as_ref();
        if let Some(cookie) = cookie.and_then(|c| HeaderValue::try_from(c).ok()) {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        if status == StatusCode::SWITCHING_PROTOCOLS && self.head.upgrade.is_some() {
            let server = hyper::upgrade::on(&mut response);
            if self.head.on_stream {
                switched_on_stream(&mut response);
            }
            let ends = (switch, server);
            tunnel::join(&self.quest.shared, &self.head, ends, (admission, lease));
            return fresh(response).map(|_| Outgoing::Own(None));
        }
        if self.head.upgrade.is_some() && !self.head.on_stream {
            // What follows was not read as HTTP (`strict`).
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        let escort = Escort::new(lease, self.body.clone(), admission);
        fresh(response).map(|body| Outgoing::pass(body, self.quest.deadline, escort))
    }
}

/// The same answer without what the upstream connection left on it.
pub(super) fn fresh(mut response: Response<Arrival>) -> Response<Arrival> {
    response.extensions_mut().clear();
    *response.version_mut() = http::Version::HTTP_11;
    response
}

impl Called<'_> {
    fn find<'r>(
        &self,
        routes: &'r Routes,
    ) -> Result<(&'r Arc<ServiceRoute>, Option<&'r Name>), Problem> {
        let found = match self {
            Self::Host(host) => routes.lookup(host).map(|m| (m.service, m.tag)),
            Self::Service(key) => routes.service(key).map(|s| (s, None)),
        };
        found.ok_or_else(|| {
            let name: &dyn Display = match self {
                Self::Host(host) => host,
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
            let (service, tag) = called.find(&routes)?;
            match service.choose(rand::random(), tag, visitor.tokens()) {
                Ok(chosen) => {
                    let told = chosen.keep.map(|keep| visitor.told(keep));
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

fn source(shared: &Shared, answer: &Answer, admission: &Admission) -> Source {
    match admission {
        Admission::Here(guard) => Source {
            instance: Some(Arc::clone(&guard.slot.id)),
            node: shared.me(),
        },
        Admission::There(sent) => {
            let named = answer.response.headers().get(INSTANCE);
            let named = named.and_then(|v| v.to_str().ok());
            Source {
                instance: named.map(|n| Arc::new(InstanceId(n.to_owned()))),
                node: sent.node,
            }
        }
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
