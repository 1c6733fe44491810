//! Byte streams under HTTP: telling HTTP/1 from HTTP/2 by the first bytes, and giving up on a
//! receiver that takes nothing.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::transport::MeshStream;

/// Anything HTTP can be spoken over: a TCP connection, a stream between nodes, a pipe in tests.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream to another node's door, for one request.
pub trait PeerStream: Stream {
    /// The answer has come whole, and nobody needs the stream any more.
    fn answered(self: Box<Self>);
}

impl PeerStream for MeshStream {
    fn answered(self: Box<Self>) {
        self.put_by();
    }
}

/// A stream whose end can be told from its breaking off: what is cut short must not look whole.
pub trait Conduit: Stream {
    /// Breaks it off, both ways; the other end sees a reset.
    fn cut(self: Box<Self>);

    /// Its socket, where it is one and nothing but what it carries.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Conduit for tokio::net::TcpStream {
    fn cut(self: Box<Self>) {
        // Without lingering, closing resets. That fails only where nobody is left to be told.
        let _ = socket2::SockRef::from(&*self).set_linger(Some(Duration::ZERO));
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl Conduit for MeshStream {
    fn cut(self: Box<Self>) {
        self.abort();
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take nothing of what is sent to it.
pub(super) const WRITE_STALL: Duration = Duration::from_mins(1);
/// Who gives or takes fewer bytes a second than this uses up the patience there is with them.
const SLOWEST: u32 = 500;

/// The time that is left to somebody who is waited for, and gets it back by bytes that move.
#[derive(Debug)]
pub(super) struct Leeway {
    most: Duration,
    left: Duration,
    since: Option<Instant>,
}

impl Leeway {
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most,
            left: most,
            since: None,
        }
    }

    /// It is waited from now on, or was before: until when?
    pub(super) fn waits(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now) + self.left
    }

    /// Bytes moved, also when nobody waited for these: what follows them may be waited for.
    pub(super) fn moved(&mut self, bytes: usize) {
        if self.since.is_none() && self.left == self.most {
            return;
        }
        let waited = self
            .since
            .take()
            .map_or(Duration::ZERO, |since| since.elapsed());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let earned = Duration::from_secs(bytes.into()) / SLOWEST;
        self.left = (self.left.saturating_sub(waited) + earned).min(self.most);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// Reads until it is clear what is spoken; what was read, now and before (`seen`), is given back to
/// the reader. An end before that is an error.
pub(super) async fn sniff<S: Stream>(
    mut stream: S,
    mut seen: BytesMut,
) -> io::Result<(Patient<S>, Spoken)> {
    let spoken = loop {
        if seen.is_empty() || PREFACE.starts_with(&seen) {
            seen.reserve(PREFACE.len());
            if stream.read_buf(&mut seen).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        if seen.starts_with(PREFACE) {
            break Spoken::Http2;
        }
        if !PREFACE.starts_with(&seen) {
            break Spoken::Http1;
        }
    };
    Ok((Patient::new(stream, seen), spoken))
}

/// A stream that first gives back what was sniffed, and fails when writes find no taker, or one that takes
/// too little.
pub(super) struct Patient<S> {
    stream: S,
    seen: BytesMut,
    leeway: Leeway,
    /// Made at the first write that had to wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, seen: BytesMut) -> Self {
        Self {
            stream,
            seen,
            leeway: Leeway::new(WRITE_STALL),
            timer: None,
        }
    }

    /// Passes on what a write gave, unless it has been pending for too long.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(written) = written {
            self.leeway.moved(written.as_ref().map_or(0, bytes));
            return Poll::Ready(written);
        }
        let due = self.leeway.waits();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Stream> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seen.has_remaining() {
            let count = self.seen.len().min(buf.remaining());
            buf.put_slice(&self.seen.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Stream> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, data);
        self.bounded(cx, written, |count| *count)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.bounded(cx, written, |count| *count)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, flushed, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, shut, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    async fn sniffed(parts: &[&[u8]]) -> (Spoken, Vec<u8>) {
        let (mut client, server) = duplex(1024);
        let parts: Vec<_> = parts.iter().map(|p| p.to_vec()).collect();
        tokio::spawn(async move {
            for part in parts {
                client.write_all(&part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let (mut stream, spoken) = sniff(server, BytesMut::new()).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        (spoken, all)
    }

    #[tokio::test]
    async fn the_first_bytes_tell_and_are_not_lost() {
        let table: &[(&[&[u8]], Spoken)] = &[
            (&[b"GET / HTTP/1.1\r\n\r\n"], Spoken::Http1),
            (
                &[b"P", b"RI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"more"],
                Spoken::Http2,
            ),
            (&[b"PRI", b" /x HTTP/1.1\r\n"], Spoken::Http1),
            (&[b"P", b"OST / HTTP/1.1\r\n\r\n"], Spoken::Http1),
        ];
        for (parts, want) in table {
            assert_eq!(sniffed(parts).await, (*want, parts.concat()));
        }
        let (client, server) = duplex(8);
        drop(client);
        assert!(sniff(server, BytesMut::new()).await.is_err());
    }

    #[tokio::test]
    async fn a_receiver_that_takes_nothing_is_given_up() {
        let (mut client, server) = duplex(8);
        client.write_all(b"GET /").await.unwrap();
        let (mut stream, _) = sniff(server, BytesMut::new()).await.unwrap();
        stream.leeway = Leeway::new(Duration::from_millis(20));
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_takes_next_to_nothing_is_given_up_too() {
        for (bytes, borne) in [(1, false), (200, false), (300, true)] {
            let (mut client, server) = duplex(1024);
            client.write_all(b"GET /").await.unwrap();
            let (mut stream, _) = sniff(server, BytesMut::new()).await.unwrap();
            let reading = tokio::spawn(async move {
                let mut some = vec![0; bytes];
                while client.read_exact(&mut some).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
            let begun = Instant::now();
            let written = stream.write_all(&vec![0; 200_000]).await;
            assert_eq!(written.is_ok(), borne, "{bytes}");
            assert!(
                begun.elapsed() >= WRITE_STALL,
                "{bytes}: {:?}",
                begun.elapsed()
            );
            drop(stream);
            reading.await.unwrap();
        }
    }

    /// Takes what is written at once, and a moment for each flush, as TLS may.
    struct Sealed(Option<Pin<Box<Sleep>>>, Duration);

    impl AsyncRead for Sealed {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Sealed {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let length = self.1;
            let timer = self
                .0
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(length)));
            ready!(timer.as_mut().poll(cx));
            self.0 = None;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_short_waits_for_what_moves_are_no_long_one() {
        for (bytes, borne) in [(16 * 1024, true), (40, true), (10, false)] {
            let sealed = Sealed(None, Duration::from_millis(50));
            let mut stream = Patient::new(sealed, BytesMut::new());
            let some = vec![0; bytes];
            let mut ended = Ok(());
            for _ in 0..4_000 {
                stream.write_all(&some).await.unwrap();
                ended = stream.flush().await;
                if ended.is_err() {
                    break;
                }
            }
            assert_eq!(ended.is_ok(), borne, "{bytes}");
        }
    }
}
