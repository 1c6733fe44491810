//! Connections that switched protocol: bytes both ways until either side ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use super::door::Phase;
use super::upstream::{Admission, Lease};

/// Both sides agreed already: the switch itself is a matter of one round trip.
const SWITCH: Duration = Duration::from_secs(10);
/// A tunnel in which nothing moves for this long has lost its ends. Whoever holds one open pings far sooner.
const IDLE: Duration = Duration::from_hours(1);
const BUFFER: usize = 16 * 1024;

/// Joins the two connections in a task of its own. The instance counts as busy until it ends.
pub(super) fn join(
    shared: &Arc<Shared>,
    client: OnUpgrade,
    server: OnUpgrade,
    admission: Admission,
    lease: Lease,
) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _kept = (admission, lease);
        let Ok(_permit) = shared.tunnels.acquire().await else {
            return;
        };
        shared.counters.tunnels.fetch_add(1, Ordering::Relaxed);
        let both = futures::future::try_join(client, server);
        let Ok(Ok((client, server))) = timeout(SWITCH, both).await else {
            return;
        };
        let mut phase = shared.phase.subscribe();
        tokio::select! {
            ended = run(client, server) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "tunnel ended");
                }
            }
            _ = phase.wait_for(|p| *p == Phase::Closed) => {}
        }
    });
}

async fn run(client: Upgraded, server: Upgraded) -> io::Result<()> {
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
    let ways = futures::future::try_join(
        one_way(client_in, server_out, &moved),
        one_way(server_in, client_out, &moved),
    );
    tokio::select! {
        ended = ways => ended.map(drop),
        idle = idle => idle,
    }
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
