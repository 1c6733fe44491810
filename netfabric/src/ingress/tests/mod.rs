//! The door with real upstreams on loopback, and what they share: an application, a node.

mod cold;
mod express;
mod hygiene;
mod peers;
mod tls;
mod warm;

mod app;
mod world;
