//! HTTP/3 at the public door, where the operator wants it: on the same addresses as HTTPS, over UDP, with
//! the same certificates. A request goes the way of all others (`dispatch`); only what carries it is
//! different.
//!
//! A client's way: `accept` (handshake) -> `conn` (one connection, and its goodbye) -> `request` (one
//! request) with its `body`. Between the library and QUIC lie `carrier` and its `streams`, which are
//! read along (`frames`) for what the library would stumble over.
//!
//! It runs on the daemon's runtime and not on the door's workers: a client that changes its address is
//! found by its connection's number, which no kernel knows. WebSocket is not offered, and services whose
//! TLS only their container can read are not reached: clients have TCP for both.

mod accept;
mod body;
mod carrier;
mod conn;
mod endpoint;
mod frames;
mod request;
mod streams;

use std::fmt;
use std::time::Duration;

pub(super) use accept::accept;
pub(super) use body::Coming;
pub(super) use endpoint::open;

/// Handshakes in progress; more are refused.
const HALF_OPEN_MAX: usize = 256;
/// With more handshakes than this in progress, newcomers must first prove their address.
const RETRY_ABOVE: usize = 32;
/// As long as clients remember that HTTP/3 is spoken here: one that is told no more comes over TCP then.
const REMEMBERED: Duration = Duration::from_hours(1);
/// For the last words to clients that are cut off.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

/// What HTTP/3 needs besides a certificate.
#[derive(Clone)]
pub struct Http3 {
    /// The node's own, and the same for each of its daemons: clients of one that is gone are told so with
    /// it, and need not wait until they notice.
    pub reset_key: [u8; 32],
}

/// Shows no key.
impl fmt::Debug for Http3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http3(…)")
    }
}

/// Where else an answer over HTTPS says that the host is (RFC 7838).
pub(super) fn alternative(port: u16) -> String {
    format!("h3=\":{port}\"; ma={}", REMEMBERED.as_secs())
}
