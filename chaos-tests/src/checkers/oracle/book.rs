//! What is known of every key: who wrote which serial, which index holds what, and when a version
//! was seen. Everything else is looked up in it.

use std::collections::BTreeMap;

use crate::workload::history::{History, Op, Operation, Outcome, Seen};

/// A look at one key of a state.
pub(in crate::checkers) struct Read<'a> {
    pub key: &'a str,
    pub seen: Option<Seen>,
    /// The state's index.
    pub at: u64,
    pub invoked: u64,
    pub returned: u64,
    /// Whether it was consistent; otherwise it may show the past.
    pub fresh: bool,
    /// It, in words.
    pub what: String,
}

/// From when to when a version is known to have been the present one.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: u64,
    until: u64,
}

#[derive(Default)]
struct Key<'a> {
    /// By serial.
    writes: BTreeMap<u64, &'a Operation>,
    /// Indexes at which the key is known to have changed: to a serial, or to nothing.
    versions: BTreeMap<u64, Option<u64>>,
    spans: BTreeMap<u64, Span>,
    /// When the first deletion of unknown outcome began.
    open_delete: Option<u64>,
    /// When the first write of unknown outcome began whose index nobody knows.
    open_write: Option<u64>,
}

/// All keys of a history.
pub(in crate::checkers) struct Book<'a> {
    keys: BTreeMap<&'a str, Key<'a>>,
}

impl<'a> Book<'a> {
    /// Collects what operations and reads claim, and what of it cannot be.
    pub fn of(history: &'a History, reads: &[Read<'a>]) -> (Self, Vec<String>) {
        let mut book = Self {
            keys: BTreeMap::new(),
        };
        let mut claims = Claims::default();
        for operation in &history.operations {
            book.open(operation);
        }
        for operation in &history.operations {
            let (Some(rev), Some(end)) = (operation.wrote_at(), operation.returned) else {
                continue;
            };
            let value = (operation.op != Op::Del)
                .then_some(operation.value)
                .flatten();
            claims.take(&operation.key, value, rev, operation);
            let key = book.keys.entry(&operation.key).or_default();
            key.versions.insert(rev, value);
            key.spans.insert(
                rev,
                Span {
                    from: end,
                    until: 0,
                },
            );
        }
        for read in reads {
            if let Some(Seen { v, rev }) = read.seen {
                claims.take(read.key, Some(v), rev, &read.what);
                claims
                    .findings
                    .extend(book.phantom(read.key, v, read.returned, &read.what));
                book.keys.entry(read.key).or_default().saw(read, v, rev);
            }
        }
        for operation in history.operations.iter().filter(|o| o.is_open()) {
            book.left_open(operation);
        }
        (book, claims.findings)
    }

    fn open(&mut self, operation: &'a Operation) {
        let key = self.keys.entry(&operation.key).or_default();
        if let Some(serial) = operation.value.filter(|_| operation.op.writes()) {
            key.writes.insert(serial, operation);
        }
    }

    fn left_open(&mut self, operation: &'a Operation) {
        let key = self.keys.entry(&operation.key).or_default();
        let known = operation
            .value
            .is_some_and(|serial| key.versions.values().any(|v| *v == Some(serial)));
        let first = match (operation.op, known) {
            (Op::Del, _) => &mut key.open_delete,
            (_, false) => &mut key.open_write,
            (_, true) => return,
        };
        *first = Some(first.unwrap_or(u64::MAX).min(operation.invoked));
    }

    /// A value that nobody can have written by `end`.
    pub fn phantom(&self, key: &str, serial: u64, end: u64, what: &str) -> Option<String> {
        let write = self.keys.get(key).and_then(|key| key.writes.get(&serial));
        let Some(write) = write else {
            return Some(format!(
                "key {key}: {what}, but nobody ever wrote #{serial}"
            ));
        };
        if let Outcome::Fail(_) = write.outcome {
            return Some(format!(
                "key {key}: {what}, but #{serial} was not done: {write}"
            ));
        }
        let early = write.invoked > end;
        early.then(|| format!("key {key}: {what}, before #{serial} was asked for: {write}"))
    }

    /// A state at an index holds the newest write up to it.
    pub fn content(&self, read: &Read<'_>) -> Option<String> {
        let key = self.keys.get(read.key)?;
        let (name, what, at) = (read.key, &read.what, read.at);
        if let Some(Seen { rev, .. }) = read.seen {
            if rev > at {
                return Some(format!(
                    "key {name}: {what}, which is newer than that state"
                ));
            }
            let (missed, value) = key.between(rev, at)?;
            let value = shown(*value);
            return Some(format!(
                "key {name}: {what}, but {value} was written at {missed}"
            ));
        }
        let (rev, value) = key.versions.range(..=at).next_back()?;
        let deleted = value.is_none() || key.open_delete.is_some_and(|t| t < read.returned);
        let value = shown(*value);
        (!deleted).then(|| {
            format!("key {name}: {what}, but {value} was written at {rev} and nobody deleted it")
        })
    }

    /// What a write says it replaced is what was there.
    pub fn replaced(&self, operation: &Operation) -> Option<String> {
        let (rev, key) = (
            operation.wrote_at()?,
            self.keys.get(operation.key.as_str())?,
        );
        let before = key.versions.range(..rev).next_back();
        let (name, end) = (&operation.key, operation.returned?);
        let since = |t: Option<u64>| t.is_some_and(|t| t < end);
        let there = before.is_some_and(|(_, value)| value.is_some());
        match (operation.op, operation.expect) {
            (Op::Cas, Some(expect)) if expect > 0 => {
                let (between, value) = key.between(expect, rev - 1)?;
                let value = shown(*value);
                Some(format!(
                    "key {name}: {operation}, over {value} written at {between}"
                ))
            }
            (Op::Cas, _) if there && !since(key.open_delete) => {
                let (before, value) = before?;
                let value = shown(*value);
                Some(format!(
                    "key {name}: {operation}, over {value} written at {before}"
                ))
            }
            (Op::Del | Op::Scale, _) if !there && !since(key.open_write) => {
                Some(format!("key {name}: {operation}, but nothing was there"))
            }
            _ => None,
        }
    }

    /// What was refused cannot have fitted all the while.
    pub fn refused(&self, operation: &Operation) -> Option<String> {
        let told = operation.told().filter(|_| operation.op.writes())?;
        let (end, key) = (operation.returned?, self.keys.get(operation.key.as_str())?);
        if told.rev.is_some() {
            return None;
        }
        let covers = |span: &Span| span.from < operation.invoked && end < span.until;
        let present = match (operation.op, operation.expect) {
            (Op::Cas, Some(expect)) => key.spans.get(&expect).filter(|s| covers(s)).map(|_| expect),
            (Op::Del, _) => {
                let begun = key.spans.iter().filter(|(_, s)| s.from < operation.invoked);
                // In right histories they follow each other, so that one look suffices.
                let newest = begun.max_by_key(|(rev, _)| **rev);
                newest.filter(|(_, span)| covers(span)).map(|(rev, _)| *rev)
            }
            _ => None,
        };
        let name = &operation.key;
        present.map(|rev| format!("key {name}: {operation}, though {rev} was there all the while"))
    }

    /// Whether any operation was on this key.
    pub fn knows(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether a deletion of unknown outcome may explain what nothing else explains.
    pub fn may_be_deleted(&self, key: &str) -> bool {
        self.keys
            .get(key)
            .is_some_and(|key| key.open_delete.is_some())
    }
}

impl Key<'_> {
    /// The newest change after one index and up to another.
    fn between(&self, after: u64, to: u64) -> Option<(&u64, &Option<u64>)> {
        let newest = self.versions.range(..=to).next_back();
        newest.filter(|(index, _)| **index > after)
    }

    fn saw(&mut self, read: &Read<'_>, serial: u64, rev: u64) {
        self.versions.insert(rev, Some(serial));
        if !read.fresh {
            return;
        }
        let span = self.spans.entry(rev).or_insert(Span {
            from: read.returned,
            until: 0,
        });
        span.from = span.from.min(read.returned);
        span.until = span.until.max(read.invoked);
    }
}

fn shown(value: Option<u64>) -> String {
    value.map_or("a deletion".to_owned(), |serial| format!("#{serial}"))
}

/// One serial has one index, one index one change.
#[derive(Default)]
struct Claims {
    by_serial: BTreeMap<(String, u64), u64>,
    by_index: BTreeMap<u64, (String, Option<u64>)>,
    findings: Vec<String>,
}

impl Claims {
    fn take(&mut self, key: &str, value: Option<u64>, rev: u64, what: &impl std::fmt::Display) {
        if let Some(serial) = value {
            let known = self
                .by_serial
                .entry((key.to_owned(), serial))
                .or_insert(rev);
            if *known != rev {
                let text = format!("key {key}: {what}, but #{serial} was at index {known} before");
                self.findings.push(text);
            }
        }
        let change = (key.to_owned(), value);
        let known = self.by_index.entry(rev).or_insert_with(|| change.clone());
        if *known != change {
            let (other, value) = (&known.0, shown(known.1));
            let text = format!("key {key}: {what}, but index {rev} is {value} of {other}");
            self.findings.push(text);
        }
    }
}
