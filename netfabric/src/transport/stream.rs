//! A bidirectional stream to a peer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use scheduler::model::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::error::is_refusal;
use super::pool::Link;
use super::{Kind, TransportError, code, liveness};
use crate::wire::frame::{self, FrameError};

/// One QUIC stream, both ways. Dropping it ends the writing side cleanly, as `shutdown` does; a
/// writer that gives up half-way calls [`MeshStream::abort`], so that the peer sees an error.
pub struct MeshStream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    kind: Kind,
    /// The peer has not been told what kind it is: that goes with the first bytes, in one packet.
    untold: bool,
    link: Arc<Link>,
}

/// Copied behind the kind's byte at most.
const WITH_KIND: usize = 16 * 1024;

impl MeshStream {
    pub(super) fn new(
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        kind: Kind,
        link: Arc<Link>,
    ) -> Self {
        // Fails only when the peer has closed the stream already; the first write says so.
        let _ = send.set_priority(kind.priority());
        Self {
            send,
            recv,
            kind,
            untold: false,
            link,
        }
    }

    /// The peer sees the stream with its first byte, which goes when something is written or waited for.
    pub(super) async fn open(link: Arc<Link>, kind: Kind) -> Result<Self, TransportError> {
        link.tell_through();
        let ends = link.conn.open_bi().await?;
        let mut stream = Self::new(ends, kind, link);
        stream.untold = true;
        Ok(stream)
    }

    /// Says what kind it is, when that was not said, with as much of `more` as fits; how much of that was
    /// written.
    fn poll_tell(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        let more = &more[..more.len().min(WITH_KIND)];
        let first = [&[self.kind as u8], more].concat();
        let written = AsyncWrite::poll_write(Pin::new(&mut self.send), cx, &first);
        let written = ready!(written.map_err(told))?;
        self.untold = written == 0;
        Poll::Ready(Ok(written.saturating_sub(1)))
    }

    /// The node at the other end, as its certificate says.
    pub fn peer(&self) -> NodeId {
        self.link.peer.node
    }

    pub fn remote_addr(&self) -> SocketAddr {
        self.link.remote
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Which connection this is, and how many datagrams have come on it so far.
    pub(crate) fn pulse(&self) -> (usize, u64) {
        (self.link.conn.stable_id(), self.link.received())
    }

    /// Says that nothing has come on the connection since `received` was read, though something
    /// should have: it is not used again until something does.
    pub(crate) fn doubt(&self, received: u64) {
        self.link.doubt(received);
    }

    /// One frame, at most [`Kind::frame_limit`] bytes; `None` at the end of the stream. Needs a
    /// deadline around it.
    pub async fn read_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let limit = self.kind.frame_limit();
        frame::read_frame(self, limit).await
    }

    pub async fn write_frame(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let limit = self.kind.frame_limit();
        frame::write_frame(self, bytes, limit).await
    }

    pub async fn read_value<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        let limit = self.kind.frame_limit();
        frame::read_value(self, limit).await
    }

    pub async fn write_value<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), FrameError> {
        let limit = self.kind.frame_limit();
        frame::write_value(self, value, limit).await
    }

    /// Ends the writing side; the peer reads to the end.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.shutdown().await
    }

    /// Waits, also when the stream is gone, until the peer has all that was written before it ended, or can
    /// have no more. Says whether that was the peer's word, and not the connection's end.
    pub fn delivered(&self) -> impl Future<Output = bool> + Send + 'static {
        let stopped = self.send.stopped();
        async move { stopped.await.is_ok() }
    }

    /// What is written to a peer that is well is acknowledged within this time.
    pub(crate) fn usual_silence(&self) -> Duration {
        liveness::usual_silence(&self.link)
    }

    /// Ends the stream where nothing more comes, either way. The peer hears of it when it hears of something else.
    pub(crate) fn put_by(self) {
        self.link.put_by((self.send, self.recv));
    }

    /// Breaks the stream off in both directions; the peer's reads and writes fail.
    pub fn abort(self) {
        self.end_with(code::ABORTED);
    }

    /// Says that nobody takes what it asks: the peer may ask elsewhere.
    pub fn refuse(self) {
        self.end_with(code::BUSY);
    }

    pub(super) fn end_with(mut self, code: quinn::VarInt) {
        // Both fail only on a stream that has ended already.
        let _ = self.send.reset(code);
        let _ = self.recv.stop(code);
    }
}

/// An error that says that nobody took what was asked is a refused connection's.
fn told(error: io::Error) -> io::Error {
    if is_refusal(&error) {
        io::Error::new(io::ErrorKind::ConnectionRefused, error)
    } else {
        error
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.untold {
            ready!(self.poll_tell(cx, &[]))?;
        }
        let read = AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf);
        read.map_err(told)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.untold {
            let written = ready!(self.poll_tell(cx, buf))?;
            if written > 0 {
                return Poll::Ready(Ok(written));
            }
        }
        let written = AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf);
        written.map_err(told)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.untold {
            ready!(self.poll_tell(cx, &[]))?;
        }
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

impl std::fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshStream")
            .field("peer", &self.peer())
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
