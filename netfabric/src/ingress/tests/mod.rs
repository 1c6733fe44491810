//! The door with real upstreams on loopback, and what they share: an application, a node.

mod cold;
mod datagrams;
mod express;
mod hygiene;
mod inward;
mod passage;
mod peers;
mod replay;
mod slow;
mod sticky;
mod tls;
mod warm;

mod app;
mod world;
