//! Every service's address inside: from a block that no network uses (RFC 2544 keeps it for
//! benchmarks of devices), begun at the hash of its name, so that one that is deleted and made
//! anew has the same again unless another got it meanwhile.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::model::ServiceKey;

/// 198.18.0.0/15.
const BASE: u32 = 0xc612_0000;
/// How many there are, the first and the last left out.
const COUNT: u32 = (1 << 17) - 2;

/// The block as it is written.
pub const BLOCK: &str = "198.18.0.0/15";

/// An address for a new service; `None` when all are taken.
pub(super) fn give(key: &ServiceKey, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let start = hash(key) % COUNT;
    let candidates = (0..COUNT).map(|step| address((start + step) % COUNT));
    candidates.into_iter().find(|a| !taken.contains(a))
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(BASE + 1 + number)
}

/// FNV-1a of `namespace/name`.
fn hash(key: &ServiceKey) -> u32 {
    let text = key.to_string();
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[test]
    fn names_decide_until_they_meet() {
        let key = |name: &str| ServiceKey {
            namespace: Name::default_namespace(),
            name: Name::new(name).unwrap(),
        };
        let mut taken = BTreeSet::new();
        let first = give(&key("web"), &taken).unwrap();
        assert_eq!(give(&key("web"), &taken), Some(first));
        assert_ne!(give(&key("api"), &taken), Some(first));
        taken.insert(first);
        let second = give(&key("web"), &taken).unwrap();
        assert_eq!(second.to_bits(), first.to_bits() + 1);
        taken.extend((0..COUNT).map(address));
        assert_eq!(give(&key("web"), &taken), None);
        assert_eq!(address(0).to_string(), "198.18.0.1");
        assert_eq!(address(COUNT - 1).to_string(), "198.19.255.254");
    }
}
