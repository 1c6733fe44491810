//! Where this node is on the map of round trips (Vivaldi with a height, after Dabek, Cox, Kaashoek and
//! Morris 2004). Every round trip measured to a peer is a spring between the two: the node moves to
//! where its springs pull less, far while it knows little, and less the surer it is.
//!
//! It is computed in whole nanoseconds, so that every machine comes to the same place. Peers' words
//! are bounded: one that lies about where it is moves this node by no more than a step at a time, and
//! not at all once the node is sure of its place.

#[cfg(test)]
mod tests;

use crate::model::{Coordinate, DIMENSIONS, LOST_PERMILLE, NodeId, SPAN_MICROS};

/// The whole, in parts of a million.
const WHOLE: i64 = 1_000_000;
/// How much of the way a spring moves a node that knows nothing (the paper's `c_c`), and how much of its
/// error a sample makes up (`c_e`).
const MOVE: i64 = WHOLE / 4;
const LEARN: i64 = WHOLE / 4;
/// A node is never surer than this, nor is a peer believed to be.
const LEAST_ERROR: i64 = WHOLE / 50;
const MOST_ERROR: i64 = WHOLE * 3 / 2;
/// One sample moves a node by no more.
const MOST_STEP: i64 = 100_000_000;
/// A longer round trip says that something is broken, not where a node is.
const MOST_ROUND_TRIP: i64 = 4_000_000_000;
/// What is wrong with a distance is told in parts of this where that is more: nobody decides by less, and
/// neighbours would call each other lost for a millisecond.
const LEAST_OF: i64 = 10_000_000;
/// A link adds at least this.
const LEAST_HEIGHT: i64 = 50_000;
/// Nearer than this to each other there is no direction.
const NO_DISTANCE: i64 = 1_000;
/// With every sample a node is pulled to the middle by this part of its way there: or all would drift
/// together, and publish it.
const GRAVITY: i64 = 4_096;
/// A node that is at least so sure of its place takes a peer for lost, or for a liar, by whom it would be
/// wrong so many times over: it stays where it is, and is that much less sure. Where more than a few say so,
/// it ends by believing them.
const SURE: i64 = WHOLE / 4;
const ABSURD: i64 = 8 * WHOLE;
const CAUTION: i64 = 4;
/// What moved by less is not told anew: placement tells no finer distances apart.
const TOLD_STEP_MICROS: u64 = 2_000;
const NANOS: i64 = 1_000;

/// See the module. One for each daemon's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vivaldi {
    /// In nanoseconds, as all here.
    at: [i64; DIMENSIONS],
    height: i64,
    /// In parts of a million.
    error: i64,
    /// For directions where there is none: of the node, so that no two choose the same.
    dice: u64,
    told: Coordinate,
}

impl Vivaldi {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        let told = Coordinate {
            at: [0; DIMENSIONS],
            height: u32::try_from(LEAST_HEIGHT / NANOS).unwrap_or(0),
            error_permille: LOST_PERMILLE,
        };
        Self {
            at: [0; DIMENSIONS],
            height: LEAST_HEIGHT,
            error: WHOLE,
            dice: me.0.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            told,
        }
    }

    /// A round trip was measured to a peer that says that it is there. What cannot be true changes
    /// nothing.
    pub fn on_round_trip(&mut self, rtt_micros: u32, peer: &Coordinate) {
        let rtt = i64::from(rtt_micros.max(1)) * NANOS;
        if !peer.is_sane() || rtt > MOST_ROUND_TRIP {
            return;
        }
        let theirs = peer.at.map(|at| i64::from(at) * NANOS);
        let their_height = i64::from(peer.height) * NANOS;
        let their_error = i64::from(peer.error_permille) * (WHOLE / 1_000);
        let their_error = their_error.clamp(LEAST_ERROR, MOST_ERROR);

        let way: [i64; DIMENSIONS] = std::array::from_fn(|i| self.at[i] - theirs[i]);
        let straight = length(&way);
        let heights = self.height + their_height;
        let apart = (straight + heights).max(1);
        let miss = rtt - apart;

        // How much this sample weighs: the surer the peer and the less sure this node, the more.
        let weight = self.error * WHOLE / (self.error + their_error);
        let wrong = share(miss.abs(), WHOLE, rtt.max(LEAST_OF));
        let absurd = self.error <= SURE && wrong >= ABSURD;
        let learnt = LEARN / if absurd { CAUTION } else { 1 } * weight / WHOLE;
        self.error = (wrong.min(MOST_ERROR) * learnt + self.error * (WHOLE - learnt)) / WHOLE;
        self.error = self.error.clamp(LEAST_ERROR, MOST_ERROR);
        if absurd {
            return;
        }

        let force = share(miss, MOVE * weight / WHOLE, WHOLE).clamp(-MOST_STEP, MOST_STEP);
        if straight < NO_DISTANCE {
            let way = self.any_direction();
            self.move_along(&way, force, length(&way).max(1));
        } else {
            self.move_along(&way, force, apart);
            self.height += share(heights, force, apart);
        }
        let most = i64::from(SPAN_MICROS) * NANOS;
        for at in &mut self.at {
            *at = (*at - *at / GRAVITY).clamp(-most, most);
        }
        self.height = self.height.clamp(LEAST_HEIGHT, most);
    }

    fn move_along(&mut self, way: &[i64; DIMENSIONS], force: i64, of: i64) {
        for (at, way) in self.at.iter_mut().zip(way) {
            *at += share(*way, force, of);
        }
    }

    /// Two that are at one point leave it, each its own way.
    fn any_direction(&mut self) -> [i64; DIMENSIONS] {
        std::array::from_fn(|_| {
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            i64::try_from(self.dice >> 44).unwrap_or(0) - (1 << 19)
        })
    }

    /// Where it is now.
    #[must_use]
    pub fn coordinate(&self) -> Coordinate {
        let micros = |nanos: i64| i32::try_from(nanos / NANOS).unwrap_or(SPAN_MICROS);
        Coordinate {
            at: self.at.map(micros),
            height: micros(self.height).unsigned_abs(),
            error_permille: u16::try_from(self.error / (WHOLE / 1_000)).unwrap_or(LOST_PERMILLE),
        }
    }

    /// Where others should think it is: its place as it was told before, as long as that is nearly true,
    /// so that a fleet at rest has nothing to say.
    pub fn tell(&mut self) -> Coordinate {
        let now = self.coordinate();
        if is_news(&self.told, &now) {
            self.told = now;
        }
        self.told
    }
}

/// Whether somebody who reckons with `told` should know `now`.
fn is_news(told: &Coordinate, now: &Coordinate) -> bool {
    let axes = told.at.iter().zip(now.at);
    let moved: u64 = axes.map(|(a, b)| u64::from(a.abs_diff(b))).sum();
    let moved = moved + u64::from(told.height.abs_diff(now.height));
    let (least, most) = (
        told.error_permille.min(now.error_permille),
        told.error_permille.max(now.error_permille),
    );
    moved > TOLD_STEP_MICROS || told.is_trusted() != now.is_trusted() || most > 2 * least
}

fn length(way: &[i64; DIMENSIONS]) -> i64 {
    let squares = way.iter().map(|w| u128::from(w.unsigned_abs()).pow(2));
    i64::try_from(squares.sum::<u128>().isqrt()).unwrap_or(i64::MAX)
}

/// `number * part / of` without running over.
fn share(number: i64, part: i64, of: i64) -> i64 {
    let shared = i128::from(number) * i128::from(part) / i128::from(of.max(1));
    i64::try_from(shared).unwrap_or(if shared < 0 { i64::MIN } else { i64::MAX })
}
