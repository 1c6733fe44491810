//! Takes connections in, checks who they are, and hands their streams to the handlers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::debug;

use super::pool::Link;
use super::{
    BEGINNING, HALF_OPEN_MAX, HANDSHAKE_DEADLINE, Handler, Inner, Kind, MeshStream,
    REQUEST_DEADLINE, RETRY_ABOVE, WELCOME, code, endpoint, join, liveness, lock,
};
use crate::identity::{ALPN_BRANCH, ALPN_JOIN, ALPN_MESH, Identity, Peer};

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
                Some(ALPN_MESH) => {
                    if let Some(peer) = take_in(&inner, &conn).await {
                        keep(&inner, conn, peer, None);
                    }
                }
                Some(ALPN_BRANCH) => {
                    if let Some(peer) = take_in(&inner, &conn).await {
                        conn.set_receive_window(endpoint::BRANCH_WINDOW);
                        let link = Arc::new(Link::new(conn, peer, None));
                        lock(&inner.pool).add_branch(link.clone());
                        inner.ask_again(&link);
                        serve_all(inner, link).await;
                    }
                }
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
pub(super) fn peer_of(identity: &Identity, conn: &quinn::Connection) -> Option<Peer> {
    let chain = conn
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    identity.peer(chain.first()?).ok()
}

/// The peer, once it has been told that it is admitted.
async fn take_in(inner: &Inner, conn: &quinn::Connection) -> Option<Peer> {
    let peer = peer_of(&inner.identity, conn).filter(|peer| inner.admit.admits(peer.node));
    let Some(peer) = peer else {
        debug!(remote = %conn.remote_address(), "a peer is not admitted");
        conn.close(code::NOT_ADMITTED, b"not admitted");
        return None;
    };
    let welcome = async {
        let mut stream = conn.open_uni().await?;
        stream.write_all(&[WELCOME]).await?;
        stream.shutdown().await
    };
    let told = timeout(HANDSHAKE_DEADLINE, welcome).await;
    told.is_ok_and(|result| result.is_ok()).then_some(peer)
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
    inner.ask_again(&link);
    let runtime = &inner.runtime;
    runtime.spawn(liveness::watch(link.clone(), inner.silences.clone()));
    runtime.spawn(serve_all(inner.clone(), link.clone()));
    link
}

/// Serves the streams that a peer opens on a connection, until it ends.
async fn serve_all(inner: Arc<Inner>, link: Arc<Link>) {
    // At most STREAMS_MAX of these are open at once: QUIC itself holds the peer to it.
    while let Ok(stream) = link.conn.accept_bi().await {
        tokio::spawn(serve(inner.clone(), link.clone(), stream));
    }
    lock(&inner.pool).remove(&link);
    debug!(node = %link.peer.node, reason = ?link.conn.close_reason(), "connection ended");
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
    let (home, beside) = (inner.home.clone(), inner.beside.enter(kind, Instant::now()));
    drop(inner);
    match beside {
        Some(_served) => serving.await,
        None => drop(home.spawn(serving)),
    }
}
