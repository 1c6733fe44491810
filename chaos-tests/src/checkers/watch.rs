//! What a watch told: in order, every index once, nothing before it happened, and by the end
//! everything that was acknowledged.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::oracle::{Book, Read};
use crate::workload::history::{History, Op, Operation, Scan, Seen, WatchEvent, WatchNote};

/// What is wrong with a watch, in words. `last` is a consistent read of everything after the run.
pub fn check(notes: &[WatchNote], history: &History, last: &Scan) -> Vec<String> {
    let Some(WatchEvent::Open { after }) = notes.first().map(|note| &note.what) else {
        return vec!["the watch was never opened".to_owned()];
    };
    let scans: Vec<Read<'_>> = scans(notes, history);
    let (book, findings) = Book::of(history, &scans);
    let mut followed = Followed {
        book,
        deletes: deletes(history),
        position: *after,
        told: BTreeSet::new(),
        skipped: Vec::new(),
        present: BTreeMap::new(),
        findings,
    };
    for note in notes {
        followed.take(note);
    }
    let wrong = scans.iter().filter_map(|scan| followed.book.content(scan));
    followed.findings.extend(wrong);
    followed.end(*after, history, last);
    followed.findings
}

/// Every key of every list the watch had to take.
fn scans<'a>(notes: &'a [WatchNote], history: &'a History) -> Vec<Read<'a>> {
    let keys: Vec<_> = history.by_key().into_keys().collect();
    let listed = notes.iter().filter_map(|note| match &note.what {
        WatchEvent::Listed { scan } => Some((note.t, scan)),
        _ => None,
    });
    let each = listed.flat_map(|(t, scan)| {
        let read = move |key: &&'a str| Read::scanned(key, scan, t, "a watch's list");
        keys.iter().map(read).collect::<Vec<_>>()
    });
    each.collect()
}

fn deletes(history: &History) -> BTreeMap<u64, &Operation> {
    let deletes = history.operations.iter().filter(|o| o.op == Op::Del);
    deletes.filter_map(|o| Some((o.wrote_at()?, o))).collect()
}

struct Followed<'a> {
    book: Book<'a>,
    /// Acknowledged, by index.
    deletes: BTreeMap<u64, &'a Operation>,
    /// Everything up to here was told or listed.
    position: u64,
    /// Changes it told: key and index.
    told: BTreeSet<(String, u64)>,
    /// Stretches of indexes it listed instead: after, to.
    skipped: Vec<(u64, u64)>,
    present: BTreeMap<String, Seen>,
    findings: Vec<String>,
}

impl Followed<'_> {
    fn take(&mut self, note: &WatchNote) {
        let position = self.position;
        match &note.what {
            WatchEvent::Open { after } if *after != position => {
                let text = format!("opened after {after}, though it had come to {position}");
                self.find(note, &text);
            }
            WatchEvent::Beat { index } if *index > position => {
                let text = format!("said to be told up to {index}, but is at {position}");
                self.find(note, &text);
            }
            WatchEvent::Step { index, changes } => {
                self.step(note, *index);
                // Others' services are none of this history's.
                let own = changes.iter().filter(|(key, _)| self.book.knows(key));
                for (key, seen) in own.collect::<Vec<_>>() {
                    self.change(note, *index, key, *seen);
                }
            }
            WatchEvent::Listed { scan } => {
                if scan.at < position {
                    let text = format!("listed index {}, but was at {position}", scan.at);
                    self.find(note, &text);
                }
                self.skipped.push((position, scan.at));
                self.position = scan.at;
                self.present.clone_from(&scan.keys);
            }
            WatchEvent::Open { .. } | WatchEvent::Beat { .. } | WatchEvent::Closed { .. } => {}
        }
    }

    fn step(&mut self, note: &WatchNote, index: u64) {
        let position = self.position;
        if index == position {
            self.find(note, &format!("index {index} was told twice"));
        } else if index < position {
            self.find(note, &format!("index {index} was told after {position}"));
        } else if index > position + 1 {
            let text = format!("index {index} was told right after {position}: a gap");
            self.find(note, &text);
        }
        self.position = self.position.max(index);
    }

    fn change(&mut self, note: &WatchNote, index: u64, key: &str, seen: Option<Seen>) {
        let Some(seen) = seen else {
            let owner = self.deletes.get(&index).filter(|o| o.key == key);
            let early = owner.filter(|o| o.invoked > note.t);
            if let Some(owner) = early {
                let text = format!("key {key} was gone at {index}, before {owner}");
                self.find(note, &text);
            } else if owner.is_none() && !self.book.may_be_deleted(key) {
                self.find(
                    note,
                    &format!("key {key} was gone at {index}, deleted by nobody"),
                );
            }
            self.present.remove(key);
            self.told.insert((key.to_owned(), index));
            return;
        };
        let what = format!("the watch at {} told #{} at {index}", note.node, seen.v);
        let phantom = self.book.phantom(key, seen.v, note.t, &what);
        self.findings.extend(phantom);
        let unknown = self
            .present
            .get(key)
            .is_some_and(|present| *present != seen);
        if seen.rev > index || (seen.rev < index && unknown) {
            let text = format!(
                "key {key}: index {index} brought #{} of {}",
                seen.v, seen.rev
            );
            self.find(note, &text);
        }
        self.present.insert(key.to_owned(), seen);
        if seen.rev == index {
            self.told.insert((key.to_owned(), index));
        }
    }

    fn end(&mut self, after: u64, history: &History, last: &Scan) {
        let position = self.position;
        if position < last.at {
            let text = format!("the watch ended at {position}, the registry at {}", last.at);
            self.findings.push(text);
        }
        for operation in &history.operations {
            let Some(rev) = operation.wrote_at().filter(|rev| *rev > after) else {
                continue;
            };
            let listed = self
                .skipped
                .iter()
                .any(|(from, to)| *from < rev && rev <= *to);
            if !listed && !self.told.contains(&(operation.key.clone(), rev)) {
                let key = &operation.key;
                let text = format!("key {key}: {operation}, and the watch never told it");
                self.findings.push(text);
            }
        }
    }

    fn find(&mut self, note: &WatchNote, text: &str) {
        let node = &note.node;
        self.findings.push(format!("the watch at {node}: {text}"));
    }
}
