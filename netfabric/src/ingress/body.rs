//! Bodies on their way through, never held whole: a request's, of which the first part can be
//! sent a second time, and a response's, which carries the request's admission to its end.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::http3;
use super::local::lock;
use super::stream::Leeway;
use super::upstream::{Arrival, Escort};

/// How much of a request's body is kept until an answer begins, so that another endpoint can be
/// tried. What is kept are references to the received buffers, not copies.
pub(super) const KEEP_BYTES: usize = 64 * 1024;
/// Up to so much it is kept for an instance that has it sent elsewhere in the place of an answer, while
/// there is room for that.
pub(super) const REPLAY_BYTES: usize = 1 << 20;
/// What may be kept above [`KEEP_BYTES`] of all requests together.
const PURSE_BYTES: usize = 64 << 20;

/// Room for what is kept of requests' bodies.
#[derive(Debug)]
pub(super) struct Purse {
    left: AtomicUsize,
}

impl Default for Purse {
    fn default() -> Self {
        Self {
            left: AtomicUsize::new(PURSE_BYTES),
        }
    }
}

impl Purse {
    fn take(&self, bytes: usize) -> bool {
        let rest = |left: usize| left.checked_sub(bytes);
        let order = Ordering::Relaxed;
        self.left.fetch_update(order, order, rest).is_ok()
    }

    fn put(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How long a client may be waited for, in all that it sends of a body, before an answer begins.
const BODY_STALL: Duration = Duration::from_secs(30);

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as it comes in.
#[derive(Debug)]
pub(super) enum Received {
    Hyper(Incoming),
    Http3(Box<http3::Coming>),
}

impl From<Incoming> for Received {
    fn from(body: Incoming) -> Self {
        Self::Hyper(body)
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Hyper(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|f| f.map_err(Into::into)))
            }
            Self::Http3(body) => Pin::new(body.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            Self::Http3(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            Self::Http3(body) => body.size_hint(),
        }
    }
}

/// A request's body as received, read by one try at a time.
#[derive(Debug)]
pub(super) struct Spool {
    inner: Mutex<Inner>,
    length: Option<u64>,
}

#[derive(Debug)]
struct Inner {
    source: Received,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Where what is kept beyond [`KEEP_BYTES`] finds room, and how much of it is taken.
    purse: Option<Arc<Purse>>,
    taken: usize,
    keeping: bool,
    /// Some of what was read is not kept: no second try.
    spent: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
    /// Which try may read; earlier ones find their body broken off.
    turn: u32,
    /// What its sender may do; `None` when that is nobody's affair here, or no longer.
    bounds: Option<Bounds>,
}

/// What a client may do before an answer begins.
#[derive(Debug)]
struct Bounds {
    leeway: Leeway,
    timer: Pin<Box<Sleep>>,
    /// Bytes that it may still send.
    left: u64,
    /// What it did beyond that.
    excess: Option<Excess>,
}

/// How a client's body went beyond its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Late,
    Large,
}

/// A request's body as sent by one try.
#[derive(Debug, Default)]
pub(super) enum Outbound {
    #[default]
    Empty,
    Spooled(Reader),
}

#[derive(Debug)]
pub(super) struct Reader {
    spool: Arc<Spool>,
    turn: u32,
    next: usize,
    read: u64,
    done: bool,
}

impl Spool {
    /// A client's, who may not be as slow as likes, nor send more than `most` bytes. `None` when there is no
    /// body.
    pub(super) fn of_client(
        source: impl Into<Received>,
        purse: &Arc<Purse>,
        most: u64,
    ) -> Option<Arc<Self>> {
        let spool = Self::new(source, Some(purse))?;
        lock(&spool.inner).bounds = Some(Bounds {
            leeway: Leeway::new(BODY_STALL),
            timer: Box::pin(sleep_until(Instant::now() + BODY_STALL)),
            left: most,
            excess: None,
        });
        Some(spool)
    }

    /// `None` when there is no body. Without a purse no more than [`KEEP_BYTES`] are kept.
    pub(super) fn new(
        source: impl Into<Received>,
        purse: Option<&Arc<Purse>>,
    ) -> Option<Arc<Self>> {
        let source = source.into();
        if source.is_end_stream() {
            return None;
        }
        let length = source.size_hint().exact();
        let inner = Inner {
            source,
            kept: Vec::new(),
            kept_bytes: 0,
            purse: purse.cloned(),
            taken: 0,
            keeping: true,
            spent: false,
            ended: false,
            trailers: None,
            turn: 0,
            bounds: None,
        };
        Some(Arc::new(Self {
            inner: Mutex::new(inner),
            length,
        }))
    }

    /// A reader from the beginning; readers before it are cut off. `None` when the beginning is
    /// gone.
    pub(super) fn read(self: &Arc<Self>) -> Option<Outbound> {
        let mut inner = lock(&self.inner);
        if inner.spent {
            return None;
        }
        inner.turn += 1;
        Some(Outbound::Spooled(Reader {
            spool: Arc::clone(self),
            turn: inner.turn,
            next: 0,
            read: 0,
            done: false,
        }))
    }

    /// Cuts off who reads it. Says whether it can be read from the beginning.
    pub(super) fn recall(&self) -> bool {
        let mut inner = lock(&self.inner);
        inner.turn += 1;
        !inner.spent
    }

    pub(super) fn can_repeat(&self) -> bool {
        !lock(&self.inner).spent
    }

    /// An answer has begun: nothing more is kept, and both talk as slowly and as much as they like.
    pub(super) fn settle(&self) {
        let mut inner = lock(&self.inner);
        inner.keeping = false;
        inner.bounds = None;
    }

    /// What its sender did that nobody may.
    pub(super) fn excess(&self) -> Option<Excess> {
        lock(&self.inner).bounds.as_ref()?.excess
    }

    /// How long it is, where that was said.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn is_ended(&self) -> bool {
        lock(&self.inner).ended
    }
}

impl Inner {
    /// The next of what is received, unless its sender is too slow, or sends too much.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.source).poll_frame(cx);
        let Some(bounds) = &mut self.bounds else {
            return frame;
        };
        if let Poll::Ready(frame) = frame {
            let data = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref());
            let bytes = data.map_or(0, Bytes::len);
            bounds.leeway.moved(bytes);
            let Some(left) = bounds.left.checked_sub(bytes as u64) else {
                bounds.excess = Some(Excess::Large);
                return Poll::Ready(Some(Err("its sender sends too much".into())));
            };
            bounds.left = left;
            return Poll::Ready(frame);
        }
        let due = bounds.leeway.waits();
        if bounds.timer.deadline() != due {
            bounds.timer.as_mut().reset(due);
        }
        ready!(bounds.timer.as_mut().poll(cx));
        bounds.excess = Some(Excess::Late);
        Poll::Ready(Some(Err("its sender is too slow".into())))
    }

    fn keep(&mut self, data: &Bytes) {
        if self.keeping && self.has_room(data.len()) {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
        } else {
            self.keeping = false;
            self.spent = true;
        }
    }

    fn has_room(&mut self, more: usize) -> bool {
        let kept = self.kept_bytes + more;
        let above = kept.saturating_sub(KEEP_BYTES.max(self.kept_bytes));
        let Some(purse) = self.purse.as_ref().filter(|_| above > 0) else {
            return above == 0;
        };
        let room = kept <= REPLAY_BYTES && purse.take(above);
        if room {
            self.taken += above;
        }
        room
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(purse) = &self.purse {
            purse.put(self.taken);
        }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Spooled(reader) => reader.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Spooled(reader) => {
                let left = reader.spool.length.map(|l| l.saturating_sub(reader.read));
                left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
        }
    }
}

impl Reader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut inner = lock(&self.spool.inner);
        if inner.turn != self.turn {
            return Poll::Ready(Some(Err("another endpoint is being tried".into())));
        }
        if let Some(data) = inner.kept.get(self.next) {
            self.next += 1;
            self.read += data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        while !inner.ended {
            match ready!(inner.poll_source(cx)) {
                None => inner.ended = true,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        inner.keep(&data);
                        self.next = inner.kept.len();
                        self.read += data.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => inner.trailers = frame.into_trailers().ok(),
                },
            }
        }
        if self.done {
            return Poll::Ready(None);
        }
        self.done = true;
        let trailers = inner.trailers.clone().map(|t| Ok(Frame::trailers(t)));
        Poll::Ready(trailers)
    }
}

/// A response's body as sent to the client.
pub(super) enum Outgoing {
    Own(Option<Bytes>),
    Passing(Box<Passing>),
}

pub(super) struct Passing {
    source: Incoming,
    deadline: Pin<Box<Sleep>>,
    escort: Escort,
    over: bool,
}

impl Outgoing {
    /// What the door itself says.
    pub(super) fn own(self) -> Bytes {
        match self {
            Self::Own(bytes) => bytes.unwrap_or_default(),
            Self::Passing(_) => Bytes::new(),
        }
    }

    /// Until when an answer that comes from elsewhere may take.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::Own(_) => None,
            Self::Passing(passing) => Some(passing.deadline.deadline()),
        }
    }

    /// Passes `body` on until `deadline`; one that is here or empty lets its escort go now.
    pub(super) fn pass(body: Arrival, deadline: Instant, mut escort: Escort) -> Self {
        let source = match body {
            Arrival::Coming(source) if !source.is_end_stream() => source,
            here => {
                escort.arrived();
                return match here {
                    Arrival::Whole(bytes) => Self::Own(Some(bytes)),
                    Arrival::Coming(_) => Self::Own(None),
                };
            }
        };
        Self::Passing(Box::new(Passing {
            source,
            deadline: Box::pin(sleep_until(deadline)),
            escort,
            over: false,
        }))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Passing(passing) => passing.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Passing(passing) => passing.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Passing(passing) => passing.source.size_hint(),
        }
    }
}

impl Passing {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the revision's timeout is over".into())));
        }
        let frame = ready!(Pin::new(&mut self.source).poll_frame(cx));
        // With a known length the server never asks for the frame after the last.
        if frame.is_none() || self.source.is_end_stream() {
            self.over = true;
            self.escort.arrived();
        }
        Poll::Ready(frame.map(|f| f.map_err(Into::into)))
    }
}
