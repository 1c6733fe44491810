//! Carries. Identity, transport, gossip, the public door and DNS.

pub mod ingress;
pub mod wire;
