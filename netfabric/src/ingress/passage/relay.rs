//! Bytes both ways between two conduits, until both have ended, either breaks, or nothing moves.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::super::door::Phase;
use super::super::stream::Conduit;

/// What one direction holds; who reads slowly makes the other side wait.
const BUFFER: usize = 16 * 1024;

/// Ends in order when both sides did; otherwise both are broken off.
pub(super) async fn relay(
    client: Box<dyn Conduit>,
    server: Box<dyn Conduit>,
    idle: Duration,
    mut phase: watch::Receiver<Phase>,
    (sent, received): (&AtomicU64, &AtomicU64),
) -> io::Result<()> {
    let moved = Moved::new();
    let mut client = Watched::new(client, &moved, sent);
    let mut server = Watched::new(server, &moved, received);
    let ended = {
        let copy = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER);
        tokio::select! {
            copied = copy => copied.map(drop),
            () = moved.nothing_for(idle) => Err(io::ErrorKind::TimedOut.into()),
            _ = phase.wait_for(|p| *p == Phase::Closed) => Err(io::ErrorKind::Interrupted.into()),
        }
    };
    if ended.is_err() {
        client.conduit.cut();
        server.conduit.cut();
    }
    ended
}

/// When something moved last, in milliseconds since the beginning.
pub(super) struct Moved {
    begun: Instant,
    last: AtomicU64,
}

impl Moved {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    pub(super) fn now(&self) {
        let since = self.begun.elapsed().as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for so long.
    pub(super) async fn nothing_for(&self, length: Duration) {
        loop {
            let last = self.last.load(Ordering::Relaxed);
            let until = self.begun + Duration::from_millis(last) + length;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

struct Watched<'a> {
    conduit: Box<dyn Conduit>,
    moved: &'a Moved,
    /// Bytes read from it.
    read: &'a AtomicU64,
}

impl<'a> Watched<'a> {
    fn new(conduit: Box<dyn Conduit>, moved: &'a Moved, read: &'a AtomicU64) -> Self {
        Self {
            conduit,
            moved,
            read,
        }
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.conduit).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        self.moved.now();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.conduit).poll_write(cx, data))?;
        self.moved.now();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conduit).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conduit).poll_shutdown(cx)
    }
}
