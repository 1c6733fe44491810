//! One client's connection: requests side by side, and a goodbye (GOAWAY) in two steps while the door
//! closes. First that the connection ends, with room for what is on its way; then, after a while, which
//! request was the last. What is under way is finished, and then it is closed.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h3::error::{Code, ConnectionError};
use h3::server::Connection;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::carrier::{Carrier, Requests};
use super::request::{self, Ended};
use super::streams::code;
use crate::ingress::Shared;
use crate::ingress::door::{FIRST_TIME, HEAD_TIME, MAX_HEAD_BYTES, MAX_RESETS, MAX_STREAMS, Phase};

/// So many requests a client may break off as [`MAX_RESETS`] says.
const RESETS_TIME: Duration = Duration::from_secs(1);

/// A connection without a request is kept so long, however well it answers.
const IDLE_TIME: Duration = Duration::from_mins(3);

/// Serves a connection until it ends.
pub(super) async fn serve(shared: &Arc<Shared>, quic: quinn::Connection) {
    let requests = Requests::default();
    let carrier = Carrier::new(quic.clone(), requests.clone());
    let mut settings = h3::server::builder();
    settings
        .max_field_section_size(MAX_HEAD_BYTES as u64)
        .send_grease(false);
    let library = match timeout(HEAD_TIME, settings.build(carrier)).await {
        Ok(Ok(library)) => library,
        Ok(Err(error)) => return tracing::trace!(%error, "a connection ended at once"),
        Err(_) => return quic.close(code(Code::H3_CLOSED_CRITICAL_STREAM), b""),
    };
    let mut client = Client {
        shared: Arc::clone(shared),
        phase: shared.phase.subscribe(),
        quic,
        library,
        requests,
        under_way: JoinSet::new(),
        leaving: Leaving::Not,
        idle_since: Some(Instant::now()),
        gone: false,
        resets: Resets::default(),
    };
    match client.run().await {
        Ok(()) => client.part().await,
        Err(error) => tracing::trace!(%error, "a connection ended"),
    }
}

struct Client {
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    quic: quinn::Connection,
    library: Connection<Carrier, Bytes>,
    requests: Requests,
    under_way: JoinSet<Ended>,
    leaving: Leaving,
    /// While nothing is under way: since when.
    idle_since: Option<Instant>,
    /// The client said goodbye, and has all answers.
    gone: bool,
    resets: Resets,
}

/// How far the goodbye is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Not,
    /// The client was told, and what it began before it heard is let in until then.
    Until(Instant),
    /// Nothing further is let in.
    Last,
}

impl Client {
    /// Serves requests until there will be no more.
    async fn run(&mut self) -> Result<(), ConnectionError> {
        let mut closed = self.phase.clone();
        loop {
            let over = self.leaving == Leaving::Last && self.under_way.is_empty();
            if over || *closed.borrow() == Phase::Closed {
                return Ok(());
            }
            tokio::select! {
                accepted = self.library.accept(), if !self.gone => {
                    if let (Some(resolver), Some(watch)) = (accepted?, self.requests.latest()) {
                        self.idle_since = None;
                        let (shared, quic) = (Arc::clone(&self.shared), self.quic.clone());
                        self.under_way.spawn(request::serve(shared, quic, resolver, watch));
                    } else {
                        self.gone = true;
                        self.leaving = Leaving::Last;
                    }
                }
                Some(ended) = self.under_way.join_next() => {
                    self.idle_since = self.under_way.is_empty().then(Instant::now);
                    let broken = ended.is_ok_and(|ended| ended == Ended::ByClient);
                    if broken && self.resets.is_one_too_many(Instant::now()) {
                        self.quic.close(code(Code::H3_EXCESSIVE_LOAD), b"too many requests broken off");
                    }
                }
                () = due(self.leaving, self.idle_since, &mut self.phase) => self.say_goodbye().await?,
                () = cut_off(&mut closed) => return Ok(()),
            }
        }
    }

    async fn say_goodbye(&mut self) -> Result<(), ConnectionError> {
        let more = if self.leaving == Leaving::Not {
            self.leaving = Leaving::Until(Instant::now() + FIRST_TIME);
            if !self.requests.any() {
                // The library could only say that nothing is let in: its first request is on its way, perhaps.
                return Ok(());
            }
            usize::try_from(MAX_STREAMS).unwrap_or(usize::MAX)
        } else {
            self.leaving = Leaving::Last;
            usize::from(self.requests.close())
        };
        // A client that takes nothing does not hear it.
        let said = timeout(FIRST_TIME, self.library.shutdown(more)).await;
        said.unwrap_or(Ok(()))
    }

    /// Closes the connection, once its client has heard why. Who is cut off hears that alone.
    async fn part(self) {
        if *self.phase.borrow() < Phase::Closed {
            sleep((3 * self.quic.rtt()).min(FIRST_TIME)).await;
        }
        self.quic.close(code(Code::H3_NO_ERROR), b"");
    }
}

async fn cut_off(phase: &mut watch::Receiver<Phase>) {
    // An error: the door is gone, and with it all that is in it.
    let _gone = phase.wait_for(|p| *p == Phase::Closed).await.is_err();
}

/// When the next step of the goodbye is due.
async fn due(leaving: Leaving, idle_since: Option<Instant>, phase: &mut watch::Receiver<Phase>) {
    match leaving {
        Leaving::Not => {
            let closing = async {
                // An error: the door is gone, which `run` hears.
                if phase.wait_for(|p| *p >= Phase::Leaving).await.is_err() {
                    pending::<()>().await;
                }
            };
            let idle = async {
                match idle_since {
                    Some(since) => sleep_until(since + IDLE_TIME).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = closing => {}
                () = idle => {}
            }
        }
        Leaving::Until(at) => sleep_until(at).await,
        Leaving::Last => pending().await,
    }
}

/// Requests that were broken off lately.
#[derive(Debug, Default)]
struct Resets {
    since: Option<Instant>,
    count: usize,
}

impl Resets {
    /// Counts one; says whether the client does nothing else.
    fn is_one_too_many(&mut self, now: Instant) -> bool {
        let recent = |since: Instant| now.duration_since(since) < RESETS_TIME;
        if !self.since.is_some_and(recent) {
            *self = Self {
                since: Some(now),
                count: 0,
            };
        }
        self.count += 1;
        self.count > MAX_RESETS
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_goodbye_is_due_when_the_door_closes_or_nobody_asks() {
        let phase = watch::Sender::new(Phase::Open);
        let (mut door, now) = (phase.subscribe(), Instant::now());
        let long_ago = now.checked_sub(IDLE_TIME);
        due(Leaving::Not, long_ago, &mut door).await;
        for not_yet in [Some(now), None] {
            let due = due(Leaving::Not, not_yet, &mut door).now_or_never();
            assert!(due.is_none(), "{not_yet:?}");
        }
        phase.send_replace(Phase::Leaving);
        due(Leaving::Not, None, &mut door).await;
        due(Leaving::Until(now), None, &mut door).await;
        assert!(
            due(Leaving::Last, long_ago, &mut door)
                .now_or_never()
                .is_none()
        );
    }

    #[test]
    fn who_only_breaks_off_is_found() {
        let (mut resets, now) = (Resets::default(), Instant::now());
        for _ in 0..MAX_RESETS {
            assert!(!resets.is_one_too_many(now));
        }
        assert!(resets.is_one_too_many(now));
        assert!(!resets.is_one_too_many(now + RESETS_TIME));
    }
}
