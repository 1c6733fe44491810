//! The door with real upstreams on loopback, and what they share: an application, a node.

mod cold;
mod datagrams;
mod express;
mod floods;
mod heirs;
mod http3;
mod hygiene;
mod introduced;
mod inward;
mod large;
mod newcomers;
mod passage;
mod peers;
mod rates;
mod replay;
mod slow;
mod sticky;
mod tls;
mod warm;

mod app;
mod frames;
mod world;
