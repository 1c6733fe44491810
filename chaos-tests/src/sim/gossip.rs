//! Gossip as a model: every host's record of each second reaches every other host after a few rounds,
//! late, out of order, or not at all.
//!
//! What is assumed, and not measured against chitchat here: each round a record is passed on to three
//! peers, so that among N hosts it takes up to about log4 N rounds of a second (the product's interval)
//! and the distance; a lost message costs a round; hosts of two groups that are cut from each other
//! hear nothing across, within a group everything arrives by way of others. A host that was silent for
//! five rounds counts as dead, which is what φ 8 comes to with records a second apart.

use std::sync::Arc;

use rand::RngExt as _;

use super::queue::Millis;
use super::world::{Event, World};

const ROUND: Millis = 1_000;
/// Peers that a host speaks to in a round, and itself.
const FAN: usize = 4;
/// A record that was lost so often is superseded by the next one.
const TRIES: u32 = 4;

impl World {
    /// Sends a host's record to all others.
    pub(super) fn gossip(&mut self, host: usize) {
        let now = self.queue.now();
        let record = Arc::new(self.hosts[host].record(now));
        let rounds = rounds(self.hosts.len());
        for other in 0..self.hosts.len() {
            let hears = self.hosts[other].up && self.network.reaches(host, other);
            if other == host || !hears {
                continue;
            }
            let mut late = self.rng.random_range(0..rounds * ROUND);
            let mut tries = 0;
            while self.rng.random_range(0..1_000) < self.network.loss_permille {
                late += ROUND;
                tries += 1;
                if tries == TRIES {
                    break;
                }
            }
            if tries < TRIES {
                let way = self
                    .network
                    .one_way(self.hosts[host].spot, self.hosts[other].spot);
                self.queue
                    .after(way + late, Event::Heard(other, Arc::clone(&record)));
            }
        }
    }
}

/// Until a record is everywhere.
fn rounds(hosts: usize) -> Millis {
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
}
