//! The door for other nodes: requests they found no instance for at home. Only instances here
//! answer; what none of them can take is refused, and the asking node tries elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use scheduler::model::{InstanceId, Name, RevisionKey};
use scheduler::route::replay::Aim;
use scheduler::route::stands;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::bench::Bench;
use super::body::{Outbound, Outgoing, Spool};
use super::dispatch::fresh;
use super::door::Phase;
use super::headers::{
    BROKEN, FULL, Head, INSTANCE, NOT, NOT_HERE, ONLY, PATIENCE, REFUSED, REVISION, Side, TIMEOUT,
    clean_response,
};
use super::local::{Guard, Slot};
use super::problem::Problem;
use super::stream::Stream;
use super::upstream::{self, Admission, Answer, Escort, Trip};
use super::{Shared, door, express, tunnel};

/// The longest a revision may allow (600 s), and what a peer that says nothing gets.
const PATIENCE_CAP: Duration = Duration::from_mins(10);
pub(super) const TRIES: usize = 3;
/// A refusal reads this much of a body first: a sender that finds its stream closed while it
/// still writes may miss the refusal.
const DRAIN_BYTES: usize = 64 * 1024;
/// A peer that is there acknowledges an answer within a few round trips.
const DELIVERY: Duration = Duration::from_secs(1);
const DRAIN_TIME: Duration = Duration::from_millis(200);

/// Serves other nodes' streams. Clones are the same door.
#[derive(Clone)]
pub struct PeerDoor {
    pub(super) shared: Arc<Shared>,
}

/// A stream's place among all that the door serves.
pub struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl PeerDoor {
    /// A place for one stream. `None` when there are too many, or the door is closed: the stream is to be
    /// refused, and its sender goes elsewhere.
    pub fn enter(&self) -> Option<Place> {
        let closed = *self.shared.phase.borrow() == Phase::Closed;
        let connections = Arc::clone(&self.shared.connections);
        let permit = connections.try_acquire_owned().ok();
        permit.filter(|_| !closed).map(Place)
    }

    /// Serves one stream until it ends. While the door is closing peers are still served, until
    /// nobody else is in any more. A door that leaves keeps the place until the answer is `delivered`: what a
    /// node that left has not answered is asked elsewhere, for there nobody had begun with it.
    pub async fn serve<S: Stream + 'static>(
        &self,
        stream: S,
        _place: Place,
        delivered: impl Future<Output = ()>,
    ) {
        self.serve_stream(stream).await;
        if *self.shared.phase.borrow() > Phase::Open {
            let _late = timeout(DELIVERY, delivered).await;
        }
    }

    async fn serve_stream<S: Stream + 'static>(&self, stream: S) {
        let Some((stream, seen)) = express::serve_peer(&self.shared, stream).await else {
            return;
        };
        // On the heap, so that plain requests do without its room.
        let general = Box::pin(door::serve(
            &self.shared,
            (stream, BytesMut::from(seen.as_slice())),
            Side::Peer,
            |shared, request| async move { answer(&shared, request).await },
        ));
        general.await;
    }
}

async fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Response<Outgoing> {
    shared
        .counters
        .served_for_peers
        .fetch_add(1, Ordering::Relaxed);
    let switch = hyper::upgrade::on(&mut request);
    let said = |name: HeaderName| request.headers().get(name).map(HeaderValue::as_bytes);
    let revision = said(REVISION).and_then(named);
    let choice = Choice::new(shared, revision.as_ref(), meant(said(ONLY), said(NOT)));
    let deadline = Instant::now() + patience(said(PATIENCE));
    let bench = revision.and_then(|revision| shared.local.find(&revision));
    let head = match Head::from_peer(&mut request) {
        Ok(head) => head,
        Err(problem) => return bad(&problem),
    };
    let stays = *shared.phase.borrow() < Phase::Parting;
    let Some(bench) = bench.filter(|_| stays) else {
        drain(request.into_body()).await;
        return refuse(&REFUSED, NOT_HERE);
    };
    let Some(guard) = admit(&bench, &choice, &[]) else {
        drain(request.into_body()).await;
        return refuse(&REFUSED, no_room(&bench, &choice));
    };
    let call = Call {
        shared: Arc::clone(shared),
        bench,
        choice,
        head,
        body: Spool::new(request.into_body(), None),
        deadline,
    };
    call.run(guard, switch).await
}

/// A peer's request that an instance here admitted.
struct Call {
    shared: Arc<Shared>,
    bench: Arc<Bench>,
    choice: Choice,
    head: Head,
    body: Option<Arc<Spool>>,
    deadline: Instant,
}

impl Call {
    /// Tries this instance, and others while nothing was sent.
    async fn run(&self, mut guard: Guard, switch: OnUpgrade) -> Response<Outgoing> {
        let mut tried = Vec::new();
        loop {
            let Ok(sent) = timeout_at(self.deadline, self.attempt(&guard.slot)).await else {
                return refuse(&BROKEN, TIMEOUT);
            };
            let trip = match sent {
                Ok(answer) => return self.respond(answer, guard, switch),
                Err(trip) => trip,
            };
            guard.blame(&trip);
            if trip.was_sent() {
                return refuse(&BROKEN, "reset");
            }
            tried.push(Arc::clone(&guard.slot));
            drop(guard);
            let whole = self.body.as_ref().is_none_or(|b| b.can_repeat());
            let again = if whole && tried.len() < TRIES {
                admit(&self.bench, &self.choice, &tried)
            } else {
                None
            };
            let Some(next) = again else {
                return refuse(&REFUSED, trip.refusal());
            };
            guard = next;
        }
    }

    async fn attempt(&self, slot: &Arc<Slot>) -> Result<Answer, Trip> {
        let gone = || Trip::Connect("the request's body was read already".to_owned());
        let body = match &self.body {
            None => Outbound::Empty,
            Some(spool) => spool.read().ok_or_else(gone)?,
        };
        let switch = self.head.upgrade.is_some();
        let answer = upstream::here(slot, self.head.request(body), switch).await?;
        slot.answered();
        if let Some(body) = &self.body {
            body.settle();
        }
        Ok(answer)
    }

    fn respond(&self, answer: Answer, guard: Guard, switch: OnUpgrade) -> Response<Outgoing> {
        let Answer {
            mut response,
            lease,
        } = answer;
        let status = response.status();
        clean_response(status, response.headers_mut());
        if let Ok(id) = HeaderValue::try_from(&guard.slot.id.0) {
            response.headers_mut().insert(INSTANCE, id);
        }
        let admission = Admission::Here(guard);
        if status == StatusCode::SWITCHING_PROTOCOLS && self.head.upgrade.is_some() {
            let server = hyper::upgrade::on(&mut response);
            let ends = (switch, server);
            tunnel::join(&self.shared, &self.head, ends, (admission, lease));
            return fresh(response).map(|_| Outgoing::Own(None));
        }
        let escort = Escort::new(lease, self.body.clone(), admission);
        fresh(response).map(|body| Outgoing::pass(body, self.deadline, escort))
    }
}

/// What there is to choose by among a revision's instances here.
#[derive(Debug)]
pub(super) struct Choice {
    aim: Aim,
    /// In how many seconds the share of an instance grows.
    window: u32,
}

impl Choice {
    pub(super) fn new(shared: &Shared, revision: Option<&RevisionKey>, aim: Aim) -> Self {
        let routes = shared.routes.load();
        let route = revision.and_then(|revision| routes.revision(revision));
        let window = route.map_or(0, |route| route.slow_start_seconds);
        Self { aim, window }
    }
}

/// The least loaded instance with room of those that are meant: healthy ones first, and of these last the
/// newcomers that do not stand for this request.
pub(super) fn admit(bench: &Bench, choice: &Choice, tried: &[Arc<Slot>]) -> Option<Guard> {
    let Choice { aim, window } = choice;
    let draw = rand::random();
    let slots = bench.slots();
    let untried = slots
        .iter()
        .filter(|s| aim.takes(&s.id) && !tried.iter().any(|t| Arc::ptr_eq(t, s)));
    let mut open: Vec<_> = untried
        .enumerate()
        .filter_map(|(number, slot)| {
            let stands = *window == 0 || stands(slot.age_millis(), *window, draw, number);
            Some(((slot.health.is_ejected(), !stands, slot.load()?), slot))
        })
        .collect();
    open.sort_by_key(|(order, _)| *order);
    open.into_iter().find_map(|(_, slot)| slot.admit())
}

/// Why none of the instances here takes a request.
pub(super) fn no_room(bench: &Bench, choice: &Choice) -> &'static str {
    let slots = bench.slots();
    let mut open = slots.iter().filter(|slot| slot.load().is_some());
    if open.any(|slot| choice.aim.takes(&slot.id)) {
        FULL
    } else {
        NOT_HERE
    }
}

/// The revision that another node means.
pub(super) fn named(said: &[u8]) -> Option<RevisionKey> {
    let text = std::str::from_utf8(said).ok()?;
    let (namespace, name) = text.split_once('/')?;
    Some(RevisionKey {
        namespace: Name::new(namespace).ok()?,
        name: Name::new(name).ok()?,
    })
}

/// Which of the revision's instances here the request may go to.
pub(super) fn meant(only: Option<&[u8]>, not: Option<&[u8]>) -> Aim {
    let named = |said: &[u8]| Some(InstanceId(std::str::from_utf8(said).ok()?.to_owned()));
    Aim {
        nodes: None,
        only: only.and_then(named),
        not: not.and_then(named),
    }
}

/// How long another node waits.
pub(super) fn patience(said: Option<&[u8]>) -> Duration {
    let millis = said.and_then(|said| std::str::from_utf8(said).ok()?.parse().ok());
    millis.map_or(PATIENCE_CAP, |millis| {
        Duration::from_millis(millis).min(PATIENCE_CAP)
    })
}

async fn drain(mut body: Incoming) {
    let read = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DRAIN_BYTES {
                return;
            }
        }
    };
    let _late = timeout(DRAIN_TIME, read).await;
}

fn refuse(header: &http::HeaderName, why: &'static str) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::Own(None));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header.clone(), HeaderValue::from_static(why));
    response
}

fn bad(problem: &Problem) -> Response<Outgoing> {
    problem.response(&HeaderValue::from_static("-"), false)
}
