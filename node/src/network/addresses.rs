//! Which container has which address. Pure: numbers in, numbers out.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::userns::Block;

/// An IPv4 network: `10.201.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IPv4 network like 10.201.0.0/16")]
pub struct SubnetError(String);

impl Subnet {
    /// The address number `n` in it.
    #[must_use]
    pub fn address(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | n)
    }

    /// The node's own address in it: the first.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.address(GATEWAY)
    }

    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The last number that is an address, the broadcast address excluded.
    fn last(self) -> u32 {
        let host_bits = 32 - u32::from(self.prefix);
        (u32::MAX >> (32 - host_bits)) - 1
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let bad = || SubnetError(text.chars().take(40).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let base = address.parse::<Ipv4Addr>().map_err(|_| bad())?.to_bits();
        let prefix = prefix.parse::<u8>().map_err(|_| bad())?;
        // Room for a gateway and two containers at least, and numbers that fit an interface's name.
        if !(8..=29).contains(&prefix) || base & (u32::MAX >> prefix) != 0 {
            return Err(bad());
        }
        Ok(Self { base, prefix })
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

const GATEWAY: u32 = 1;
const FIRST: u32 = 2;
/// A bridge's ports (`BR_MAX_PORTS` of the kernel, of which number 0 is none's): each number has one, until it is
/// given back.
const PORTS: usize = 1023;

/// Hands out numbers of a subnet, each to one at a time, and the longest unused first: a peer that
/// still talks to a container that is gone should not meet its successor.
#[derive(Debug)]
pub struct Addresses {
    last: u32,
    next: u32,
    used: BTreeSet<u32>,
}

impl Addresses {
    #[must_use]
    pub fn of(subnet: Subnet) -> Self {
        Self {
            // A number is a block of user ids too.
            last: subnet.last().min(Block::COUNT - 1),
            next: FIRST,
            used: BTreeSet::new(),
        }
    }

    /// A number nobody has; `None` when all are taken.
    pub fn take(&mut self) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let count = self.last - FIRST + 1;
        for step in 0..count {
            let n = FIRST + (self.next - FIRST + step) % count;
            if self.used.insert(n) {
                self.next = if n == self.last { FIRST } else { n + 1 };
                return Some(n);
            }
        }
        None
    }

    /// Whether nobody can have one until another is given back.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let used = self.used.len();
        used >= PORTS || u32::try_from(used).is_ok_and(|used| used > self.last - FIRST)
    }

    /// Marks a number that is in use already.
    pub fn mark(&mut self, n: u32) {
        self.used.insert(n);
        if n >= self.next {
            self.next = if n >= self.last { FIRST } else { n + 1 };
        }
    }

    pub fn give_back(&mut self, n: u32) {
        self.used.remove(&n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_strictly() {
        assert_eq!(
            "10.201.0.0/16"
                .parse::<Subnet>()
                .unwrap()
                .gateway()
                .to_string(),
            "10.201.0.1"
        );
        for bad in [
            "10.201.0.1/16",
            "10.201.0.0",
            "10.0.0.0/30",
            "0.0.0.0/0",
            "x/16",
            "::/64",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_one_owner_and_rests_before_the_next() {
        let subnet: Subnet = "10.0.0.0/29".parse().unwrap();
        let mut addresses = Addresses::of(subnet);
        let all: Vec<_> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
        assert!(addresses.is_full());
        assert_eq!(subnet.address(6).to_string(), "10.0.0.6");
        addresses.give_back(5);
        assert!(!addresses.is_full());
        addresses.give_back(3);
        assert_eq!(
            [addresses.take(), addresses.take(), addresses.take()],
            [Some(3), Some(5), None]
        );
        let mut large = Addresses::of("10.0.0.0/16".parse().unwrap());
        assert_eq!(std::iter::from_fn(|| large.take()).count(), PORTS);
        large.give_back(700);
        assert_eq!([large.take(), large.take()], [Some(1025), None]);
        let mut fresh = Addresses::of(subnet);
        fresh.mark(2);
        fresh.mark(4);
        assert_eq!(fresh.take(), Some(5));
    }
}
