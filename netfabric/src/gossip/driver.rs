//! Runs chitchat, starts it again when it dies, and turns what it holds into members.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat,
};
use scheduler::model::NodeId;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::carrier::{Carrier, Wire};
use super::ledger::{Filed, Ledger};
use super::{GossipConfig, Heard, Life, Members, Published, RESTART_BITS, Trust, check};
use crate::transport::Mesh;

/// The keys of a node's state: its record, the load that brings it up to date, what it measures.
pub(super) const RECORD: &str = "r";
pub(super) const LOAD: &str = "l";
pub(super) const MEASURED: &str = "m";
/// A node is taken for dead when its heartbeat is this many of its usual intervals late.
const PHI: f64 = 8.0;
/// Heartbeat intervals kept per node; each costs 8 bytes.
const SAMPLES: usize = 60;
/// A node is heard of several times a round, by way of others; so many until statistics say more.
const INITIAL_PER_ROUND: u32 = 2;
/// Longer intervals than this many rounds are breaks, not samples.
const SAMPLE_ROUNDS_MAX: u32 = 10;
/// How long a dead node is remembered.
const DEAD_GRACE: Duration = Duration::from_mins(15);
/// A node that spoke to us itself within so many rounds, and at least so long ago, is alive
/// whatever the statistics say: they are noisy when a machine is busy.
const HEARD_ROUNDS: u32 = 4;
const HEARD_MIN: Duration = Duration::from_secs(1);
/// After so many rounds without a word a node is silent: a word is everywhere within less as a rule.
const SILENT_ROUNDS: u8 = 3;
/// More are not told apart: by then it is taken for dead.
const SILENT_MOST: u8 = 10;
/// Between a death of chitchat and its restart.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(10);

/// What the driver is given.
pub(super) struct Parts {
    pub mesh: Mesh,
    pub config: GossipConfig,
    pub trust: Arc<dyn Trust>,
    pub published: watch::Receiver<Option<Published>>,
    pub members: watch::Sender<Members>,
    /// Counts chitchat's deaths.
    pub restarts: Arc<AtomicU64>,
}

pub(super) fn spawn(parts: Parts) {
    let carrier = Carrier::new(parts.mesh.clone(), parts.config.cluster_id.clone());
    tokio::spawn(
        Driver {
            parts,
            carrier,
            ledger: Ledger::default(),
            beats: BTreeMap::new(),
        }
        .run(),
    );
}

struct Driver {
    parts: Parts,
    carrier: Arc<Carrier>,
    ledger: Ledger,
    /// Each node's last sign of life, by whatever way, and when it came.
    beats: BTreeMap<NodeId, ((u64, u64), Instant)>,
}

enum End {
    /// Nobody publishes any more.
    Stopped,
    Died,
}

impl Driver {
    async fn run(mut self) {
        for restart in 0.. {
            let handle = match self.start(restart).await {
                Ok(handle) => handle,
                Err(error) => {
                    warn!(%error, "gossip cannot start");
                    sleep(RESTART_PAUSE).await;
                    continue;
                }
            };
            if matches!(self.drive(&handle).await, End::Stopped) {
                handle.abort();
                return;
            }
            self.parts.restarts.fetch_add(1, Ordering::Relaxed);
            let culprit = self.carrier.quarantine_last();
            warn!(node = ?culprit.map(|node| node.to_string()), "gossip died; it starts again");
            sleep(RESTART_PAUSE).await;
        }
    }

    /// Each start is a generation of its own: the others hold higher versions of the last one,
    /// and would ignore new ones that begin at zero.
    async fn start(&self, restart: u64) -> anyhow::Result<ChitchatHandle> {
        let restart = restart.min((1 << RESTART_BITS) - 1);
        let config = &self.parts.config;
        let chitchat_id = ChitchatId {
            node_id: config.me.to_string().into(),
            generation_id: config.incarnation << RESTART_BITS | restart,
            gossip_advertise_addr: config.advertise,
        };
        let chitchat = ChitchatConfig {
            chitchat_id,
            cluster_id: config.cluster_id.clone(),
            gossip_interval: config.interval,
            listen_addr: config.advertise,
            seed_nodes: config.seeds.iter().map(ToString::to_string).collect(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI,
                sampling_window_size: SAMPLES,
                max_interval: config.interval * SAMPLE_ROUNDS_MAX,
                initial_interval: config.interval / INITIAL_PER_ROUND,
                dead_node_grace_period: DEAD_GRACE,
            },
            marked_for_deletion_grace_period: DEAD_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let own: Vec<(String, String)> = self
            .parts
            .published
            .borrow()
            .iter()
            .flat_map(|published| &published.texts)
            .map(|(key, text)| ((*key).to_owned(), text.clone()))
            .collect();
        spawn_chitchat(chitchat, own, &Wire(self.carrier.clone())).await
    }

    async fn drive(&mut self, handle: &ChitchatHandle) -> End {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let listener = handle
            .with_chitchat(|chitchat| {
                let notify = notify.clone();
                chitchat.subscribe_event("", move |_| notify.notify_one())
            })
            .await;
        let mut died = pin!(handle.termination_watcher());
        let mut round = interval(self.parts.config.interval);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            tokio::select! {
                _ = &mut died => break End::Died,
                news = self.parts.published.changed() => {
                    if news.is_err() {
                        break End::Stopped;
                    }
                }
                () = changed.notified() => sleep(GATHER).await,
                () = self.carrier.doubts.changed.notified() => {}
                _ = round.tick() => {}
            }
            handle
                .with_chitchat(|chitchat| self.refresh(chitchat))
                .await;
        };
        drop(listener);
        end
    }

    /// Reads everything chitchat holds, and tells the house when something is new.
    fn refresh(&mut self, chitchat: &mut Chitchat) {
        if let Some(own) = &*self.parts.published.borrow_and_update() {
            for (key, text) in &own.texts {
                // Does nothing when it is there already; a hostile member may have put something else.
                chitchat.self_node_state().set(*key, text);
            }
        }
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        let mut heard_of = BTreeSet::new();
        let mut alive = BTreeSet::new();
        for (id, state) in chitchat.node_states() {
            let Some(node) = check::parse_node(id.node_id.as_bytes()) else {
                continue;
            };
            if node == self.parts.config.me {
                continue;
            }
            let filed = Filed {
                node,
                incarnation: id.generation_id >> RESTART_BITS,
                restart: id.generation_id & ((1 << RESTART_BITS) - 1),
                text: state.get(RECORD),
                load: state.get(LOAD),
                measured: state.get(MEASURED),
            };
            heard_of.insert(node);
            self.beat(node, (id.generation_id, state.heartbeat().into()));
            if live.contains(id) {
                alive.insert((node, filed.incarnation));
            }
            self.hear(&filed);
        }
        self.beats.retain(|node, _| heard_of.contains(node));
        self.ledger
            .keep(|node| heard_of.contains(&node), &*self.parts.trust);
        let heard = self.carrier.heard();
        self.tell(&alive, &heard);
    }

    fn beat(&mut self, node: NodeId, beat: (u64, u64)) {
        let now = Instant::now();
        let (last, at) = self.beats.entry(node).or_insert((beat, now));
        if beat > *last {
            (*last, *at) = (beat, now);
        }
    }

    fn hear(&mut self, filed: &Filed<'_>) {
        match self
            .ledger
            .hear(filed, &self.parts.config.cluster_id, &*self.parts.trust)
        {
            Ok(None) => {}
            Ok(Some(record)) => {
                debug!(node = %record.node, seq = record.seq, "a record");
                if self.parts.mesh.addr(record.node) != Some(record.mesh) {
                    // The node's own, signed word on where it is.
                    self.parts.mesh.set_addr(record.node, record.mesh);
                }
            }
            Err(rejected) => {
                warn!(node = %filed.node, reason = %rejected, "a gossiped record does not count");
            }
        }
        let cluster_id = &self.parts.config.cluster_id;
        let beside = self
            .ledger
            .hear_beside(filed, cluster_id, &*self.parts.trust);
        if let Err(rejected) = beside {
            warn!(node = %filed.node, reason = %rejected, "what goes beside a record does not count");
        }
    }

    fn tell(&self, alive: &BTreeSet<(NodeId, u64)>, heard: &BTreeMap<NodeId, Instant>) {
        let recent = (self.parts.config.interval * HEARD_ROUNDS).max(HEARD_MIN);
        let spoke = |node| {
            heard
                .get(&node)
                .is_some_and(|at: &Instant| at.elapsed() < recent)
        };
        let silent = |node| {
            let word = self.beats.get(&node).map(|(_, at)| *at);
            let last = word.max(heard.get(&node).copied());
            last.map_or(0, |at| {
                silent_rounds(at.elapsed(), self.parts.config.interval)
            })
        };
        let seems = |node, incarnation| alive.contains(&(node, incarnation)) || spoke(node);
        let mut members = self.ledger.members(|node, incarnation| {
            let alive = seems(node, incarnation);
            Life {
                alive,
                silent: silent(node),
                lost: alive && self.carrier.doubts.is_lost(node),
            }
        });
        // Who is dead is lost no more, nor asked.
        let lives = |node| members.get(&node).is_some_and(|member| member.life.alive);
        self.carrier.doubts.keep(lives);
        if let Some(own) = &*self.parts.published.borrow() {
            let heard = Heard {
                record: own.record.clone(),
                measured: own.measured.clone(),
                life: Life {
                    alive: true,
                    ..Life::default()
                },
            };
            Arc::make_mut(&mut members).insert(self.parts.config.me, heard);
        }
        self.parts.members.send_if_modified(|current| {
            if **current == *members {
                return false;
            }
            report(current, &members);
            *current = members;
            true
        });
    }
}

/// Whole rounds, where they are too many.
fn silent_rounds(silence: Duration, interval: Duration) -> u8 {
    let rounds = silence.as_micros() / interval.as_micros().max(1);
    let rounds = u8::try_from(rounds).unwrap_or(u8::MAX).min(SILENT_MOST);
    if rounds < SILENT_ROUNDS { 0 } else { rounds }
}

/// Says who came and who went; records that only changed are no news for people.
fn report(before: &Members, now: &Members) {
    let alive = |members: &Members, node: &NodeId| members.get(node).is_some_and(|m| m.life.alive);
    let lost = |members: &Members, node: &NodeId| members.get(node).is_some_and(|m| m.life.lost);
    for node in now
        .keys()
        .filter(|node| alive(now, node) && !alive(before, node))
    {
        info!(%node, "node is alive");
    }
    for node in before
        .keys()
        .filter(|node| alive(before, node) && !alive(now, node))
    {
        info!(%node, "node is not heard any more");
    }
    for node in now.keys().filter(|node| alive(before, node)) {
        match (lost(before, node), lost(now, node)) {
            (false, true) => info!(%node, "node does not answer"),
            (true, false) if alive(now, node) => info!(%node, "node answers again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_late_before_it_is_missed() {
        let second = Duration::from_secs(1);
        let rounds = |millis| silent_rounds(Duration::from_millis(millis), second);
        assert_eq!([0, 1_500, 2_999, 3_000, 5_700].map(rounds), [0, 0, 0, 3, 5]);
        assert_eq!(rounds(3_600_000), SILENT_MOST);
        assert_eq!(silent_rounds(second, second / 10), 10);
    }
}
