//! The linear-time oracle. The registry tells the index of every write and of every state it reads
//! from; the oracle believes these and looks whether they can all be true: every value was written
//! by somebody, once, at one index; nobody is answered from before what was acknowledged already;
//! a state at an index holds exactly the newest writes up to it; what was acknowledged is there at
//! the end. It takes histories of any length.

mod book;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(super) use book::{Book, Read};

use crate::workload::history::{History, Op, Operation, Scan, Seen};

/// A node's daemon was started anew at this time (`history::now`): its own copy of the registry
/// may be older than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    pub node: String,
    pub at: u64,
}

/// What contradicts what, in words. `last` is a consistent read of everything after the run.
pub fn check(history: &History, last: &Scan, restarts: &[Restart]) -> Vec<String> {
    let reads = reads(history, last);
    let (book, mut findings) = Book::of(history, &reads);
    findings.extend(reads.iter().filter_map(|read| book.content(read)));
    for operation in &history.operations {
        findings.extend(book.replaced(operation));
        findings.extend(book.refused(operation));
    }
    findings.extend(floors(history, last));
    findings.extend(backwards(history, restarts));
    findings
}

/// Every read with an index, the last scan as one of each key.
fn reads<'a>(history: &'a History, last: &'a Scan) -> Vec<Read<'a>> {
    let told = history.operations.iter().filter_map(Read::of);
    let keys = history.by_key().into_keys();
    let scanned = keys.map(|key| Read::scanned(key, last, u64::MAX, "the last scan"));
    told.chain(scanned).collect()
}

/// Consistent operations are answered from after everything that was told before they began: of
/// others' and so of their own.
fn floors(history: &History, last: &Scan) -> Vec<String> {
    let mut told: Vec<_> = history.operations.iter().filter_map(told_index).collect();
    told.sort_by_key(|(returned, _, _)| *returned);
    // The highest index that anybody knew of by then.
    let mut highest: Vec<Shown<'_>> = Vec::new();
    for (returned, index, operation) in told {
        let (index, operation) = match highest.last() {
            Some((_, before, owner)) if *before >= index => (*before, *owner),
            _ => (index, operation),
        };
        highest.push((returned, index, operation));
    }
    let known_at = |t: u64| {
        let before = highest.partition_point(|(returned, _, _)| *returned < t);
        before.checked_sub(1).map(|at| highest[at])
    };
    let mut findings = Vec::new();
    for operation in &history.operations {
        let Some((_, floor, owner)) = known_at(operation.invoked) else {
            continue;
        };
        let too_old = match (operation.wrote_at(), fresh_index(operation)) {
            // A write makes a state that nobody can have seen before.
            (Some(rev), _) => rev <= floor,
            (None, Some(at)) => at < floor,
            (None, None) => false,
        };
        if too_old {
            let key = &operation.key;
            findings.push(format!(
                "key {key}: {operation}, but index {floor} was known before it began: {} of key {}",
                owner, owner.key
            ));
        }
    }
    if let Some((_, floor, owner)) = known_at(u64::MAX).filter(|(_, floor, _)| last.at < *floor) {
        findings.push(format!(
            "the last scan is of index {}, before {floor}: {owner}",
            last.at
        ));
    }
    findings
}

/// When an operation's client came to know of an index.
fn told_index(operation: &Operation) -> Option<Shown<'_>> {
    let index = operation.wrote_at().or_else(|| fresh_index(operation))?;
    Some((operation.returned?, index, operation))
}

fn fresh_index(operation: &Operation) -> Option<u64> {
    let told = operation.told().filter(|_| operation.op == Op::Get)?;
    told.at
}

/// When a read ended, the index it was answered from, and itself.
type Shown<'a> = (u64, u64, &'a Operation);

/// A node's own copy only goes forward while its daemon lives.
fn backwards(history: &History, restarts: &[Restart]) -> Vec<String> {
    let life = |operation: &Operation| {
        let before = |t: u64| {
            let own = restarts.iter().filter(|r| r.node == operation.node);
            own.filter(|r| r.at < t).count()
        };
        let (first, last) = (before(operation.invoked), before(operation.returned?));
        (first == last).then_some(first)
    };
    let mut copies: BTreeMap<(&str, usize), Vec<Shown<'_>>> = BTreeMap::new();
    for operation in &history.operations {
        let at = operation.told().and_then(|told| told.at);
        if let (Some(at), Some(life), Some(end)) = (at, life(operation), operation.returned) {
            let copy = copies.entry((&operation.node, life)).or_default();
            copy.push((end, at, operation));
        }
    }
    copies.into_values().flat_map(falls).collect()
}

/// Reads of one copy that are older than one that had ended before they began.
fn falls(mut reads: Vec<Shown<'_>>) -> Vec<String> {
    let mut begun: Vec<_> = reads
        .iter()
        .map(|(_, at, o)| (o.invoked, *at, *o))
        .collect();
    begun.sort_by_key(|(invoked, _, _)| *invoked);
    reads.sort_by_key(|(end, _, _)| *end);
    let mut ended = reads.into_iter().peekable();
    let mut highest: Option<(u64, &Operation)> = None;
    let mut findings = Vec::new();
    for (invoked, at, operation) in begun {
        while let Some((_, index, earlier)) = ended.next_if(|(end, _, _)| *end < invoked) {
            if highest.is_none_or(|(high, _)| high < index) {
                highest = Some((index, earlier));
            }
        }
        if let Some((high, earlier)) = highest.filter(|(high, _)| *high > at) {
            let key = &operation.key;
            findings.push(format!(
                "key {key}: {operation}, but that node had shown index {high} before: {earlier}"
            ));
        }
    }
    findings
}

impl<'a> Read<'a> {
    fn of(operation: &'a Operation) -> Option<Self> {
        let told = operation.told().filter(|_| !operation.op.writes())?;
        let seen = told.value.zip(told.rev).map(|(v, rev)| Seen { v, rev });
        Some(Self {
            key: &operation.key,
            seen,
            at: told.at?,
            invoked: operation.invoked,
            returned: operation.returned?,
            fresh: operation.op == Op::Get,
            what: operation.to_string(),
        })
    }

    /// What a scan says of one key.
    pub fn scanned(key: &'a str, scan: &Scan, t: u64, what: &str) -> Self {
        let seen = scan.keys.get(key).copied();
        let shown = seen.map_or("nothing".to_owned(), |seen| {
            format!("#{} of {}", seen.v, seen.rev)
        });
        Self {
            key,
            seen,
            at: scan.at,
            invoked: t,
            returned: t,
            fresh: true,
            what: format!("{what} at index {} shows {shown}", scan.at),
        }
    }
}
