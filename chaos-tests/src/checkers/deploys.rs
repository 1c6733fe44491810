//! No acknowledged deploy, scale or delete is lost: after everything healed, each service is as the
//! last acknowledged write left it, or as one of unknown outcome made it later.

use crate::workload::history::{History, Op, Operation, Scan, Seen};

/// What was lost, in words. `last` is a consistent read of everything after the run.
pub fn check(history: &History, last: &Scan) -> Vec<String> {
    let keys = history.by_key();
    let findings = keys
        .into_iter()
        .filter_map(|(key, operations)| lost(key, &operations, last));
    findings.collect()
}

fn lost(key: &str, operations: &[&Operation], last: &Scan) -> Option<String> {
    let acked = operations.iter().filter(|o| o.wrote_at().is_some());
    let newest = acked.max_by_key(|o| o.wrote_at());
    let (rev, left) = match newest {
        Some(newest) => (newest.wrote_at()?, left_by(newest)),
        None => (0, None),
    };
    let found = last.keys.get(key).copied();
    if found == left {
        return None;
    }
    let mut open = operations.iter().filter(|o| o.is_open());
    let explained = match found {
        // One of unknown outcome came later; what it wrote over is gone rightly.
        Some(found) => found.rev > rev && open.any(|o| o.value == Some(found.v)),
        None => open.any(|o| o.op == Op::Del),
    };
    if explained {
        return None;
    }
    let shown = found.map_or("nothing".to_owned(), |found| {
        format!("#{} of index {}", found.v, found.rev)
    });
    let acked = newest.map_or("nothing acked".to_owned(), ToString::to_string);
    let at = last.at;
    Some(format!(
        "key {key}: {acked}; the final state at index {at} shows {shown}"
    ))
}

/// What an acknowledged write leaves.
fn left_by(operation: &Operation) -> Option<Seen> {
    if operation.op == Op::Del {
        return None;
    }
    let told = operation.told()?;
    let (v, rev) = told.value.zip(told.rev)?;
    Some(Seen { v, rev })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkers::testing::{Lie, del, failed, history, last, open, put, simulate};

    fn scale(operation: Operation) -> Operation {
        let op = Op::Scale;
        Operation { op, ..operation }
    }

    #[test]
    fn the_last_acked_write_or_a_lost_one_after_it_may_be_there() {
        let one = || put((1, 2), 1, 5);
        let table = [
            (vec![], None),
            (vec![one()], Some((1, 5))),
            (vec![one(), scale(put((3, 4), 2, 6))], Some((2, 6))),
            (vec![one(), open(scale(put((3, 4), 2, 0)))], Some((2, 8))),
            (vec![one(), open(put((3, 4), 2, 0))], Some((1, 5))),
            (vec![one(), open(del((3, 4), None))], None),
            (vec![one(), del((3, 4), Some(6))], None),
            (
                vec![del((3, 4), Some(6)), open(put((1, 2), 1, 0))],
                Some((1, 7)),
            ),
        ];
        for (operations, seen) in table {
            let found = check(&history(operations), &last(seen, 9));
            assert_eq!(found, [""; 0]);
        }
    }

    #[test]
    fn anything_else_is_lost() {
        let one = || put((1, 2), 1, 5);
        let two = || scale(put((3, 4), 2, 6));
        let table = [
            (vec![one()], None),
            (vec![one(), two()], Some((1, 5))),
            (vec![one(), del((3, 4), Some(6))], Some((1, 5))),
            (vec![one(), failed(del((3, 4), None))], None),
            // It came before what was acknowledged after it.
            (vec![open(put((1, 2), 1, 0)), two()], Some((1, 5))),
            (vec![one()], Some((1, 7))),
        ];
        for (operations, seen) in table {
            let found = check(&history(operations.clone()), &last(seen, 9));
            assert_eq!(found.len(), 1, "{operations:?} {seen:?}");
        }
    }

    #[test]
    fn it_reads_well() {
        let found = check(
            &history(vec![put((1, 2), 17, 90)]),
            &last(Some((12, 71)), 95),
        );
        let text = "key svc/a: put #17 by p1 at n1 acked at index 90; \
                    the final state at index 95 shows #12 of index 71";
        assert_eq!(found, [text]);
    }

    #[test]
    fn a_real_register_loses_nothing_and_every_loss_is_found() {
        for seed in 0..300 {
            let mut run = simulate(seed);
            assert_eq!(check(&run.history, &run.last), [""; 0], "seed {seed}");
            if Lie::Lost.tell(&mut run, seed) {
                assert_eq!(check(&run.history, &run.last).len(), 1, "seed {seed}");
            }
        }
    }
}
