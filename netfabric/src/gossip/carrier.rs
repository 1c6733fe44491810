//! Chitchat's transport over the mesh: each message is one frame on a stream of its own. Sending
//! never waits: there is a short queue and a task per address, and what does not fit is dropped,
//! as a datagram would be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use scheduler::model::NodeId;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::check;
use super::doubt::Doubts;
use crate::transport::{Handler, Kind, Mesh, MeshStream};

/// Messages waiting for one peer: a round brings up to three.
const OUTBOX: usize = 8;
/// Messages waiting for chitchat.
const INBOX: usize = 256;
/// Addresses with a task; chitchat knows at most as many nodes.
const OUTBOXES_MAX: usize = 2048;
/// For a message to be on its way, connecting included.
const SEND_DEADLINE: Duration = Duration::from_secs(4);
/// For a frame to arrive once its stream has begun.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// A task with nothing to send ends after this.
const OUTBOX_IDLE: Duration = Duration::from_mins(1);
/// A message went out and nothing at all came back on that connection for so long: it may be
/// dead, and others should not wait on it until its idle timeout.
const SILENCE: Duration = Duration::from_secs(2);
/// The peer whose message chitchat died of is not listened to for so long.
pub(super) const QUARANTINE: Duration = Duration::from_mins(1);

type Arrived = (SocketAddr, NodeId, ChitchatMessage);

/// The one side of the carrier that outlives chitchat's task.
pub(super) struct Carrier {
    mesh: Mesh,
    cluster_id: String,
    pub doubts: Arc<Doubts>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// To the socket that is open.
    inbox: Option<mpsc::Sender<Arrived>>,
    /// When a message last came from a node itself, over its own connection.
    heard: BTreeMap<NodeId, Instant>,
    /// Whose message chitchat was given last.
    last: Option<NodeId>,
    quarantined: BTreeMap<NodeId, Instant>,
}

impl Carrier {
    pub fn new(mesh: Mesh, cluster_id: String) -> Arc<Self> {
        let carrier = Arc::new(Self {
            doubts: Doubts::new(&mesh),
            mesh,
            cluster_id,
            state: Mutex::default(),
        });
        carrier
            .mesh
            .serve(Kind::Gossip, Arc::new(Ear(Arc::downgrade(&carrier))));
        carrier
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain maps are still good after a thread died holding them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When each node was last heard directly.
    pub fn heard(&self) -> BTreeMap<NodeId, Instant> {
        self.state().heard.clone()
    }

    /// Shuts the ear to the peer whose message was the last chitchat saw.
    pub fn quarantine_last(&self) -> Option<NodeId> {
        let mut state = self.state();
        let culprit = state.last.take()?;
        state
            .quarantined
            .insert(culprit, Instant::now() + QUARANTINE);
        Some(culprit)
    }

    fn arrived(&self, from: NodeId, remote: SocketAddr, bytes: &[u8]) {
        if let Err(unfit) = check::check(bytes, &self.cluster_id) {
            return debug!(node = %from, %unfit, "a gossip message is not passed on");
        }
        let Ok(message) = ChitchatMessage::deserialize(&mut &*bytes) else {
            return debug!(node = %from, "a gossip message is malformed");
        };
        let mut state = self.state();
        let now = Instant::now();
        if state
            .quarantined
            .get(&from)
            .is_some_and(|until| now < *until)
        {
            return;
        }
        state.quarantined.remove(&from);
        state.heard.insert(from, now);
        self.doubts.heard(from);
        if let Some(inbox) = &state.inbox {
            // Full: chitchat is behind, and the next round will tell it anyway.
            let _ = inbox.try_send((remote, from, message));
        }
    }
}

/// Takes the mesh's gossip streams in.
struct Ear(std::sync::Weak<Carrier>);

#[async_trait]
impl Handler for Ear {
    async fn handle(&self, from: NodeId, mut stream: MeshStream) {
        let Some(carrier) = self.0.upgrade() else {
            return;
        };
        if let Ok(Ok(Some(bytes))) = timeout(READ_DEADLINE, stream.read_frame()).await {
            carrier.arrived(from, stream.remote_addr(), &bytes);
        }
    }
}

/// What chitchat opens its socket on, anew after each of its deaths.
pub(super) struct Wire(pub Arc<Carrier>);

#[async_trait]
impl Transport for Wire {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (sender, inbox) = mpsc::channel(INBOX);
        self.0.state().inbox = Some(sender);
        Ok(Box::new(MeshSocket {
            carrier: self.0.clone(),
            inbox,
            outboxes: BTreeMap::new(),
        }))
    }
}

struct MeshSocket {
    carrier: Arc<Carrier>,
    inbox: mpsc::Receiver<Arrived>,
    outboxes: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>>,
}

#[async_trait]
impl Socket for MeshSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let bytes = message.serialize_to_vec();
        if bytes.len() > Kind::Gossip.frame_limit() {
            debug!(%to, len = bytes.len(), "a gossip message is too large to send");
            return Ok(());
        }
        let bytes = match self.outboxes.get(&to).map(|outbox| outbox.try_send(bytes)) {
            Some(Err(mpsc::error::TrySendError::Closed(bytes))) => bytes,
            // Sent, or full and dropped.
            Some(_) => return Ok(()),
            None => message.serialize_to_vec(),
        };
        if self.outboxes.len() >= OUTBOXES_MAX {
            self.outboxes.retain(|_, outbox| !outbox.is_closed());
        }
        if self.outboxes.len() < OUTBOXES_MAX {
            let (outbox, queue) = mpsc::channel(OUTBOX);
            tokio::spawn(deliver(self.carrier.clone(), to, queue));
            // Cannot be full: it is new.
            let _ = outbox.try_send(bytes);
            self.outboxes.insert(to, outbox);
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let arrived = self.inbox.recv().await;
        let (remote, from, message) =
            arrived.ok_or_else(|| anyhow::anyhow!("another gossip socket was opened"))?;
        self.carrier.state().last = Some(from);
        Ok((remote, message))
    }
}

/// Sends what is queued for one address until nobody queues any more.
async fn deliver(carrier: Arc<Carrier>, to: SocketAddr, mut queue: mpsc::Receiver<Vec<u8>>) {
    let (mesh, mut pulse) = (&carrier.mesh, None);
    while let Ok(Some(bytes)) = timeout(OUTBOX_IDLE, queue.recv()).await {
        let send = async {
            let mut stream = mesh.open_addr(to, Kind::Gossip, SEND_DEADLINE).await.ok()?;
            pulse = Some(feel(&stream, pulse));
            stream.write_frame(&bytes).await.ok()?;
            stream.finish().await.ok()?;
            Some(stream)
        };
        let Ok(Some(stream)) = timeout(SEND_DEADLINE, send).await else {
            debug!(%to, "a gossip message did not get through");
            continue;
        };
        if timeout(stream.usual_silence(), stream.delivered())
            .await
            .is_err()
        {
            carrier.doubts.raise(stream.peer());
        }
    }
}

/// A connection, how many datagrams had come on it, and since when none came.
type Pulse = (usize, u64, Instant);

/// Compares with the last send; doubts a connection that stays silent though it was written to.
fn feel(stream: &MeshStream, before: Option<Pulse>) -> Pulse {
    let (id, received) = stream.pulse();
    match before {
        Some((same, so_far, since)) if (same, so_far) == (id, received) => {
            if since.elapsed() > SILENCE {
                stream.doubt(received);
            }
            (id, received, since)
        }
        _ => (id, received, Instant::now()),
    }
}
