//! How a word reaches the last of many nodes: rounds of gossip one by one, as chitchat has them, and feeds of
//! the registry from one node to the next. It is the model behind what `gossip` takes for granted of a
//! whole cell, and what the benchmark `converge` sets beside thirty real nodes.
//!
//! In each round a node speaks to three others of its cell, and afterwards both know what either knew. The
//! registry is fed by voters to as many as they take, and by these to the rest. A node that fell silent is
//! doubted by the first whose word it leaves unanswered, who tells others, who tell others; each of them asks
//! it, and then it is lost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::queue::Millis;

const ROUND: Millis = 1_000;
const PEERS: usize = 3;
/// An exchange, there and back.
const EXCHANGE: std::ops::Range<Millis> = 1..60;
/// Each connection is kept alive so often, and one that rests is looked at so often.
const KEEP_ALIVE: Millis = 5_000;
const LOOK: Millis = 2_000;
/// A word is unanswered after so long, and who tells how many of it.
const USUAL_SILENCE: Millis = 400;
const PASSED_ON_TO: usize = 12;
/// How long a node that is doubted is asked.
const PATIENCE: Millis = 1_200;
/// To agree on a change, and to pass it on by one step.
const COMMIT: std::ops::Range<Millis> = 5..60;
const STEP: std::ops::Range<Millis> = 1..60;
const VOTERS: usize = 3;
/// Whom one node feeds.
const FEEDS: usize = 256;
/// Routes are made anew.
const REROUTE: std::ops::Range<Millis> = 1..20;

/// What is to become known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A change of the registry.
    Change,
    /// A node says something new of itself.
    Record,
    /// A node's power goes.
    Loss,
}

/// How long it takes the last of the nodes that hear of it to have routes that show it.
#[must_use]
pub fn last(event: Event, nodes: usize, cell: usize, seed: u64) -> Millis {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let cell = cell.min(nodes).max(1);
    let known = match event {
        Event::Change => fed(nodes, &mut rng),
        Event::Record => told(cell, &mut rng).into_iter().max().unwrap_or(0),
        Event::Loss => doubted(cell - 1, &mut rng) + PATIENCE,
    };
    known + rng.random_range(REROUTE)
}

fn fed(nodes: usize, rng: &mut StdRng) -> Millis {
    let begun = rng.random_range(COMMIT);
    let mut above = vec![begun; VOTERS.min(nodes)];
    let (mut left, mut last) = (nodes - above.len(), begun);
    while left > 0 {
        let here = left.min(above.len() * FEEDS);
        let step = |number: usize| above[number % above.len()] + rng.random_range(STEP);
        let below: Vec<Millis> = (0..here).map(step).collect();
        last = last.max(below.iter().copied().max().unwrap_or(0));
        left -= here;
        above = below;
    }
    last
}

/// When the last of so many begins to ask a node that left them at 0.
fn doubted(nodes: usize, rng: &mut StdRng) -> Millis {
    let mut asks: Vec<Millis> = (0..nodes).map(|_| noticed(nodes, rng)).collect();
    let mut doubts: BinaryHeap<Reverse<(Millis, usize)>> = asks
        .iter()
        .enumerate()
        .map(|(node, at)| Reverse((*at, node)))
        .collect();
    while let Some(Reverse((now, node))) = doubts.pop() {
        if asks[node] < now {
            continue;
        }
        for _ in 0..PASSED_ON_TO {
            let (peer, at) = (rng.random_range(0..nodes), now + rng.random_range(EXCHANGE));
            if at < asks[peer] {
                asks[peer] = at;
                doubts.push(Reverse((at, peer)));
            }
        }
    }
    asks.into_iter().max().unwrap_or(0)
}

/// When a node notices by itself: its round led there, or its connection was to be kept alive.
fn noticed(nodes: usize, rng: &mut StdRng) -> Millis {
    let mut spoke = rng.random_range(0..ROUND);
    while rng.random_range(0..nodes) >= PEERS {
        spoke += ROUND;
    }
    let looked = rng.random_range(0..KEEP_ALIVE) + rng.random_range(0..LOOK);
    spoke.min(looked) + USUAL_SILENCE + rng.random_range(EXCHANGE)
}

/// When each node of a cell hears what the first one begins to say at 0.
fn told(cell: usize, rng: &mut StdRng) -> Vec<Millis> {
    let mut known = vec![Millis::MAX; cell];
    known[0] = 0;
    let mut missing = cell - 1;
    let mut rounds: BinaryHeap<Reverse<(Millis, usize)>> = (0..cell)
        .map(|node| Reverse((rng.random_range(0..ROUND), node)))
        .collect();
    while missing > 0 {
        let Some(Reverse((now, node))) = rounds.pop() else {
            break;
        };
        for _ in 0..PEERS.min(cell - 1) {
            let peer = (node + rng.random_range(1..cell)) % cell;
            let at = now + rng.random_range(EXCHANGE);
            let newly = match (known[node] <= now, known[peer] <= now) {
                (true, false) => peer,
                (false, true) => node,
                _ => continue,
            };
            missing -= usize::from(known[newly] == Millis::MAX);
            known[newly] = known[newly].min(at);
        }
        rounds.push(Reverse((now + ROUND, node)));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percentiles(event: Event, nodes: usize, cell: usize) -> (Millis, Millis) {
        let mut took: Vec<Millis> = (0..200).map(|s| last(event, nodes, cell, s)).collect();
        took.sort_unstable();
        (took[100], took[198])
    }

    #[test]
    fn what_a_cell_takes_grows_with_its_logarithm() {
        assert_eq!(last(Event::Record, 1, 1, 7), last(Event::Record, 1, 1, 7));
        let (thirty, _) = percentiles(Event::Record, 30, 30);
        let (cell, worst) = percentiles(Event::Record, 10_000, 200);
        assert!((700..1_800).contains(&thirty), "{thirty}");
        assert!(thirty < cell && worst < 3_500, "{cell} {worst}");
        // What `gossip` takes for the time until a record is everywhere is no less than that.
        assert!(worst < super::super::gossip::rounds(200) * ROUND);
    }

    #[test]
    fn changes_go_by_feeds_and_losses_by_doubts() {
        let (change, worst) = percentiles(Event::Change, 10_000, 200);
        assert!(change < worst && worst < 250, "{change} {worst}");
        let (loss, worst) = percentiles(Event::Loss, 10_000, 200);
        assert!(loss > PATIENCE && worst < 3_000, "{loss} {worst}");
    }
}
