//! Looks through a message before chitchat does. Chitchat trusts its peers: some messages would
//! make it panic, allocate without measure, or ignore a node for ever. What it is about to be
//! given is walked here by its byte format (chitchat 0.11.2), without allocating.

use scheduler::model::NodeId;

/// A cell is a few hundred nodes; the dead of the last quarter of an hour count too.
const NODES_MAX: u16 = 1200;
/// `n` and the digits of a u64.
const NODE_ID_MAX: usize = 21;
/// Compressed blocks of a delta; each unpacks to at most 64 KiB.
const BLOCKS_MAX: usize = 64;
/// No counter gets here at a million steps a second for years; one that did was forged to make a
/// node's real updates look old.
const COUNTER_MAX: u64 = 1 << 48;
/// Magic number and protocol version, which chitchat checks itself.
const HEAD: usize = 3;

/// Why a message is not given to chitchat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it is cut short")]
    Short,
    #[error("it has bytes left over")]
    Trailing,
    #[error("it is of an unknown type")]
    Type,
    #[error("it is of another cluster")]
    Cluster,
    #[error("it speaks of too many nodes")]
    Nodes,
    #[error("it names something that is no node")]
    NodeName,
    #[error("a counter in it is out of all proportion")]
    Counter,
    #[error("its delta unpacks to too much")]
    Blocks,
}

pub(super) fn check(message: &[u8], cluster_id: &str) -> Result<(), Unfit> {
    let mut rest = Walk(message);
    rest.take(HEAD)?;
    match rest.byte()? {
        0 => {
            digest(&mut rest)?;
            if rest.text(usize::MAX)? != cluster_id.as_bytes() {
                return Err(Unfit::Cluster);
            }
        }
        1 => {
            digest(&mut rest)?;
            delta(&mut rest)?;
        }
        2 => delta(&mut rest)?,
        3 => {}
        _ => return Err(Unfit::Type),
    }
    if rest.0.is_empty() {
        Ok(())
    } else {
        Err(Unfit::Trailing)
    }
}

/// Who the sender knows of, and how much of each.
fn digest(rest: &mut Walk<'_>) -> Result<(), Unfit> {
    let nodes = rest.short()?;
    if nodes > NODES_MAX {
        return Err(Unfit::Nodes);
    }
    for _ in 0..nodes {
        if rest.text(NODE_ID_MAX).ok().and_then(parse_node).is_none() {
            return Err(Unfit::NodeName);
        }
        let _generation = rest.long()?;
        match rest.byte()? {
            4 => rest.take(4)?,
            6 => rest.take(16)?,
            _ => return Err(Unfit::NodeName),
        };
        let _port = rest.short()?;
        let (heartbeat, last_gc_version, max_version) = (rest.long()?, rest.long()?, rest.long()?);
        // Nothing is ever deleted here, so no tombstone was ever collected.
        if heartbeat > COUNTER_MAX || max_version > COUNTER_MAX || last_gc_version != 0 {
            return Err(Unfit::Counter);
        }
    }
    Ok(())
}

fn delta(rest: &mut Walk<'_>) -> Result<(), Unfit> {
    for _ in 0..=BLOCKS_MAX {
        match rest.byte()? {
            0 => return Ok(()),
            1 | 2 => rest.text(usize::MAX)?,
            _ => return Err(Unfit::Type),
        };
    }
    Err(Unfit::Blocks)
}

/// `n7` and nothing else.
pub(super) fn parse_node(text: &[u8]) -> Option<NodeId> {
    let digits = std::str::from_utf8(text).ok()?.strip_prefix('n')?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = digits == "0" || !digits.starts_with('0');
    (plain && canonical)
        .then(|| digits.parse().ok())
        .flatten()
        .map(NodeId)
}

/// What is left of a message; integers are little-endian.
struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Unfit> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Unfit::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Unfit> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn short(&mut self) -> Result<u16, Unfit> {
        self.take(2)
            .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn long(&mut self) -> Result<u64, Unfit> {
        let bytes = self.take(8)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Two bytes of length, then that many bytes.
    fn text(&mut self, limit: usize) -> Result<&'a [u8], Unfit> {
        let len = usize::from(self.short()?);
        if len > limit {
            return Err(Unfit::Short);
        }
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: &str = "0123456789abcdef";

    fn node(name: &str, max_version: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(77u64.to_le_bytes());
        bytes.extend([4, 127, 0, 0, 1]);
        bytes.extend(8422u16.to_le_bytes());
        for number in [5u64, 0, max_version] {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    fn syn(count: u16, nodes: &[Vec<u8>], cluster: &str) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0];
        bytes.extend(count.to_le_bytes());
        bytes.extend(nodes.concat());
        bytes.extend(u16::try_from(cluster.len()).unwrap().to_le_bytes());
        bytes.extend(cluster.as_bytes());
        bytes
    }

    #[test]
    fn good_messages_pass_and_others_are_told_apart() {
        let good = syn(2, &[node("n1", 9), node("n20", 1)], CLUSTER);
        assert_eq!(check(&good, CLUSTER), Ok(()));
        assert_eq!(check(&good, "another"), Err(Unfit::Cluster));
        assert_eq!(check(&good[..good.len() - 1], CLUSTER), Err(Unfit::Short));
        assert_eq!(
            check(&[&good[..], &[0]].concat(), CLUSTER),
            Err(Unfit::Trailing)
        );
        assert_eq!(
            check(&syn(1, &[node("x1", 1)], CLUSTER), CLUSTER),
            Err(Unfit::NodeName)
        );
        assert_eq!(
            check(&syn(1, &[node("n01", 1)], CLUSTER), CLUSTER),
            Err(Unfit::NodeName)
        );
        let forged = syn(1, &[node("n1", u64::MAX)], CLUSTER);
        assert_eq!(check(&forged, CLUSTER), Err(Unfit::Counter));
        assert_eq!(
            check(&syn(u16::MAX, &[], CLUSTER), CLUSTER),
            Err(Unfit::Nodes)
        );
        assert_eq!(check(&[0, 0, 0, 9], CLUSTER), Err(Unfit::Type));
        assert_eq!(check(&[], CLUSTER), Err(Unfit::Short));
        let bomb = [
            vec![0, 0, 0, 2],
            [1u8, 1, 0, 7].repeat(BLOCKS_MAX + 1),
            vec![0],
        ]
        .concat();
        assert_eq!(check(&bomb, CLUSTER), Err(Unfit::Blocks));
        let packed = [vec![0, 0, 0, 2], [1u8, 1, 0, 7].repeat(BLOCKS_MAX), vec![0]].concat();
        assert_eq!(check(&packed, CLUSTER), Ok(()));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = check(&bytes, CLUSTER);
            let _ = check(&[&[0, 0, 0], &bytes[..]].concat(), CLUSTER);
        }
    }
}
