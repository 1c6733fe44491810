//! Connections that switched protocol: bytes both ways until either side ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderValue;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::door::Phase;
use super::frames::{Frames, GOING_AWAY};
use super::headers::Head;
use super::upstream::{Admission, Lease};

/// Both sides agreed already: the switch itself is a matter of one round trip.
const SWITCH: Duration = Duration::from_secs(10);
/// A tunnel in which nothing moves for this long has lost its ends. Whoever holds one open pings far sooner.
const IDLE: Duration = Duration::from_hours(1);
const BUFFER: usize = 16 * 1024;

/// Joins the two connections in a task of its own. The instance counts as busy until it ends.
pub(super) fn join(
    shared: &Arc<Shared>,
    head: &Head,
    (client, server): (OnUpgrade, OnUpgrade),
    kept: (Admission, Lease),
) {
    let shared = Arc::clone(shared);
    let upgrade = head.upgrade.as_ref().map(HeaderValue::as_bytes);
    let websocket = upgrade.is_some_and(|u| u.eq_ignore_ascii_case(b"websocket"));
    tokio::spawn(async move {
        let _kept = kept;
        let Ok(_permit) = shared.tunnels.acquire().await else {
            return;
        };
        shared.counters.tunnels.fetch_add(1, Ordering::Relaxed);
        let both = futures::future::try_join(client, server);
        let Ok(Ok((client, server))) = timeout(SWITCH, both).await else {
            return;
        };
        let mut phase = shared.phase.subscribe();
        let leave = Leave {
            frames: websocket.then(Frames::default),
            phase: phase.clone(),
        };
        tokio::select! {
            ended = run(client, server, leave) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "tunnel ended");
                }
            }
            _ = phase.wait_for(|p| *p == Phase::Closed) => {}
        }
    });
}

/// How a client is told that the door closes, where the protocol has words for it.
struct Leave {
    frames: Option<Frames>,
    phase: watch::Receiver<Phase>,
}

async fn run(client: Upgraded, server: Upgraded, leave: Leave) -> io::Result<()> {
    let (client_in, client_out) = tokio::io::split(TokioIo::new(client));
    let (server_in, server_out) = tokio::io::split(TokioIo::new(server));
    let (moved, mut seen) = watch::channel(Instant::now());
    let idle = async {
        loop {
            let until = *seen.borrow_and_update() + IDLE;
            sleep_until(until).await;
            if *seen.borrow() + IDLE <= Instant::now() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    };
    let back = async {
        match leave.frames {
            Some(frames) => back(server_in, client_out, &moved, frames, leave.phase).await,
            None => one_way(server_in, client_out, &moved).await,
        }
    };
    let ways = futures::future::try_join(one_way(client_in, server_out, &moved), back);
    tokio::select! {
        ended = ways => ended.map(drop),
        idle = idle => idle,
    }
}

/// What a WebSocket server says, until the door closes: then the client is told to go elsewhere,
/// between two frames. It answers, the server hears it, and both end in order.
async fn back<S: super::stream::Stream>(
    mut from: ReadHalf<S>,
    mut to: WriteHalf<S>,
    moved: &watch::Sender<Instant>,
    mut frames: Frames,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut leaving = false;
    while !(leaving && frames.is_between()) {
        let count = tokio::select! {
            read = from.read(&mut buffer) => read?,
            _ = phase.wait_for(|p| *p > Phase::Open), if !leaving => {
                leaving = true;
                continue;
            }
        };
        if count == 0 {
            return to.shutdown().await;
        }
        let passed = frames.pass(&buffer[..count], leaving);
        to.write_all(&buffer[..passed]).await?;
        moved.send_replace(Instant::now());
    }
    to.write_all(&GOING_AWAY).await?;
    to.flush().await?;
    // Whatever the server still says has no place after that.
    while from.read(&mut buffer).await? > 0 {}
    to.shutdown().await
}

async fn one_way<S: super::stream::Stream>(
    mut from: ReadHalf<S>,
    mut to: WriteHalf<S>,
    moved: &watch::Sender<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        moved.send_replace(Instant::now());
    }
}
