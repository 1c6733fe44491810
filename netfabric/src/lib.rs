//! Carries. Identity, transport, gossip, the public door and DNS.

pub mod identity;
pub mod transport;

pub mod wire;
