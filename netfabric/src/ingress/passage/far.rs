//! The door's side for other nodes' connections and flows: to an instance here, or refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scheduler::route::replay::Aim;
use tokio::time::timeout;

use super::super::Shared;
use super::super::bench::Bench;
use super::super::door::Phase;
use super::super::local::Guard;
use super::super::peer_door::{Choice, PeerDoor, admit};
use super::super::stream::Conduit;
use super::super::upstream::Trip;
use super::carry::{End, here};
use super::packets;
use super::relay::{Joined, relay};
use crate::sockets::Held;
use crate::wire::frame;
use crate::wire::passage::{FRAME_LIMIT, OpenPassage, PassageAnswer};

/// A peer's wish comes with its stream.
const WISH: Duration = Duration::from_secs(5);
const TRIES: usize = 3;

impl PeerDoor {
    /// Serves one stream of another node's door until it ends.
    pub async fn pass(&self, mut stream: Box<dyn Conduit>) {
        let shared = &self.shared;
        let wish = frame::read_value::<_, OpenPassage>(&mut stream, FRAME_LIMIT);
        let Ok(Ok(wish)) = timeout(WISH, wish).await else {
            return stream.cut();
        };
        let served = &shared.counters.served_for_peers;
        served.fetch_add(1, Ordering::Relaxed);
        let passages = &shared.passages;
        let places = if wish.udp {
            &passages.flows
        } else {
            &passages.outside
        };
        let leaves = *shared.phase.borrow() >= Phase::Parting;
        let (answer, reached) = match places.enter_peer() {
            _ if leaves => (PassageAnswer::NotHere, None),
            Some(place) => match find(shared, &wish).await {
                Ok((end, guard)) => {
                    let id = guard.slot.id.as_ref().clone();
                    (PassageAnswer::Open(id), Some((end, guard, place)))
                }
                Err(refusal) => (refusal, None),
            },
            None => (PassageAnswer::Full, None),
        };
        let told = frame::write_value(&mut stream, &answer, FRAME_LIMIT);
        let told = matches!(timeout(WISH, told).await, Ok(Ok(())));
        let Some((end, _guard, _place)) = reached else {
            return;
        };
        if !told {
            return stream.cut();
        }
        pass(shared, stream, end, &wish).await;
    }
}

async fn pass(shared: &Shared, stream: Box<dyn Conduit>, end: End, wish: &OpenPassage) {
    let idle = Duration::from_secs(wish.idle_seconds.max(1).into());
    // They are counted where they came in from outside.
    let nowhere = (&AtomicU64::default(), &AtomicU64::default());
    let ended = match end {
        End::Bytes(server) | End::Framed(server) => {
            let joined = Joined {
                client: stream,
                server,
                held: Held::default(),
                idle,
            };
            relay(shared, joined, nowhere).await
        }
        End::Datagrams(socket) => {
            packets::exchange(stream, &socket, idle, shared.phase.subscribe()).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(revision = %wish.revision, %error, "a peer's connection broke off");
    }
}

/// Connects to one of the revision's instances here.
async fn find(shared: &Shared, wish: &OpenPassage) -> Result<(End, Guard), PassageAnswer> {
    let bench = shared.local.find(&wish.revision);
    let bench: Arc<Bench> = bench.ok_or(PassageAnswer::NotHere)?;
    let choice = Choice::new(shared, Some(&wish.revision), Aim::default());
    let mut refusal = PassageAnswer::NotHere;
    let mut tried = Vec::new();
    while tried.len() < TRIES {
        let Some(guard) = admit(&bench, &choice, &tried) else {
            if tried.is_empty() && bench.open_here() > 0 {
                refusal = PassageAnswer::Full;
            }
            break;
        };
        match here(&guard, wish.udp, wish.port).await {
            Ok(end) => return Ok((end, guard)),
            Err(trip) => {
                guard.blame(&trip);
                match trip {
                    Trip::Port(_) => refusal = PassageAnswer::Closed,
                    Trip::Crowded(_) => refusal = PassageAnswer::Full,
                    _ => {}
                }
            }
        }
        tried.push(Arc::clone(&guard.slot));
    }
    Err(refusal)
}
