//! Idle connections to one instance.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use tokio::time::timeout;

use super::body::Outbound;
use super::local::lock;

/// Servers that keep connections alive do so for two seconds or more (gunicorn 2, node and
/// uvicorn 5, nginx 75): one idle for less is not closed by them as we send on it.
const IDLE_FOR: Duration = Duration::from_secs(1);
/// As many as one instance may serve at once on any node; fewer, and a busy door would close and
/// open connections until it runs out of ports.
const MAX_IDLE: usize = 1024;

/// A pooled connection whose answer was just read becomes ready as soon as its task runs.
const SETTLE: Duration = Duration::from_millis(5);

/// The pool lives and dies with its instance's entry, so that no connection outlives it and
/// meets another instance at the same address.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// The one that became idle last is the last.
    idle: Mutex<VecDeque<Idle>>,
    h2: Mutex<Option<http2::SendRequest<Outbound>>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Outbound>,
    since: Instant,
}

impl Pool {
    /// The connection that became idle last, if one is good.
    pub(super) async fn take(&self) -> Option<http1::SendRequest<Outbound>> {
        loop {
            let mut idle = lock(&self.idle).pop_back()?;
            if idle.since.elapsed() > IDLE_FOR {
                // The others are older still.
                lock(&self.idle).clear();
                return None;
            }
            if idle.sender.is_ready() {
                return Some(idle.sender);
            }
            if let Ok(Ok(())) = timeout(SETTLE, idle.sender.ready()).await {
                return Some(idle.sender);
            }
        }
    }

    pub(super) fn put(&self, sender: http1::SendRequest<Outbound>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.idle);
        // Those that nobody needed lately are needed no more.
        while idle.front().is_some_and(|i| i.since.elapsed() > IDLE_FOR) {
            idle.pop_front();
        }
        if idle.len() < MAX_IDLE {
            let since = Instant::now();
            idle.push_back(Idle { sender, since });
        }
    }

    /// The shared HTTP/2 connection, while it lives.
    pub(super) fn h2(&self) -> Option<http2::SendRequest<Outbound>> {
        let mut h2 = lock(&self.h2);
        if h2.as_ref().is_some_and(http2::SendRequest::is_closed) {
            *h2 = None;
        }
        h2.clone()
    }

    pub(super) fn put_h2(&self, sender: http2::SendRequest<Outbound>) {
        *lock(&self.h2) = Some(sender);
    }

    pub(super) fn clear(&self) {
        lock(&self.idle).clear();
        *lock(&self.h2) = None;
    }
}
