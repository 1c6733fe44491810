//! Gossip as a model: every host's record of each second reaches every other host after a few rounds,
//! late, out of order, or not at all.
//!
//! What is assumed, and was compared with thirty real nodes on loopback (the benchmark `converge`): there the last
//! node had a new word after 0.9 to 1.7 s, here after 2.9; there the last one missed a lost node after 7.8 to
//! 8.8 s, here after up to 8.5. Each round a record is passed on to three peers, so that among N hosts it takes up to
//! about log4 N rounds of a second (the product's interval) and the distance; a lost message costs a
//! round; hosts of two groups that are cut from each other hear nothing across, within a group everything
//! arrives by way of others. A host that was silent for five rounds counts as dead, which is what φ 8
//! comes to with records a second apart.
//!
//! Nothing is sent: whoever listens looks at what the others said lately, and how late each word is with
//! it is drawn from the seed, the two, and the word. Ten thousand hosts would send a hundred million a
//! second.

use super::queue::Millis;
use super::world::World;

const ROUND: Millis = 1_000;
/// Peers that a host speaks to in a round, and itself.
const FAN: usize = 4;
/// A record that was lost so often is superseded by the next one.
const TRIES: u64 = 4;
/// Nothing that a host said is on its way for longer than it takes to say so many more.
pub(super) const SAID: usize = 12;

impl World {
    /// Takes in what has reached the host by now.
    pub(super) fn listen(&mut self, host: usize) {
        let now = self.queue.now();
        let (rounds, seed) = (rounds(self.hosts.len()), self.plan.seed);
        let (before, rest) = self.hosts.split_at_mut(host);
        let Some((own, after)) = rest.split_first_mut() else {
            return;
        };
        let others = before.iter().enumerate();
        let after = after.iter().enumerate();
        for (number, other) in others.chain(after.map(|(n, other)| (host + 1 + n, other))) {
            if !self.network.reaches(host, number) {
                continue;
            }
            let way = self.network.one_way(other.spot, own.spot);
            let known = own.newest_of(number);
            let pair = drawn([seed, spread(number), spread(host)]);
            let newer = other.said.iter().rev().take_while(|said| said.at > known);
            for said in newer {
                let late = late(stir(pair, said.at), rounds, self.network.loss_permille);
                let at = late.map(|late| said.at + way + late);
                if let Some(at) = at.filter(|at| *at <= now) {
                    own.hear(at, number, said);
                    break;
                }
            }
        }
    }
}

fn spread(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn drawn<const N: usize>(word: [u64; N]) -> u64 {
    word.into_iter().fold(0x9e37_79b9_7f4a_7c15, stir)
}

/// How late one word is with one listener, as was drawn for them; none if it never comes.
fn late(mut drawn: u64, rounds: Millis, loss_permille: u32) -> Option<Millis> {
    let mut late = drawn % (rounds * ROUND);
    if loss_permille > 0 {
        let mut tries = 0;
        loop {
            drawn = stir(drawn, tries);
            if drawn % 1_000 >= u64::from(loss_permille) {
                break;
            }
            (late, tries) = (late + ROUND, tries + 1);
            if tries == TRIES {
                return None;
            }
        }
    }
    Some(late)
}

/// The finisher of `SplitMix64`.
fn stir(seed: u64, more: u64) -> u64 {
    let mixed = (seed ^ more).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Until a record is everywhere.
pub(super) fn rounds(hosts: usize) -> Millis {
    let mut rounds = 1;
    let mut reached = FAN;
    while reached < hosts {
        reached *= FAN;
        rounds += 1;
    }
    rounds
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_record_is_everywhere_after_a_few_rounds() {
        let rounds = [1, 4, 5, 16, 17, 64, 200, 256].map(super::rounds);
        assert_eq!(rounds, [1, 1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn words_are_late_as_drawn_and_lost_as_often_as_said() {
        let words = |loss| {
            (0..4_000_u64).map(move |n| super::late(super::drawn([7, n % 9, 3, n]), 3, loss))
        };
        let sum: u64 = words(0).flatten().sum();
        assert_eq!(words(0).flatten().count(), 4_000);
        assert!((1_400..1_600).contains(&(sum / 4_000)), "{sum}");
        let lossy: u64 = words(500).flatten().sum();
        let heard = words(500).flatten().count();
        assert!(
            (3_650..3_850).contains(&heard),
            "a sixteenth is lost: {heard}"
        );
        assert!(lossy > sum, "and the others are later");
        assert!(words(0).eq(words(0)), "the same every time");
    }
}
