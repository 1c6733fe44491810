//! Certificates of services: read strictly, chosen by the name a client asks for, proofs for a
//! certificate authority, and tickets that every node of the cluster takes.
//!
//! It knows neither where certificates come from (the registry, through the node's `certs`) nor
//! sockets: the door's handshakes are `ingress::secure`'s.

mod bundle;
mod proof;
mod shelf;
mod tickets;

use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, SupportedProtocolVersion};

#[cfg(test)]
pub(crate) use bundle::tests::made;
pub use bundle::{Bundle, BundleError};
pub use proof::dns_value;
pub(crate) use shelf::Choice;
pub use shelf::{Shelf, Table};
pub use tickets::Tickets;

/// What clients may speak inside, the better first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// What is spoken over QUIC.
const ALPN_QUIC: &[u8] = b"h3";
/// What an authority speaks that checks a name by TLS-ALPN-01 (RFC 8737).
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// TLS 1.2 and 1.3 with the certificates of `shelf`. Sessions are resumed by tickets alone, which
/// any node of the cluster takes; early data is never accepted, because it can be played again.
pub fn server_config(
    shelf: Arc<Shelf>,
    tickets: Option<Tickets>,
) -> Result<ServerConfig, rustls::Error> {
    settings(shelf, tickets, rustls::DEFAULT_VERSIONS, &ALPN)
}

/// The same for HTTP/3, which has TLS 1.3 inside.
pub fn quic_config(
    shelf: Arc<Shelf>,
    tickets: Option<Tickets>,
) -> Result<ServerConfig, rustls::Error> {
    settings(shelf, tickets, &[&rustls::version::TLS13], &[ALPN_QUIC])
}

fn settings(
    shelf: Arc<Shelf>,
    tickets: Option<Tickets>,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(shelf);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if let Some(tickets) = tickets {
        config.ticketer = Arc::new(tickets);
    }
    config.max_early_data_size = 0;
    Ok(config)
}
