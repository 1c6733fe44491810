//! Whole fleets in virtual time, by seed: the product's cores (`place`, `steward`, `autoscale`,
//! `activate`, `route`, `converge`, `registry`) on every host as they are, and around them models of
//! what they meet: an ideal log for the registry, late and lossy gossip, distances, containers that
//! take their time, traffic and faults. It owns those models, the invariants and the planted bugs; how
//! the cores are driven mirrors the product's drivers, which tests with real processes prove.
//!
//! One seed means one run, bit by bit: `Report::digest` is over everything that happened.
//! `SELVEDGE_SIM_TRACE=file` keeps it.

mod agent;
pub mod cells;
mod door;
mod gossip;
mod host;
mod lane;
mod log;
mod network;
mod oracle;
mod orders;
mod plan;
mod play;
mod queue;
pub mod recorded;
mod scenario;
mod sight;
pub mod spread;
mod trace;
pub mod traffic;
mod world;

#[cfg(test)]
mod tests;

pub use oracle::{Answer, Figures, Ordered, Report};
pub use plan::{Bug, Fault, Plan, Site, Size, Workload};
pub use queue::Millis;
pub use scenario::{Extent, Scenario};
pub use world::run;
