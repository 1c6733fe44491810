//! Connections of one thread's own to the peers that it has much to ask of: what it asks there changes no threads on
//! this side. They are made once it is seen that they pay, next to the mesh's, which has all else: until then, and
//! where they cannot be made, streams are the mesh's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use scheduler::model::NodeId;
use tokio::runtime::Handle;
use tokio::time::{Instant, interval, timeout};
use tracing::debug;

use super::pool::Link;
use super::{CLOSE_WAIT, Kind, Mesh, MeshStream, TransportError, code, endpoint, liveness, lock};

/// So many streams to a peer within [`WORTH_WITHIN`] are worth a connection.
const WORTH: u32 = 8;
const WORTH_WITHIN: Duration = Duration::from_secs(10);
/// A connection that had no stream for so long is closed: it would be kept alive for nothing.
const IDLE: Duration = Duration::from_secs(30);
/// After a failed dial: a peer of an earlier version, or a firewall that lets the mesh's port through alone.
const BACK_OFF: Duration = Duration::from_secs(30);
/// Who holds a connection that has no stream: the branch, and the one who watches it.
const WITHOUT_STREAMS: usize = 2;

/// One thread's own connections. It lives until the mesh ends or [`Branch::close`].
pub struct Branch {
    trunk: Mesh,
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    runtime: Handle,
    lines: Mutex<BTreeMap<NodeId, Line>>,
}

/// What there is to a peer.
enum Line {
    /// So many streams since then, all of them the mesh's.
    Asked(u32, Instant),
    Dialling,
    FailedUntil(Instant),
    /// When it last was given a stream.
    Live(Arc<Link>, Instant),
}

impl Line {
    /// The connection, when it had no stream for long.
    fn idle(&self, now: Instant) -> Option<&Arc<Link>> {
        let Self::Live(link, used) = self else {
            return None;
        };
        let idle = now - *used >= IDLE && Arc::strong_count(link) <= WITHOUT_STREAMS;
        idle.then_some(link)
    }
}

impl Branch {
    pub(super) fn open(trunk: Mesh) -> Result<Self, TransportError> {
        let runtime = Handle::current();
        let inner = &trunk.inner;
        let (endpoint, client) =
            endpoint::open_branch(inner.local, &inner.identity, runtime.clone())?;
        Ok(Self {
            trunk,
            endpoint,
            client,
            runtime,
            lines: Mutex::default(),
        })
    }

    /// A stream to a node, when there is a connection that has one to give at once: this thread's, or the mesh's.
    pub fn open_now(self: &Arc<Self>, to: NodeId, kind: Kind) -> Option<MeshStream> {
        let own = self.link(to, Instant::now());
        let own = own.and_then(|link| MeshStream::open(link, kind).now_or_never()?.ok());
        own.or_else(|| self.trunk.open_now(to, kind))
    }

    /// The connection to a node, or one more reason to make it.
    fn link(self: &Arc<Self>, to: NodeId, now: Instant) -> Option<Arc<Link>> {
        let mut lines = lock(&self.lines);
        let line = lines.entry(to).or_insert(Line::Asked(0, now));
        match line {
            Line::Live(link, used) => {
                *used = now;
                return link.is_usable().then(|| link.clone());
            }
            Line::Dialling => {}
            Line::FailedUntil(until) if now < *until => {}
            Line::Asked(streams, since) if now - *since < WORTH_WITHIN => {
                *streams += 1;
                if *streams >= WORTH
                    && let Some(addr) = self.trunk.addr(to)
                {
                    *line = Line::Dialling;
                    self.runtime.spawn(self.clone().reach(to, addr));
                }
            }
            Line::Asked(..) | Line::FailedUntil(_) => *line = Line::Asked(1, now),
        }
        None
    }

    async fn reach(self: Arc<Self>, node: NodeId, addr: SocketAddr) {
        let link = self.dial(node, addr).await;
        let now = Instant::now();
        let line = match &link {
            Ok(link) => Line::Live(link.clone(), now),
            Err(error) => {
                debug!(%node, %error, "no connection of a thread's own");
                Line::FailedUntil(now + BACK_OFF)
            }
        };
        lock(&self.lines).insert(node, line);
        if let Ok(link) = link {
            self.trunk.inner.ask_again(&link);
            tokio::select! {
                () = liveness::watch(link, self.trunk.inner.silences.clone()) => {}
                () = self.rest(node) => {}
            }
            lock(&self.lines).remove(&node);
        }
    }

    /// Closes the connection to a node once it had nothing to do for long.
    async fn rest(&self, node: NodeId) {
        let mut looks = interval(IDLE / 3);
        loop {
            looks.tick().await;
            let mut lines = lock(&self.lines);
            if let Some(link) = lines.get(&node).and_then(|l| l.idle(Instant::now())) {
                link.conn.close(code::CLOSING, b"idle");
                // Nobody is given a stream of it any more.
                lines.remove(&node);
                return;
            }
        }
    }

    async fn dial(&self, node: NodeId, addr: SocketAddr) -> Result<Arc<Link>, TransportError> {
        let ends = (&self.endpoint, &self.client);
        let (conn, peer) = self.trunk.inner.greet(ends, addr).await?;
        if peer.node == node {
            return Ok(Arc::new(Link::new(conn, peer, Some(addr)).busy()));
        }
        conn.close(code::CLOSING, b"another node");
        Err(TransportError::WrongPeer {
            addr,
            wanted: node,
            found: peer.node,
        })
    }

    /// Ends the connection to a node that is not to be spoken to.
    pub(super) fn disconnect(&self, node: NodeId) {
        if let Some(Line::Live(link, _)) = lock(&self.lines).get(&node) {
            link.conn.close(code::NOT_ADMITTED, b"not admitted");
        }
    }

    pub(super) fn end(&self, code: quinn::VarInt) {
        self.endpoint.close(code, b"closing");
    }

    /// Says goodbye to the peers, before the runtime of this thread ends.
    pub async fn close(&self) {
        self.end(code::CLOSING);
        let _ = timeout(CLOSE_WAIT, self.endpoint.wait_idle()).await;
    }
}

impl std::fmt::Debug for Branch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Branch")
            .field("of", &self.trunk)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::Handler;
    use super::super::testing::{Banned, Cluster, Fickle, PATIENCE, eventually};
    use super::super::tests::Echo;
    use super::*;

    const TWO: NodeId = NodeId(2);

    /// One asks two, which answers; they have a connection.
    async fn pair(cluster: &Cluster) -> (Mesh, Mesh) {
        let (one, two) = (cluster.mesh(1), cluster.mesh(2));
        two.serve(Kind::Proxy, Arc::new(Echo));
        one.set_addr(TWO, two.local_addr());
        assert!(one.answers(TWO, PATIENCE).await);
        (one, two)
    }

    fn has_own(branch: &Branch) -> bool {
        matches!(lock(&branch.lines).get(&TWO), Some(Line::Live(..)))
    }

    fn is_dialling(branch: &Branch) -> bool {
        matches!(lock(&branch.lines).get(&TWO), Some(Line::Dialling))
    }

    async fn asks(branch: &Arc<Branch>) {
        let mut stream = branch.open_now(TWO, Kind::Proxy).unwrap();
        stream.write_all(b"word").await.unwrap();
        stream.finish().await.unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "word");
    }

    /// A branch that has asked until it had a connection of its own.
    async fn grown(mesh: &Mesh) -> Arc<Branch> {
        let branch = mesh.branch().unwrap();
        for _ in 0..WORTH {
            assert!(!has_own(&branch));
            asks(&branch).await;
        }
        eventually("a connection of its own", || has_own(&branch)).await;
        branch
    }

    #[tokio::test]
    async fn many_streams_are_worth_a_connection_that_is_only_for_them() {
        let cluster = Cluster::found();
        let (one, two) = pair(&cluster).await;
        let branch = grown(&one).await;
        let shared = lock(&one.inner.pool).link(TWO).unwrap();
        let streams = || shared.conn.stats().frame_tx.stream;
        let before = streams();
        asks(&branch).await;
        assert_eq!(streams(), before, "nothing goes over the mesh's");
        let branches = || lock(&two.inner.pool).branches_of(NodeId(1));
        assert_eq!(branches(), 1);
        // The other way round there is the mesh's alone.
        assert_eq!(lock(&two.inner.pool).links_with(NodeId(1)), 1);
        branch.close().await;
        eventually("the goodbye is heard", || branches() == 0).await;
        asks(&branch).await;
    }

    /// Answers at once, and counts the streams whose end it hears of.
    #[derive(Default)]
    struct Ends(AtomicUsize);

    #[async_trait]
    impl Handler for Ends {
        async fn handle(&self, _: NodeId, mut stream: MeshStream) {
            let word = stream.read_u8().await.unwrap();
            stream.write_u8(word).await.unwrap();
            stream.finish().await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn the_end_of_what_is_through_is_told_with_what_comes_next() {
        let cluster = Cluster::found();
        let (one, two) = pair(&cluster).await;
        let (branch, ends) = (grown(&one).await, Arc::<Ends>::default());
        two.serve(Kind::Proxy, ends.clone());
        for told in 0..3 {
            let mut stream = branch.open_now(TWO, Kind::Proxy).unwrap();
            stream.write_u8(7).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), 7);
            eventually("the ones before ended", || {
                ends.0.load(Ordering::Relaxed) == told
            })
            .await;
            stream.put_by();
        }
    }

    #[tokio::test]
    async fn it_is_closed_when_it_had_no_stream_for_long() {
        let cluster = Cluster::found();
        let (one, _two) = pair(&cluster).await;
        let branch = grown(&one).await;
        let stream = branch.open_now(TWO, Kind::Proxy).unwrap();
        let idle_in = |time| {
            let lines = lock(&branch.lines);
            lines[&TWO].idle(Instant::now() + time).is_some()
        };
        assert!(!idle_in(IDLE), "a stream may say nothing for long");
        drop(stream);
        assert!(!idle_in(Duration::ZERO));
        assert!(idle_in(IDLE));
    }

    #[tokio::test]
    async fn a_peer_that_cannot_be_dialled_is_spoken_to_over_the_mesh() {
        let cluster = Cluster::found();
        let (one, two) = pair(&cluster).await;
        let branch = one.branch().unwrap();
        // Somebody else is there now.
        let other = cluster.mesh(3);
        one.set_addr(TWO, other.local_addr());
        for _ in 0..WORTH {
            asks(&branch).await;
        }
        let failed = || matches!(lock(&branch.lines).get(&TWO), Some(Line::FailedUntil(_)));
        eventually("it is somebody else", failed).await;
        asks(&branch).await;
        assert_eq!(lock(&two.inner.pool).branches_of(NodeId(1)), 0);
        eventually("that one is left", || {
            lock(&other.inner.pool).branches_of(NodeId(1)) == 0
        })
        .await;
    }

    #[tokio::test]
    async fn whoever_is_disconnected_has_no_branch_left() {
        let cluster = Cluster::found();
        let (one, two) = pair(&cluster).await;
        let branch = grown(&one).await;
        two.disconnect(NodeId(1));
        eventually("the peer's word", || !has_own(&branch)).await;

        let banned = Arc::new(Banned::default());
        let three = Mesh::bind(
            "127.0.0.1:0".parse().unwrap(),
            cluster.identity(3),
            banned.clone(),
        )
        .unwrap();
        three.set_addr(TWO, two.local_addr());
        assert!(three.answers(TWO, PATIENCE).await);
        let branch = grown(&three).await;
        lock(&banned.0).insert(TWO);
        three.disconnect(TWO);
        eventually("our own", || !has_own(&branch)).await;
        assert!(branch.open_now(TWO, Kind::Proxy).is_none());
    }

    #[tokio::test]
    async fn who_is_revoked_while_it_is_dialled_has_no_branch() {
        let cluster = Cluster::found();
        let listen = "127.0.0.1:0".parse().unwrap();
        // Once and again for the mesh's connection, and once for the branch's.
        let fickle = |node| Mesh::bind(listen, cluster.identity(node), Fickle::after(3)).unwrap();
        for (one, two) in [(fickle(1), cluster.mesh(2)), (cluster.mesh(1), fickle(2))] {
            two.serve(Kind::Proxy, Arc::new(Echo));
            one.set_addr(TWO, two.local_addr());
            assert!(one.answers(TWO, PATIENCE).await);
            let branch = one.branch().unwrap();
            for _ in 0..WORTH {
                asks(&branch).await;
            }
            eventually("it was dialled", || !is_dialling(&branch)).await;
            eventually("it ends", || !has_own(&branch)).await;
            let left = || lock(&two.inner.pool).branches_of(NodeId(1));
            eventually("and is forgotten", || left() == 0).await;
        }
    }
}
