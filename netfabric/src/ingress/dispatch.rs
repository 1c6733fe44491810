//! One request's way: host to service, service to revision, revision to an endpoint with room
//! (or the queue), the try, another try where that can do no harm, and the answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use scheduler::activate::Ticket;
use scheduler::model::{InstanceId, NodeId};
use scheduler::route::{RevisionRoute, Unrouted};
use tokio::time::{Instant, sleep, timeout_at};
use ulid::Ulid;

use super::bench::Bench;
use super::body::{Outbound, Outgoing, Spool};
use super::headers::{Head, INSTANCE, PATIENCE, REQUEST_ID, REVISION, clean_response};
use super::lane::{Fate, hold};
use super::ledger::{Line, Wait, micros};
use super::offer::{self, Tried};
use super::problem::{Code, Problem, accepts_json};
use super::upstream::{self, Admission, Answer, Arrival, Escort, Trip};
use super::{Shared, tunnel};

/// Endpoints one request is sent to at most.
const TRIES: usize = 3;
/// Endpoints that one request finds out of reach at most: nothing was sent to them, so that only
/// its time is lost, and each is left alone for a while.
const DEAD_ENDS: usize = 16;

/// A revision on its way to its first ready instance is waited for this long: a request that
/// follows a deploy at the heels meets a registry that lags by as little.
const FIRST_READY: Duration = Duration::from_secs(2);
const FIRST_READY_LOOK: Duration = Duration::from_millis(25);

/// Answers one request of a client.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    client: IpAddr,
) -> Response<Outgoing> {
    let arrival = Instant::now();
    shared.counters.asked();
    shared.retries.earn();
    let id = Ulid::generate();
    let id_text = HeaderValue::try_from(id.to_string()).unwrap_or(HeaderValue::from_static("-"));
    let json = accepts_json(request.headers());
    let switch = hyper::upgrade::on(&mut request);
    let errand = Errand::new(shared, request, client, id, &id_text, arrival).await;
    let (mut response, line) = match errand {
        Ok(mut errand) => errand.run(switch, &id_text, json).await,
        Err(problem) => {
            shared.counters.problem(problem.code);
            (problem.response(&id_text, json), None)
        }
    };
    shared.counters.answered(response.status().as_u16());
    if let Some((line, wait)) = line {
        match wait {
            Some(wait) => {
                shared.counters.cold_starts.note(line.took);
                shared.ledger.cold(line, wait);
            }
            None => shared.ledger.warm(line),
        }
    }
    response.headers_mut().insert(REQUEST_ID, id_text);
    response
}

/// A request on its way.
struct Errand {
    shared: Arc<Shared>,
    id: Ulid,
    arrival: Instant,
    deadline: Instant,
    head: Head,
    body: Option<Arc<Spool>>,
    route: Arc<RevisionRoute>,
    bench: Arc<Bench>,
    tried: Tried,
    ticket: Option<Ticket>,
    wait: Option<Wait>,
}

/// Who answered.
struct Source {
    instance: Option<Arc<InstanceId>>,
    node: NodeId,
}

type Record = Option<(Line, Option<Wait>)>;

impl Errand {
    async fn new(
        shared: &Arc<Shared>,
        mut request: Request<Incoming>,
        client: IpAddr,
        id: Ulid,
        id_text: &HeaderValue,
        arrival: Instant,
    ) -> Result<Self, Problem> {
        let mut head = Head::vet(&mut request)?;
        head.introduce(client, id_text);
        let route = revision(shared, &head, arrival).await?;
        let seconds = u64::from(route.timeout_seconds.max(1));
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            arrival,
            deadline: arrival + Duration::from_secs(seconds),
            head,
            body: Spool::new(request.into_body()),
            bench: shared.local.bench(&route.key),
            route,
            tried: Tried::default(),
            ticket: None,
            wait: None,
        })
    }

    /// Sends it until it is answered, and puts the answer into the client's form.
    async fn run(
        &mut self,
        switch: OnUpgrade,
        id_text: &HeaderValue,
        json: bool,
    ) -> (Response<Outgoing>, Record) {
        let (response, source, problem) = match self.send().await {
            Ok((answer, admission)) => {
                let source = source(&self.shared, &answer, &admission);
                let response = self.respond(answer, admission, switch);
                (response, Some(source), None)
            }
            Err(problem) => {
                self.shared.counters.problem(problem.code);
                let response = problem.response(id_text, json);
                (response, None, Some(problem.code.word()))
            }
        };
        let line = Line {
            request: self.id,
            route: Arc::clone(&self.route),
            instance: source.as_ref().and_then(|s| s.instance.clone()),
            node: source.map(|s| s.node),
            status: response.status().as_u16(),
            problem,
            took: self.arrival.elapsed(),
        };
        (response, Some((line, self.wait.take())))
    }

    /// Tries endpoints until one answers.
    async fn send(&mut self) -> Result<(Answer, Admission), Problem> {
        let (mut tries, mut dead_ends) = (0, 0);
        loop {
            let admission = self.admission().await?;
            let sent = timeout_at(self.deadline, self.attempt(&admission)).await;
            let late = || Problem::new(Code::UpstreamTimeout, "no answer within the timeout");
            let trip = match sent.map_err(|_| late())? {
                Ok(answer) => return Ok((answer, admission)),
                Err(trip) => trip,
            };
            self.blame(&admission, &trip);
            match trip {
                // The node is not asked again for a while; the request has lost nothing but time.
                Trip::Refused { .. } => {}
                Trip::Connect(_) => dead_ends += 1,
                Trip::Broken(_) | Trip::BrokenThere(_) => tries += 1,
            }
            if !matches!(trip, Trip::Refused { .. }) {
                self.tried.add(&admission);
            }
            drop(admission);
            if tries >= TRIES || dead_ends >= DEAD_ENDS || !self.may_repeat(&trip) {
                return Err(problem(&trip));
            }
            self.shared.counters.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An endpoint with room: at once when there is one and nobody waits, else from the queue.
    async fn admission(&mut self) -> Result<Admission, Problem> {
        let shared = Arc::clone(&self.shared);
        if let Some(route) = shared.routes.load().revision(&self.route.key) {
            self.route = Arc::clone(route);
        }
        if self.bench.waiting() == 0 {
            let room = offer::room(&self.route, &self.bench, &shared.nodes, &self.tried);
            if let Some(admission) = room {
                return Ok(admission);
            }
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
                self.shared
                    .counters
                    .sent_to_peers
                    .fetch_add(1, Ordering::Relaxed);
                let protocol = self.route.protocol;
                let answer = upstream::there(&self.shared, sent.node, protocol, request, switch).await?;
                self.shared.nodes.of(sent.node).answered();
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
        let left = self.deadline.saturating_duration_since(Instant::now());
        let headers = request.headers_mut();
        headers.insert(PATIENCE, HeaderValue::from(micros(left) / 1000));
        if let Ok(revision) = HeaderValue::try_from(self.route.key.to_string()) {
            headers.insert(REVISION, revision);
        }
    }

    /// Leaves an endpoint alone for a while when the fault is its own.
    fn blame(&self, admission: &Admission, trip: &Trip) {
        tracing::debug!(request = %self.id, revision = %self.route.key, %trip, "a try failed");
        match (admission, trip) {
            (Admission::Here(guard), _) => guard.slot.health.broke(),
            (Admission::There(sent), Trip::Connect(_) | Trip::Broken(_)) => {
                self.shared.nodes.of(sent.node).broke();
            }
            (Admission::There(sent), Trip::Refused { full }) => {
                self.bench.refused_by(sent.node, *full);
            }
            (Admission::There(_), Trip::BrokenThere(_)) => {}
        }
    }

    /// Another try does no harm when nothing was sent, or when repeating is harmless by the
    /// method's meaning and retries are within their budget; and when the body is still whole.
    fn may_repeat(&self, trip: &Trip) -> bool {
        let whole = self.body.as_ref().is_none_or(|b| b.can_repeat());
        let harmless = || self.head.is_idempotent() && self.shared.retries.spend();
        whole && (!trip.was_sent() || harmless())
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
        if status == StatusCode::SWITCHING_PROTOCOLS && self.head.upgrade.is_some() {
            let server = hyper::upgrade::on(&mut response);
            tunnel::join(&self.shared, switch, server, admission, lease);
            return fresh(response).map(|_| Outgoing::Own(None));
        }
        let escort = Escort::new(lease, self.body.clone(), admission);
        fresh(response).map(|body| Outgoing::pass(body, self.deadline, escort))
    }
}

/// The same answer without what the upstream connection left on it.
pub(super) fn fresh(mut response: Response<Arrival>) -> Response<Arrival> {
    response.extensions_mut().clear();
    *response.version_mut() = http::Version::HTTP_11;
    response
}

/// The revision a request is for, waiting a moment for one that is about to be ready.
async fn revision(
    shared: &Arc<Shared>,
    head: &Head,
    arrival: Instant,
) -> Result<Arc<RevisionRoute>, Problem> {
    let host = head.host.to_str().unwrap_or_default();
    loop {
        let unrouted = {
            let routes = shared.routes.load();
            let Some(found) = routes.lookup(host) else {
                let message = format!("no service is named `{host}` here");
                return Err(Problem::new(Code::NoSuchHost, message));
            };
            match found.service.pick_revision(rand::random(), found.tag) {
                Ok(revision) => return Ok(Arc::clone(revision)),
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

fn problem(trip: &Trip) -> Problem {
    let code = if trip.was_sent() {
        Code::UpstreamReset
    } else {
        Code::UpstreamConnect
    };
    Problem::new(code, trip.to_string())
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
    fn earn(&self) {
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
