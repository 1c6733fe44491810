//! HTTP/1 on the general way, read once more before hyper reads it: what is ambiguous never gets there.
//! hyper forgives what some others do not (a line feed alone, a length beside a coding), and where two
//! disagree on where a request ends, a second one hides in the first.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use httparse::{Header, ParserConfig, Request, Status};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::chunks::Chunks;
use super::headers::Bounds;
use super::stream::Stream;

/// The beginning of what hyper is given in the place of a head that is refused.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n";
/// It answers 400 to this, and closes.
const REFUSED: &[u8] = b"\0\r\n\r\n";
/// And 431 to more of these than it may take.
const TOO_MANY: &str = "x:\r\n";
const READ: usize = 8 * 1024;
/// For an answer to arrive and for its client to stop sending.
const LINGER: Duration = Duration::from_secs(2);

/// No line of a head ends in a line feed alone.
pub(super) fn lines_end_well(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

/// A length in digits and nothing else, and not so many that it could overflow.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(value).ok().filter(|_| digits);
    digits?.parse().ok()
}

#[derive(Debug)]
enum At {
    Head,
    Length(u64),
    Chunks(Chunks),
    /// No more HTTP, or nothing that is ours to judge.
    Beyond,
    /// It is refused: nobody is to read what follows.
    Refused,
    /// A body that is none; what stands before it is passed on still.
    Broken,
}

/// A connection whose requests are read along.
pub(super) struct Strict<S> {
    stream: S,
    bounds: Bounds,
    at: At,
    /// Read, and not judged yet.
    held: BytesMut,
    /// Judged, and not given on yet.
    good: BytesMut,
    /// Until when a client that was answered while it sent may go on sending to nobody.
    lingers: Option<Pin<Box<Sleep>>>,
}

impl<S> Strict<S> {
    pub(super) fn new(stream: S, bounds: Bounds) -> Self {
        Self {
            stream,
            bounds,
            at: At::Head,
            held: BytesMut::new(),
            good: BytesMut::new(),
            lingers: None,
        }
    }

    /// Whether the client is likely to be sending still. What it sends to a closed connection is answered
    /// with a reset, and whoever gets that may lose an answer that it has not read yet.
    fn is_unread(&self) -> bool {
        let within = match self.at {
            At::Head => !self.held.is_empty(),
            At::Length(_) | At::Chunks(_) | At::Refused | At::Broken => true,
            At::Beyond => false,
        };
        within || !self.good.is_empty()
    }

    /// Gives hyper something to refuse in the place of what was read.
    fn refuse(&mut self, instead: &[u8]) {
        self.held.clear();
        self.good.extend_from_slice(REQUEST);
        self.good.extend_from_slice(instead);
        self.at = At::Refused;
    }

    /// Judges what is held, as far as that goes.
    fn judge(&mut self) {
        while !self.held.is_empty() {
            let step = match &mut self.at {
                At::Head => match head(&self.held, self.bounds) {
                    Judged::Partial => return,
                    Judged::Refused => {
                        self.refuse(REFUSED);
                        return;
                    }
                    Judged::Large => {
                        self.refuse(TOO_MANY.repeat(self.bounds.headers + 1).as_bytes());
                        return;
                    }
                    Judged::Head(length, next) => {
                        self.at = next;
                        length
                    }
                },
                At::Length(left) => {
                    let all = self.held.len();
                    let step = usize::try_from(*left).map_or(all, |left| left.min(all));
                    *left -= step as u64;
                    step
                }
                At::Chunks(chunks) => {
                    let Ok(step) = chunks.take(&self.held, |_| {}) else {
                        self.at = At::Broken;
                        continue;
                    };
                    step
                }
                At::Beyond => self.held.len(),
                At::Refused | At::Broken => return self.held.clear(),
            };
            self.good.unsplit(self.held.split_to(step));
            let over = match &self.at {
                At::Length(left) => *left == 0,
                At::Chunks(chunks) => chunks.is_over(),
                At::Head | At::Beyond | At::Refused | At::Broken => false,
            };
            if over {
                self.at = At::Head;
            }
        }
    }
}

enum Judged {
    Partial,
    Refused,
    Large,
    /// The head's length, and what follows it.
    Head(usize, At),
}

fn head(bytes: &[u8], bounds: Bounds) -> Judged {
    let mut slots = [const { MaybeUninit::<Header<'_>>::uninit() }; Bounds::PEER.headers];
    let slots = &mut slots[..bounds.headers];
    let mut request = Request::new(&mut []);
    let parsed =
        ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, slots);
    let length = match parsed {
        Ok(Status::Complete(length)) if length <= bounds.bytes => length,
        Ok(Status::Partial) if bytes.len() <= bounds.bytes => return Judged::Partial,
        Ok(_) => return Judged::Large,
        // hyper reads it with the same parser, and knows the words for it.
        Err(_) => return Judged::Head(bytes.len(), At::Beyond),
    };
    if !lines_end_well(&bytes[..length]) {
        return Judged::Refused;
    }
    follows(&request).map_or(Judged::Refused, |next| Judged::Head(length, next))
}

/// Where a head ends and how long its body is, when both are told in the plain way.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn framed(bytes: &[u8]) -> Option<(usize, u64)> {
    match head(bytes, Bounds::CLIENT) {
        Judged::Head(length, At::Head) => Some((length, 0)),
        Judged::Head(head, At::Length(body)) => Some((head, body)),
        _ => None,
    }
}

/// Whether hyper is given something to refuse at the end of this.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn ends_refused(bytes: &[u8]) -> bool {
    bytes.ends_with(REFUSED) || bytes.ends_with(TOO_MANY.as_bytes())
}

/// What follows a head; `None` when it says so in more than one way.
fn follows(request: &Request<'_, '_>) -> Option<At> {
    let named = |name: &'static str| {
        let headers = request.headers.iter();
        headers
            .filter(move |h| h.name.eq_ignore_ascii_case(name))
            .map(|h| h.value)
    };
    let (mut lengths, mut codings) = (named("content-length"), named("transfer-encoding"));
    let next = match (lengths.next(), codings.next()) {
        (None, None) => At::Head,
        (Some(value), None) => match length(value)? {
            0 => At::Head,
            length => At::Length(length),
        },
        (None, Some(coding)) => {
            let chunked = coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1);
            chunked.then(|| At::Chunks(Chunks::default()))?
        }
        (Some(_), Some(_)) => return None,
    };
    if lengths.next().is_some() || codings.next().is_some() {
        return None;
    }
    // When it is agreed to, what follows is not HTTP; when not, the connection ends (`dispatch`).
    if named("upgrade").next().is_some() && matches!(next, At::Head) {
        return Some(At::Beyond);
    }
    Some(next)
}

impl<S: Stream> AsyncRead for Strict<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.good.is_empty() {
                let count = this.good.len().min(buf.remaining());
                buf.put_slice(&this.good[..count]);
                this.good.advance(count);
                return Poll::Ready(Ok(()));
            }
            if matches!(this.at, At::Refused) {
                return Poll::Ready(Ok(()));
            }
            if matches!(this.at, At::Broken) {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            // Nothing to judge in there: no copy.
            let plain = match &mut this.at {
                At::Beyond => Some(None),
                At::Length(left) if *left > buf.remaining() as u64 => Some(Some(left)),
                _ => None,
            };
            if let Some(left) = plain {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                if let Some(left) = left {
                    *left -= (buf.filled().len() - before) as u64;
                }
                return Poll::Ready(Ok(()));
            }
            let held = this.held.len();
            this.held.resize(held + READ, 0);
            let mut room = ReadBuf::new(&mut this.held[held..]);
            let read = Pin::new(&mut this.stream).poll_read(cx, &mut room);
            let count = room.filled().len();
            this.held.truncate(held + count);
            ready!(read)?;
            if count == 0 {
                // The end, in the middle of a head perhaps: hyper is to know how far it came.
                this.good.unsplit(this.held.split());
                this.at = At::Beyond;
                if this.good.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            this.judge();
        }
    }
}

impl<S: Stream> AsyncWrite for Strict<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Says that nothing more comes, and hears out who is in the middle of a request.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let timer = if let Some(timer) = &mut this.lingers {
            timer
        } else {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.is_unread() {
                return Poll::Ready(Ok(()));
            }
            this.lingers.insert(Box::pin(sleep(LINGER)))
        };
        let mut unread = [0; READ];
        while timer.as_mut().poll(cx).is_pending() {
            let mut room = ReadBuf::new(&mut unread);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut room));
            if read.is_err() || room.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn passed(bytes: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let (mut client, server) = duplex(64);
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            for part in bytes.chunks(step) {
                client.write_all(part).await.unwrap();
            }
        });
        let mut all = Vec::new();
        Strict::new(server, Bounds::CLIENT)
            .read_to_end(&mut all)
            .await?;
        Ok(all)
    }

    #[tokio::test]
    async fn good_requests_pass_and_what_comes_after_bad_ones_does_not() {
        let get = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        let good = [
            get.repeat(3),
            format!("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nbox{get}"),
            format!(
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbox\r\n0\r\n\r\n{get}"
            ),
            "GET / HTTP/1.1\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n\n\nanything".to_owned(),
            "GET / HT".to_owned(),
        ];
        for text in &good {
            for step in [1, 5, 1000] {
                let all = passed(text.as_bytes(), step).await.unwrap();
                assert_eq!(String::from_utf8(all).unwrap(), *text);
            }
        }
        let bad = [
            "GET / HTTP/1.1\nhost: h\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: +3\r\n\r\n",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        ];
        for text in bad {
            let all = passed(format!("{get}{text}").as_bytes(), 1000)
                .await
                .unwrap();
            assert_eq!(all, [get.as_bytes(), REQUEST, REFUSED].concat(), "{text:?}");
        }
        let torn = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\nbox";
        assert!(passed(torn.as_bytes(), 1000).await.is_err());
    }
}
