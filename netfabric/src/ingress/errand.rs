//! A request on its way: to endpoints until one answers, on to where an instance sends it, and the
//! answer back in the client's form. Where to look is `dispatch`'s quest's to say.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{CONNECTION, SET_COOKIE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use scheduler::model::{InstanceId, ServiceKey};
use tokio::time::{Instant, timeout_at};
use ulid::Ulid;

use super::body::{Excess, Outbound, Outgoing, Received, Spool};
use super::dispatch::{Called, Quest, Resume, Source, fresh};
use super::headers::{
    Caller, Head, INSTANCE, NOT, ONLY, PATIENCE, REVISION, clean_response, switched_on_stream,
};
use super::ledger::micros;
use super::problem::{Code, Problem};
use super::replay::{self, Asked, Onward, Replays, Sender};
use super::sticky::Visitor;
use super::upstream::{self, Admission, Answer, Escort, Trip};
use super::{Shared, tunnel};

/// A request on its way.
pub(super) struct Errand {
    quest: Quest,
    /// An endpoint that was found before.
    found: Option<Admission>,
    /// An order of the instance that had it before.
    asked: Option<(Asked, Sender)>,
    replays: Replays,
    /// Whose container's it is, when it came by the way inside.
    inside: Option<ServiceKey>,
    head: Head,
    body: Option<Arc<Spool>>,
}

/// A search that came to nothing.
struct Lost {
    problem: Problem,
    /// An instance may have had the request.
    sent: bool,
}

impl Errand {
    pub(super) async fn new(
        shared: &Arc<Shared>,
        mut request: Request<Received>,
        caller: Caller<'_>,
        (id, id_text, arrival): (Ulid, &HeaderValue, Instant),
        resume: Option<Box<Resume>>,
    ) -> Result<Self, Problem> {
        let mut head = Head::vet(&mut request)?;
        head.introduce(caller, id_text);
        let inside = caller.inside.and_then(|call| call.caller().cloned());
        // A call may last as long as it likes, and have little to say in all that time, or much.
        let grpc = is_grpc(head.content_type());
        let most = if grpc || caller.inside.is_some() {
            u64::MAX
        } else {
            shared.limits.body
        };
        let body = if grpc {
            Spool::new(request.into_body(), Some(&shared.purse))
        } else {
            Spool::of_client(request.into_body(), &shared.purse, most)
        };
        let Resume {
            quest,
            admission,
            asked,
        } = if let Some(resume) = resume {
            *resume
        } else {
            let called = match caller.inside {
                Some(call) => Called::Service(call.admitted(shared)?),
                None => Called::Host {
                    host: head.host.to_str().unwrap_or_default(),
                    target: head.path(),
                },
            };
            let visitor = Visitor {
                cookies: head.cookies(),
                secure: caller.secure,
            };
            let begun = (id, arrival);
            let quest = Quest::of_request(shared, called, visitor, caller.client(), begun);
            Resume::new(quest.await?, None)
        };
        let length = body.as_ref().and_then(|body| body.length());
        if length.is_some_and(|length| length > most) {
            let problem = too_large(most);
            quest.refuse(&problem);
            return Err(problem);
        }
        Ok(Self {
            quest,
            found: admission,
            asked,
            replays: Replays::default(),
            inside,
            head,
            body,
        })
    }

    /// Sends it until it is answered, and puts the answer into the client's form.
    pub(super) async fn run(
        mut self,
        switch: OnUpgrade,
        id_text: &HeaderValue,
        json: bool,
    ) -> Response<Outgoing> {
        match self.seek().await {
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

    /// Sends it until an instance answers that does not send it on.
    async fn seek(&mut self) -> Result<(Answer, Admission), Problem> {
        let shared = Arc::clone(&self.quest.shared);
        if let Some((asked, from)) = self.asked.take() {
            self.follow(&asked, from)?;
        }
        loop {
            let (answer, admission) = match self.send().await {
                Ok(answered) => answered,
                Err(lost) if lost.sent => return Err(lost.problem),
                Err(lost) => {
                    let back = self.replays.back(&shared, &lost.problem)?;
                    self.go(back);
                    continue;
                }
            };
            let Some(asked) = replay::asked(answer.response.headers()) else {
                return Ok((answer, admission));
            };
            let Source { instance, node } = source(&shared, &answer, &admission);
            let route = Arc::clone(&self.quest.route);
            let from = Sender {
                route,
                node,
                instance,
            };
            self.follow(&asked, from)?;
        }
    }

    /// Does what an instance said in the place of an answer.
    fn follow(&mut self, asked: &Asked, from: Sender) -> Result<(), Problem> {
        let shared = Arc::clone(&self.quest.shared);
        let (request, revision) = (self.quest.id, &from.route.key);
        tracing::debug!(%request, %revision, order = asked.order, "a request is sent on");
        let whole = self.body.as_ref().is_none_or(|b| b.recall());
        let length = self.body.as_ref().and_then(|b| b.length());
        let inside = self.inside.as_ref();
        let body = (whole, length);
        let onward = self.replays.follow(&shared, (asked, from), inside, body)?;
        shared.counters.replays.fetch_add(1, Ordering::Relaxed);
        self.go(onward);
        Ok(())
    }

    fn go(&mut self, onward: Onward) {
        for (name, value) in onward.lines {
            self.head.say(name, value);
        }
        self.quest.turn_to(onward.target);
    }

    /// Tries endpoints until one answers.
    async fn send(&mut self) -> Result<(Answer, Admission), Lost> {
        loop {
            let admission = match self.found.take() {
                Some(admission) => admission,
                None => self.admission().await.map_err(|problem| Lost {
                    problem,
                    sent: false,
                })?,
            };
            let sent = timeout_at(self.quest.deadline, self.attempt(&admission)).await;
            let late = |_| Lost {
                problem: Problem::late(),
                sent: true,
            };
            let trip = match sent.map_err(late)? {
                Ok(answer) => return Ok((answer, admission)),
                Err(trip) => trip,
            };
            if let Some(excess) = self.body.as_ref().and_then(|body| body.excess()) {
                let slow = "the request's body came too slowly";
                let problem = match excess {
                    Excess::Late => Problem::new(Code::SlowBody, slow),
                    Excess::Large => too_large(self.quest.shared.limits.body),
                };
                return Err(Lost {
                    problem,
                    sent: true,
                });
            }
            let whole = self.body.as_ref().is_none_or(|b| b.can_repeat());
            let idempotent = self.head.is_idempotent();
            if !self.quest.again(&admission, &trip, idempotent, whole) {
                return Err(Lost {
                    problem: trip.problem(),
                    sent: trip.was_sent(),
                });
            }
        }
    }

    /// An endpoint, within the time that its search may take.
    async fn admission(&mut self) -> Result<Admission, Problem> {
        let Some(until) = self.replays.until() else {
            return self.quest.admission().await;
        };
        let late = |_| {
            let why = "nothing was found within the time that the instance set for it";
            Problem::new(Code::ReplayNowhere, why)
        };
        timeout_at(until, self.quest.admission())
            .await
            .map_err(late)?
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
        // What is sent on goes whole.
        let sent_on = replay::asked(answer.response.headers()).is_some();
        if let Some(body) = self.body.as_ref().filter(|_| !sent_on) {
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
        let aim = self.quest.aim();
        for (name, instance) in [
            (ONLY, aim.and_then(|aim| aim.only.as_ref())),
            (NOT, aim.and_then(|aim| aim.not.as_ref())),
        ] {
            if let Some(id) = instance.and_then(|i| HeaderValue::try_from(&i.0).ok()) {
                headers.insert(name, id);
            }
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

fn too_large(most: u64) -> Problem {
    let why = format!("the request's body is larger than the {most} bytes that are taken here");
    Problem::new(Code::BodyTooLarge, why)
}

fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
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
