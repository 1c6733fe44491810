//! The linear-time oracle. The registry tells the index of every write and of every state it reads
//! from; the oracle believes these and looks whether they can all be true: every value was written
//! by somebody, once, at one index; nobody is answered from before what was acknowledged already;
//! a state at an index holds exactly the newest writes up to it; what was acknowledged is there at
//! the end. It takes histories of any length.

mod book;

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
    let mut highest: Vec<(u64, u64, &Operation)> = Vec::new();
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
fn told_index(operation: &Operation) -> Option<(u64, u64, &Operation)> {
    let index = operation.wrote_at().or_else(|| fresh_index(operation))?;
    Some((operation.returned?, index, operation))
}

fn fresh_index(operation: &Operation) -> Option<u64> {
    let told = operation.told().filter(|_| operation.op == Op::Get)?;
    told.at
}

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
    let mut copies: BTreeMap<(&str, usize), Vec<(u64, u64, &Operation)>> = BTreeMap::new();
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
fn falls(mut reads: Vec<(u64, u64, &Operation)>) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::testing::{
        LIES, cas, del, failed, get, history, last, open, put, simulate, stale,
    };

    fn found(operations: Vec<Operation>, seen: Option<(u64, u64)>, at: u64) -> Vec<String> {
        check(&history(operations), &last(seen, at), &[])
    }

    #[test]
    fn right_histories_pass() {
        let late = vec![
            put((1, 2), 1, 5),
            open(put((3, 4), 2, 0)),
            get((5, 6), Some((1, 5)), 5),
            stale((7, 8), Some((1, 5)), 5),
            get((9, 10), Some((2, 9)), 9),
            cas((11, 12), 5, 3, None),
            cas((13, 14), 9, 4, Some(10)),
        ];
        assert_eq!(found(late, Some((4, 10)), 11), [""; 0]);
        let deleted = vec![
            put((1, 2), 1, 5),
            open(del((3, 4), None)),
            get((5, 6), None, 7),
        ];
        assert_eq!(found(deleted, None, 7), [""; 0]);
        let unseen = vec![
            open(put((1, 2), 1, 0)),
            del((3, 4), Some(6)),
            del((5, 6), None),
        ];
        assert_eq!(found(unseen, None, 7), [""; 0]);
    }

    /// Each with a word of what has to be said.
    #[test]
    fn wrong_histories_do_not() {
        let one = || put((1, 2), 1, 5);
        let two = || put((3, 4), 2, 6);
        let end = Some((2, 6));
        let table = [
            (
                "nobody ever wrote #9",
                vec![one(), two(), get((5, 6), Some((9, 7)), 7)],
                Some((9, 7)),
                7,
            ),
            (
                "was not done",
                vec![failed(one()), get((5, 6), Some((1, 5)), 5)],
                Some((1, 5)),
                5,
            ),
            (
                "before #2 was asked",
                vec![one(), get((2, 3), Some((2, 6)), 6), put((4, 5), 2, 6)],
                end,
                6,
            ),
            (
                "#2 was at index 6 before",
                vec![one(), two(), get((5, 6), Some((2, 7)), 7)],
                end,
                7,
            ),
            (
                "index 5 is #1",
                vec![one(), put((3, 4), 2, 5)],
                Some((2, 5)),
                6,
            ),
            (
                "was known before it began",
                vec![one(), two(), get((5, 6), Some((1, 5)), 5)],
                end,
                6,
            ),
            (
                "#2 was written at 6",
                vec![one(), two(), get((5, 6), Some((1, 5)), 6)],
                end,
                6,
            ),
            (
                "nobody deleted it",
                vec![one(), get((3, 4), None, 6)],
                Some((1, 5)),
                6,
            ),
            (
                "newer than that state",
                vec![one(), get((1, 4), Some((1, 5)), 4)],
                Some((1, 5)),
                6,
            ),
            (
                "index 7 was known",
                vec![get((0, 1), None, 7), put((2, 3), 1, 6)],
                Some((1, 6)),
                7,
            ),
            (
                "over #2 written at 6",
                vec![one(), two(), cas((5, 6), 5, 3, Some(7))],
                Some((3, 7)),
                7,
            ),
            (
                "over #1 written at 5",
                vec![one(), cas((5, 6), 0, 3, Some(7))],
                Some((3, 7)),
                7,
            ),
            (
                "there all the while",
                vec![one(), cas((3, 4), 5, 3, None)],
                Some((1, 5)),
                7,
            ),
            ("but nothing was there", vec![del((3, 4), Some(6))], None, 7),
            (
                "there all the while",
                vec![one(), del((3, 4), None)],
                Some((1, 5)),
                7,
            ),
            (
                "had shown index 6",
                vec![
                    one(),
                    two(),
                    stale((5, 6), end, 6),
                    stale((7, 8), Some((1, 5)), 5),
                ],
                end,
                6,
            ),
            ("the last scan", vec![one(), two()], Some((1, 5)), 6),
            ("the last scan", vec![one(), two()], Some((1, 5)), 5),
            ("the last scan", vec![one()], None, 6),
        ];
        for (word, operations, seen, at) in table {
            let found = found(operations, seen, at);
            assert!(
                found.iter().any(|text| text.contains(word)),
                "{word}: {found:#?}"
            );
        }
    }

    #[test]
    fn a_node_started_anew_may_show_the_past() {
        let run = history(vec![
            put((1, 2), 1, 5),
            stale((3, 4), Some((1, 5)), 5),
            stale((9, 10), None, 4),
        ]);
        let restart = |at| Restart {
            node: "n1".to_owned(),
            at,
        };
        let end = last(Some((1, 5)), 5);
        assert_eq!(check(&run, &end, &[restart(7)]), [""; 0]);
        assert_eq!(check(&run, &end, &[restart(11)]).len(), 1);
    }

    #[test]
    fn a_real_register_always_passes() {
        for seed in 0..1000 {
            let run = simulate(seed);
            assert_eq!(check(&run.history, &run.last, &[]), [""; 0], "seed {seed}");
        }
    }

    #[test]
    fn every_lie_is_found() {
        for lie in LIES {
            let mut told = 0;
            for seed in 0..300 {
                let mut run = simulate(seed);
                if lie.tell(&mut run, seed) {
                    told += 1;
                    let found = check(&run.history, &run.last, &[]);
                    assert!(!found.is_empty(), "{lie:?} of seed {seed}");
                }
            }
            assert!(told > 100, "{lie:?} was told {told} times");
        }
    }
}
