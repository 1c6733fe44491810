//! HTTP/2 read along by its frames' heads: who sends without end what costs the door work and asks for
//! nothing is told to be calm, and its connection ends. h2 bounds what it keeps (streams, header lists,
//! continuations, small DATA, resets it did not see coming), and not how often it is made to look.
//!
//! Two accounts a connection, each a number (`pace`): frames that carry nothing, and streams that are
//! reset. Time earns, and so does what was sent to the client: a client that takes much in has much to say of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::stream::Stream;
use crate::pace::{Pace, nanos};

/// Frames that carry nothing: so many a second, and so many at once.
const IDLE_EVERY: Duration = Duration::from_millis(10);
const IDLE_AT_ONCE: u32 = 1000;
/// For each frame of an answer's body a client may enlarge two windows, and measure by a ping.
const IDLE_FOR_DATA: u32 = 4;
/// Streams that a client opens and gives up: browsers do that with a page's worth.
const RESET_EVERY: Duration = Duration::from_millis(100);
const RESETS_AT_ONCE: u32 = 100;

/// What a client says before its first frame.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const END_STREAM: u8 = 1;
/// GOAWAY of eight bytes: the last stream and `ENHANCE_YOUR_CALM`, which is 11.
const GOAWAY: [u8; HEAD_BYTES] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const CONTINUATION: u8 = 9;
}

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    length: usize,
    kind: u8,
    ends: bool,
    stream: u32,
}

/// Where one direction is among its frames.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Bytes until the next head begins.
    left: usize,
}

impl Frames {
    /// Takes in what passes, and tells each head.
    fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Head)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let step = self.left.min(bytes.len());
                self.left -= step;
                bytes = &bytes[step..];
                continue;
            }
            let step = (HEAD_BYTES - self.have).min(bytes.len());
            self.head[self.have..self.have + step].copy_from_slice(&bytes[..step]);
            self.have += step;
            bytes = &bytes[step..];
            if self.have == HEAD_BYTES {
                let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
                let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                self.have = 0;
                self.left = length;
                tell(Head {
                    length,
                    kind,
                    ends: kind <= kind::HEADERS && flags & END_STREAM != 0,
                    stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
                });
            }
        }
    }

    /// Whether a frame could begin here.
    fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// The heads in bytes that come in steps, each as its length, kind and stream.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn heads(bytes: &[u8], step: usize) -> Vec<(usize, u8, u32)> {
    let (mut frames, mut accounts, mut told) = (Frames::default(), Accounts::new(), Vec::new());
    for part in bytes.chunks(step) {
        frames.pass(part, |head| {
            accounts.came(head, || 0);
            accounts.went(head);
            told.push((head.length, head.kind, head.stream));
        });
    }
    told
}

/// What a client has used up.
#[derive(Debug)]
struct Accounts {
    idle: Pace,
    idle_until: u64,
    resets: Pace,
    resets_until: u64,
    /// The last stream it opened.
    last: u32,
    /// It used more than it had.
    over: bool,
}

impl Accounts {
    fn new() -> Self {
        Self {
            idle: Pace::new(IDLE_EVERY, IDLE_AT_ONCE),
            idle_until: 0,
            resets: Pace::new(RESET_EVERY, RESETS_AT_ONCE),
            resets_until: 0,
            last: 0,
            over: false,
        }
    }

    fn came(&mut self, head: Head, now: impl Fn() -> u64) {
        let (pace, until) = match head.kind {
            kind::HEADERS => {
                self.last = self.last.max(head.stream);
                return;
            }
            kind::DATA if head.length > 0 || head.ends => return,
            // h2 counts them, header block by header block.
            kind::CONTINUATION => return,
            kind::RST_STREAM => (self.resets, &mut self.resets_until),
            _ => (self.idle, &mut self.idle_until),
        };
        self.over |= pace.take(until, now()).is_err();
    }

    fn went(&mut self, head: Head) {
        if head.ends {
            self.resets_until = self.resets.give(self.resets_until, 1);
        }
        if head.ends || head.kind == kind::DATA {
            self.idle_until = self.idle.give(self.idle_until, IDLE_FOR_DATA);
        }
    }
}

/// A connection whose frames are read along.
pub(super) struct Calm<S> {
    stream: S,
    begun: Instant,
    came: Frames,
    went: Frames,
    accounts: Accounts,
}

impl<S: Stream> Calm<S> {
    pub(super) fn new(stream: S) -> Self {
        let came = Frames {
            left: PREFACE_BYTES,
            ..Frames::default()
        };
        Self {
            stream,
            begun: Instant::now(),
            came,
            went: Frames::default(),
            accounts: Accounts::new(),
        }
    }

    /// Says why, where a frame can begin and the client takes it, and ends.
    fn end(&mut self, cx: &mut Context<'_>) -> io::Error {
        tracing::debug!("a client of HTTP/2 asks for nothing, too often");
        if self.went.is_between() {
            let last = self.accounts.last.to_be_bytes();
            let goaway = [&GOAWAY[..], &last, &ENHANCE_YOUR_CALM].concat();
            // Best effort: nobody is waited for who does not listen.
            let _ = Pin::new(&mut self.stream).poll_write(cx, &goaway);
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        io::ErrorKind::ConnectionAborted.into()
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let accounts = &mut self.accounts;
        self.went.pass(bytes, |head| accounts.went(head));
    }
}

impl<S: Stream> AsyncRead for Calm<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let (accounts, begun) = (&mut this.accounts, this.begun);
        let now = || nanos(begun.elapsed());
        let new = &buf.filled()[before..];
        this.came.pass(new, |head| accounts.came(head, now));
        if this.accounts.over {
            buf.set_filled(before);
            return Poll::Ready(Err(this.end(cx)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Calm<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, data))?;
        this.wrote(&data[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, data))?;
        let mut left = count;
        for slice in data {
            let step = left.min(slice.len());
            this.wrote(&slice[..step]);
            left -= step;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let stream = stream.to_be_bytes();
        [&length[1..], &[kind, flags], &stream, payload].concat()
    }

    #[test]
    fn heads_are_told_however_the_bytes_come() {
        let bytes = [
            frame(4, 0, 0, &[1; 12]),
            frame(1, 5, 1, b"abc"),
            frame(0, 0, 1, &[]),
            frame(0, 1, 1, &[7; 700]),
        ]
        .concat();
        let want = [
            (12, 4, false, 0),
            (3, 1, true, 1),
            (0, 0, false, 1),
            (700, 0, true, 1),
        ];
        for step in [1, 2, 8, 9, 10, 1000] {
            let (mut frames, mut told) = (Frames::default(), Vec::new());
            for part in bytes.chunks(step) {
                frames.pass(part, |h| told.push((h.length, h.kind, h.ends, h.stream)));
            }
            assert_eq!(told, want, "{step}");
            assert!(frames.is_between());
            frames.pass(&[0], |_| {});
            assert!(!frames.is_between());
        }
    }

    fn head(kind: u8, ends: bool) -> Head {
        Head {
            length: 0,
            kind,
            ends,
            stream: 1,
        }
    }

    /// How many of these in a row are borne within one moment.
    fn borne(accounts: &mut Accounts, kind: u8, now: u64) -> usize {
        let before = accounts.over;
        assert!(!before);
        let count = (0..9_999).take_while(|_| {
            accounts.came(head(kind, false), || now);
            !accounts.over
        });
        let count = count.count();
        accounts.over = false;
        count
    }

    #[test]
    fn what_carries_nothing_and_resets_have_a_rate_each() {
        let now = 5 * SECOND;
        for (kind, most) in [
            (0, 1000),
            (2, 1000),
            (3, 100),
            (4, 1000),
            (6, 1000),
            (7, 1000),
            (8, 1000),
            (0x10, 1000),
            (1, 9_999),
            (9, 9_999),
        ] {
            let mut accounts = Accounts::new();
            assert_eq!(borne(&mut accounts, kind, now), most, "{kind}");
        }
        let mut accounts = Accounts::new();
        borne(&mut accounts, 6, now);
        assert_eq!(borne(&mut accounts, 8, now + SECOND), 100, "one account");
        borne(&mut accounts, 3, now);
        assert_eq!(borne(&mut accounts, 3, now + SECOND), 10);
    }

    #[test]
    fn what_is_sent_earns_and_nothing_is_saved_beyond_the_most() {
        let now = 5 * SECOND;
        let mut accounts = Accounts::new();
        borne(&mut accounts, 8, now);
        borne(&mut accounts, 3, now);
        for _ in 0..25 {
            accounts.went(head(0, false));
        }
        assert_eq!(borne(&mut accounts, 8, now), 100);
        assert_eq!(borne(&mut accounts, 3, now), 0);
        for _ in 0..7 {
            accounts.went(head(1, true));
        }
        assert_eq!(borne(&mut accounts, 3, now), 7);
        for _ in 0..100_000 {
            accounts.went(head(0, true));
        }
        assert_eq!(borne(&mut accounts, 8, now), 1000);
        assert_eq!(borne(&mut accounts, 3, now), 100);
    }
}
