//! Takes connections in, checks who they are, and hands their streams to the handlers.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::debug;

use super::pool::Link;
use super::{
    BEGINNING, BESIDE_MAX, HALF_OPEN_MAX, HANDSHAKE_DEADLINE, Handler, Inner, Kind, MeshStream,
    REQUEST_DEADLINE, RETRY_ABOVE, WELCOME, YOUNG, code, join, liveness, lock,
};
use crate::identity::{ALPN_JOIN, ALPN_MESH, Peer};

/// Accepts until the endpoint is closed.
pub(super) async fn run(inner: Arc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        let Ok(permit) = inner.half_open.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let in_progress = HALF_OPEN_MAX - inner.half_open.available_permits();
        if in_progress > RETRY_ABOVE && !incoming.remote_address_validated() {
            // Cannot fail: the address is not validated yet.
            let _ = incoming.retry();
            continue;
        }
        let inner = inner.clone();
        tokio::spawn(async move {
            let handshake = async { incoming.accept()?.await };
            let conn = match timeout(HANDSHAKE_DEADLINE, handshake).await {
                Ok(Ok(conn)) => conn,
                Ok(Err(error)) => return debug!(%error, "a handshake failed"),
                Err(_) => return debug!("a handshake took too long"),
            };
            drop(permit);
            match protocol(&conn).as_deref() {
                Some(ALPN_MESH) => take_in(&inner, conn).await,
                Some(ALPN_JOIN) => join::serve(&inner, conn).await,
                _ => conn.close(code::NOT_ADMITTED, b"unknown protocol"),
            }
        });
    }
}

fn protocol(conn: &quinn::Connection) -> Option<Vec<u8>> {
    conn.handshake_data()?
        .downcast::<HandshakeData>()
        .ok()?
        .protocol
}

/// Who the verified certificate says the peer is; nobody when it showed none.
pub(super) fn peer_of(inner: &Inner, conn: &quinn::Connection) -> Option<Peer> {
    let chain = conn
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    inner.identity.peer(chain.first()?).ok()
}

async fn take_in(inner: &Arc<Inner>, conn: quinn::Connection) {
    let peer = peer_of(inner, &conn).filter(|peer| inner.admit.admits(peer.node));
    let Some(peer) = peer else {
        debug!(remote = %conn.remote_address(), "a peer is not admitted");
        conn.close(code::NOT_ADMITTED, b"not admitted");
        return;
    };
    let welcome = async {
        let mut stream = conn.open_uni().await?;
        stream.write_all(&[WELCOME]).await?;
        stream.shutdown().await
    };
    if timeout(HANDSHAKE_DEADLINE, welcome)
        .await
        .is_ok_and(|result| result.is_ok())
    {
        keep(inner, conn, peer, None);
    }
}

/// Puts a connection into the pool, and serves the peer's streams on it until it ends.
pub(super) fn keep(
    inner: &Arc<Inner>,
    conn: quinn::Connection,
    peer: Peer,
    dialled: Option<SocketAddr>,
) -> Arc<Link> {
    let link = Arc::new(Link::new(conn, peer, dialled));
    lock(&inner.pool).add(link.clone());
    let (inner, served) = (inner.clone(), link.clone());
    let runtime = inner.runtime.clone();
    runtime.spawn(liveness::watch(link.clone(), inner.silences.clone()));
    runtime.spawn(async move {
        // At most STREAMS_MAX of these are open at once: QUIC itself holds the peer to it.
        while let Ok(stream) = served.conn.accept_bi().await {
            tokio::spawn(serve(inner.clone(), served.clone(), stream));
        }
        lock(&inner.pool).remove(&served);
        debug!(node = %served.peer.node, reason = ?served.conn.close_reason(), "connection ended");
    });
    link
}

/// Who serves streams of this kind, if anybody does or will before long.
async fn handler(inner: &Inner, kind: Kind) -> Option<Arc<dyn Handler>> {
    let mut handlers = inner.handlers.subscribe();
    let settled = handlers.wait_for(|h| !h.more || h.known.contains_key(&kind));
    let settled = timeout(BEGINNING, settled).await.ok()?.ok()?;
    settled.known.get(&kind).cloned()
}

async fn serve(
    inner: Arc<Inner>,
    link: Arc<Link>,
    (mut send, mut recv): (quinn::SendStream, quinn::RecvStream),
) {
    let mut byte = [0];
    let kind = match timeout(REQUEST_DEADLINE, recv.read_exact(&mut byte)).await {
        Ok(Ok(())) => Kind::from_byte(byte[0]),
        _ => None,
    };
    let handler = match kind {
        Some(kind) => handler(&inner, kind).await.map(|found| (kind, found)),
        None => None,
    };
    let Some((kind, handler)) = handler else {
        // Both fail only on a stream that has ended already.
        let _ = send.reset(code::UNSERVED);
        let _ = recv.stop(code::UNSERVED);
        return;
    };
    let node = link.peer.node;
    let serving = async move {
        let stream = MeshStream::new((send, recv), kind, link);
        handler.handle(node, stream).await;
    };
    let (home, beside) = (inner.home.clone(), Beside::enter(&inner.beside, kind));
    drop(inner);
    let Some(young) = beside else {
        drop(home.spawn(serving));
        return;
    };
    let mut serving = pin!(serving);
    if timeout(YOUNG, &mut serving).await.is_err() {
        drop(young);
        serving.await;
    }
}

/// One that has just begun to be served beside its connection, as long as it is held.
struct Beside(Arc<AtomicUsize>);

impl Beside {
    fn enter(all: &Arc<AtomicUsize>, kind: Kind) -> Option<Self> {
        let counted = Self(all.clone());
        let others = all.fetch_add(1, Ordering::Relaxed);
        (kind.is_light() && others < BESIDE_MAX).then_some(counted)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
