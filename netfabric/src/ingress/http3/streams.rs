//! QUIC's streams as the HTTP/3 library wants them. What comes is read along (`frames`); an answer that is
//! let go of before its end is broken off, for QUIC would end it as if it were whole.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::{ReadError, VarInt, WriteError};

use super::frames::{Fault, Frames, Piece};

pub(super) type Both = (quinn::SendStream, quinn::RecvStream);

/// A request's stream.
pub(super) struct Talk {
    writing: Writing,
    reading: Reading,
}

impl Talk {
    pub(super) fn new(quic: quinn::Connection, (send, recv): Both, mark: Arc<AtomicBool>) -> Self {
        Self {
            writing: Writing::new(send, mark),
            reading: Reading::new(quic, recv, Frames::request()),
        }
    }
}

impl quic::BidiStream<Bytes> for Talk {
    type SendStream = Writing;
    type RecvStream = Reading;

    fn split(self) -> (Writing, Reading) {
        (self.writing, self.reading)
    }
}

impl quic::SendStream<Bytes> for Talk {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.writing.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.writing.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.writing.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.writing.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.writing.send_id()
    }
}

impl quic::RecvStream for Talk {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.reading.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.reading.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.reading.recv_id()
    }
}

/// What goes to the client. One that is let go of before its end is broken off, unless the answer was the
/// library's own.
pub(super) struct Writing {
    send: quinn::SendStream,
    waiting: Option<WriteBuf<Bytes>>,
    /// Something was written.
    begun: bool,
    /// It was ended or broken off.
    ended: bool,
    /// The answer is ours.
    mark: Arc<AtomicBool>,
}

impl Writing {
    pub(super) fn new(send: quinn::SendStream, mark: Arc<AtomicBool>) -> Self {
        Self {
            send,
            waiting: None,
            begun: false,
            ended: false,
            mark,
        }
    }
}

impl quic::SendStream<Bytes> for Writing {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.waiting {
            while data.has_remaining() {
                let written = Pin::new(&mut self.send).poll_write(cx, data.chunk());
                let written = ready!(written).map_err(unwritten)?;
                self.begun = true;
                data.advance(written);
            }
        }
        self.waiting = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.waiting.is_some() {
            // Somebody gave up waiting for a client that takes nothing.
            let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(StreamErrorIncoming::Unknown(Box::new(error)));
        }
        self.waiting = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let finished = self.send.finish();
        self.ended |= finished.is_ok();
        Poll::Ready(finished.map_err(|e| StreamErrorIncoming::Unknown(Box::new(e))))
    }

    fn reset(&mut self, reset_code: u64) {
        self.ended = true;
        // Fails only on a stream that has ended already.
        let _ = self.send.reset(number(reset_code));
    }

    fn send_id(&self) -> StreamId {
        id(self.send.id())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let own = !self.begun || self.mark.load(Ordering::Relaxed);
        if own && !self.ended {
            // Fails only where the client is gone.
            let _ = self.send.reset(code(Code::H3_REQUEST_CANCELLED));
        }
    }
}

/// What comes from the client.
pub(super) struct Reading {
    quic: quinn::Connection,
    recv: quinn::RecvStream,
    frames: Frames,
    /// Read, and not given on yet.
    chunk: Bytes,
    over: bool,
}

impl Reading {
    pub(super) fn new(quic: quinn::Connection, recv: quinn::RecvStream, frames: Frames) -> Self {
        Self {
            quic,
            recv,
            frames,
            chunk: Bytes::new(),
            over: false,
        }
    }

    fn stop(&mut self, reason: VarInt) {
        // Fails only on a stream that has ended already.
        let _ = self.recv.stop(reason);
    }

    /// Closes the connection, and tells the library that somebody did.
    fn fault(&self, fault: Fault) -> StreamErrorIncoming {
        let error_code = fault.code().value();
        self.quic
            .close(number(error_code), fault.to_string().as_bytes());
        StreamErrorIncoming::ConnectionErrorIncoming {
            connection_error: ConnectionErrorIncoming::ApplicationClose { error_code },
        }
    }
}

impl quic::RecvStream for Reading {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        loop {
            if self.over {
                return Poll::Ready(Ok(None));
            }
            match self.frames.next(&mut self.chunk) {
                Ok(Some(Piece::Bytes(bytes))) => return Poll::Ready(Ok(Some(bytes))),
                Ok(Some(Piece::TooLarge(instead))) => {
                    self.over = true;
                    self.stop(code(Code::H3_EXCESSIVE_LOAD));
                    return Poll::Ready(Ok(Some(instead)));
                }
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Err(self.fault(fault))),
            }
            let read = pin!(self.recv.read_chunk(usize::MAX, true)).poll(cx);
            if let Some(chunk) = ready!(read).map_err(unread)? {
                self.chunk = chunk.bytes;
            } else {
                self.frames.end().map_err(|fault| self.fault(fault))?;
                self.over = true;
            }
        }
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.stop(number(error_code));
    }

    fn recv_id(&self) -> StreamId {
        id(self.recv.id())
    }
}

impl Drop for Reading {
    /// Nobody wants the rest; that is no error (RFC 9114, 4.1).
    fn drop(&mut self) {
        self.stop(code(Code::H3_NO_ERROR));
    }
}

pub(super) fn code(code: Code) -> VarInt {
    number(code.value())
}

fn number(number: u64) -> VarInt {
    VarInt::from_u64(number).unwrap_or(VarInt::MAX)
}

fn id(id: quinn::StreamId) -> StreamId {
    // A number of QUIC's is one of the library's.
    StreamId::try_from(u64::from(id)).unwrap_or_else(|_| unreachable!("{id} is a stream's number"))
}

pub(super) fn lost(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            let error_code = close.error_code.into_inner();
            ConnectionErrorIncoming::ApplicationClose { error_code }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

pub(super) fn lost_stream(error: quinn::ConnectionError) -> StreamErrorIncoming {
    let connection_error = lost(error);
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}

fn unread(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated {
            error_code: code.into_inner(),
        },
        ReadError::ConnectionLost(error) => lost_stream(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

fn unwritten(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated {
            error_code: code.into_inner(),
        },
        WriteError::ConnectionLost(error) => lost_stream(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}
