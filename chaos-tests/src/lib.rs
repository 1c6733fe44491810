//! Breaks. Whole clusters of real processes on namespace hosts, and what tests do to them.

pub mod bench;
pub mod checkers;
pub mod disk;
pub mod doorway;
pub mod faults;
pub mod scenario;
pub mod server;
pub mod sim;
pub mod wire;
pub mod workload;
pub mod world;
