//! Histories the search has to accept, reject, or leave undecided.

use super::*;
use crate::checkers::testing::{LIES, cas, del, failed, get, history, open, put, simulate, stale};

const PATIENCE: Duration = Duration::from_secs(20);

fn judged(operations: Vec<Operation>) -> Verdict {
    check(&history(operations), PATIENCE)
}

#[test]
fn right_histories_pass() {
    let right = [
        vec![],
        vec![
            get((1, 2), None, 0),
            put((3, 4), 1, 5),
            get((5, 6), Some((1, 5)), 5),
        ],
        // Overlapping: either order.
        vec![
            put((1, 9), 1, 6),
            put((2, 8), 2, 5),
            get((10, 11), Some((1, 6)), 6),
        ],
        // Lost, and applied long after.
        vec![
            put((1, 2), 1, 5),
            open(put((3, 4), 2, 0)),
            get((5, 6), Some((1, 5)), 5),
            get((7, 8), Some((2, 9)), 9),
            del((9, 10), Some(10)),
            get((11, 12), None, 10),
        ],
        // Lost, and never seen, but it explains the second deletion.
        vec![
            open(put((1, 2), 1, 0)),
            put((3, 4), 2, 5),
            del((5, 6), Some(6)),
            get((7, 8), None, 6),
            del((9, 10), Some(8)),
        ],
        vec![
            put((1, 2), 1, 5),
            cas((3, 4), 5, 2, Some(6)),
            cas((5, 6), 5, 3, None),
            failed(put((7, 8), 4, 0)),
            stale((9, 10), Some((1, 5)), 5),
            get((11, 12), Some((2, 6)), 6),
        ],
    ];
    for operations in right {
        assert_eq!(
            judged(operations.clone()),
            Verdict::Linearizable,
            "{operations:#?}"
        );
    }
}

#[test]
fn wrong_histories_do_not() {
    let wrong = [
        (
            "an old read",
            vec![
                put((1, 2), 1, 5),
                put((3, 4), 2, 6),
                get((5, 6), Some((1, 5)), 5),
            ],
        ),
        (
            "back again",
            vec![
                put((1, 2), 1, 5),
                put((3, 9), 2, 6),
                get((4, 5), Some((2, 6)), 6),
                get((6, 7), Some((1, 5)), 5),
            ],
        ),
        ("a phantom", vec![get((1, 2), Some((9, 5)), 5)]),
        (
            "one that was not done",
            vec![failed(put((1, 2), 1, 0)), get((3, 4), Some((1, 5)), 5)],
        ),
        (
            "before it began",
            vec![get((1, 2), Some((1, 5)), 5), open(put((3, 4), 1, 0))],
        ),
        (
            "two replace one",
            vec![
                put((1, 2), 1, 5),
                cas((3, 6), 5, 2, Some(6)),
                cas((4, 7), 5, 3, Some(7)),
            ],
        ),
        (
            "refused though it fits",
            vec![put((1, 2), 1, 5), cas((3, 4), 5, 2, None)],
        ),
        (
            "nothing to delete",
            vec![put((1, 2), 1, 5), del((3, 4), None)],
        ),
        (
            "deleted, and there",
            vec![
                put((1, 2), 1, 5),
                del((3, 4), Some(6)),
                get((5, 6), Some((1, 5)), 6),
            ],
        ),
        (
            "lost applied twice",
            vec![
                open(put((1, 2), 1, 0)),
                get((3, 4), Some((1, 5)), 5),
                put((5, 6), 2, 6),
                get((7, 8), Some((2, 6)), 6),
                get((9, 10), Some((1, 5)), 7),
            ],
        ),
    ];
    for (what, operations) in wrong {
        let verdict = judged(operations);
        assert!(
            matches!(verdict, Verdict::Violation(_)),
            "{what}: {verdict:?}"
        );
    }
}

#[test]
fn a_violation_is_told_with_what_led_to_it_only() {
    let (first, old) = (put((1, 2), 1, 5), get((5, 6), Some((1, 5)), 5));
    let after = get((7, 8), Some((2, 6)), 6);
    let verdict = judged(vec![first, put((3, 4), 2, 6), old, after]);
    let Verdict::Violation(found) = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("key svc/a"), "{}", found[0]);
    assert!(found[0].contains("read #1"), "{}", found[0]);
    assert!(!found[0].contains("read #2"), "{}", found[0]);
}

#[test]
fn what_is_not_decided_is_unknown() {
    let crowd: Vec<_> = (0..9).map(|n| put((n, 100 + n), n, n)).collect();
    let long: Vec<_> = (0..300).map(|n| put((3 * n, 3 * n + 2), n, n)).collect();
    for operations in [crowd, long] {
        assert!(matches!(judged(operations), Verdict::Unknown(_)));
    }
    let operations = vec![put((1, 2), 1, 5), get((3, 4), Some((1, 5)), 5)];
    let verdict = check(&history(operations), Duration::ZERO);
    assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
}

#[test]
fn a_real_register_always_passes() {
    for seed in 0..100 {
        let verdict = check(&simulate(seed).history, PATIENCE);
        assert_eq!(verdict, Verdict::Linearizable, "seed {seed}");
    }
}

#[test]
fn every_lie_about_an_answer_is_found() {
    for lie in &LIES[..3] {
        let (mut told, mut found) = (0, 0);
        for seed in 0..50 {
            let mut run = simulate(seed);
            if lie.tell(&mut run, seed) {
                told += 1;
                let verdict = check(&run.history, PATIENCE);
                found += u32::from(matches!(verdict, Verdict::Violation(_)));
            }
        }
        assert!(told > 40 && found == told, "{lie:?}: {found} of {told}");
    }
}
