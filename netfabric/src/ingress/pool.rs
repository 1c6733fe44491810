//! Idle connections to one instance.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::body::Outbound;
use super::local::{Slot, lock};

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
    plain: Mutex<Plain>,
    /// One, or one for each client; the one that was used last is the last.
    h2: Mutex<VecDeque<Shared>>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Outbound>,
    since: Instant,
    /// Whose it is alone, where instances are told whose.
    client: Option<IpAddr>,
}

/// An HTTP/2 connection, for any number of requests at once.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Outbound>,
    used: Instant,
    client: Option<IpAddr>,
}

/// Connections of the express way, on which nothing is under way.
#[derive(Debug, Default)]
struct Plain {
    /// The one that became idle last is the last.
    idle: VecDeque<(TcpStream, Instant)>,
    /// Somebody closes those that stay idle.
    swept: bool,
}

impl Plain {
    fn sweep(&mut self) {
        let old = |(_, since): &(TcpStream, Instant)| since.elapsed() > IDLE_FOR;
        while self.idle.front().is_some_and(old) {
            self.idle.pop_front();
        }
    }
}

impl Pool {
    /// The connection that became idle last, if it is good. No system call: what the kernel told
    /// of it is known.
    pub(super) fn take_idle(&self) -> Option<TcpStream> {
        let mut plain = lock(&self.plain);
        while let Some((stream, since)) = plain.idle.pop_back() {
            if since.elapsed() > IDLE_FOR {
                plain.idle.clear();
                return None;
            }
            // Bytes, or an end, that nobody waits for.
            let quiet = stream.try_read(&mut [0]);
            if quiet.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a connection for the worker's next request to `slot`, whose pool this is.
    pub(super) fn put_idle(&self, slot: &Arc<Slot>, stream: TcpStream) {
        let mut plain = lock(&self.plain);
        if plain.idle.len() >= MAX_IDLE {
            return;
        }
        plain.idle.push_back((stream, Instant::now()));
        if !plain.swept {
            plain.swept = true;
            tokio::spawn(sweep(Arc::downgrade(slot)));
        }
    }

    /// The client's connection that became idle last, if one is good.
    pub(super) async fn take(
        &self,
        client: Option<IpAddr>,
    ) -> Option<http1::SendRequest<Outbound>> {
        loop {
            let mut idle = {
                let mut idle = lock(&self.idle);
                let at = idle.iter().rposition(|i| i.client == client)?;
                idle.remove(at)?
            };
            if idle.since.elapsed() > IDLE_FOR {
                // Those before it are older still.
                lock(&self.idle).retain(|i| i.since > idle.since);
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

    pub(super) fn put(&self, sender: http1::SendRequest<Outbound>, client: Option<IpAddr>) {
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
            idle.push_back(Idle {
                sender,
                since,
                client,
            });
        }
    }

    /// The shared HTTP/2 connection, or the client's own, while it lives.
    pub(super) fn h2(&self, client: Option<IpAddr>) -> Option<http2::SendRequest<Outbound>> {
        let mut h2 = lock(&self.h2);
        h2.retain(|shared| !shared.sender.is_closed());
        let at = h2.iter().rposition(|shared| shared.client == client)?;
        let mut shared = h2.remove(at)?;
        shared.used = Instant::now();
        let sender = shared.sender.clone();
        h2.push_back(shared);
        Some(sender)
    }

    /// What is under way on a connection that is let go of here goes on.
    pub(super) fn put_h2(&self, sender: http2::SendRequest<Outbound>, client: Option<IpAddr>) {
        let mut h2 = lock(&self.h2);
        h2.retain(|s| s.client != client && (s.client.is_none() || s.used.elapsed() <= IDLE_FOR));
        if h2.len() >= MAX_IDLE {
            h2.pop_front();
        }
        h2.push_back(Shared {
            sender,
            used: Instant::now(),
            client,
        });
    }

    pub(super) fn clear(&self) {
        lock(&self.idle).clear();
        lock(&self.plain).idle.clear();
        lock(&self.h2).clear();
    }
}

/// Closes what stays idle in this worker's pool; ends when nothing is in it.
async fn sweep(slot: Weak<Slot>) {
    loop {
        sleep(IDLE_FOR).await;
        let Some(slot) = slot.upgrade() else {
            return;
        };
        let mut plain = lock(&slot.pool().plain);
        plain.sweep();
        if plain.idle.is_empty() {
            plain.swept = false;
            return;
        }
    }
}
