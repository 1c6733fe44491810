//! One try over HTTP/1.1, at an instance here or, over a stream, at another node's door: the request
//! out, the answer in and on to who asked, in the task that has both connections.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use scheduler::model::InstanceId;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::conn::{Conn, Waited};
use super::request::{self, Ask};
use super::response::{self, Framing, Garbled, Recipient, Through};
use super::scratch;
use crate::ingress::door::MAX_HEAD_BYTES;
use crate::ingress::headers::{FULL, Side, TIMEOUT};
use crate::ingress::local::Slot;
use crate::ingress::replay::Asked;
use crate::ingress::stream::Stream;
use crate::ingress::upstream::{Trip, WHOLE_BYTES, connect};

/// Bytes of an answer that are held until its head can be passed on: heads and a small body.
const MAX_EARLY: usize = 2 * MAX_HEAD_BYTES;

/// Why a try gave no answer that was passed on whole.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer began.
    Trip(Trip),
    /// A connection that was kept turned out to be closed; whether the request was read is not known.
    Stale,
    /// No answer began within the request's time.
    Late,
    /// The instance, which is named when it is another node's, has it sent elsewhere in the place of answering it.
    Replay(Asked, Option<InstanceId>),
    /// The client is gone, or an answer that had begun cannot be finished.
    Gone,
}

/// An answer whose head is ready for the client.
pub(super) struct Begun<U> {
    pub(super) status: u16,
    /// The client's connection ends after it.
    pub(super) close: bool,
    /// Of another node, when it says so.
    pub(super) instance: Option<InstanceId>,
    upstream: U,
    /// The upstream connection can be used again.
    keep: bool,
    through: Through,
}

/// What the task needs to know of a request that is under way.
pub(super) struct Errand<'a> {
    pub(super) ask: &'a Ask,
    /// Whom the answer is for.
    pub(super) to: Recipient<'a>,
    /// The head as it goes on.
    pub(super) head: &'a [u8],
    /// Who is asked: what another node's door says of its answer is believed.
    pub(super) of: Side,
}

/// Sends the request to an instance that admitted it, and is thawed first, and goes on until an answer
/// begins.
pub(super) async fn begin<S: Stream>(
    conn: &mut Conn<S>,
    slot: &Arc<Slot>,
    errand: &Errand<'_>,
) -> Result<Begun<TcpStream>, Failure> {
    let thawed = slot.thawed().await;
    let still = |e| Trip::Connect(format!("{} stays frozen: {e}", slot.id));
    thawed.map_err(|e| Failure::Trip(still(e)))?;
    let begun = begin_here(conn, slot, errand).await;
    if matches!(begun, Ok(_) | Err(Failure::Replay(..))) {
        slot.answered();
    }
    begun
}

async fn begin_here<S: Stream>(
    conn: &mut Conn<S>,
    slot: &Arc<Slot>,
    errand: &Errand<'_>,
) -> Result<Begun<TcpStream>, Failure> {
    loop {
        let kept = slot.pool().take_idle();
        let is_kept = kept.is_some();
        let mut upstream = match kept {
            Some(upstream) => upstream,
            None => connect(slot, slot.addr).await.map_err(Failure::Trip)?,
        };
        match send(conn, &mut upstream, errand).await {
            Ok(()) => return answer(conn, upstream, is_kept, errand).await,
            // Nothing was sent: the next one.
            Err(Failure::Stale) if is_kept => {}
            Err(Failure::Stale) => {
                let refused = Trip::Connect(format!("{} took nothing", slot.addr));
                return Err(Failure::Trip(refused));
            }
            Err(other) => return Err(other),
        }
    }
}

/// Sends the request on a fresh stream to another node's door.
pub(super) async fn begin_there<S: Stream, U: Stream>(
    conn: &mut Conn<S>,
    mut stream: U,
    errand: &Errand<'_>,
) -> Result<Begun<U>, Failure> {
    match send(conn, &mut stream, errand).await {
        Ok(()) => answer(conn, stream, false, errand).await,
        Err(Failure::Stale) => Err(Failure::Trip(Trip::Connect("the stream ended".to_owned()))),
        Err(other) => Err(other),
    }
}

/// Writes head and body in one go, as nearly always fits. [`Failure::Stale`] when nothing went out.
async fn send<S: Stream, U: Stream>(
    conn: &mut Conn<S>,
    upstream: &mut U,
    errand: &Errand<'_>,
) -> Result<(), Failure> {
    let first = poll_fn(|cx| {
        Poll::Ready(scratch::output(|out| {
            out.extend_from_slice(errand.head);
            let body = usize::try_from(errand.ask.body.unwrap_or(0)).unwrap_or(usize::MAX);
            let from = errand.ask.head;
            out.extend_from_slice(&conn.seen[from..from + body]);
            match Pin::new(&mut *upstream).poll_write(cx, out) {
                Poll::Ready(Ok(count)) if count == out.len() => Ok(Vec::new()),
                Poll::Ready(Ok(count)) => Ok(out.split_off(count)),
                Poll::Ready(Err(_)) => Err(Failure::Stale),
                Poll::Pending => Ok(out.clone()),
            }
        }))
    });
    let rest = first.await?;
    let mut left = rest.as_slice();
    while !left.is_empty() {
        let written = poll_fn(|cx| match Pin::new(&mut *upstream).poll_write(cx, left) {
            Poll::Ready(written) => Poll::Ready(written.map_err(|e| unanswered(&e))),
            Poll::Pending => conn.poll_lost(cx).map(|why| Err(lost(why))),
        });
        match written.await? {
            0 => return Err(broken(&"it takes nothing more")),
            count => left = &left[count..],
        }
    }
    Ok(())
}

/// Nothing came, and nothing will: the other end says that nobody took it, or it broke off.
fn unanswered(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Failure::Trip(Trip::Connect(error.to_string()));
    }
    broken(error)
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::Trip(Trip::Broken(error.to_string()))
}

fn lost(why: Waited) -> Failure {
    match why {
        Waited::Late => Failure::Late,
        Waited::Gone | Waited::Closing | Waited::Came => Failure::Gone,
    }
}

/// Reads until the answer's head can be passed on: small answers with their body.
async fn answer<S: Stream, U: Stream>(
    conn: &mut Conn<S>,
    mut upstream: U,
    is_kept: bool,
    errand: &Errand<'_>,
) -> Result<Begun<U>, Failure> {
    // What came so far, when it was not enough.
    let mut early: Vec<u8> = Vec::new();
    let begun = poll_fn(|cx| {
        loop {
            let step = scratch::input(|input| {
                let mut buf = ReadBuf::new(input);
                let read = ready!(Pin::new(&mut upstream).poll_read(cx, &mut buf));
                let bytes = buf.filled();
                let nothing = bytes.is_empty() && early.is_empty();
                let read = match read {
                    Ok(()) if nothing => Err(io::Error::other("closed without an answer")),
                    read => read,
                };
                Poll::Ready(match read {
                    Ok(()) => hear(conn, bytes, &mut early, errand),
                    Err(_) if is_kept && early.is_empty() => Err(Failure::Stale),
                    Err(error) if early.is_empty() => Err(unanswered(&error)),
                    Err(error) => Err(broken(&error)),
                })
            });
            match step {
                Poll::Ready(Ok(None)) => {}
                Poll::Ready(Ok(Some(begun))) => return Poll::Ready(Ok(begun)),
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => return conn.poll_lost(cx).map(|why| Err(lost(why))),
            }
        }
    })
    .await?;
    Ok(Begun {
        status: begun.status,
        close: begun.close,
        instance: begun.instance,
        upstream,
        keep: begun.keep,
        through: begun.through,
    })
}

struct Heard {
    status: u16,
    close: bool,
    instance: Option<InstanceId>,
    keep: bool,
    through: Through,
}

/// Takes in what came of an answer; no bytes are its end. `None`: not enough yet.
fn hear<S: Stream>(
    conn: &mut Conn<S>,
    bytes: &[u8],
    early: &mut Vec<u8>,
    errand: &Errand<'_>,
) -> Result<Option<Heard>, Failure> {
    let ended = bytes.is_empty();
    let heard = if early.is_empty() {
        pass_head(conn, bytes, ended, errand)
    } else {
        early.extend_from_slice(bytes);
        pass_head(conn, early, ended, errand)
    };
    match heard? {
        Pass::Heard(heard) => Ok(Some(heard)),
        Pass::Replay(asked, instance) => Err(Failure::Replay(asked, instance)),
        Pass::More if ended => Err(broken(&"within the answer: it ended early")),
        // Interim heads without end.
        Pass::More if early.len() > MAX_EARLY => Err(broken(&"no answer in what it says")),
        Pass::More if early.is_empty() => {
            early.extend_from_slice(bytes);
            Ok(None)
        }
        Pass::More => Ok(None),
    }
}

enum Pass {
    More,
    Heard(Heard),
    Replay(Asked, Option<InstanceId>),
}

/// Has the head ready for the client with what is here of the body, unless that is small and not here
/// whole.
fn pass_head<S: Stream>(
    conn: &mut Conn<S>,
    mut bytes: &[u8],
    ended: bool,
    errand: &Errand<'_>,
) -> Result<Pass, Failure> {
    let garbled = |e: Garbled| broken(&e);
    loop {
        let mut slots = request::slots();
        let read =
            response::read(bytes, &mut slots, &errand.ask.method, errand.of).map_err(garbled)?;
        let Some(answer) = read else {
            return Ok(Pass::More);
        };
        let instance = if errand.of == Side::Peer {
            believed(answer.told)?
        } else {
            None
        };
        let body = &bytes[answer.head..];
        if answer.is_interim() {
            bytes = body;
            continue;
        }
        // Another node's door leaves that to the one that has the client.
        if let Some(asked) = answer.asked()
            && matches!(errand.to, Recipient::Client { .. })
        {
            return Ok(Pass::Replay(asked, instance));
        }
        let whole = match answer.framing {
            Framing::Length(length) if length <= WHOLE_BYTES => body.len() as u64 >= length,
            _ => true,
        };
        if !whole {
            return Ok(Pass::More);
        }
        let close = !errand.ask.keep || conn.is_last();
        let mut through = Through::new(answer.framing);
        // Not sent yet: what became of the request is written down before its client knows.
        let out = conn.next();
        answer.write(out, errand.to, close);
        let used = through.pass(body, out).map_err(|e| garbled(e.into()));
        let used = used.inspect_err(|_| conn.take_back())?;
        if ended {
            through.end(conn.next());
        }
        return Ok(Pass::Heard(Heard {
            status: answer.status,
            close,
            instance,
            // More than the answer on it: whose would that be?
            keep: answer.keep && used == body.len() && !ended,
            through,
        }));
    }
}

/// What another node's door says of its answer: a refusal is none.
fn believed(told: response::Told<'_>) -> Result<Option<InstanceId>, Failure> {
    if let Some(why) = told.refused {
        let full = why == FULL.as_bytes();
        return Err(Failure::Trip(Trip::Refused { full }));
    }
    if told.broken == Some(TIMEOUT.as_bytes()) {
        return Err(Failure::Late);
    }
    if let Some(why) = told.broken {
        let why = String::from_utf8_lossy(why).into_owned();
        return Err(Failure::Trip(Trip::BrokenThere(why)));
    }
    let instance = told.instance.and_then(|id| std::str::from_utf8(id).ok());
    Ok(instance.map(|id| InstanceId(id.to_owned())))
}

/// Passes on the rest. Says whether the answer is with who asked whole, and returns the upstream connection
/// where that can be used again.
pub(super) async fn finish<S: Stream, U: Stream>(
    conn: &mut Conn<S>,
    mut begun: Begun<U>,
) -> (bool, Option<U>) {
    while !begun.through.is_over() {
        let more = poll_fn(|cx| poll_more(cx, conn, &mut begun));
        if !more.await {
            return (false, None);
        }
    }
    let kept = begun.keep.then_some(begun.upstream);
    (conn.flush().await, kept)
}

/// Takes in more of the body when the client took what there was. `false`: it cannot be finished.
fn poll_more<S: Stream, U: Stream>(
    cx: &mut Context<'_>,
    conn: &mut Conn<S>,
    begun: &mut Begun<U>,
) -> Poll<bool> {
    match conn.poll_sent(cx) {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(_)) => return Poll::Ready(false),
        Poll::Pending => return conn.poll_lost(cx).map(|_| false),
    }
    let read = scratch::input(|input| {
        let mut buf = ReadBuf::new(input);
        let read = ready!(Pin::new(&mut begun.upstream).poll_read(cx, &mut buf));
        let passed = read.map(|()| pass_on(cx, conn, begun, buf.filled()));
        Poll::Ready(passed.unwrap_or(false))
    });
    match read {
        Poll::Ready(passed) => Poll::Ready(passed),
        Poll::Pending => conn.poll_lost(cx).map(|_| false),
    }
}

fn pass_on<S: Stream, U>(
    cx: &mut Context<'_>,
    conn: &mut Conn<S>,
    begun: &mut Begun<U>,
    bytes: &[u8],
) -> bool {
    // The usual case of a long body needs no copy.
    if let Through::Length(left) = &mut begun.through {
        let mine = usize::try_from(*left)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        *left -= mine as u64;
        begun.keep &= mine == bytes.len();
        if *left == 0 {
            begun.through = Through::Over;
        }
        return mine > 0 && conn.push(cx, &bytes[..mine]).is_ok();
    }
    scratch::output(|out| {
        if bytes.is_empty() {
            return begun.through.end(out) && conn.push(cx, out).is_ok();
        }
        let Ok(used) = begun.through.pass(bytes, out) else {
            return false;
        };
        begun.keep &= used == bytes.len();
        conn.push(cx, out).is_ok()
    })
}
