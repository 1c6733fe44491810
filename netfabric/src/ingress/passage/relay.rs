//! Bytes both ways between two conduits, until both have ended, either breaks, nothing moves, or the next
//! daemon goes on with them.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::super::Shared;
use super::super::door::Phase;
use super::super::stream::Conduit;
use crate::sockets::Held;

/// What one direction holds; who reads slowly makes the other side wait.
const BUFFER: usize = 16 * 1024;

/// Two ends, and what was read of each and did not get to the other yet.
pub(super) struct Joined {
    pub(super) client: Box<dyn Conduit>,
    pub(super) server: Box<dyn Conduit>,
    pub(super) held: Held,
    /// Given up when nothing moves for so long.
    pub(super) idle: Duration,
}

/// Ends in order when both sides did; otherwise both are broken off, unless the next daemon gets them. Counts
/// the bytes that come from the client, and from the server.
pub(super) async fn relay(
    shared: &Shared,
    joined: Joined,
    (sent, received): (&AtomicU64, &AtomicU64),
) -> io::Result<()> {
    let Joined {
        mut client,
        mut server,
        held,
        idle,
    } = joined;
    let heritable =
        shared.sockets.are_kept() && client.socket().is_some() && server.socket().is_some();
    let _counted = heritable.then(|| Counted::new(&shared.passages.heritable));
    let mut phase = shared.phase.subscribe();
    let last = if heritable {
        Phase::Parting
    } else {
        Phase::Closed
    };
    let moved = Moved::new();
    let mut there = Direction::new(held.there, &moved, sent);
    let mut back = Direction::new(held.back, &moved, received);
    let both = poll_fn(|cx| {
        let there = there.poll(cx, &mut client, &mut server)?;
        let back = back.poll(cx, &mut server, &mut client)?;
        if there.is_ready() && back.is_ready() {
            Poll::Ready(io::Result::Ok(()))
        } else {
            Poll::Pending
        }
    });
    let ended = tokio::select! {
        ended = both => Some(ended),
        () = moved.nothing_for(idle) => Some(Err(io::ErrorKind::TimedOut.into())),
        _ = phase.wait_for(|p| *p >= last) => None,
    };
    let ended = match (ended, client.socket().zip(server.socket())) {
        (Some(ended), _) => ended,
        (None, Some(ends)) if heritable => {
            let (there, back) = (there.held(), back.held());
            shared.sockets.bequeath(ends, &Held { there, back }, idle)
        }
        (None, _) => Err(io::ErrorKind::Interrupted.into()),
    };
    if ended.is_err() {
        client.cut();
        server.cut();
    }
    ended
}

/// One more, as long as it is held.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// From one end to the other.
struct Direction<'a> {
    buffer: Box<[u8]>,
    /// What of it is to be written yet.
    from: usize,
    to: usize,
    /// Nothing more comes.
    ended: bool,
    /// And the other end was told.
    told: bool,
    moved: &'a Moved,
    count: &'a AtomicU64,
}

impl<'a> Direction<'a> {
    fn new(held: Vec<u8>, moved: &'a Moved, count: &'a AtomicU64) -> Self {
        let to = held.len();
        let mut buffer = held;
        buffer.resize(BUFFER.max(to), 0);
        Self {
            buffer: buffer.into(),
            from: 0,
            to,
            ended: false,
            told: false,
            moved,
            count,
        }
    }

    /// Ready when all that came was written and the end of it told.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Box<dyn Conduit>,
        sink: &mut Box<dyn Conduit>,
    ) -> Poll<io::Result<()>> {
        while !self.told {
            while self.from < self.to {
                let bytes = &self.buffer[self.from..self.to];
                match ready!(Pin::new(&mut *sink).poll_write(cx, bytes))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.from += written,
                }
                self.moved.now();
            }
            if self.ended {
                match ready!(Pin::new(&mut *sink).poll_shutdown(cx)) {
                    // The daemon before this one told it, and it has ended as well since.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    told => told?,
                }
                self.told = true;
                break;
            }
            ready!(Pin::new(&mut *sink).poll_flush(cx))?;
            let mut buffer = ReadBuf::new(&mut self.buffer);
            ready!(Pin::new(&mut *source).poll_read(cx, &mut buffer))?;
            (self.from, self.to) = (0, buffer.filled().len());
            self.ended = self.to == 0;
            self.count.fetch_add(self.to as u64, Ordering::Relaxed);
            self.moved.now();
        }
        Poll::Ready(Ok(()))
    }

    fn held(&self) -> Vec<u8> {
        self.buffer[self.from..self.to].to_vec()
    }
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
