//! Notices that a peer is gone without a goodbye: what is sent to it stays unanswered. A live
//! peer's QUIC acknowledges within its round trip, however slow the program behind it is.
//!
//! The connection is then closed, so that whoever waits on its streams hears at once instead of
//! at the idle timeout: a proxied request is tried elsewhere while its client still waits.

use std::sync::Arc;
use std::time::Duration;

use scheduler::model::NodeId;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

use super::pool::Link;
use super::{Kind, Mesh, code};

/// Silence beyond the round trips, counted from the first datagram that got no answer. Long enough
/// for a process that has to wait for a busy machine.
const SILENCE: Duration = Duration::from_secs(2);
/// Silence of a peer that is well; what is longer makes it doubtful.
const USUAL_SILENCE: Duration = Duration::from_millis(400);
/// Between two tries to reach a node that is to answer.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Round trips that an answer may take on top: it may be lost and sent again.
const ROUND_TRIPS: u32 = 4;
/// How often a connection is looked at: one that speaks, and one that rests.
const BUSY_PERIOD: Duration = Duration::from_millis(250);
const IDLE_PERIOD: Duration = Duration::from_secs(2);

/// What was sent and heard on one connection, in datagrams.
#[derive(Debug, Default)]
struct Conversation {
    sent: u64,
    heard: u64,
    unanswered_since: Option<Instant>,
}

impl Conversation {
    /// Takes the counters as they are now; returns for how long nothing was heard although
    /// something was sent.
    fn look(&mut self, now: Instant, sent: u64, heard: u64) -> Duration {
        if heard != self.heard {
            self.unanswered_since = None;
        } else if sent != self.sent {
            self.unanswered_since.get_or_insert(now);
        }
        (self.sent, self.heard) = (sent, heard);
        self.unanswered_since
            .map_or(Duration::ZERO, |since| now - since)
    }
}

pub(super) fn usual_silence(link: &Link) -> Duration {
    USUAL_SILENCE + link.conn.rtt() * ROUND_TRIPS
}

impl Mesh {
    /// Peers that left something unanswered for longer than they should, as it is noticed. Some may be
    /// left out when they are many.
    pub fn silences(&self) -> broadcast::Receiver<NodeId> {
        self.inner.silences.subscribe()
    }

    /// Whether the node answers: acknowledges within `patience` and a few round trips what is written to it
    /// now, over its connection or over a new one.
    pub async fn answers(&self, node: NodeId, patience: Duration) -> bool {
        let patience = patience + self.rtt(node).unwrap_or_default() * ROUND_TRIPS;
        let asking = async {
            while !self.ask(node, patience).await {
                sleep(TRY_AGAIN).await;
            }
        };
        timeout(patience, asking).await.is_ok()
    }

    /// A stream that says nothing is acknowledged all the same.
    async fn ask(&self, node: NodeId, patience: Duration) -> bool {
        let Ok(mut stream) = self.open(node, Kind::Gossip, patience).await else {
            return false;
        };
        stream.finish().await.is_ok() && stream.delivered().await
    }
}

/// Tells of a peer's silence, and closes the link when it lasts; ends with the link.
pub(super) async fn watch(link: Arc<Link>, silences: broadcast::Sender<NodeId>) {
    let mut conversation = Conversation::default();
    let mut period = BUSY_PERIOD;
    loop {
        tokio::select! {
            _ = link.conn.closed() => return,
            () = sleep(period) => {}
        }
        let stats = link.conn.stats();
        let (sent, heard) = (stats.udp_tx.datagrams, stats.udp_rx.datagrams);
        let rests = (sent, heard) == (conversation.sent, conversation.heard);
        let silence = conversation.look(Instant::now(), sent, heard);
        if silence >= usual_silence(&link) {
            // Nobody may listen.
            let _ = silences.send(link.peer.node);
        }
        if silence >= SILENCE + link.conn.rtt() * ROUND_TRIPS {
            tracing::debug!(node = %link.peer.node, ?silence, "a peer is gone without a goodbye");
            link.conn.close(code::SILENT, b"silent");
            return;
        }
        period = if rests && silence.is_zero() {
            IDLE_PERIOD
        } else {
            BUSY_PERIOD
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_first_datagram_without_an_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut conversation = Conversation::default();
        let mut look = |ms, sent, heard| conversation.look(at(ms), sent, heard).as_millis();
        assert_eq!(look(0, 1, 1), 0);
        assert_eq!(look(250, 1, 1), 0, "who is not spoken to need not answer");
        assert_eq!(look(500, 2, 1), 0);
        assert_eq!(look(1_000, 5, 1), 500, "sending again does not start over");
        assert_eq!(look(1_250, 5, 1), 750);
        assert_eq!(look(1_500, 6, 2), 0, "heard");
        assert_eq!(look(9_000, 6, 2), 0);
    }
}
