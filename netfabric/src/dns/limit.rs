//! Response rate limiting: how often one network gets the same answer by UDP, where a source is
//! only claimed. Keeps a flood in somebody's name from becoming a flood at them, and one client
//! from keeping others out. Pure: the time and the bytes are given.
//!
//! As BIND's and NSD's: networks are limited and not addresses, equal answers and not all of them
//! (a resolver caches what it was told, so it seldom asks twice), and every second reply over the
//! limit is an empty one that says "ask over TCP", so that a real client behind a claimed source
//! still gets its answer.
//!
//! Counts are two rows of slots by a keyed hash, and a reply goes out when either row lets it:
//! bounded memory, no list of clients, and who shares both slots with a flood is sent to TCP.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::pace::{Pace, nanos};

/// Equal answers a second for one network. A cached answer is asked for once per TTL and resolver.
const EQUAL_PER_SECOND: u32 = 20;
/// Queries of one network a second that are decoded, whatever they ask.
const QUERIES_PER_SECOND: u32 = 1000;
/// Slots of a row; two rows of eight bytes each.
const SLOTS: usize = 4096;
/// Networks as they are commonly given to one customer.
const V4_PREFIX_BYTES: usize = 3;
const V6_PREFIX_BYTES: usize = 7;
const HEADER_BYTES: usize = 12;
const NO_ERROR: u8 = 0;

/// What a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Answer,
    /// That there is an answer over TCP.
    Refer,
    Nothing,
}

/// One listener's counts.
pub(super) struct Limit {
    queries: Rate,
    equal: Rate,
    over: u64,
}

impl Limit {
    pub(super) fn new() -> Self {
        Self {
            queries: Rate::new(QUERIES_PER_SECOND),
            equal: Rate::new(EQUAL_PER_SECOND),
            over: 0,
        }
    }

    /// Before a query is decoded. `now` counts from any fixed moment.
    pub(super) fn query(&mut self, from: IpAddr, now: Duration) -> Verdict {
        let within = self.queries.take(&network(from), now);
        self.verdict(within)
    }

    /// Before the reply to one goes out.
    pub(super) fn reply(&mut self, from: IpAddr, reply: &[u8], now: Duration) -> Verdict {
        let within = self.equal.take(&(network(from), answer(reply)), now);
        self.verdict(within)
    }

    fn verdict(&mut self, within: bool) -> Verdict {
        if within {
            return Verdict::Answer;
        }
        self.over = self.over.wrapping_add(1);
        if self.over.is_multiple_of(2) {
            Verdict::Refer
        } else {
            Verdict::Nothing
        }
    }
}

/// The network an address is counted with, padded.
fn network(address: IpAddr) -> [u8; V6_PREFIX_BYTES] {
    let mut network = [0; V6_PREFIX_BYTES];
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            network[..V4_PREFIX_BYTES].copy_from_slice(&v4.octets()[..V4_PREFIX_BYTES]);
        }
        IpAddr::V6(v6) => network.copy_from_slice(&v6.octets()[..V6_PREFIX_BYTES]),
    }
    network
}

/// What makes two replies equal: the code of a refusal, since names that do not exist are without
/// number, else the question in lower case.
fn answer(reply: &[u8]) -> (u8, Vec<u8>) {
    let code = reply.get(3).map_or(NO_ERROR, |flags| flags & 0x0f);
    if code != NO_ERROR {
        return (code, Vec::new());
    }
    let rest = reply.get(HEADER_BYTES..).unwrap_or_default();
    let name = rest.iter().position(|byte| *byte == 0).unwrap_or_default();
    let question = rest.get(..name + 5).unwrap_or(rest);
    (code, question.to_ascii_lowercase())
}

/// One number a slot. A network may save up a second of its rate.
struct Rate {
    pace: Pace,
    hashers: [RandomState; 2],
    rows: [Vec<u64>; 2],
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self {
            pace: Pace::new(Duration::from_secs(1) / per_second, per_second),
            hashers: [RandomState::new(), RandomState::new()],
            rows: [vec![0; SLOTS], vec![0; SLOTS]],
        }
    }

    fn take(&mut self, key: &impl std::hash::Hash, now: Duration) -> bool {
        let mut granted = false;
        for (row, hasher) in self.rows.iter_mut().zip(&self.hashers) {
            let slot = usize::try_from(hasher.hash_one(key) % SLOTS as u64).unwrap_or(0);
            granted |= self.pace.take(&mut row[slot], nanos(now)).is_ok();
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply's bytes with this code to a question of type A.
    fn reply(name: &str, code: u8) -> Vec<u8> {
        let mut bytes = vec![0, 7, 0x80, code, 0, 1, 0, 1, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Answered, referred and dropped of `asked` replies within one moment.
    fn spread(
        limit: &mut Limit,
        asked: u32,
        mut reply: impl FnMut(u32) -> (IpAddr, Vec<u8>),
        now: Duration,
    ) -> [u32; 3] {
        let mut counts = [0; 3];
        for n in 0..asked {
            let (from, bytes) = reply(n);
            counts[match limit.reply(from, &bytes, now) {
                Verdict::Answer => 0,
                Verdict::Refer => 1,
                Verdict::Nothing => 2,
            }] += 1;
        }
        counts
    }

    #[test]
    fn equal_answers_to_one_network_are_few_and_the_rest_is_sent_to_tcp() {
        let mut limit = Limit::new();
        let start = Duration::from_secs(7);
        let same = |n: u32| (ip(&format!("192.0.2.{}", n % 256)), reply("Web.edge", 0));
        assert_eq!(spread(&mut limit, 220, same, start), [20, 100, 100]);
        let later = start + Duration::from_millis(500);
        assert_eq!(spread(&mut limit, 30, same, later), [10, 10, 10]);
        let rested = start + Duration::from_mins(1);
        assert_eq!(spread(&mut limit, 20, same, rested), [20, 0, 0]);
    }

    #[test]
    fn other_names_other_types_and_other_networks_are_not_touched() {
        let mut limit = Limit::new();
        let now = Duration::from_secs(1);
        let flood = |_| (ip("192.0.2.9"), reply("web.edge", 0));
        spread(&mut limit, 1000, flood, now);
        let others = |n: u32| (ip("192.0.2.9"), reply(&format!("s{n}.edge"), 0));
        // Two keys in 4096 slots twice over: a share is possible, a second one is not to be seen.
        assert!(spread(&mut limit, 100, others, now)[0] >= 99);
        let neighbour = |_| (ip("192.0.3.9"), reply("web.edge", 0));
        assert_eq!(spread(&mut limit, 20, neighbour, now), [20, 0, 0]);
        let six = |n: u32| (ip(&format!("2001:db8:0:{n:x}::1")), reply("web.edge", 0));
        assert_eq!(spread(&mut limit, 30, six, now), [20, 5, 5]);
    }

    #[test]
    fn names_that_do_not_exist_count_as_one() {
        let mut limit = Limit::new();
        let random = |n: u32| (ip("192.0.2.9"), reply(&format!("x{n}.edge"), 3));
        assert_eq!(
            spread(&mut limit, 60, random, Duration::from_secs(1)),
            [20, 20, 20]
        );
    }

    #[test]
    fn a_network_that_asks_without_end_is_not_decoded() {
        let mut limit = Limit::new();
        let now = Duration::from_secs(1);
        let mut ask = |from| limit.query(ip(from), now);
        let said: Vec<_> = (0..5000).map(|_| ask("192.0.2.9")).collect();
        let count = |verdict| said.iter().filter(|v| **v == verdict).count();
        assert_eq!(count(Verdict::Answer), 1000);
        assert_eq!(count(Verdict::Refer), 2000);
        assert_eq!(ask("198.51.100.1"), Verdict::Answer);
    }

    #[test]
    fn a_reply_of_any_bytes_has_a_key() {
        for bytes in [&[][..], &[0; 3], &[0; 12], &[0; 13], &[1; 40]] {
            answer(bytes);
        }
    }
}
