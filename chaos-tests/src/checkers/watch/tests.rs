//! Watches the checker has to accept or reject, and what it has to say of them.

use super::*;
use crate::checkers::testing::{KEY, del, failed, history, last, open, put, simulate};

fn note(t: u64, what: WatchEvent) -> WatchNote {
    let node = "n1".to_owned();
    WatchNote { t, node, what }
}

fn opened(after: u64) -> WatchNote {
    note(0, WatchEvent::Open { after })
}

fn step(t: u64, index: u64, changes: &[Option<(u64, u64)>]) -> WatchNote {
    let seen = |(v, rev)| Seen { v, rev };
    let changes = changes.iter().map(|c| (KEY.to_owned(), c.map(seen)));
    let changes = changes.collect();
    note(t, WatchEvent::Step { index, changes })
}

fn run() -> History {
    history(vec![
        put((1, 2), 1, 5),
        put((3, 4), 2, 6),
        del((5, 6), Some(8)),
    ])
}

fn found(notes: &[WatchNote]) -> Vec<String> {
    check(notes, &run(), &last(None, 8))
}

fn right() -> Vec<WatchNote> {
    vec![
        opened(4),
        step(2, 5, &[Some((1, 5))]),
        step(4, 6, &[Some((2, 6))]),
        note(4, WatchEvent::Beat { index: 6 }),
        // Its status changed, nothing else.
        step(5, 7, &[Some((2, 6))]),
        step(6, 8, &[None]),
    ]
}

#[test]
fn right_watches_pass() {
    assert_eq!(found(&right()), [""; 0]);
    let listed = |at, seen| WatchEvent::Listed {
        scan: last(seen, at),
    };
    let resumed = [
        opened(4),
        note(3, WatchEvent::Closed { why: String::new() }),
        opened(4),
        note(5, listed(7, Some((2, 6)))),
        opened(7),
        step(6, 8, &[None]),
    ];
    assert_eq!(found(&resumed), [""; 0]);
    let late = history(vec![open(put((1, 2), 1, 0)), open(del((3, 4), None))]);
    let notes = [opened(4), step(9, 5, &[Some((1, 5))]), step(9, 6, &[None])];
    assert_eq!(check(&notes, &late, &last(None, 6)), [""; 0]);
}

#[test]
fn wrong_watches_do_not() {
    let changed = |at: usize, with: &[WatchNote]| {
        let mut notes = right();
        notes.splice(at..=at, with.iter().cloned());
        notes
    };
    let beat = |index| note(4, WatchEvent::Beat { index });
    let list = WatchEvent::Listed {
        scan: last(Some((1, 5)), 7),
    };
    let table = [
        ("never opened", vec![step(2, 5, &[])]),
        ("a gap", changed(4, &[])),
        ("told twice", changed(3, &[step(4, 6, &[Some((2, 6))])])),
        ("told after 6", changed(3, &[step(4, 5, &[Some((1, 5))])])),
        (
            "before #2 was asked",
            changed(2, &[step(2, 6, &[Some((2, 6))])]),
        ),
        (
            "nobody ever wrote #9",
            changed(2, &[step(4, 6, &[Some((9, 6))])]),
        ),
        (
            "index 6 brought #2 of 9",
            changed(2, &[step(4, 6, &[Some((2, 9))])]),
        ),
        (
            "brought #1 of 5",
            changed(4, &[step(5, 7, &[Some((1, 5))])]),
        ),
        ("never told it", changed(2, &[step(4, 6, &[])])),
        ("deleted by nobody", changed(4, &[step(5, 7, &[None])])),
        ("before delete", changed(5, &[step(4, 8, &[None])])),
        ("said to be told up to 7", changed(3, &[beat(7)])),
        ("opened after 7", changed(4, &[opened(7)])),
        ("ended at 7", changed(5, &[])),
        ("#2 was written at 6", vec![opened(4), note(7, list)]),
    ];
    for (word, notes) in table {
        let found = found(&notes);
        assert!(
            found.iter().any(|text| text.contains(word)),
            "{word}: {found:#?}"
        );
    }
    let denied = history(vec![failed(put((1, 2), 1, 0))]);
    let notes = [opened(4), step(3, 5, &[Some((1, 5))])];
    let found = check(&notes, &denied, &last(Some((1, 5)), 5));
    assert!(found[0].contains("was not done"), "{found:?}");
}

#[test]
fn a_real_watch_passes_and_none_of_its_steps_may_be_left_out() {
    for seed in 0..200 {
        let run = simulate(seed);
        let mut notes = run.watch;
        assert_eq!(
            check(&notes, &run.history, &run.last),
            [""; 0],
            "seed {seed}"
        );
        let middle = usize::try_from(seed).unwrap_or(0) % (notes.len() - 1) + 1;
        notes.remove(middle);
        let found = check(&notes, &run.history, &run.last);
        assert!(!found.is_empty(), "seed {seed} without note {middle}");
    }
}
