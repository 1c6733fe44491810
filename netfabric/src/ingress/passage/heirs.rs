//! Connections that the daemon before this one carried unread, and left.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::super::Shared;
use super::super::local::Guard;
use super::super::stream::Conduit;
use super::relay::{Joined, relay};
use crate::sockets::Carried;

/// Until the agent has found again what ran.
const FOUND: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(25);

/// Goes on with one until it ends. Call it before others are let in: it has had its place.
pub(in super::super) fn go_on(shared: &Arc<Shared>, connection: Carried) {
    let Carried {
        client,
        server,
        held,
        idle,
    } = connection;
    // Who has ended already has no address any more, but words of theirs may wait to be passed on.
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    let end = |stream: &std::net::TcpStream| stream.peer_addr().unwrap_or(nobody).ip();
    let (caller, instance) = (end(&client), end(&server));
    let streams = TcpStream::from_std(client).and_then(|c| Ok((c, TcpStream::from_std(server)?)));
    let Ok((client, server)) = streams else {
        return tracing::warn!("a connection of the daemon before cannot be gone on with");
    };
    let places = match shared.callers.who(caller) {
        Some(_) => &shared.passages.inside,
        None => &shared.passages.outside,
    };
    let (client, server) = (Box::new(client), Box::new(server));
    let Some(place) = places.enter(caller) else {
        client.cut();
        return server.cut();
    };
    let joined = Joined {
        client,
        server,
        held,
        idle,
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _place = place;
        let counts = (&shared.passages.sent, &shared.passages.received);
        let counted = async {
            let _guard = readmitted(&shared, instance).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            carried = relay(&shared, joined, counts) => {
                if let Err(error) = carried {
                    tracing::debug!(%instance, %error, "a connection broke off");
                }
            }
            () = counted => {}
        }
    });
}

/// It counts in its instance again as soon as that is known.
async fn readmitted(shared: &Shared, instance: IpAddr) -> Option<Guard> {
    let until = Instant::now() + FOUND;
    while Instant::now() < until {
        if let Some(guard) = shared.local.at(instance).and_then(|slot| slot.readmit()) {
            return Some(guard);
        }
        sleep(LOOK).await;
    }
    None
}
