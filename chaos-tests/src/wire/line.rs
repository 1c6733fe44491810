//! One one-way link at work: it says of every frame when it is due, or why it is dropped, and
//! counts. It holds no frames and reads no clock.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::Link;

pub(super) const ETHERNET_HEADER: usize = 14;
/// Nanoseconds that a byte takes at one bit per second.
const BYTE: u64 = 8_000_000_000;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// What a link has seen since its ports were first plugged in.
/// `frames + duplicated = delivered + dropped.sum() + queued`, always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub frames: u64,
    pub bytes: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    /// Frames that overtook another.
    pub reordered: u64,
    pub dropped: Dropped,
    /// Frames on their way now.
    pub queued: u64,
    pub queued_bytes: u64,
}

/// Dropped frames by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The link was cut.
    pub down: u64,
    pub loss: u64,
    pub mtu: u64,
    /// The queue before a link with a rate was full.
    pub rate: u64,
    /// The whole switch held too much.
    pub memory: u64,
    /// The port they were for was unplugged, or its device did not take them.
    pub gone: u64,
}

impl Dropped {
    pub fn sum(&self) -> u64 {
        self.down + self.loss + self.mtu + self.rate + self.memory + self.gone
    }
}

#[derive(Debug)]
pub(super) struct Line {
    link: Link,
    rng: StdRng,
    /// When the last frame has left at the link's rate.
    free: Duration,
    /// When the last frame that keeps the order arrives.
    last: Duration,
    pub counts: Counts,
}

impl Line {
    /// Each link draws for itself: its fate depends on its own frames alone.
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            rng: StdRng::seed_from_u64(seed),
            free: Duration::ZERO,
            last: Duration::ZERO,
            counts: Counts::default(),
        }
    }

    pub fn link(&self) -> Link {
        self.link
    }

    /// Changes the link; returns the moment by which what is on its way must now have arrived, so
    /// that a healed link is a good one at once.
    pub fn change(&mut self, now: Duration, link: Link) -> Duration {
        self.link = link;
        let latest = now + millis(link.delay + link.jitter);
        self.free = self.free.min(now);
        self.last = self.last.min(latest);
        latest
    }

    /// How many copies of this frame set out: none, one or two.
    pub fn admit(&mut self, frame: &[u8]) -> usize {
        self.counts.frames += 1;
        self.counts.bytes += frame.len() as u64;
        let dropped = &mut self.counts.dropped;
        if !self.link.up {
            dropped.down += 1;
            return 0;
        }
        let payload = frame.len().saturating_sub(ETHERNET_HEADER);
        let too_large = |mtu| payload > mtu as usize && is_ip(frame);
        if self.link.mtu.is_some_and(too_large) {
            dropped.mtu += 1;
            return 0;
        }
        if draw(&mut self.rng, self.link.loss) {
            dropped.loss += 1;
            return 0;
        }
        if draw(&mut self.rng, self.link.duplicate) {
            self.counts.duplicated += 1;
            return 2;
        }
        1
    }

    /// When a frame of this length is due; nothing, and counted, when the link's queue is full.
    pub fn due(&mut self, now: Duration, length: usize) -> Option<Duration> {
        let Some(sent) = self.sent(now, length) else {
            self.counts.dropped.rate += 1;
            return None;
        };
        if draw(&mut self.rng, self.link.reorder) {
            self.counts.reordered += u64::from(sent < self.last);
            return Some(sent);
        }
        self.last = self.last.max(sent + self.travel());
        Some(self.last)
    }

    /// When a frame has left: frames leave one after the other, each as long as the rate says.
    fn sent(&mut self, now: Duration, length: usize) -> Option<Duration> {
        let Some(rate) = self.link.rate else {
            return Some(now);
        };
        let starts = self.free.max(now);
        let waiting = starts.saturating_sub(now).as_nanos() * u128::from(rate) / u128::from(BYTE);
        if waiting + length as u128 > u128::from(self.link.queue) {
            return None;
        }
        let takes = (length as u64).saturating_mul(BYTE) / rate;
        self.free = starts + Duration::from_nanos(takes);
        Some(self.free)
    }

    fn travel(&mut self) -> Duration {
        let Link { delay, jitter, .. } = self.link;
        if jitter == 0.0 {
            return millis(delay);
        }
        millis(delay + self.rng.random_range(-jitter..=jitter))
    }

    /// Flips one bit behind the Ethernet header of some frames. Only of IP packets: they carry
    /// checksums, while a wrong address in ARP would outlive the fault.
    pub fn corrupt(&mut self, frame: &mut [u8]) {
        let hit = is_ip(frame) && draw(&mut self.rng, self.link.corrupt);
        if hit && frame.len() > ETHERNET_HEADER {
            let byte = self.rng.random_range(ETHERNET_HEADER..frame.len());
            frame[byte] ^= 1 << self.rng.random_range(0..8);
            self.counts.corrupted += 1;
        }
    }
}

/// Draws only when it matters, so that a link without faults costs nothing.
fn draw(rng: &mut StdRng, share: f64) -> bool {
    share > 0.0 && rng.random_bool(share)
}

fn millis(ms: f64) -> Duration {
    if ms <= 0.0 {
        return Duration::ZERO;
    }
    Duration::from_secs_f64(ms / 1000.0)
}

fn is_ip(frame: &[u8]) -> bool {
    let kind = frame.get(12..ETHERNET_HEADER);
    kind.is_some_and(|kind| kind == IPV4 || kind == IPV6)
}
