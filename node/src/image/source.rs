//! Where a layer comes from: the trait behind which other nodes are, and the pure order in which
//! sources are tried. No bytes here.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::NodeId;
use sha2::{Digest as _, Sha256};

/// A live node, this one among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub node: NodeId,
    /// In this node's region: behind the same uplink, as far as anybody knows.
    pub near: bool,
    /// Round trip in microseconds; the largest number when it was never measured.
    pub rtt: u32,
    /// Manifest digests it says it holds.
    pub images: Vec<String>,
}

/// How long another node is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// For its first word: whoever is near has it at once.
    pub quick: Duration,
    /// For each answer after that. One is small: a link that needs longer is slower than the registry.
    pub answer: Duration,
    /// The elected one has this long without a byte from the registry, and so long in all.
    pub stall: Duration,
    pub most: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            quick: Duration::from_secs(1),
            answer: Duration::from_secs(5),
            stall: Duration::from_secs(5),
            most: Duration::from_mins(5),
        }
    }
}

/// The other nodes of the cluster.
#[async_trait]
pub trait Near: Send + Sync + 'static {
    fn me(&self) -> NodeId;
    fn waits(&self) -> Waits {
        Waits::default()
    }
    /// Everybody alive, in any order.
    fn neighbours(&self) -> Vec<Neighbour>;
    /// Asks one node something; its answers come one by one.
    async fn ask(
        &self,
        node: NodeId,
        request: ImageRequest,
        deadline: Duration,
    ) -> io::Result<Box<dyn Answers>>;
}

/// What a node answers. The reader puts a deadline around each.
#[async_trait]
pub trait Answers: Send {
    async fn next(&mut self) -> io::Result<ImageAnswer>;
}

/// One step of bringing a layer in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// These hold it, the nearest first. What one leaves off the next goes on with.
    Holders(Vec<NodeId>),
    /// Pulls it for its whole site.
    Elected(NodeId),
    Registry,
}

/// Near before far, then by round trip.
pub(super) fn nearest(neighbours: &mut [Neighbour]) {
    neighbours.sort_by_key(|n| (!n.near, n.rtt, n.node));
}

/// Nodes of a site that are asked in turn to bring an image. Where the first one does not, the next is asked by
/// all the others: twenty that turned to the registry at once would each wait for their share of one thin link.
const ELECTED: usize = 3;

/// The sources of a layer in the order they are tried: near holders, else the site's elected, each before
/// the next, down to this node itself; holders far away; the registry.
pub(super) fn order(
    me: NodeId,
    neighbours: &[Neighbour],
    holders: &BTreeSet<NodeId>,
    elected: &[NodeId],
) -> Vec<Source> {
    let mut sorted = neighbours.to_vec();
    nearest(&mut sorted);
    let held = |near: bool| -> Vec<NodeId> {
        let others = sorted.iter().filter(|n| n.node != me && n.near == near);
        others
            .map(|n| n.node)
            .filter(|n| holders.contains(n))
            .collect()
    };
    let (near, far) = (held(true), held(false));
    let mut order = Vec::new();
    if near.is_empty() {
        let before_me = elected.iter().take_while(|e| **e != me);
        order.extend(before_me.copied().map(Source::Elected));
    } else {
        order.push(Source::Holders(near));
    }
    if !far.is_empty() {
        order.push(Source::Holders(far));
    }
    order.push(Source::Registry);
    order
}

/// Who of a site asks the registry for an image, and who does if that one does not: every node of it finds
/// the same ones, and one more or less moves only what was that one's.
pub(super) fn elect(neighbours: &[Neighbour], image: &str) -> Vec<NodeId> {
    let score = |node: NodeId| -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(node.0.to_be_bytes());
        hash.update(image);
        hash.finalize().into()
    };
    let near = neighbours.iter().filter(|n| n.near);
    let mut near: Vec<NodeId> = near.map(|n| n.node).collect();
    near.sort_by_cached_key(|node| std::cmp::Reverse(score(*node)));
    near.truncate(ELECTED);
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(node: u64, near: bool, rtt: u32) -> Neighbour {
        Neighbour {
            node: NodeId(node),
            near,
            rtt,
            images: Vec::new(),
        }
    }

    #[test]
    fn the_near_come_first_and_the_registry_last() {
        let all = [
            neighbour(1, true, 0),
            neighbour(2, true, 900),
            neighbour(3, true, 300),
            neighbour(4, false, 100),
        ];
        let holders = |nodes: &[u64]| nodes.iter().map(|n| NodeId(*n)).collect::<BTreeSet<_>>();
        let held = |nodes: &[u64]| Source::Holders(nodes.iter().map(|n| NodeId(*n)).collect());
        let elected = [NodeId(3), NodeId(2), NodeId(1)];
        let asked = |nodes: &[u64]| {
            nodes
                .iter()
                .map(|n| Source::Elected(NodeId(*n)))
                .collect::<Vec<_>>()
        };
        let cases = [
            (
                holders(&[2, 3, 4]),
                vec![held(&[3, 2]), held(&[4]), Source::Registry],
            ),
            (
                holders(&[4]),
                [asked(&[3, 2]), vec![held(&[4]), Source::Registry]].concat(),
            ),
            (
                holders(&[]),
                [asked(&[3, 2]), vec![Source::Registry]].concat(),
            ),
        ];
        for (holders, expected) in cases {
            assert_eq!(order(NodeId(1), &all, &holders, &elected), expected);
        }
        let none = holders(&[]);
        let second = order(NodeId(2), &all, &none, &elected);
        assert_eq!(second, [asked(&[3]), vec![Source::Registry]].concat());
        let alone = order(NodeId(3), &all, &holders(&[3]), &elected);
        assert_eq!(alone, [Source::Registry], "nobody asks itself");
    }

    #[test]
    fn a_site_agrees_on_one_and_a_node_that_goes_moves_only_its_own() {
        let mut all: Vec<_> = (1..=20).map(|n| neighbour(n, true, 1)).collect();
        all.push(neighbour(99, false, 1));
        let images: Vec<String> = (0..200).map(|i| format!("sha256:{i}")).collect();
        let before: Vec<_> = images.iter().map(|i| elect(&all, i)).collect();
        let first: BTreeSet<_> = before.iter().map(|elected| elected[0]).collect();
        assert!(first.len() > 10);
        assert!(!before.concat().contains(&NodeId(99)));
        let gone = before[0][0];
        all.retain(|n| n.node != gone);
        for (image, was) in images.iter().zip(before) {
            let now = elect(&all, image);
            let left: Vec<_> = was.into_iter().filter(|node| *node != gone).collect();
            assert!(now.starts_with(&left), "the next takes its place");
        }
        assert!(elect(&[], "x").is_empty());
    }
}
