//! The two books of a load: what the clients sent and heard ([`ClientLedger`]), and what the
//! instances began to serve ([`BackendLedger`]), which the nodes hold as the instances' logs. The
//! checker `accounting` lays one beside the other; this room judges nothing.
//!
//! Both keep four bytes a request and whole entries only for what is out of the ordinary, so that
//! millions of requests fit; both write themselves as lines of JSON.

mod backend;
mod client;
mod jsonl;
mod logs;

pub use backend::{BackendLedger, Served, Server};
pub use client::{ClientLedger, Count, Entry, Failure, Kind, Outcome, Second};
pub use logs::LogReader;

/// Ranges of requests by what is known of them: from the first to the last, both included.
type Ranges<K> = std::collections::BTreeMap<K, Vec<(u32, u32)>>;

/// Numbers in rising order to ranges, by their keys.
fn ranges<K: Ord>(numbered: impl Iterator<Item = (u32, K)>) -> Ranges<K> {
    let mut ranges = Ranges::<K>::new();
    for (number, key) in numbered {
        let of_key = ranges.entry(key).or_default();
        match of_key.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => of_key.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges_by_key() {
        let numbered = [(1, 'a'), (2, 'a'), (3, 'b'), (4, 'a'), (5, 'a'), (9, 'b')];
        let expected = [('a', vec![(1, 2), (4, 5)]), ('b', vec![(3, 3), (9, 9)])];
        assert_eq!(ranges(numbered.into_iter()), Ranges::from(expected));
    }
}
