//! The client's side of an express connection: bytes that came in, bytes that must go out, and
//! when to give up. Timers and the door's phase are looked at without cost while nothing happens.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::sync::watch;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use super::scratch;
use crate::ingress::body::KEEP_BYTES;
use crate::ingress::door::{FIRST_TIME, HEAD_TIME, MAX_HEAD_BYTES, Phase};
use crate::ingress::stream::{Leeway, Stream, WRITE_STALL};

/// Bytes a client may have sent ahead: a head and a body that is kept whole. More is left in the
/// kernel.
const MAX_SEEN: usize = MAX_HEAD_BYTES + KEEP_BYTES;
/// How long a body that is on its way may keep the plain way waiting.
const BODY_TIME: Duration = Duration::from_millis(100);
/// An idle connection keeps no more memory than this.
const IDLE_BYTES: usize = 4 * 1024;

pub(super) struct Conn<S> {
    pub(super) stream: S,
    /// Bytes of requests that are not answered yet.
    pub(super) seen: Vec<u8>,
    /// Bytes of answers that the client did not take yet, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    alarm: Alarm,
    hours: Hours,
    /// A request was answered on it.
    used: bool,
    /// Until when the first request is waited for while the door closes.
    last_chance: Option<Instant>,
}

/// What ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// Bytes came.
    Came,
    /// The client is gone.
    Gone,
    /// The time is over.
    Late,
    /// The door is closing.
    Closing,
}

impl<S: Stream> Conn<S> {
    pub(super) fn new(stream: S, seen: Vec<u8>, phase: watch::Receiver<Phase>) -> Self {
        Self {
            stream,
            seen,
            out: Vec::new(),
            sent: 0,
            alarm: Alarm::new(Instant::now() + HEAD_TIME),
            hours: Hours::new(phase),
            used: false,
            last_chance: None,
        }
    }

    /// Until when the next waits may take.
    pub(super) fn expect_by(&mut self, due: Instant) {
        self.alarm.set(due);
    }

    /// Whether the connection ends with this answer.
    pub(super) fn is_last(&mut self) -> bool {
        self.hours.look() > Phase::Open
    }

    /// Whether no further request is waited for.
    pub(super) fn is_closing(&mut self) -> bool {
        self.used && self.hours.look() >= Phase::Closing
    }

    /// The request at the beginning is done with.
    pub(super) fn forget(&mut self, request: usize) {
        self.used = true;
        if request >= self.seen.len() {
            self.seen.clear();
        } else {
            self.seen.drain(..request);
        }
        for buffer in [&mut self.seen, &mut self.out] {
            if buffer.is_empty() && buffer.capacity() > IDLE_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    /// Waits for more of a request, or for the first of it.
    pub(super) async fn fill(&mut self) -> Waited {
        poll_fn(|cx| {
            match self.poll_read(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Waited::Gone),
                Poll::Ready(Ok(_)) => return Poll::Ready(Waited::Came),
                Poll::Pending => {}
            }
            // Who is in the middle of a request may finish it.
            let idle = self.seen.is_empty();
            if idle && self.hours.reached(Phase::Closing, cx) {
                // Let in a moment ago, its first request is on its way.
                let chance = || Instant::now() + FIRST_TIME;
                let last = *self.last_chance.get_or_insert_with(chance);
                self.alarm.hurry(last);
                if self.used || self.alarm.is_over(cx) {
                    return Poll::Ready(Waited::Closing);
                }
            }
            if self.alarm.is_over(cx) {
                return Poll::Ready(Waited::Late);
            }
            if self.hours.reached(Phase::Closed, cx) {
                return Poll::Ready(Waited::Closing);
            }
            Poll::Pending
        })
        .await
    }

    /// Waits a moment for as many bytes as a request has that is kept whole.
    pub(super) async fn fill_to(&mut self, whole: usize) -> Waited {
        if self.seen.len() < whole {
            self.expect_by(Instant::now() + BODY_TIME);
        }
        while self.seen.len() < whole {
            match self.fill().await {
                Waited::Came => {}
                why => return why,
            }
        }
        Waited::Came
    }

    /// To be called while something else is waited for: why to wait no longer.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Waited> {
        while self.seen.len() < MAX_SEEN {
            match self.poll_read(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Waited::Gone),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        if self.alarm.is_over(cx) {
            return Poll::Ready(Waited::Late);
        }
        if self.hours.reached(Phase::Closed, cx) {
            return Poll::Ready(Waited::Gone);
        }
        Poll::Pending
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        scratch::input(|input| {
            let room = MAX_SEEN.saturating_sub(self.seen.len()).min(input.len());
            let mut buf = ReadBuf::new(&mut input[..room.max(1)]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            self.seen.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
    }

    /// Where to write what is to be sent next.
    pub(super) fn next(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What was written and not sent is not to be sent.
    pub(super) fn take_back(&mut self) {
        self.out.clear();
        self.sent = 0;
    }

    /// Sends at once what the client takes, and keeps the rest.
    pub(super) fn push(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        while self.out.is_empty() && !bytes.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.alarm.moved(count);
                    bytes = &bytes[count..];
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends what was kept.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let rest = &self.out[self.sent..];
            let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, rest) else {
                self.alarm.stall();
                return Poll::Pending;
            };
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => {
                    self.alarm.moved(count);
                    self.sent += count;
                }
            }
        }
        self.out.clear();
        self.sent = 0;
        // Under TLS what was written may wait to be sealed and sent.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        match flushed {
            Poll::Pending => self.alarm.stall(),
            Poll::Ready(_) => self.alarm.moved(0),
        }
        flushed
    }

    /// Sends all that was kept. Says whether the client took it.
    pub(super) async fn flush(&mut self) -> bool {
        poll_fn(|cx| {
            if let Poll::Ready(sent) = self.poll_sent(cx) {
                return Poll::Ready(sent.is_ok());
            }
            self.poll_lost(cx).map(|_| false)
        })
        .await
    }

    /// Sends these bytes. Says whether the client took them.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> bool {
        let pushed = poll_fn(|cx| Poll::Ready(self.push(cx, bytes))).await;
        pushed.is_ok() && self.flush().await
    }

    /// Ends the connection after what was sent.
    pub(super) async fn close(&mut self) {
        let shut = poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await;
        if let Err(error) = shut {
            tracing::trace!(%error, "a connection was gone before it was closed");
        }
    }
}

/// A deadline that moves with every request, on a timer that seldom does.
struct Alarm {
    due: Instant,
    /// Until when a write that found no taker is waited for.
    stalled: Option<Instant>,
    leeway: Leeway,
    /// Goes off when `due` is, or before.
    timer: Pin<Box<Sleep>>,
    /// The timer knows whom to wake.
    armed: bool,
}

impl Alarm {
    fn new(due: Instant) -> Self {
        Self {
            due,
            stalled: None,
            leeway: Leeway::new(WRITE_STALL),
            timer: Box::pin(sleep_until(due)),
            armed: false,
        }
    }

    fn set(&mut self, due: Instant) {
        self.due = due;
        self.advance();
    }

    fn hurry(&mut self, due: Instant) {
        self.set(self.due.min(due));
    }

    fn stall(&mut self) {
        let until = self.leeway.waits();
        if self.stalled != Some(until) {
            self.stalled = Some(until);
            self.advance();
        }
    }

    fn moved(&mut self, bytes: usize) {
        self.leeway.moved(bytes);
        self.stalled = None;
    }

    fn next(&self) -> Instant {
        self.stalled
            .map_or(self.due, |stalled| stalled.min(self.due))
    }

    fn advance(&mut self) {
        let next = self.next();
        if next < self.timer.deadline() {
            self.timer.as_mut().reset(next);
            self.armed = false;
        }
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.armed && !self.timer.is_elapsed() {
                return false;
            }
            self.armed = true;
            // Out of its turn: with nothing left of it the timer would not be set, and never go off.
            let mut timer = unconstrained(self.timer.as_mut());
            if Pin::new(&mut timer).poll(cx).is_pending() {
                return false;
            }
            let next = self.next();
            if Instant::now() >= next {
                return true;
            }
            self.timer.as_mut().reset(next);
        }
    }
}

/// The door's phase. Its changes wake the connection's task, which looks only then.
struct Hours {
    phase: watch::Receiver<Phase>,
    known: Phase,
    change: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The change knows whom to wake.
    armed: bool,
}

impl Hours {
    fn new(mut phase: watch::Receiver<Phase>) -> Self {
        let known = *phase.borrow_and_update();
        Self {
            known,
            change: next_change(phase.clone()),
            phase,
            armed: false,
        }
    }

    fn look(&mut self) -> Phase {
        match self.phase.has_changed() {
            Ok(false) => {}
            Ok(true) => {
                self.known = *self.phase.borrow_and_update();
                self.change = next_change(self.phase.clone());
                self.armed = false;
            }
            Err(_) => self.known = Phase::Closed,
        }
        self.known
    }

    fn reached(&mut self, end: Phase, cx: &mut Context<'_>) -> bool {
        if self.look() < end && !self.armed {
            // What it would tell is looked at below.
            let _ = self.change.as_mut().poll(cx);
            self.armed = true;
        }
        self.look() >= end
    }
}

fn next_change(mut phase: watch::Receiver<Phase>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _closed = phase.changed().await;
    })
}
