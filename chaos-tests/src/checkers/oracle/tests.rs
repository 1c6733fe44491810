//! Histories the oracle has to accept or reject, and what it has to say of them.

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

/// A word of what has to be said, what happened, and the last scan with its index.
type Wrong = (&'static str, Vec<Operation>, Option<(u64, u64)>, u64);

fn rejects(table: Vec<Wrong>) {
    for (word, operations, seen, at) in table {
        let found = found(operations, seen, at);
        let said = found.iter().any(|text| text.contains(word));
        assert!(said, "{word}: {found:#?}");
    }
}

fn one() -> Operation {
    put((1, 2), 1, 5)
}

fn two() -> Operation {
    put((3, 4), 2, 6)
}

const ONE: Option<(u64, u64)> = Some((1, 5));
const TWO: Option<(u64, u64)> = Some((2, 6));

#[test]
fn values_that_cannot_be_are_found() {
    let early = vec![one(), get((2, 3), TWO, 6), put((4, 5), 2, 6)];
    rejects(vec![
        (
            "nobody ever wrote #9",
            vec![one(), two(), get((5, 6), Some((9, 7)), 7)],
            Some((9, 7)),
            7,
        ),
        (
            "was not done",
            vec![failed(one()), get((5, 6), ONE, 5)],
            ONE,
            5,
        ),
        ("before #2 was asked", early, TWO, 6),
        (
            "#2 was at index 6 before",
            vec![one(), two(), get((5, 6), Some((2, 7)), 7)],
            TWO,
            7,
        ),
        (
            "index 5 is #1",
            vec![one(), put((3, 4), 2, 5)],
            Some((2, 5)),
            6,
        ),
    ]);
}

#[test]
fn reads_that_cannot_be_are_found() {
    let backwards = vec![one(), two(), stale((5, 6), TWO, 6), stale((7, 8), ONE, 5)];
    rejects(vec![
        (
            "was known before it began",
            vec![one(), two(), get((5, 6), ONE, 5)],
            TWO,
            6,
        ),
        (
            "#2 was written at 6",
            vec![one(), two(), get((5, 6), ONE, 6)],
            TWO,
            6,
        ),
        (
            "nobody deleted it",
            vec![one(), get((3, 4), None, 6)],
            ONE,
            6,
        ),
        (
            "newer than that state",
            vec![one(), get((1, 4), ONE, 4)],
            ONE,
            6,
        ),
        ("had shown index 6", backwards, TWO, 6),
        ("the last scan", vec![one(), two()], ONE, 6),
        ("the last scan", vec![one(), two()], ONE, 5),
        ("the last scan", vec![one()], None, 6),
    ]);
}

#[test]
fn writes_that_cannot_be_are_found() {
    let over = vec![one(), two(), cas((5, 6), 5, 3, Some(7))];
    rejects(vec![
        (
            "index 7 was known",
            vec![get((0, 1), None, 7), put((2, 3), 1, 6)],
            Some((1, 6)),
            7,
        ),
        ("over #2 written at 6", over, Some((3, 7)), 7),
        (
            "over #1 written at 5",
            vec![one(), cas((5, 6), 0, 3, Some(7))],
            Some((3, 7)),
            7,
        ),
        (
            "there all the while",
            vec![one(), cas((3, 4), 5, 3, None)],
            ONE,
            7,
        ),
        ("but nothing was there", vec![del((3, 4), Some(6))], None, 7),
        (
            "there all the while",
            vec![one(), del((3, 4), None)],
            ONE,
            7,
        ),
    ]);
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
