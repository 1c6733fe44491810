//! The clients' book: every request that was sent, and what became of it.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::server::identity::Identity;
use crate::server::served::{LoadId, Method};

/// Failures kept whole. Beyond it only their kinds are, and the book says how many were left out.
const MAX_FAILURES: usize = 100_000;
/// Latencies are kept to three digits, from a microsecond to these many.
const LONGEST_MICROS: u64 = 600_000_000;
const DIGITS: u8 = 3;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Outcome {
    /// Status 200, and a whole body that binds the request's id to who answered.
    Ok { by: Identity },
    /// A whole answer with another status: someone said no.
    Declared { status: u16, code: String },
    /// No whole answer.
    Broken { how: String },
    /// Nothing whole until the deadline.
    Timeout,
    /// Status 200 and a whole body, but not of this request or not of who the headers say.
    Crossed { said: String },
}

/// What is kept of every outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    Pending,
    Declared,
    Broken,
    Timeout,
    Crossed,
    /// With the answerer's place in [`ClientLedger::answerers`].
    Ok(u32),
}

/// How many requests had which outcome. Shed ones were never sent: too many were under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    pub sent: u64,
    pub ok: u64,
    pub declared: u64,
    pub broken: u64,
    pub timeout: u64,
    pub crossed: u64,
    pub shed: u64,
}

impl Count {
    pub fn not_ok(&self) -> u64 {
        self.declared + self.broken + self.timeout + self.crossed
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            ok: self.ok + other.ok,
            declared: self.declared + other.declared,
            broken: self.broken + other.broken,
            timeout: self.timeout + other.timeout,
            crossed: self.crossed + other.crossed,
            shed: self.shed + other.shed,
        }
    }

    fn add(&mut self, kind: Kind) {
        *match kind {
            Kind::Pending => return,
            Kind::Declared => &mut self.declared,
            Kind::Broken => &mut self.broken,
            Kind::Timeout => &mut self.timeout,
            Kind::Crossed => &mut self.crossed,
            Kind::Ok(_) => &mut self.ok,
        } += 1;
    }
}

/// A second of the run, by when its requests were meant to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Second {
    #[serde(flatten)]
    pub count: Count,
    /// The longest an outcome of it took.
    pub worst_micros: u64,
}

/// A request that was not served well, kept whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub id: LoadId,
    pub method: Method,
    /// Its place among the load's doors.
    pub door: usize,
    /// When it was meant to be sent, after the load's start.
    pub at: Duration,
    /// From then until its outcome.
    pub took: Duration,
    pub outcome: Outcome,
}

/// One request in four bytes: the method above, the kind below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry(u32);

impl Entry {
    const POST: u32 = 1 << 31;
    const FIRST_OK: u32 = 5;

    pub(super) fn new(method: Method, kind: Kind) -> Self {
        let code = match kind {
            Kind::Pending => 0,
            Kind::Declared => 1,
            Kind::Broken => 2,
            Kind::Timeout => 3,
            Kind::Crossed => 4,
            Kind::Ok(by) => Self::FIRST_OK + by,
        };
        let post = if method == Method::Post {
            Self::POST
        } else {
            0
        };
        Self(post | code)
    }

    pub fn method(self) -> Method {
        if self.0 & Self::POST == 0 {
            Method::Get
        } else {
            Method::Post
        }
    }

    pub fn kind(self) -> Kind {
        match self.0 & !Self::POST {
            0 => Kind::Pending,
            1 => Kind::Declared,
            2 => Kind::Broken,
            3 => Kind::Timeout,
            4 => Kind::Crossed,
            ok => Kind::Ok(ok - Self::FIRST_OK),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientLedger {
    pub client: u32,
    /// The host that was asked.
    pub host: String,
    pub seed: u64,
    pub(super) entries: Vec<Entry>,
    pub answerers: Vec<Identity>,
    known: HashMap<Identity, u32>,
    pub failures: Vec<Failure>,
    pub failures_left_out: u64,
    pub seconds: Vec<Second>,
    /// Of requests that ended ok, in microseconds from when they were meant to be sent.
    pub latency: Histogram<u64>,
}

impl ClientLedger {
    pub fn new(client: u32, host: &str, seed: u64) -> Result<Self> {
        Ok(Self {
            client,
            host: host.to_owned(),
            seed,
            entries: Vec::new(),
            answerers: Vec::new(),
            known: HashMap::new(),
            failures: Vec::new(),
            failures_left_out: 0,
            seconds: Vec::new(),
            latency: Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS)?,
        })
    }

    /// Takes a number for a request that is sent now and was meant to be at `at`.
    pub fn send(&mut self, method: Method, at: Duration) -> LoadId {
        let sequence = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry::new(method, Kind::Pending));
        self.second(at).count.sent += 1;
        LoadId {
            client: self.client,
            sequence,
        }
    }

    /// A request that was meant to be sent and was not.
    pub fn shed(&mut self, at: Duration) {
        self.second(at).count.shed += 1;
    }

    /// What became of a request that was sent.
    pub fn settle(&mut self, ended: Failure) {
        let kind = match &ended.outcome {
            Outcome::Ok { by } => Kind::Ok(self.answerer(by)),
            Outcome::Declared { .. } => Kind::Declared,
            Outcome::Broken { .. } => Kind::Broken,
            Outcome::Timeout => Kind::Timeout,
            Outcome::Crossed { .. } => Kind::Crossed,
        };
        let micros = u64::try_from(ended.took.as_micros()).unwrap_or(u64::MAX);
        let entry = Entry::new(ended.method, kind);
        if let Some(known) = self.entries.get_mut(ended.id.sequence as usize) {
            *known = entry;
        }
        let second = self.second(ended.at);
        second.count.add(kind);
        second.worst_micros = second.worst_micros.max(micros);
        match kind {
            Kind::Ok(_) => self.latency.saturating_record(micros),
            _ if self.failures.len() < MAX_FAILURES => self.failures.push(ended),
            _ => self.failures_left_out += 1,
        }
    }

    pub(super) fn answerer(&mut self, by: &Identity) -> u32 {
        if let Some(known) = self.known.get(by) {
            return *known;
        }
        let place = u32::try_from(self.answerers.len()).unwrap_or(u32::MAX);
        self.answerers.push(by.clone());
        self.known.insert(by.clone(), place);
        place
    }

    fn second(&mut self, at: Duration) -> &mut Second {
        let place = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
        if self.seconds.len() <= place {
            self.seconds.resize(place + 1, Second::default());
        }
        &mut self.seconds[place]
    }

    /// Every request that was sent, in order.
    pub fn entries(&self) -> impl Iterator<Item = (LoadId, Entry)> + '_ {
        (0..).zip(&self.entries).map(|(sequence, entry)| {
            let client = self.client;
            (LoadId { client, sequence }, *entry)
        })
    }

    /// Whether this request was sent.
    pub fn sent(&self, id: LoadId) -> Option<Entry> {
        let ours = id.client == self.client;
        ours.then(|| self.entries.get(id.sequence as usize).copied())?
    }

    /// The outcomes, counted from the requests themselves.
    pub fn count(&self) -> Count {
        let mut count = Count {
            sent: self.entries.len() as u64,
            shed: self.seconds.iter().map(|s| s.count.shed).sum(),
            ..Count::default()
        };
        self.entries
            .iter()
            .for_each(|entry| count.add(entry.kind()));
        count
    }

    /// What was meant to be sent in these seconds after the start, and what became of it.
    pub fn between(&self, from: Duration, to: Duration) -> Count {
        let seconds = (0..).map(Duration::from_secs).zip(&self.seconds);
        let within = seconds.filter(|(at, _)| (from..to).contains(at));
        within.fold(Count::default(), |sum, (_, second)| sum.plus(&second.count))
    }

    /// A latency in milliseconds such that so many per cent of the ok requests took no longer.
    pub fn percentile(&self, per_cent: f64) -> f64 {
        let micros = self.latency.value_at_percentile(per_cent);
        Duration::from_micros(micros).as_secs_f64() * 1000.0
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let Count {
            sent,
            ok,
            declared,
            broken,
            timeout,
            crossed,
            shed,
        } = self.count();
        format!(
            "{sent} sent: {ok} ok, {declared} declared errors, {broken} broken, {timeout} timed \
             out, {crossed} crossed; {shed} shed by the client; p50 {:.2} p99 {:.2} p99.9 {:.2} \
             max {:.2} ms",
            self.percentile(50.0),
            self.percentile(99.0),
            self.percentile(99.9),
            self.percentile(100.0),
        )
    }
}
