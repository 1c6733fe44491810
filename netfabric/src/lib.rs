//! Carries. Identity, transport, gossip, the public door and DNS.

pub mod gossip;
pub mod identity;
pub mod tls;
pub mod transport;

pub mod dns;
pub mod ingress;
pub mod wire;

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;

mod pace;
mod places;
pub mod sockets;
