//! Hearing an endpoint out: one that answers before it has read a request's whole body, as with a refusal,
//! and closes, breaks the sending off; what it said is here all the same.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::Stream;

/// A stream to somebody who may answer before it has read everything: when it takes nothing more, what it
/// said is read to its end before the failure is told.
pub(super) struct Attentive<S> {
    stream: S,
    /// Why it takes nothing more.
    deaf: Option<io::ErrorKind>,
    /// Nothing more comes from it.
    over: bool,
}

impl<S> Attentive<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            deaf: None,
            over: false,
        }
    }

    /// Keeps a failed write waiting for as long as there is something to read: reading wakes who waits.
    fn written<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) if !self.over && stopped_reading(&error) => {
                self.deaf = Some(error.kind());
                Poll::Pending
            }
            other => other,
        }
    }

    fn poll_heard<T>(&self) -> Option<Poll<io::Result<T>>> {
        let kind = self.deaf?;
        Some(if self.over {
            Poll::Ready(Err(kind.into()))
        } else {
            Poll::Pending
        })
    }
}

fn stopped_reading(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

impl<S: Stream> AsyncRead for Attentive<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if read.is_err() || buf.filled().len() == before {
            self.over = true;
            if self.deaf.is_some() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(read)
    }
}

impl<S: Stream> AsyncWrite for Attentive<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(heard) = self.poll_heard() {
            return heard;
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(heard) = self.poll_heard() {
            return heard;
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(heard) = self.poll_heard() {
            return heard;
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
