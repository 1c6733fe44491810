//! A QUIC connection as the HTTP/3 library wants it, and what it does not tell of its own: which streams
//! a goodbye still lets in, when a client no longer wants an answer, and when it has all of one.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming};

use super::frames::Frames;
use super::streams::{Both, Reading, Talk, Writing, code, lost, lost_stream};
use crate::ingress::local::lock;

type Made<T> = Pin<Box<dyn Future<Output = Result<T, quinn::ConnectionError>> + Send>>;

/// A request's number is four more than that of the one before.
const NEXT: u64 = 4;

pub(super) struct Carrier {
    quic: quinn::Connection,
    accepting: Option<Made<Both>>,
    accepting_one_way: Option<Made<quinn::RecvStream>>,
    opening: Option<Made<Both>>,
    opening_one_way: Option<Made<quinn::SendStream>>,
    requests: Requests,
}

/// What is known of a connection's requests. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// The first number that was not seen.
    next: u64,
    /// Nothing from this number on is let in.
    until: Option<u64>,
    latest: Option<Watch>,
}

/// One request's answer, watched from outside of the library.
pub(super) struct Watch {
    /// Ends when the client wants no more of the answer, has all of it, or is gone.
    pub(super) stopped: Pin<Box<dyn Future<Output = bool> + Send>>,
    mark: Arc<AtomicBool>,
}

impl Watch {
    /// From now on an answer that is not ended in order is broken off.
    pub(super) fn begin(&self) {
        self.mark.store(true, Ordering::Relaxed);
    }
}

impl Requests {
    /// The request that was let in last.
    pub(super) fn latest(&self) -> Option<Watch> {
        lock(&self.0).latest.take()
    }

    pub(super) fn any(&self) -> bool {
        lock(&self.0).next > 0
    }

    /// Lets no more in; says whether there was one.
    pub(super) fn close(&self) -> bool {
        let mut known = lock(&self.0);
        known.until = Some(known.next);
        known.next > 0
    }
}

impl Carrier {
    pub(super) fn new(quic: quinn::Connection, requests: Requests) -> Self {
        Self {
            quic,
            accepting: None,
            accepting_one_way: None,
            opening: None,
            opening_one_way: None,
            requests,
        }
    }

    /// Whether a stream that came is let in.
    fn let_in(&self, (send, recv): &mut Both, mark: &Arc<AtomicBool>) -> bool {
        let mut known = lock(&self.requests.0);
        let number = u64::from(send.id());
        if known.until.is_some_and(|until| number >= until) {
            // Both fail only on a stream that has ended already.
            let _ = send.reset(code(Code::H3_REQUEST_REJECTED));
            let _ = recv.stop(code(Code::H3_REQUEST_REJECTED));
            return false;
        }
        known.next = known.next.max(number + NEXT);
        let stopped = send.stopped();
        known.latest = Some(Watch {
            // No code: it has all of it.
            stopped: Box::pin(async move { stopped.await.is_ok_and(|code| code.is_none()) }),
            mark: Arc::clone(mark),
        });
        true
    }
}

/// Waits for what `begin` began.
fn made<T>(
    under_way: &mut Option<Made<T>>,
    cx: &mut Context<'_>,
    begin: impl FnOnce() -> Made<T>,
) -> Poll<Result<T, quinn::ConnectionError>> {
    let making = under_way.get_or_insert_with(begin);
    let result = ready!(making.as_mut().poll(cx));
    *under_way = None;
    Poll::Ready(result)
}

impl quic::Connection<Bytes> for Carrier {
    type RecvStream = Reading;
    type OpenStreams = Self;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reading, ConnectionErrorIncoming>> {
        let accepted = made(&mut self.accepting_one_way, cx, || {
            let quic = self.quic.clone();
            Box::pin(async move { quic.accept_uni().await })
        });
        let recv = ready!(accepted).map_err(lost)?;
        let reading = Reading::new(self.quic.clone(), recv, Frames::one_way());
        Poll::Ready(Ok(reading))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Talk, ConnectionErrorIncoming>> {
        loop {
            let accepted = made(&mut self.accepting, cx, || {
                let quic = self.quic.clone();
                Box::pin(async move { quic.accept_bi().await })
            });
            let mut both = ready!(accepted).map_err(lost)?;
            let mark = Arc::default();
            if self.let_in(&mut both, &mark) {
                return Poll::Ready(Ok(Talk::new(self.quic.clone(), both, mark)));
            }
        }
    }

    fn opener(&self) -> Self {
        Self::new(self.quic.clone(), self.requests.clone())
    }
}

impl quic::OpenStreams<Bytes> for Carrier {
    type BidiStream = Talk;
    type SendStream = Writing;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Talk, StreamErrorIncoming>> {
        let opened = made(&mut self.opening, cx, || {
            let quic = self.quic.clone();
            Box::pin(async move { quic.open_bi().await })
        });
        let both = ready!(opened).map_err(lost_stream)?;
        let talk = Talk::new(self.quic.clone(), both, Arc::default());
        Poll::Ready(Ok(talk))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Writing, StreamErrorIncoming>> {
        let opened = made(&mut self.opening_one_way, cx, || {
            let quic = self.quic.clone();
            Box::pin(async move { quic.open_uni().await })
        });
        let send = ready!(opened).map_err(lost_stream)?;
        Poll::Ready(Ok(Writing::new(send, Arc::default())))
    }

    fn close(&mut self, reason: Code, text: &[u8]) {
        self.quic.close(code(reason), text);
    }
}
