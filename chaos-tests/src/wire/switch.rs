//! The switch without its devices: frames and the time go in, frames and where they are due come
//! out. It learns which port an address is behind, and every link has its way with every frame.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::line::{Counts, ETHERNET_HEADER, Line};
use super::{Link, Preset};

/// Every port has a link to every other, so the matrix grows with the square.
const MAX_PORTS: usize = 64;
/// Frames on their way in all; a fast world with long delays holds a few megabytes.
const MAX_QUEUED_BYTES: u64 = 64 << 20;
/// A frame's own cost beside its bytes.
const OVERHEAD: u64 = 96;
/// Forged senders must not eat the memory.
const MAX_ADDRESSES: usize = 4096;

type Mac = [u8; 6];

/// A port by the order in which names came; a name keeps its number for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(pub usize);

/// A frame that leaves the switch now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub from: Port,
    pub to: Port,
    pub frame: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Switch {
    seed: u64,
    preset: Preset,
    names: Vec<String>,
    plugged: Vec<bool>,
    /// By sender, then by receiver.
    lines: Vec<Vec<Line>>,
    addresses: HashMap<Mac, Port>,
    queue: BinaryHeap<Reverse<Queued>>,
    queued_bytes: u64,
    /// Frames due at the same moment leave in the order in which they came.
    sequence: u64,
}

impl Switch {
    pub fn new(seed: u64, preset: Preset) -> Self {
        Self {
            seed,
            preset,
            names: Vec::new(),
            plugged: Vec::new(),
            lines: Vec::new(),
            addresses: HashMap::new(),
            queue: BinaryHeap::new(),
            queued_bytes: 0,
            sequence: 0,
        }
    }

    /// A port comes, or comes back with the links and counts it had.
    pub fn plug(&mut self, name: &str) -> Result<Port> {
        let known = self.names.iter().position(|n| n == name);
        let port = if let Some(known) = known {
            ensure!(!self.plugged[known], "{name} is plugged in already");
            known
        } else {
            ensure!(self.names.len() < MAX_PORTS, "more than {MAX_PORTS} ports");
            self.grow(name)
        };
        self.plugged[port] = true;
        Ok(Port(port))
    }

    fn grow(&mut self, name: &str) -> usize {
        let port = self.names.len();
        self.names.push(name.to_owned());
        self.plugged.push(false);
        self.lines.push(Vec::new());
        for from in 0..=port {
            for to in self.lines[from].len()..=port {
                let (from_name, to_name) = (&self.names[from], &self.names[to]);
                let link = self.preset.link(from_name, to_name);
                let seed = self.seed ^ hash(&[from_name, to_name]);
                self.lines[from].push(Line::new(link, seed));
            }
        }
        port
    }

    /// A port goes; what is on its way to it is dropped when it is due.
    pub fn unplug(&mut self, name: &str) -> Result<Port> {
        let port = self.port(name)?;
        ensure!(self.plugged[port.0], "{name} is not plugged in");
        self.plugged[port.0] = false;
        self.addresses.retain(|_, behind| *behind != port);
        Ok(port)
    }

    fn port(&self, name: &str) -> Result<Port> {
        let known = self.names.iter().position(|n| n == name);
        known.map(Port).with_context(|| format!("no port {name}"))
    }

    pub fn link(&self, from: &str, to: &str) -> Result<Link> {
        let (from, to) = (self.port(from)?, self.port(to)?);
        Ok(self.lines[from.0][to.0].link())
    }

    fn ports(&self, names: &[String]) -> Result<Vec<Port>> {
        names.iter().map(|name| self.port(name)).collect()
    }

    /// Changes every link from one of these ports to one of those; none when one cannot be.
    pub fn change(
        &mut self,
        now: Duration,
        from: &[String],
        to: &[String],
        link: impl Fn(Link) -> Link,
    ) -> Result<()> {
        let (from, to) = (self.ports(from)?, self.ports(to)?);
        let pairs = from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t)));
        let changes: Vec<_> = pairs
            .filter(|(from, to)| from != to)
            .map(|(from, to)| (from, to, link(self.lines[from.0][to.0].link())))
            .collect();
        changes.iter().try_for_each(|(_, _, link)| link.check())?;
        self.apply(now, &changes);
        Ok(())
    }

    /// Every link as the preset has it.
    pub fn reset(&mut self, now: Duration) {
        let mut changes = Vec::new();
        for (from, from_name) in self.names.iter().enumerate() {
            for (to, to_name) in self.names.iter().enumerate() {
                let link = self.preset.link(from_name, to_name);
                changes.push((Port(from), Port(to), link));
            }
        }
        self.apply(now, &changes);
    }

    fn apply(&mut self, now: Duration, changes: &[(Port, Port, Link)]) {
        let mut latest = BTreeMap::new();
        for (from, to, link) in changes {
            let line = &mut self.lines[from.0][to.0];
            latest.insert((*from, *to), line.change(now, *link));
        }
        let mut queue = std::mem::take(&mut self.queue).into_vec();
        for Reverse(queued) in &mut queue {
            let key = (queued.delivery.from, queued.delivery.to);
            if let Some(latest) = latest.get(&key) {
                queued.due = queued.due.min(*latest);
            }
        }
        self.queue = queue.into();
    }

    /// A frame comes in at a port.
    pub fn on_frame(&mut self, now: Duration, from: Port, frame: &[u8]) {
        let Some((to, sender)) = addresses(frame) else {
            return;
        };
        if is_one(sender) && self.addresses.get(&sender) != Some(&from) {
            if self.addresses.len() >= MAX_ADDRESSES {
                self.addresses.clear();
            }
            self.addresses.insert(sender, from);
        }
        match self.addresses.get(&to) {
            Some(to) if *to != from => self.forward(now, from, *to, frame),
            Some(_) => {}
            _ => {
                for to in (0..self.names.len()).map(Port) {
                    if to != from && self.plugged[to.0] {
                        self.forward(now, from, to, frame);
                    }
                }
            }
        }
    }

    fn forward(&mut self, now: Duration, from: Port, to: Port, frame: &[u8]) {
        let line = &mut self.lines[from.0][to.0];
        for _ in 0..line.admit(frame) {
            let cost = frame.len() as u64 + OVERHEAD;
            if self.queued_bytes + cost > MAX_QUEUED_BYTES {
                line.counts.dropped.memory += 1;
                continue;
            }
            let Some(due) = line.due(now, frame.len()) else {
                continue;
            };
            let mut frame = frame.to_vec();
            line.corrupt(&mut frame);
            line.counts.queued += 1;
            line.counts.queued_bytes += frame.len() as u64;
            self.queued_bytes += cost;
            self.sequence += 1;
            self.queue.push(Reverse(Queued {
                due,
                sequence: self.sequence,
                delivery: Delivery { from, to, frame },
            }));
        }
    }

    /// When the next frame is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse(queued)| queued.due)
    }

    /// The next frame that is due; nothing passes a link that is cut by now.
    pub fn pop(&mut self, now: Duration) -> Option<Delivery> {
        while self.poll_timeout()? <= now {
            let Reverse(Queued { delivery, .. }) = self.queue.pop()?;
            let length = delivery.frame.len() as u64;
            self.queued_bytes -= length + OVERHEAD;
            let line = &mut self.lines[delivery.from.0][delivery.to.0];
            let (up, counts) = (line.link().up, &mut line.counts);
            counts.queued -= 1;
            counts.queued_bytes -= length;
            if !up {
                counts.dropped.down += 1;
            } else if !self.plugged[delivery.to.0] {
                counts.dropped.gone += 1;
            } else {
                counts.delivered += 1;
                counts.delivered_bytes += length;
                return Some(delivery);
            }
        }
        None
    }

    /// The port's device did not take this frame.
    pub fn on_refused(&mut self, delivery: &Delivery) {
        let counts = &mut self.lines[delivery.from.0][delivery.to.0].counts;
        counts.delivered -= 1;
        counts.delivered_bytes -= delivery.frame.len() as u64;
        counts.dropped.gone += 1;
    }

    /// Every link between two ports: from, to, how it is, what it has seen.
    pub fn links(&self) -> impl Iterator<Item = (&str, &str, Link, Counts)> {
        self.lines
            .iter()
            .enumerate()
            .flat_map(move |(from, lines)| {
                let others = lines.iter().enumerate().filter(move |(to, _)| *to != from);
                others.map(move |(to, line)| {
                    let (from, to) = (&self.names[from], &self.names[to]);
                    (from.as_str(), to.as_str(), line.link(), line.counts)
                })
            })
    }
}

#[derive(Debug)]
struct Queued {
    due: Duration,
    sequence: u64,
    delivery: Delivery,
}

impl Queued {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.sequence)
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Receiver and sender of a frame; nothing when it is too short to be one.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.get(..ETHERNET_HEADER)?;
    let (to, from) = (header[..6].try_into().ok()?, header[6..12].try_into().ok()?);
    Some((to, from))
}

/// Not a group of receivers.
fn is_one(mac: Mac) -> bool {
    mac[0] & 1 == 0
}

/// FNV-1a: a link's draws depend on its name and the seed, not on the order of plugging in.
fn hash(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
