//! Carries. Identity, transport, gossip, the public door and DNS.

pub mod dns;
pub mod wire;
