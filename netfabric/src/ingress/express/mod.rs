//! The express way: plain HTTP/1.1 requests that an instance answers over HTTP/1.1, which is nearly all
//! there is. A request is read, sent on and answered in the connection's one task, with no channel, lock
//! or timer of its own between accept and the instance, or the stream to the node that has one (`peer`
//! is that node's side).
//!
//! Whatever is not plain is handed over, with all bytes unread, to the general way (`door::serve`):
//! other protocols and switches of them, bodies that do not come at once, nodes that there is no
//! connection to yet, and everything that is wrong. Nothing is decided here that is not decided there: routing,
//! admission, waiting, retries are `dispatch`'s.

mod conn;
mod exchange;
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;
mod peer;
mod request;
mod response;
mod scratch;

use std::any::Any;
use std::future::poll_fn;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use http::HeaderValue;
use http::header::ALT_SVC;
use scheduler::model::{NodeId, Protocol};
use tokio::net::TcpStream;
use tokio::time::Instant;
use ulid::Ulid;

use self::conn::{Conn, Waited};
use self::exchange::{Begun, Errand, Failure, begin, begin_there, finish};
pub(super) use self::peer::serve as serve_peer;
use self::request::{Ask, Reading};
use self::response::Recipient;
use super::body::KEEP_BYTES;
use super::dispatch::{Called, Quest, Resume, Source};
use super::door::HEAD_TIME;
use super::headers::{Caller, PATIENCE, REVISION, Side};
use super::local::{Guard, Slot};
use super::problem::Problem;
use super::replay::Sender;
use super::sticky::Visitor;
use super::stream::{PeerStream, Stream};
use super::upstream::{Admission, Trip};
use super::{Shared, secure};

/// A connection that the general way goes on with.
pub(super) struct HandOver<S> {
    pub(super) stream: S,
    /// What was read and not answered.
    pub(super) seen: Vec<u8>,
    /// The first request, when its way had begun here.
    pub(super) resume: Option<Box<Resume>>,
}

struct Express<S> {
    shared: Arc<Shared>,
    conn: Conn<S>,
    caller: Caller<'static>,
    /// The client's address, as it is passed on.
    client: String,
    host: String,
    target: String,
    /// The request's head, as it goes on.
    onward: Vec<u8>,
    /// The same, as it goes to another node.
    outward: Vec<u8>,
}

/// What ends a head: the end of its last line is the line before's.
const END: &[u8] = b"\r\n";

/// What an answer came over.
trait Upstream: Stream {
    /// The answer was its last word, and it is in order.
    fn keep(self, admission: &Admission);
}

impl Upstream for TcpStream {
    fn keep(self, admission: &Admission) {
        if let Admission::Here(guard) = admission {
            guard.slot.pool().put_idle(&guard.slot, self);
        }
    }
}

/// A stream between nodes is one request's.
impl Upstream for Box<dyn PeerStream> {
    fn keep(self, _: &Admission) {
        self.answered();
    }
}

fn to_client<'a>(
    shared: &'a Shared,
    caller: Caller<'_>,
    (quest, id): (&'a Quest, &'a str),
) -> Recipient<'a> {
    let alternative = shared.secure.alternative(caller);
    Recipient::Client {
        id,
        alternative: alternative.map_or(b"", HeaderValue::as_bytes),
        cookie: quest.cookie.as_deref(),
    }
}

/// What comes after a request.
enum Turn {
    Next,
    Close,
    /// Nothing is under way, and the door closes.
    Leave,
    HandOver(Option<Box<Resume>>),
}

/// Whether it is spoken to over connections that are anybody's, in HTTP/1.1.
fn is_plain(slot: &Slot) -> bool {
    slot.protocol == Protocol::Http1 && !slot.introduced
}

fn hand_over(quest: Quest, admission: Option<Admission>) -> Turn {
    Turn::HandOver(Some(Box::new(Resume::new(quest, admission))))
}

/// Serves a connection, of which some may have been read, until it ends or is to be handed over.
pub(super) async fn serve<S: Stream + 'static>(
    shared: &Arc<Shared>,
    (stream, seen): (S, Vec<u8>),
    caller: Caller<'static>,
) -> Option<HandOver<S>> {
    // Whoever has it next knows of it only what its socket tells.
    let lasts = !caller.secure && caller.inside.is_none() && !shared.limits.proxy_protocol;
    let mut express = Express {
        shared: Arc::clone(shared),
        conn: Conn::new(stream, seen, shared.phase.subscribe()),
        caller,
        client: caller.address.to_canonical().to_string(),
        host: String::new(),
        target: String::new(),
        onward: Vec::new(),
        outward: Vec::new(),
    };
    loop {
        match express.turn().await {
            Turn::Next => {}
            Turn::Close => {
                express.conn.close().await;
                return None;
            }
            Turn::Leave => {
                let socket = (&express.conn.stream as &dyn Any).downcast_ref::<TcpStream>();
                if !socket.is_some_and(|socket| lasts && shared.sockets.leave(socket)) {
                    express.conn.close().await;
                }
                return None;
            }
            Turn::HandOver(resume) => {
                return Some(HandOver {
                    stream: express.conn.stream,
                    seen: express.conn.seen,
                    resume,
                });
            }
        }
    }
}

impl<S: Stream> Express<S> {
    /// One request.
    async fn turn(&mut self) -> Turn {
        let id = Ulid::generate();
        let mut text = [0; ulid::ULID_LEN];
        let text: &str = id.array_to_str(&mut text);
        let ask = match self.head(text).await {
            Ok(ask) => ask,
            Err(turn) => return turn,
        };
        if let Some(turn) = self.body(&ask).await {
            return turn;
        }
        let turn = self.answer(&ask, id, text).await;
        if matches!(turn, Turn::Next) {
            let body = usize::try_from(ask.body.unwrap_or(0)).unwrap_or(usize::MAX);
            self.conn.forget(ask.head.saturating_add(body));
        }
        turn
    }

    /// Waits for a plain head, and writes it as it goes on.
    async fn head(&mut self, id: &str) -> Result<Ask, Turn> {
        if self.conn.seen.is_empty() && self.conn.is_closing() {
            return Err(Turn::Leave);
        }
        self.conn.expect_by(Instant::now() + HEAD_TIME);
        loop {
            if !self.conn.seen.is_empty() {
                let mut slots = request::slots();
                match request::read(&self.conn.seen, &mut slots, Side::Client) {
                    Reading::Partial => {}
                    Reading::Odd => return Err(Turn::HandOver(None)),
                    Reading::Plain(plain) => {
                        if !self.caller.secure
                            && secure::may_answer(&self.shared, plain.host, plain.target)
                        {
                            return Err(Turn::HandOver(None));
                        }
                        self.host.clear();
                        self.host.push_str(plain.host);
                        self.target.clear();
                        self.target.push_str(plain.target);
                        self.onward.clear();
                        let who = (self.client.as_str(), self.caller.scheme());
                        plain.write(&mut self.onward, who, id);
                        return Ok(plain.ask);
                    }
                }
            }
            let first = self.conn.seen.is_empty();
            match self.conn.fill().await {
                // An idle client that begins at the last moment has its time all the same.
                Waited::Came if first => self.conn.expect_by(Instant::now() + HEAD_TIME),
                Waited::Came => {}
                Waited::Closing if first => return Err(Turn::Leave),
                Waited::Gone | Waited::Late | Waited::Closing => return Err(Turn::Close),
            }
        }
    }

    /// Waits a moment for the body, that it can be sent in one go. One that is long, or slow, is
    /// for the other way, which passes it on as it comes.
    async fn body(&mut self, ask: &Ask) -> Option<Turn> {
        let length = ask.body.filter(|length| *length > 0)?;
        let most = self.shared.limits.body.min(KEEP_BYTES as u64);
        let short = Some(length).filter(|length| *length <= most);
        let Some(length) = short.and_then(|length| usize::try_from(length).ok()) else {
            return Some(Turn::HandOver(None));
        };
        match self.conn.fill_to(ask.head + length).await {
            Waited::Came => None,
            Waited::Late => Some(Turn::HandOver(None)),
            Waited::Gone | Waited::Closing => Some(Turn::Close),
        }
    }

    /// Answers a request that is here whole.
    async fn answer(&mut self, ask: &Ask, id: Ulid, text: &str) -> Turn {
        let arrival = Instant::now();
        self.shared.counters.asked();
        self.shared.retries.earn();
        let visitor = Visitor {
            cookies: self.conn.seen.get(ask.cookies.clone()).unwrap_or_default(),
            secure: self.caller.secure,
        };
        let called = Called::Host {
            host: &self.host,
            target: &self.target,
        };
        let client = self.caller.client();
        let begun = (id, arrival);
        let quest = Quest::of_request(&self.shared, called, visitor, client, begun);
        let mut quest = match quest.await {
            Ok(quest) if quest.route.protocol != Protocol::Http1 => {
                return hand_over(quest, None);
            }
            Ok(quest) => quest,
            Err(problem) => {
                self.shared
                    .counters
                    .answered(problem.code.status().as_u16());
                return self.own(&problem, ask, text).await;
            }
        };
        self.conn.expect_by(quest.deadline);
        loop {
            let admission = match self.admission(&mut quest).await {
                None => return Turn::Close,
                Some(Ok(admission)) => admission,
                Some(Err(problem)) => return self.fail(quest, &problem, ask, text).await,
            };
            let failure = match &admission {
                Admission::Here(guard) if is_plain(&guard.slot) => {
                    match self.attempt(&quest, guard, (ask, text)).await {
                        Ok(begun) => return self.pass_on(quest, admission, begun).await,
                        Err(failure) => failure,
                    }
                }
                Admission::Here(_) => return hand_over(quest, Some(admission)),
                Admission::There(sent) => {
                    let Some(stream) = self.shared.link().open_now(sent.node) else {
                        return hand_over(quest, Some(admission));
                    };
                    let there = (sent.node, stream);
                    match self.attempt_there(&quest, there, (ask, text)).await {
                        Ok(begun) => return self.pass_on(quest, admission, begun).await,
                        Err(failure) => failure,
                    }
                }
            };
            match failure {
                Failure::Gone => return Turn::Close,
                Failure::Replay(asked, instance) => {
                    let (node, instance) = match &admission {
                        Admission::Here(guard) => {
                            (self.shared.me(), Some(Arc::clone(&guard.slot.id)))
                        }
                        Admission::There(sent) => (sent.node, instance.map(Arc::new)),
                    };
                    let from = Sender {
                        route: Arc::clone(&quest.route),
                        node,
                        instance,
                    };
                    let resume = Resume::sent_on(quest, asked, from);
                    return Turn::HandOver(Some(Box::new(resume)));
                }
                Failure::Late => {
                    return self.fail(quest, &Problem::late(), ask, text).await;
                }
                Failure::Stale if quest.again_after_stale(&ask.method) => {}
                Failure::Stale => {
                    let trip = Trip::Broken("closed without an answer".to_owned());
                    return self.fail(quest, &trip.problem(), ask, text).await;
                }
                Failure::Trip(trip) => {
                    if !quest.again(&admission, &trip, ask.method.is_idempotent(), true) {
                        drop(admission);
                        return self.fail(quest, &trip.problem(), ask, text).await;
                    }
                }
            }
        }
    }

    /// An endpoint with room; `None` when the client does not wait for it.
    async fn admission(&mut self, quest: &mut Quest) -> Option<Result<Admission, Problem>> {
        let conn = &mut self.conn;
        let mut admission = std::pin::pin!(quest.admission());
        poll_fn(|cx| {
            if let Poll::Ready(admission) = admission.as_mut().poll(cx) {
                return Poll::Ready(Some(admission));
            }
            match conn.poll_lost(cx) {
                Poll::Ready(Waited::Gone) => Poll::Ready(None),
                // The admission knows the deadline itself.
                Poll::Ready(_) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    async fn attempt(
        &mut self,
        quest: &Quest,
        guard: &Guard,
        (ask, id): (&Ask, &str),
    ) -> Result<Begun<TcpStream>, Failure> {
        let errand = Errand {
            ask,
            to: to_client(&self.shared, self.caller, (quest, id)),
            head: &self.onward,
            of: Side::Client,
        };
        begin(&mut self.conn, &guard.slot, &errand).await
    }

    /// The same at another node, which is told what is meant and how long there is.
    async fn attempt_there(
        &mut self,
        quest: &Quest,
        (node, stream): (NodeId, Box<dyn PeerStream>),
        (ask, id): (&Ask, &str),
    ) -> Result<Begun<Box<dyn PeerStream>>, Failure> {
        let end = self.onward.len().saturating_sub(END.len());
        self.outward.clear();
        self.outward.extend_from_slice(&self.onward[..end]);
        let millis = quest.deadline.saturating_duration_since(Instant::now());
        // Writing to memory does not fail.
        let _ = write!(
            self.outward,
            "{PATIENCE}: {}\r\n{REVISION}: {}\r\n\r\n",
            millis.as_millis(),
            quest.route.key
        );
        let errand = Errand {
            ask,
            to: to_client(&self.shared, self.caller, (quest, id)),
            head: &self.outward,
            of: Side::Peer,
        };
        let sent = &self.shared.counters.sent_to_peers;
        sent.fetch_add(1, Ordering::Relaxed);
        let begun = begin_there(&mut self.conn, stream, &errand).await;
        if matches!(begun, Ok(_) | Err(Failure::Replay(..))) {
            self.shared.nodes.of(node).answered();
        }
        begun
    }

    /// Passes on what has begun, and writes down that it did.
    async fn pass_on<U: Upstream>(
        &mut self,
        quest: Quest,
        admission: Admission,
        mut begun: Begun<U>,
    ) -> Turn {
        let source = match &admission {
            Admission::Here(guard) => Source {
                instance: Some(Arc::clone(&guard.slot.id)),
                node: quest.shared.me(),
            },
            Admission::There(sent) => Source {
                instance: begun.instance.take().map(Arc::new),
                node: sent.node,
            },
        };
        quest.record(begun.status, Some(source), None);
        let close = begun.close;
        let (whole, upstream) = finish(&mut self.conn, begun).await;
        if let Some(upstream) = upstream {
            upstream.keep(&admission);
        }
        if whole && !close {
            Turn::Next
        } else {
            Turn::Close
        }
    }

    /// An answer of our own to a request that had a way.
    async fn fail(&mut self, quest: Quest, problem: &Problem, ask: &Ask, id: &str) -> Turn {
        let status = problem.code.status().as_u16();
        quest.record(status, None, Some(problem.code.word()));
        self.own(problem, ask, id).await
    }

    async fn own(&mut self, problem: &Problem, ask: &Ask, id: &str) -> Turn {
        self.shared.counters.problem(problem.code);
        let close = !ask.keep || self.conn.is_last();
        let id = HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"));
        let (mut head, body) = problem.response(&id, ask.json).into_parts();
        if let Some(alternative) = self.shared.secure.alternative(self.caller) {
            head.headers.insert(ALT_SVC, alternative.clone());
        }
        let mut out = Vec::new();
        response::status_line(&mut out, head.status.as_u16());
        for (name, value) in &head.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        let body = body.own();
        out.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        response::last_lines(&mut out, true, close);
        if ask.method != http::Method::HEAD {
            out.extend_from_slice(&body);
        }
        if self.conn.send(&out).await && !close {
            Turn::Next
        } else {
            Turn::Close
        }
    }
}
