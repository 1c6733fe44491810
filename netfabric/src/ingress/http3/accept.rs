//! Takes connections in: handshakes in bounded number and time, of which the certificates are `tls`'s
//! affair, and a proof of the address from newcomers when there are many.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use h3::error::Code;
use quinn::{Connecting, ConnectionError, Incoming};
use rustls::AlertDescription;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::streams::code;
use super::{HALF_OPEN_MAX, RETRY_ABOVE, conn};
use crate::ingress::Shared;
use crate::ingress::door::Phase;
use crate::ingress::secure::HANDSHAKE_TIME;
use crate::ingress::workers::Aboard;

/// Accepts until the door is closed. Who comes while it closes is not heard, and asks the next daemon.
pub(in crate::ingress) async fn accept(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let half_open = Arc::new(Semaphore::new(HALF_OPEN_MAX));
    let mut phase = shared.phase.subscribe();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            _ = phase.wait_for(|p| *p == Phase::Closed) => {
                endpoint.close(code(Code::H3_NO_ERROR), b"");
                return;
            }
        };
        let Some(incoming) = incoming else {
            return;
        };
        if *phase.borrow() >= Phase::Closing {
            incoming.ignore();
        } else {
            consider(&shared, &half_open, incoming);
        }
    }
}

fn consider(shared: &Arc<Shared>, half_open: &Arc<Semaphore>, incoming: Incoming) {
    let Ok(shaking) = Arc::clone(half_open).try_acquire_owned() else {
        return incoming.refuse();
    };
    let in_progress = HALF_OPEN_MAX - half_open.available_permits();
    if in_progress > RETRY_ABOVE && !incoming.remote_address_validated() {
        // Cannot fail: the address is not validated yet.
        let _ = incoming.retry();
        return;
    }
    // No backlog of the kernel's keeps those for whom there is no place.
    let Ok(place) = Arc::clone(&shared.connections).try_acquire_owned() else {
        return incoming.refuse();
    };
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return failed(shared, &error),
    };
    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _place = place;
        let aboard = Aboard::elsewhere(&shared);
        if let Some(quic) = shaken(&shared, connecting, shaking).await {
            conn::serve(aboard.shared(), quic).await;
        }
    });
}

async fn shaken(
    shared: &Shared,
    connecting: Connecting,
    _shaking: OwnedSemaphorePermit,
) -> Option<quinn::Connection> {
    match timeout(HANDSHAKE_TIME, connecting).await {
        Ok(Ok(quic)) => {
            shared.counters.handshakes.fetch_add(1, Ordering::Relaxed);
            Some(quic)
        }
        Ok(Err(error)) => {
            failed(shared, &error);
            None
        }
        Err(_) => {
            let failed = &shared.counters.handshakes_failed;
            failed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

fn failed(shared: &Shared, error: &ConnectionError) {
    tracing::trace!(%error, "a handshake failed");
    let counters = &shared.counters;
    let counter = if is_unknown_name(error) {
        &counters.unknown_names
    } else {
        &counters.handshakes_failed
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// rustls says this of a name for which it is given no certificate.
fn is_unknown_name(error: &ConnectionError) -> bool {
    let unknown = quinn::TransportErrorCode::crypto(AlertDescription::AccessDenied.into());
    matches!(error, ConnectionError::TransportError(error) if error.code == unknown)
}
