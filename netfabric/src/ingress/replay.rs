//! Answers that are none: an instance may say where its request is to be answered instead, in a
//! response header. Where that is, `scheduler::route::replay` decides; what is here are the headers,
//! the request's way back to where it came from, and what the next instance is told.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use scheduler::model::{InstanceId, NodeId, RevisionKey, ServiceKey};
use scheduler::route::RevisionRoute;
use scheduler::route::replay::{Aim, Fallback, Giver, MAX_REPLAYS, Nowhere, Order, Target};
use tokio::time::Instant;

use super::Shared;
use super::body::REPLAY_BYTES;
use super::problem::{Code, Problem};

/// The header's names, ours first: what it leads to is told under the same one.
static NAMES: [Names; 2] = [
    Names {
        order: HeaderName::from_static("selvedge-replay"),
        source: HeaderName::from_static("selvedge-replay-src"),
        failed: HeaderName::from_static("selvedge-replay-failed"),
    },
    Names {
        order: HeaderName::from_static("fly-replay"),
        source: HeaderName::from_static("fly-replay-src"),
        failed: HeaderName::from_static("fly-replay-failed"),
    },
];

struct Names {
    order: HeaderName,
    source: HeaderName,
    failed: HeaderName,
}

/// What only a door says to an instance of a replay.
pub(super) const TOLD: [HeaderName; 4] = [
    HeaderName::from_static("selvedge-replay-src"),
    HeaderName::from_static("selvedge-replay-failed"),
    HeaderName::from_static("fly-replay-src"),
    HeaderName::from_static("fly-replay-failed"),
];

/// Whether a response header of this name is an order.
pub(super) fn is_order(name: &str) -> Option<usize> {
    let is = |names: &Names| name.eq_ignore_ascii_case(names.order.as_str());
    NAMES.iter().position(is)
}

/// The name of the order that [`is_order`] found.
pub(super) fn order_name(by: usize) -> &'static str {
    NAMES[by].order.as_str()
}

/// Whether a request header of this name is a door's to say.
pub(super) fn is_told(name: &str) -> bool {
    TOLD.iter()
        .any(|told| name.eq_ignore_ascii_case(told.as_str()))
}

/// An order as an instance gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Which of [`NAMES`] it used.
    pub(super) by: usize,
    pub(super) order: String,
}

/// The order in an answer's head, which its client is not to see. Ours counts before its alias.
pub(super) fn asked(headers: &HeaderMap) -> Option<Asked> {
    let (by, value) = NAMES.iter().enumerate().find_map(|(by, names)| {
        let value = headers.get(&names.order)?;
        Some((by, value))
    })?;
    let order = String::from_utf8_lossy(value.as_bytes()).into_owned();
    Some(Asked { by, order })
}

/// Who asked for a replay.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) route: Arc<RevisionRoute>,
    pub(super) node: NodeId,
    pub(super) instance: Option<Arc<InstanceId>>,
}

/// The replays of one request.
#[derive(Debug, Default)]
pub(super) struct Replays {
    count: u32,
    /// It came back to where it was sent on from: there it is to be answered.
    returned: bool,
    /// Where it goes when its target cannot be reached, and the names to tell that by.
    back: Option<(Fallback, Sender, usize)>,
    /// How long the target may be looked for.
    until: Option<Instant>,
}

/// A header that the next instance is told.
type Line = (HeaderName, HeaderValue);

/// Where a request goes on, and what is said there.
pub(super) struct Onward {
    pub(super) target: Target,
    pub(super) lines: Vec<Line>,
}

impl Replays {
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Follows an order. `whole` is whether all of the request can be sent again, `length` how long
    /// its body is said to be.
    pub(super) fn follow(
        &mut self,
        shared: &Shared,
        (asked, from): (&Asked, Sender),
        caller: Option<&ServiceKey>,
        (whole, length): (bool, Option<u64>),
    ) -> Result<Onward, Problem> {
        let refused = |why: String| Problem::new(Code::ReplayRefused, why);
        if self.returned {
            let why = "the request's replay had failed, and its sender asks for another";
            return Err(refused(why.to_owned()));
        }
        if self.count == MAX_REPLAYS {
            return Err(refused(format!(
                "the request was replayed {MAX_REPLAYS} times"
            )));
        }
        let names = &NAMES[asked.by];
        let order = Order::parse(&asked.order);
        let order = order.map_err(|why| refused(format!("`{}` {why}", names.order)))?;
        if !whole || length.is_some_and(|l| l > REPLAY_BYTES as u64) {
            let why = format!(
                "the request's body is not kept for a replay, being over {REPLAY_BYTES} bytes"
            );
            return Err(Problem::new(Code::ReplayTooLarge, why));
        }
        self.count += 1;
        let timeout = order.timeout_millis.map(Duration::from_millis);
        self.until = timeout.map(|timeout| Instant::now() + timeout);
        let line = (names.source.clone(), source(shared, &from, &order));
        let target = target(shared, &order, &from, caller);
        self.back = order.fallback.map(|how| (how, from, asked.by));
        match target {
            Ok(target) => {
                let lines = vec![line];
                Ok(Onward { target, lines })
            }
            Err(nowhere) => self.back(shared, &problem(&nowhere)),
        }
    }

    /// Sends a request back whose target could not be reached, where that was asked for; else its client
    /// is told what went wrong.
    pub(super) fn back(&mut self, shared: &Shared, problem: &Problem) -> Result<Onward, Problem> {
        let (how, from, by) = self.back.take().ok_or_else(|| problem.clone())?;
        self.returned = true;
        self.until = None;
        let only = from.instance.as_deref().cloned();
        let alone = Aim {
            only,
            ..Aim::default()
        };
        let there = || has(shared, &from, &alone);
        let aim = match how {
            Fallback::PreferSelf if !there() => Aim::default(),
            Fallback::PreferSelf | Fallback::ForceSelf => alone,
        };
        let line = failed(shared, &from, problem.code);
        Ok(Onward {
            target: Target {
                revision: from.route,
                aim,
            },
            lines: vec![(NAMES[by].failed.clone(), line)],
        })
    }
}

fn target(
    shared: &Shared,
    order: &Order,
    from: &Sender,
    caller: Option<&ServiceKey>,
) -> Result<Target, Nowhere> {
    let fleet = shared.fleet.borrow().clone();
    let routes = shared.routes.load();
    let giver = Giver {
        service: &from.route.service,
        revision: &from.route.key,
        instance: from.instance.as_deref(),
        caller,
    };
    let here = |revision: &RevisionKey| here(shared, revision);
    order.target((&routes, &fleet), &giver, rand::random(), &here)
}

/// Instances of a revision on this node that take requests.
fn here(shared: &Shared, revision: &RevisionKey) -> Vec<InstanceId> {
    let bench = shared.local.find(revision);
    let slots = bench.map(|bench| bench.slots());
    let open = slots.iter().flat_map(|slots| slots.iter());
    open.filter(|slot| slot.load().is_some())
        .map(|slot| InstanceId::clone(&slot.id))
        .collect()
}

/// Whether who sent a request on is still there.
fn has(shared: &Shared, from: &Sender, alone: &Aim) -> bool {
    if here(shared, &from.route.key).iter().any(|i| alone.takes(i)) {
        return true;
    }
    let routes = shared.routes.load();
    let route = routes.revision(&from.route.key);
    route.is_some_and(|route| !alone.narrow(route).away.is_empty())
}

fn problem(nowhere: &Nowhere) -> Problem {
    let code = match nowhere {
        Nowhere::NotLetIn(_) => Code::CallerRefused,
        Nowhere::NoService(_) => Code::ReplayRefused,
        Nowhere::Unrouted(_) => Code::RevisionNotReady,
        Nowhere::NoInstance { .. } | Nowhere::NoRegion(_) => Code::ReplayNowhere,
    };
    Problem::new(code, nowhere.to_string())
}

/// `instance=…;region=…;t=…;state=…`, as Fly has it: the time in microseconds since 1970.
fn source(shared: &Shared, from: &Sender, order: &Order) -> HeaderValue {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = now.unwrap_or_default().as_micros();
    let mut text = format!("{};t={micros}", whence(shared, from));
    if let Some(state) = &order.state {
        let quote = if state.contains(';') { "\"" } else { "" };
        text = format!("{text};state={quote}{state}{quote}");
    }
    value(&text)
}

/// What failed, for who gets the request back.
fn failed(shared: &Shared, from: &Sender, code: Code) -> HeaderValue {
    value(&format!("{};reason={}", whence(shared, from), code.word()))
}

fn whence(shared: &Shared, from: &Sender) -> String {
    let fleet = shared.fleet.borrow();
    let member = fleet.members.get(&from.node);
    let region = member.map_or("", |m| m.record.region.as_str());
    let instance = from.instance.as_ref().map_or("", |i| i.0.as_str());
    format!("instance={instance};region={region}")
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
