//! Images over the mesh: serves this node's to its peers, and is the way to theirs. Owns how many
//! are served at once and how fast; what is said is `image`'s.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use netfabric::transport::{Handler, Kind, Mesh, MeshStream};
use netfabric::wire::codec;
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::fleet::Fleet;
use scheduler::model::NodeId;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::image::{Answers, Near, Neighbour};
use crate::images::Images;

/// Requests served at once; more wait for their turn.
const SERVES_AT_ONCE: usize = 64;
/// For so long, which is less than an asker waits: when all nodes of a site fetch the same image from the one
/// that has it, those turned away would ask the registry, over the link that this is to spare.
const TURN: Duration = Duration::from_secs(4);
/// For a request to be read, and for one answer to leave.
const DEADLINE: Duration = Duration::from_secs(10);
/// Answers between the disk and the link.
const ANSWERS_AHEAD: usize = 2;

/// The other nodes as this one sees them.
pub struct ImageMesh {
    pub me: NodeId,
    pub mesh: Mesh,
    pub fleet: watch::Receiver<Arc<Fleet>>,
}

#[async_trait]
impl Near for ImageMesh {
    fn me(&self) -> NodeId {
        self.me
    }

    fn neighbours(&self) -> Vec<Neighbour> {
        let fleet = self.fleet.borrow();
        let own = fleet.members.get(&self.me);
        let region = own.map(|member| member.record.region.clone());
        let alive = fleet.members.values().filter(|m| m.is_reachable());
        let neighbours = alive.map(|m| Neighbour {
            node: m.record.node,
            near: Some(&m.record.region) == region.as_ref(),
            rtt: m.distance_micros().unwrap_or(u32::MAX),
            images: m.record.images.clone(),
        });
        neighbours.collect()
    }

    async fn ask(
        &self,
        node: NodeId,
        request: ImageRequest,
        deadline: Duration,
    ) -> io::Result<Box<dyn Answers>> {
        let opened = self.mesh.open(node, Kind::Images, deadline).await;
        let mut stream = opened.map_err(io::Error::other)?;
        let asked = stream.write_value(&request).await;
        asked.map_err(io::Error::other)?;
        Ok(Box::new(Arriving(stream)))
    }
}

struct Arriving(MeshStream);

#[async_trait]
impl Answers for Arriving {
    async fn next(&mut self) -> io::Result<ImageAnswer> {
        self.0.read_value().await.map_err(io::Error::other)
    }
}

/// Serves images to peers; `rate` bytes a second to each of them, when given.
pub fn serve(mesh: &Mesh, images: Images, rate: Option<u64>) {
    let server = Server {
        images,
        serves: Arc::new(Semaphore::new(SERVES_AT_ONCE)),
        links: Links {
            rate,
            free: Mutex::default(),
        },
    };
    mesh.serve(Kind::Images, Arc::new(server));
}

struct Server {
    images: Images,
    serves: Arc<Semaphore>,
    links: Links,
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, from: NodeId, mut stream: MeshStream) {
        let Ok(Ok(request)) = timeout(DEADLINE, stream.read_value()).await else {
            return stream.abort();
        };
        // Who holds what is asked of all, takes no time, and whoever is not told at once takes it for a no.
        let waits = !matches!(request, ImageRequest::Holds { .. });
        let permit = if waits {
            place(&self.serves).await
        } else {
            None
        };
        if waits && permit.is_none() {
            let refused = ImageAnswer::Refused("too many ask at once".to_owned());
            let _ = timeout(DEADLINE, stream.write_value(&refused)).await;
            return;
        }
        let (answers, mut leaving) = mpsc::channel(ANSWERS_AHEAD);
        let serving = self.images.serve(request, answers);
        let sending = async {
            while let Some(answer) = leaving.recv().await {
                if !self.send(from, &mut stream, &answer).await {
                    // Whoever makes more answers sees that nobody takes them.
                    leaving.close();
                    return false;
                }
            }
            true
        };
        let ((), sent) = tokio::join!(serving, sending);
        drop(permit);
        if !sent {
            stream.abort();
        }
    }
}

/// A place among those that are served, if one is free in time.
async fn place(serves: &Semaphore) -> Option<SemaphorePermit<'_>> {
    timeout(TURN, serves.acquire()).await.ok()?.ok()
}

impl Server {
    async fn send(&self, to: NodeId, stream: &mut MeshStream, answer: &ImageAnswer) -> bool {
        let Ok(bytes) = codec::encode(answer) else {
            return false;
        };
        let now = Instant::now();
        sleep_until(self.links.turn(to, bytes.len() as u64, now)).await;
        let sent = timeout(DEADLINE, stream.write_frame(&bytes)).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }
}

/// When each peer's link is free again for more.
struct Links {
    rate: Option<u64>,
    free: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Links {
    /// When so many bytes may leave for a node.
    fn turn(&self, to: NodeId, bytes: u64, now: Instant) -> Instant {
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else {
            return now;
        };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // Links that are free need no memory.
        free.retain(|_, at| *at > now);
        let at = free.get(&to).copied().unwrap_or(now);
        let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        free.insert(to, at + takes);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_all_are_served_waits_for_a_place() {
        let serves = Semaphore::new(1);
        let first = place(&serves).await.unwrap();
        assert!(place(&serves).await.is_none(), "none was free in time");
        let next = place(&serves);
        let leaves = async {
            sleep_until(Instant::now() + TURN / 2).await;
            drop(first);
        };
        let (next, ()) = tokio::join!(next, leaves);
        assert!(next.is_some());
    }

    #[tokio::test]
    async fn a_link_gets_its_rate_and_another_waits_for_nothing() {
        let links = Links {
            rate: Some(1000),
            free: Mutex::default(),
        };
        let now = Instant::now();
        let (a, b) = (NodeId(1), NodeId(2));
        assert_eq!(links.turn(a, 500, now), now);
        assert_eq!(links.turn(a, 500, now), now + Duration::from_millis(500));
        assert_eq!(links.turn(b, 500, now), now);
        let later = now + Duration::from_secs(5);
        assert_eq!(links.turn(a, 1, later), later, "idle time is not saved up");
    }
}
