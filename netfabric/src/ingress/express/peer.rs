//! The express way of other nodes' requests: plain ones to an instance here. One stream is one request.
//! What is not plain is handed over to the general way, as a client's is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use scheduler::model::RevisionKey;
use scheduler::route::replay::Aim;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::conn::{Conn, Waited};
use super::exchange::{Begun, Errand, Failure, begin, finish};
use super::is_plain;
use super::request::{self, Ask, Reading};
use super::response::{self, Recipient};
use crate::ingress::Shared;
use crate::ingress::bench::Bench;
use crate::ingress::body::KEEP_BYTES;
use crate::ingress::door::{HEAD_TIME, Phase};
use crate::ingress::headers::{BROKEN, NOT_HERE, REFUSED, Side, TIMEOUT};
use crate::ingress::local::Guard;
use crate::ingress::peer_door::{Choice, TRIES, admit, meant, named, no_room, patience};
use crate::ingress::stream::Stream;

/// A plain request of another node.
struct Plain {
    ask: Ask,
    revision: Option<RevisionKey>,
    aim: Aim,
    patience: Duration,
    /// The head, as it goes on.
    head: Vec<u8>,
}

/// Why there is no answer: the header that says so to the other door, and its word.
type Refusal = (HeaderName, &'static str);

/// Serves a stream. What is not plain is returned, with what was read of it.
pub(in crate::ingress) async fn serve<S: Stream>(
    shared: &Arc<Shared>,
    stream: S,
) -> Option<(S, Vec<u8>)> {
    let mut conn = Conn::new(stream, Vec::new(), shared.phase.subscribe());
    let Some(plain) = read(&mut conn).await else {
        return Some((conn.stream, conn.seen));
    };
    let bench = plain
        .revision
        .as_ref()
        .and_then(|key| shared.local.find(key));
    let is_plain = |bench: &Arc<Bench>| bench.slots().iter().all(|slot| is_plain(slot));
    if bench.as_ref().is_some_and(|bench| !is_plain(bench)) {
        return Some((conn.stream, conn.seen));
    }
    let served = &shared.counters.served_for_peers;
    served.fetch_add(1, Ordering::Relaxed);
    conn.expect_by(Instant::now() + plain.patience);
    let stays = *shared.phase.borrow() < Phase::Parting;
    let answered = match bench.filter(|_| stays) {
        Some(bench) => {
            let choice = Choice::new(shared, plain.revision.as_ref(), plain.aim.clone());
            answer(&mut conn, (&bench, &choice), &plain).await
        }
        None => Err(Some((REFUSED, NOT_HERE))),
    };
    match answered {
        Ok((guard, begun)) => {
            let (_whole, upstream) = finish(&mut conn, begun).await;
            if let Some(upstream) = upstream {
                guard.slot.pool().put_idle(&guard.slot, upstream);
            }
        }
        Err(Some(refusal)) => drop(conn.send(&refused(refusal)).await),
        // The other door is gone.
        Err(None) => {}
    }
    conn.close().await;
    None
}

/// Waits for a plain head and its body. `None`: it is not plain.
async fn read<S: Stream>(conn: &mut Conn<S>) -> Option<Plain> {
    conn.expect_by(Instant::now() + HEAD_TIME);
    let plain = loop {
        let mut slots = request::slots();
        match request::read(&conn.seen, &mut slots, Side::Peer) {
            Reading::Partial => {}
            Reading::Odd => return None,
            Reading::Plain(plain) => {
                let told = plain.told();
                let mut head = Vec::new();
                plain.write_on(&mut head);
                break Plain {
                    revision: told.revision.and_then(named),
                    aim: meant(told.only, told.not),
                    patience: patience(told.patience),
                    ask: plain.ask,
                    head,
                };
            }
        }
        if conn.fill().await != Waited::Came {
            return None;
        }
    };
    let length = usize::try_from(plain.ask.body.unwrap_or(0)).ok();
    let length = length.filter(|length| *length <= KEEP_BYTES)?;
    let came = conn.fill_to(plain.ask.head + length).await;
    (came == Waited::Came).then_some(plain)
}

/// Tries instances here until one answers; others only while nothing was sent.
async fn answer<S: Stream>(
    conn: &mut Conn<S>,
    (bench, choice): (&Bench, &Choice),
    plain: &Plain,
) -> Result<(Guard, Begun<TcpStream>), Option<Refusal>> {
    let mut tried = Vec::new();
    let (mut stale, mut why) = (0, NOT_HERE);
    loop {
        let Some(guard) = admit(bench, choice, &tried) else {
            if tried.is_empty() {
                why = no_room(bench, choice);
            }
            return Err(Some((REFUSED, why)));
        };
        let failure = match attempt(conn, &guard, plain).await {
            Ok(begun) => return Ok((guard, begun)),
            Err(failure) => failure,
        };
        match failure {
            // An order of the instance's goes on with its answer.
            Failure::Gone | Failure::Replay(..) => return Err(None),
            Failure::Late => return Err(Some((BROKEN, TIMEOUT))),
            // A kept connection was closed as it was used, which is nobody's fault.
            Failure::Stale if plain.ask.method.is_idempotent() && stale < TRIES => stale += 1,
            Failure::Stale => return Err(Some((BROKEN, "reset"))),
            Failure::Trip(trip) => {
                guard.blame(&trip);
                if trip.was_sent() {
                    return Err(Some((BROKEN, "reset")));
                }
                tried.push(Arc::clone(&guard.slot));
                why = trip.refusal();
                if tried.len() >= TRIES {
                    return Err(Some((REFUSED, why)));
                }
            }
        }
    }
}

async fn attempt<S: Stream>(
    conn: &mut Conn<S>,
    guard: &Guard,
    plain: &Plain,
) -> Result<Begun<TcpStream>, Failure> {
    let errand = Errand {
        ask: &plain.ask,
        to: Recipient::Peer(&guard.slot.id.0),
        head: &plain.head,
        of: Side::Client,
    };
    begin(conn, &guard.slot, &errand).await
}

fn refused((header, why): Refusal) -> Vec<u8> {
    let mut out = Vec::new();
    response::status_line(&mut out, StatusCode::SERVICE_UNAVAILABLE.as_u16());
    out.extend_from_slice(format!("{header}: {why}\r\ncontent-length: 0\r\n").as_bytes());
    response::last_lines(&mut out, true, false);
    out
}
