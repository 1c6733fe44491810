//! What strangers' bytes meet first in this crate, one function for each kind: heads and bodies of HTTP,
//! introductions, TLS greetings, frames, DNS queries, what nodes say to each other. Each must come to an
//! end without a panic, and what it takes must be what it says it is; where it is not, the function
//! panics. The rooms own these functions; this is their list. The test here tries a few hundred inputs;
//! `deploy/fuzz` searches for as long as it is told.

use crate::{dns, ingress, wire};

/// One way in.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that get far, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds }
}

pub const TARGETS: [Target; 9] = [
    target("request", ingress::fuzz::request, ingress::fuzz::requests),
    target(
        "response",
        ingress::fuzz::response,
        ingress::fuzz::responses,
    ),
    target("strict", ingress::fuzz::strict, ingress::fuzz::requests),
    target("coding", ingress::fuzz::chunks, ingress::fuzz::codings),
    target(
        "introduced",
        ingress::fuzz::introduced,
        ingress::fuzz::introductions,
    ),
    target("hello", ingress::fuzz::hello, ingress::fuzz::greetings),
    target("frames", ingress::fuzz::frames, ingress::fuzz::frame_seeds),
    target("dns", dns::fuzz::query, dns::fuzz::queries),
    target("words", wire::fuzz::words, wire::fuzz::spoken),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    const TRIES: u32 = 150;

    /// What becomes of a seed: bytes replaced, left out, said twice.
    #[derive(Debug, Clone)]
    enum Change {
        Byte(prop::sample::Index, u8),
        Cut(prop::sample::Index, prop::sample::Index),
        Again(prop::sample::Index, prop::sample::Index),
    }

    fn change() -> impl Strategy<Value = Change> {
        let index = || any::<prop::sample::Index>();
        prop_oneof![
            3 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
            1 => (index(), index()).prop_map(|(from, to)| Change::Cut(from, to)),
            1 => (index(), index()).prop_map(|(from, to)| Change::Again(from, to)),
        ]
    }

    fn changed(seed: &[u8], changes: &[Change]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for change in changes {
            if bytes.is_empty() {
                break;
            }
            let stretch = |from: &prop::sample::Index, to: &prop::sample::Index| {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                from.min(to)..from.max(to)
            };
            match change {
                Change::Byte(at, byte) => {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                Change::Cut(from, to) => drop(bytes.drain(stretch(from, to))),
                Change::Again(from, to) => bytes.extend_from_within(stretch(from, to)),
            }
        }
        bytes
    }

    #[test]
    fn every_target_stands_what_is_like_its_seeds() {
        for target in &TARGETS {
            for seed in (target.seeds)() {
                (target.run)(&seed);
                let mut runner = TestRunner::new(Config::with_cases(TRIES));
                let changes = prop::collection::vec(change(), 1..6);
                let tried = runner.run(&changes, |changes| {
                    (target.run)(&changed(&seed, &changes));
                    Ok(())
                });
                tried.unwrap_or_else(|failed| panic!("{}: {failed}", target.name));
            }
        }
    }

    #[test]
    fn every_target_stands_nothing_and_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = TARGETS.iter().map(|t| t.name).collect();
        assert_eq!(names.len(), TARGETS.len());
        for target in &TARGETS {
            (target.run)(&[]);
            assert!(!(target.seeds)().is_empty(), "{}", target.name);
        }
    }
}
