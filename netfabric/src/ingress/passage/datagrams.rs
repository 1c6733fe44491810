//! Datagrams to services: those of one sender are a flow, which has an instance of its own choice,
//! like a connection, until nothing moves. A flow's first datagrams wait for the instance; the
//! answers leave from the port they came to. Nothing is ever said to a sender but what the program
//! says: a forged sender gets no more than that program gives away.
//!
//! Known limit: answers of a socket that listens on every address leave from the one the kernel's
//! routing picks; a host with several names the one it serves on in `[ingress] http`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use scheduler::model::Socket;
use tokio::io::split;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep;

use super::super::Shared;
use super::super::door::Phase;
use super::super::local::lock;
use super::super::stream::Conduit;
use super::Way;
use super::carry::{End, Reached, reach};
use super::packets::{self, MAX_DATAGRAM};
use super::relay::Moved;
use crate::places::Place;

/// Datagrams of one flow that wait, for the instance or for their turn; what is above is lost.
const WAITING: usize = 64;
/// After an error of the socket itself, so that the loop does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// A datagram that waits, and its share of the room for all that do.
type Waiting = (Bytes, OwnedSemaphorePermit);

/// The flows of one socket, by their sender.
type Flows = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Waiting>>>>;

/// Serves a service's socket; its flows end with it. While the door closes they go on, and none
/// begins.
pub(super) async fn serve(shared: Arc<Shared>, bound: UdpSocket, socket: Socket) {
    let Ok(server) = bound.local_addr() else {
        return;
    };
    let bound = Arc::new(bound);
    let flows = Flows::default();
    let _closing = Closing(Arc::clone(&flows));
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let (length, client) = match bound.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a datagram");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let known = lock(&flows).get(&client).cloned();
        let inbox = known.or_else(|| begin(&shared, &bound, &flows, (socket, client, server)));
        let datagram = &buffer[..length];
        if inbox
            .and_then(|inbox| pass_on(&shared, &inbox, datagram))
            .is_none()
        {
            shared.passages.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Hands a datagram to its flow, where there is room.
fn pass_on(shared: &Shared, inbox: &mpsc::Sender<Waiting>, datagram: &[u8]) -> Option<()> {
    let bytes = u32::try_from(datagram.len()).ok()?;
    let room = Arc::clone(&shared.passages.waiting)
        .try_acquire_many_owned(bytes)
        .ok()?;
    inbox
        .try_send((Bytes::copy_from_slice(datagram), room))
        .ok()
}

/// A sender's first datagram: its flow, unless there are too many, nobody has the port any more or
/// the door closes.
fn begin(
    shared: &Arc<Shared>,
    bound: &Arc<UdpSocket>,
    flows: &Flows,
    (socket, client, server): (Socket, SocketAddr, SocketAddr),
) -> Option<mpsc::Sender<Waiting>> {
    if *shared.phase.borrow() > Phase::Open {
        return None;
    }
    let service = shared.routes.load().at_socket(socket)?.key.clone();
    let place = shared.passages.flows.enter(client.ip())?;
    let (inbox, datagrams) = mpsc::channel(WAITING);
    lock(flows).insert(client, inbox.clone());
    let entry = Entry {
        flows: Arc::clone(flows),
        client,
        _place: place,
    };
    let way = Way {
        service,
        socket,
        client,
        server,
        seen: Vec::new(),
    };
    let (shared, bound) = (Arc::clone(shared), Arc::clone(bound));
    tokio::spawn(async move {
        let _entry = entry;
        let mut phase = shared.phase.subscribe();
        tokio::select! {
            () = flow(&shared, &bound, &way, datagrams) => {}
            _ = phase.wait_for(|p| *p == Phase::Closed) => {}
        }
    });
    Some(inbox)
}

async fn flow(
    shared: &Arc<Shared>,
    bound: &UdpSocket,
    way: &Way,
    mut datagrams: mpsc::Receiver<Waiting>,
) {
    let Ok(reached) = reach(shared, way).await else {
        return;
    };
    let Reached {
        end,
        listen,
        admission: _counted,
    } = reached;
    let idle = Duration::from_secs(listen.idle_seconds().into());
    let moved = Moved::new();
    let flow = Flow {
        shared,
        bound,
        client: way.client,
        moved: &moved,
    };
    tokio::select! {
        () = async {
            match end {
                End::Datagrams(socket) => flow.here(&socket, &mut datagrams).await,
                End::Framed(stream) | End::Bytes(stream) => flow.there(stream, &mut datagrams).await,
            }
        } => {}
        () = moved.nothing_for(idle) => {}
    }
}

struct Flow<'a> {
    shared: &'a Shared,
    bound: &'a UdpSocket,
    client: SocketAddr,
    moved: &'a Moved,
}

impl Flow<'_> {
    async fn here(&self, socket: &UdpSocket, datagrams: &mut mpsc::Receiver<Waiting>) {
        loop {
            tokio::select! {
                datagram = datagrams.recv() => {
                    let Some((datagram, _room)) = datagram else { return };
                    self.inwards(datagram.len());
                    // Lost on the way, as datagrams are.
                    let _ = socket.send(&datagram).await;
                }
                received = packets::receive(socket) => match received {
                    Ok(datagram) => self.outwards(&datagram).await,
                    // Nobody listens there any more: the next datagram finds another instance.
                    Err(_) => return,
                },
            }
        }
    }

    async fn there(&self, stream: Box<dyn Conduit>, datagrams: &mut mpsc::Receiver<Waiting>) {
        let (mut from, mut to) = split(stream);
        let inwards = async {
            while let Some((datagram, _room)) = datagrams.recv().await {
                self.inwards(datagram.len());
                if packets::write(&mut to, &datagram).await.is_err() {
                    return;
                }
            }
        };
        let outwards = async {
            while let Ok(Some(datagram)) = packets::read(&mut from).await {
                self.outwards(&datagram).await;
            }
        };
        tokio::select! {
            () = inwards => {}
            () = outwards => {}
        }
    }

    fn inwards(&self, length: usize) {
        self.moved.now();
        let sent = &self.shared.passages.sent;
        sent.fetch_add(length as u64, Ordering::Relaxed);
    }

    async fn outwards(&self, datagram: &[u8]) {
        self.moved.now();
        let received = &self.shared.passages.received;
        received.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        // A client that is gone loses nothing.
        let _ = self.bound.send_to(datagram, self.client).await;
    }
}

/// With the socket's end its flows hear no more, and end too.
struct Closing(Flows);

impl Drop for Closing {
    fn drop(&mut self) {
        lock(&self.0).clear();
    }
}

/// A flow's line in the table, and its place.
struct Entry {
    flows: Flows,
    client: SocketAddr,
    _place: Place,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.flows).remove(&self.client);
    }
}
