//! Synthetic networks whose round trips are known, and nodes that learn their places in them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What the nodes' places are learnt from.
struct Ground {
    nodes: Vec<Vivaldi>,
    /// True round trips in microseconds.
    rtt: Vec<Vec<u32>>,
    dice: u64,
}

impl Ground {
    /// So many nodes in each region; round trips between regions, and each node's own link on top.
    fn new(regions: &[Vec<u32>], each: usize, seed: u64) -> Self {
        let mut dice = seed | 1;
        let count = regions.len() * each;
        let links: Vec<u32> = (0..count)
            .map(|_| 100 + u32::try_from(roll(&mut dice) % 900).unwrap())
            .collect();
        let rtt = (0..count).map(|a| {
            let to = |b: usize| {
                let apart = regions[a / each][b / each] + links[a] + links[b];
                if a == b { 0 } else { apart }
            };
            (0..count).map(to).collect()
        });
        Self {
            nodes: (0..count)
                .map(|n| Vivaldi::new(NodeId(u64::try_from(n).unwrap() + seed)))
                .collect(),
            rtt: rtt.collect(),
            dice,
        }
    }

    /// Every node hears of `peers` others, each round trip up to a tenth off.
    fn round(&mut self, peers: usize) {
        for node in 0..self.nodes.len() {
            for _ in 0..peers {
                self.meet(node);
            }
        }
    }

    fn meet(&mut self, node: usize) {
        let count = u64::try_from(self.nodes.len()).unwrap();
        let peer = usize::try_from(roll(&mut self.dice) % count).unwrap();
        if peer != node {
            let noise = u32::try_from(roll(&mut self.dice) % 100).unwrap();
            let rtt = self.rtt[node][peer] * (1_000 + noise) / 1_000;
            let said = self.nodes[peer].tell();
            self.nodes[node].on_round_trip(rtt, &said);
        }
    }

    /// The relative errors of estimates of pairs, in permille, in order.
    fn errors(&self, of: impl Fn(usize, usize) -> bool) -> Vec<u64> {
        let mut errors = Vec::new();
        for (a, here) in self.nodes.iter().enumerate() {
            for (b, there) in self.nodes.iter().enumerate().filter(|(b, _)| *b != a) {
                if of(a, b) {
                    let (here, there) = (here.coordinate(), there.coordinate());
                    let said = here.round_trip_to(&there).unwrap_or(u32::MAX / 2);
                    let truth = self.rtt[a][b];
                    errors.push(u64::from(said.abs_diff(truth)) * 1_000 / u64::from(truth));
                }
            }
        }
        errors.sort_unstable();
        errors
    }
}

fn roll(dice: &mut u64) -> u64 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice >> 11
}

fn median(errors: &[u64]) -> u64 {
    errors[errors.len() / 2]
}

fn three_regions() -> Vec<Vec<u32>> {
    vec![
        vec![300, 40_000, 40_000],
        vec![40_000, 300, 40_000],
        vec![40_000, 40_000, 300],
    ]
}

#[test]
fn three_regions_are_told_apart_within_a_minute() {
    // A round is a second; a node speaks with three others in it.
    for seed in 1..20 {
        let mut ground = Ground::new(&three_regions(), 10, seed);
        for _ in 0..60 {
            ground.round(3);
        }
        let far = ground.errors(|a, b| a / 10 != b / 10);
        assert!(median(&far) <= 100, "seed {seed}: {}", median(&far));
        let worst = far[far.len() * 95 / 100];
        assert!(worst <= 300, "seed {seed}: {worst}");
        // Whoever is in one's own region is nearer than anybody elsewhere.
        for (a, here) in ground.nodes.iter().enumerate() {
            let apart = |b: usize| {
                let there = ground.nodes[b].coordinate();
                here.coordinate().round_trip_to(&there).unwrap()
            };
            let others = (0..30).filter(|b| *b != a);
            let (near, far): (Vec<_>, Vec<_>) = others.partition(|b| b / 10 == a / 10);
            let nearest_far = far.into_iter().map(apart).min().unwrap();
            assert!(near.into_iter().all(|b| apart(b) < nearest_far));
        }
    }
}

#[test]
fn a_new_node_knows_its_place_within_seconds() {
    for seed in 1..20 {
        let mut ground = Ground::new(&three_regions(), 10, seed);
        for _ in 0..60 {
            ground.round(3);
        }
        for new in [0, 12, 25] {
            ground.nodes[new] = Vivaldi::new(NodeId(10_000 + seed));
            assert!(!ground.nodes[new].tell().is_trusted(), "it has met nobody");
            let mut seconds = 0;
            while median(&ground.errors(|a, _| a == new)) > 200 {
                seconds += 1;
                assert!(seconds <= 5, "seed {seed}, node {new}: still lost");
                for _ in 0..4 {
                    ground.meet(new);
                }
            }
            assert!(ground.nodes[new].tell().is_trusted());
        }
    }
}

#[test]
fn a_fleet_at_rest_has_nothing_to_tell() {
    let mut ground = Ground::new(&three_regions(), 10, 7);
    for _ in 0..200 {
        ground.round(3);
    }
    let mut told = 0_u32;
    let mut before: BTreeMap<usize, _> = BTreeMap::new();
    for _ in 0..100 {
        ground.round(3);
        for (node, vivaldi) in ground.nodes.iter_mut().enumerate() {
            let now = vivaldi.tell();
            told += u32::from(before.insert(node, now).is_some_and(|b| b != now));
        }
    }
    // Of 3,000 occasions, with round trips that are up to a tenth off all the time.
    assert!(told < 300, "{told}");
}

#[test]
fn a_liar_is_not_believed_far() {
    let liars = |node: usize| node.is_multiple_of(10);
    for lie in [SPAN_MICROS, 500_000, -200_000, 20_000] {
        let mut ground = Ground::new(&three_regions(), 10, 3);
        for _ in 0..60 {
            ground.round(3);
        }
        for _ in 0..60 {
            for node in (0..30).filter(|n| !liars(*n)) {
                for _ in 0..3 {
                    let peer = usize::try_from(roll(&mut ground.dice) % 30).unwrap();
                    let said = if liars(peer) {
                        Coordinate {
                            at: [lie; DIMENSIONS],
                            height: 0,
                            error_permille: 0,
                        }
                    } else {
                        ground.nodes[peer].coordinate()
                    };
                    let rtt = ground.rtt[node][peer];
                    if peer != node {
                        ground.nodes[node].on_round_trip(rtt, &said);
                    }
                }
            }
        }
        // A tenth lies: those who do not are still told apart by where they are.
        let honest = |a: usize, b: usize| !liars(a) && !liars(b) && a / 10 != b / 10;
        let errors = ground.errors(honest);
        let worst = errors[errors.len() - 1];
        assert!(median(&errors) <= 150, "{lie}: {}", median(&errors));
        assert!(worst <= 500, "{lie}: {worst}");
    }
}

proptest! {
    #[test]
    fn whatever_peers_say_a_place_is_sane_and_the_same_for_all(
        said in prop::collection::vec(
            (any::<u32>(), prop::array::uniform4(any::<i32>()), any::<u32>(), any::<u16>()),
            0..200,
        ),
        me in any::<u64>(),
    ) {
        let (mut one, mut two) = (Vivaldi::new(NodeId(me)), Vivaldi::new(NodeId(me)));
        let told = [&mut one, &mut two].map(|vivaldi| {
            let mut told = Vec::new();
            for (rtt, at, height, error_permille) in &said {
                let before = vivaldi.coordinate();
                let peer = Coordinate { at: *at, height: *height, error_permille: *error_permille };
                vivaldi.on_round_trip(*rtt, &peer);
                let now = vivaldi.coordinate();
                assert!(now.is_sane());
                assert!(now.error_permille <= 1_500 && now.error_permille >= 20);
                let step = u32::try_from(MOST_STEP / NANOS).unwrap() + 10_000;
                assert!(before.at.iter().zip(now.at).all(|(a, b)| a.abs_diff(b) <= step));
                told.push(vivaldi.tell());
            }
            told
        });
        prop_assert_eq!(&told[0], &told[1]);
        prop_assert_eq!(one, two);
    }
}
