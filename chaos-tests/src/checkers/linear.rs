//! Linearizability by search, per key: is there an order of the operations, each between its
//! invocation and its answer, in which a plain register gives these very answers? It trusts no
//! index the registry told but to know which value a compare-and-set meant.
//!
//! The search is exponential, so that a key's history is cut after every read that overlaps no
//! other operation: what it read is what the next window begins with. What is too large for the
//! search, or not decided in time, is unknown; unknown is not a pass.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

use crate::workload::history::{History, Op, Operation, Told};

/// Operations of a window.
const WINDOW: usize = 200;
/// Operations at the same time.
const CLIENTS: usize = 8;
/// Operations of a window whose outcome nobody knows; the search tries all their orders.
const OPEN: usize = 6;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violation(Vec<String>),
    /// Nothing wrong was found, but not everything was decided: why.
    Unknown(Vec<String>),
}

/// Checks every key, within `patience` in all. Keys are expected not to exist at the beginning.
pub fn check(history: &History, patience: Duration) -> Verdict {
    let until = Instant::now() + patience;
    let (mut wrong, mut unknown) = (Vec::new(), Vec::new());
    for (key, operations) in history.by_key() {
        for window in windows(&operations) {
            match window.check(until) {
                Answer::Order => {}
                Answer::NoOrder => {
                    wrong.push(format!("key {key}: {}", window.explain(until)));
                    // What follows begins with something that is wrong.
                    break;
                }
                Answer::Unknown(why) => unknown.push(format!("key {key}: {why}")),
            }
        }
    }
    match (wrong.is_empty(), unknown.is_empty()) {
        (false, _) => Verdict::Violation(wrong),
        (true, false) => Verdict::Unknown(unknown),
        (true, true) => Verdict::Linearizable,
    }
}

enum Answer {
    Order,
    NoOrder,
    Unknown(String),
}

/// What a compare-and-set wants to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Nothing,
    Serial(u64),
    /// A version that nobody was told of: it never fits.
    Unseen,
}

#[derive(Debug, Clone, Copy)]
enum Ask {
    Put(u64),
    Cas(Expect, u64),
    Scale(u64),
    Delete,
    Get,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reply {
    Done,
    Refused,
    Value(Option<u64>),
}

/// The register as it should be, with the operations that led to its value.
#[derive(Debug, Clone)]
struct Register {
    value: Option<u64>,
    done: Done,
    search: Arc<Search>,
}

/// A set of a window's operations.
type Done = [u64; (WINDOW + OPEN).div_ceil(64)];

/// What the branches of a search share. Branches that came to the same value by the same
/// operations go on alike, and only one that failed lets the next begin: the others need not be
/// tried. Nor is anything once time is up.
#[derive(Debug)]
struct Search {
    until: Instant,
    over: AtomicBool,
    tried: Mutex<HashSet<(Done, Option<u64>)>>,
}

impl Search {
    fn is_over(&self) -> bool {
        let over = self.over.load(Ordering::Relaxed) || Instant::now() > self.until;
        self.over.store(over, Ordering::Relaxed);
        over
    }

    fn is_new(&self, register: &Register) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        tried.insert((register.done, register.value))
    }
}

impl Register {
    fn answer(&mut self, ask: Ask) -> Reply {
        let (fits, value) = match ask {
            Ask::Get => return Reply::Value(self.value),
            Ask::Put(serial) => (true, Some(serial)),
            Ask::Scale(serial) => (self.value.is_some(), Some(serial)),
            Ask::Delete => (self.value.is_some(), None),
            Ask::Cas(Expect::Nothing, serial) => (self.value.is_none(), Some(serial)),
            Ask::Cas(Expect::Serial(found), serial) => (self.value == Some(found), Some(serial)),
            Ask::Cas(Expect::Unseen, _) => (false, None),
        };
        if !fits {
            return Reply::Refused;
        }
        self.value = value;
        Reply::Done
    }
}

impl SequentialSpec for Register {
    /// With its place in the window.
    type Op = (usize, Ask);
    type Ret = Reply;

    fn invoke(&mut self, (at, ask): &Self::Op) -> Reply {
        self.done[at / 64] |= 1 << (at % 64);
        self.answer(*ask)
    }

    fn is_valid_step(&mut self, op: &Self::Op, reply: &Reply) -> bool {
        !self.search.is_over() && self.invoke(op) == *reply && self.search.clone().is_new(self)
    }
}

/// An operation as the search sees it.
#[derive(Clone)]
struct Item<'a> {
    operation: &'a Operation,
    ask: Ask,
    invoked: u64,
    /// When and what was answered; nothing when that is not known.
    answer: Option<(u64, Reply)>,
}

impl Item<'_> {
    fn is_read(&self) -> bool {
        matches!(self.ask, Ask::Get)
    }

    /// The value it proves to have been there.
    fn proves(&self) -> Option<u64> {
        match (self.ask, self.answer) {
            (Ask::Get, Some((_, Reply::Value(value)))) => value,
            (Ask::Cas(Expect::Serial(serial), _), Some((_, Reply::Done))) => Some(serial),
            _ => None,
        }
    }

    fn serial(&self) -> Option<u64> {
        match self.ask {
            Ask::Put(serial) | Ask::Cas(_, serial) | Ask::Scale(serial) => Some(serial),
            Ask::Delete | Ask::Get => None,
        }
    }
}

/// A stretch of a key's history whose first value is known.
struct Window<'a> {
    before: Option<u64>,
    /// Answered, by invocation.
    items: Vec<Item<'a>>,
    /// Of unknown outcome, that somebody in this window saw the value of: happened here.
    seen: Vec<Item<'a>>,
    /// Of unknown outcome, that nobody ever saw: may have happened here.
    unseen: Vec<Item<'a>>,
}

fn items<'a>(operations: &[&'a Operation]) -> Vec<Item<'a>> {
    let told = operations.iter().filter_map(|o| o.told());
    let serials: BTreeMap<u64, u64> = told.filter_map(|t| Some((t.rev?, t.value?))).collect();
    let expect = |version| match version {
        0 => Expect::Nothing,
        version => serials
            .get(&version)
            .map_or(Expect::Unseen, |serial| Expect::Serial(*serial)),
    };
    let wanted = |o: &&&Operation| o.op != Op::Stale && (o.told().is_some() || o.is_open());
    let items = operations.iter().filter(wanted).filter_map(|operation| {
        let ask = match operation.op {
            Op::Put => Ask::Put(operation.value?),
            Op::Cas => Ask::Cas(expect(operation.expect?), operation.value?),
            Op::Scale => Ask::Scale(operation.value?),
            Op::Del => Ask::Delete,
            Op::Get | Op::Stale => Ask::Get,
        };
        let answer = operation.told().zip(operation.returned);
        Some(Item {
            operation,
            ask,
            invoked: operation.invoked,
            answer: answer.map(|(told, at)| (at, reply(operation.op, told))),
        })
    });
    items.collect()
}

fn reply(op: Op, told: &Told) -> Reply {
    match (op.writes(), told.rev) {
        (false, _) => Reply::Value(told.value),
        (true, Some(_)) => Reply::Done,
        (true, None) => Reply::Refused,
    }
}

fn windows<'a>(operations: &[&'a Operation]) -> Vec<Window<'a>> {
    let (mut answered, mut open): (Vec<_>, Vec<_>) = items(operations)
        .into_iter()
        .partition(|item| item.answer.is_some());
    answered.sort_by_key(|item| item.invoked);
    open.sort_by_key(|item| std::cmp::Reverse(item.invoked));
    let mut windows = cut(answered);
    for window in &mut windows {
        let proofs: Vec<_> = window.items.iter().filter_map(Item::proves).collect();
        let proven = |item: &Item| item.serial().is_some_and(|s| proofs.contains(&s));
        window.seen = open.extract_if(.., |item| proven(item)).collect();
    }
    for window in &mut windows {
        let ends = window.items.iter().filter_map(|item| item.answer);
        let end = ends.map(|(at, _)| at).max().unwrap_or(u64::MAX);
        let early = open.iter().filter(|item| item.invoked < end);
        window.unseen = early.cloned().collect();
    }
    windows
}

/// Cuts after each read that overlaps no other answered operation.
fn cut(items: Vec<Item<'_>>) -> Vec<Window<'_>> {
    let nexts: Vec<u64> = items.iter().skip(1).map(|item| item.invoked).collect();
    let mut windows = Vec::new();
    let (mut before, mut current, mut latest) = (None, Vec::new(), 0);
    for (at, item) in items.into_iter().enumerate() {
        let (returned, reply) = item.answer.unwrap_or((u64::MAX, Reply::Refused));
        let next = nexts.get(at).copied().unwrap_or(u64::MAX);
        let alone = item.is_read() && latest < item.invoked && returned < next;
        latest = latest.max(returned);
        current.push(item);
        if let (true, Reply::Value(value)) = (alone, reply) {
            windows.push(Window::new(before, std::mem::take(&mut current)));
            before = value;
        }
    }
    windows.push(Window::new(before, current));
    windows
}

impl<'a> Window<'a> {
    fn new(before: Option<u64>, items: Vec<Item<'a>>) -> Self {
        Self {
            before,
            items,
            seen: Vec::new(),
            unseen: Vec::new(),
        }
    }

    fn check(&self, until: Instant) -> Answer {
        if self.items.len() > WINDOW {
            let count = self.items.len();
            return Answer::Unknown(format!("{count} operations without a quiet read"));
        }
        if self.seen.len() > OPEN {
            let count = self.seen.len();
            return Answer::Unknown(format!("{count} operations of unknown outcome at once"));
        }
        // What nobody saw is seldom needed to explain anything, and expensive.
        let spare = self.unseen.len().min(OPEN - self.seen.len());
        for unseen in [0, spare] {
            let open = self.seen.iter().chain(&self.unseen[..unseen]);
            match search(self.before, &self.items, open, until) {
                Answer::NoOrder => {}
                decided => return decided,
            }
        }
        if spare < self.unseen.len() {
            let count = self.unseen.len();
            return Answer::Unknown(format!("{count} operations whose outcome nobody knows"));
        }
        Answer::NoOrder
    }

    /// The answer up to which there is an order, and what came before it.
    fn explain(&self, until: Instant) -> String {
        let mut ends: Vec<_> = self.items.iter().filter_map(|i| i.answer).collect();
        ends.sort_by_key(|(at, _)| *at);
        let broken = ends.iter().map(|(at, _)| *at).find(|end| {
            let prefix = self.up_to(*end);
            matches!(prefix.check(until), Answer::NoOrder)
        });
        let prefix = self.up_to(broken.unwrap_or(u64::MAX));
        let mut lines: Vec<_> = prefix.items.iter().chain(&prefix.seen).collect();
        lines.sort_by_key(|item| item.operation.returned.unwrap_or(u64::MAX));
        let origin = lines.iter().map(|i| i.invoked).min().unwrap_or_default();
        let value = self
            .before
            .map_or("nothing".to_owned(), |serial| format!("#{serial}"));
        let text = lines.iter().map(|item| {
            let micros = |t: u64| t.saturating_sub(origin) / 1000;
            let end = item.operation.returned.map(micros);
            let end = end.map_or(String::new(), |end| end.to_string());
            format!(
                "\n  {:>9} to {end:>9} µs: {}",
                micros(item.invoked),
                item.operation
            )
        });
        format!(
            "beginning with {value}, no order explains these answers:{}",
            text.collect::<String>()
        )
    }

    /// The same with only the answers until `end`; what was running then is of unknown outcome.
    fn up_to(&self, end: u64) -> Self {
        let is_early = |item: &&Item| item.answer.is_some_and(|(at, _)| at <= end);
        let (early, late): (Vec<_>, Vec<_>) = self.items.iter().partition(is_early);
        let running = late
            .into_iter()
            .filter(|item| item.invoked < end && !item.is_read());
        Self {
            before: self.before,
            items: early.into_iter().cloned().collect(),
            seen: self.seen.iter().chain(running).cloned().collect(),
            unseen: self.unseen.clone(),
        }
    }
}

/// Whether there is an order. The operations take turns in as few threads as they can: a thread
/// has one at a time, and its order is that of time anyway.
fn search<'a>(
    before: Option<u64>,
    items: &'a [Item<'a>],
    open: impl Iterator<Item = &'a Item<'a>>,
    until: Instant,
) -> Answer {
    let all: Vec<_> = items.iter().chain(open).collect();
    let mut moments = Vec::new();
    for (at, item) in all.iter().enumerate() {
        moments.push((item.invoked, None, at));
        moments.extend(item.answer.map(|(end, reply)| (end, Some(reply), at)));
    }
    // At the same moment, beginnings come first: that leaves more orders.
    moments.sort_by_key(|(t, reply, _)| (*t, reply.is_some()));
    let search = Arc::new(Search {
        until,
        over: AtomicBool::new(false),
        tried: Mutex::default(),
    });
    let mut tester = LinearizabilityTester::new(Register {
        value: before,
        done: Done::default(),
        search: search.clone(),
    });
    let mut free: BTreeSet<usize> = (0..CLIENTS).collect();
    let mut threads = BTreeMap::new();
    for (_, reply, at) in moments {
        let noted = match (reply, all[at].answer) {
            (Some(reply), _) => {
                let thread = threads.remove(&at).unwrap_or_default();
                free.insert(thread);
                tester.on_return(thread, reply).map(drop)
            }
            (None, Some(_)) => {
                let Some(thread) = free.pop_first() else {
                    return Answer::Unknown(format!("more than {CLIENTS} operations at once"));
                };
                threads.insert(at, thread);
                tester.on_invoke(thread, (at, all[at].ask)).map(drop)
            }
            // Never answered: a thread of its own, tried last.
            (None, None) => tester.on_invoke(CLIENTS + at, (at, all[at].ask)).map(drop),
        };
        if let Err(error) = noted {
            return Answer::Unknown(error);
        }
    }
    match (tester.is_consistent(), search.is_over()) {
        (true, _) => Answer::Order,
        (false, false) => Answer::NoOrder,
        (false, true) => Answer::Unknown("not decided in time".to_owned()),
    }
}
