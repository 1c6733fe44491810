//! Whole registries in one process: real files, a carrier in memory that can be cut.

mod cluster;
mod disks;
mod following;
pub(super) mod world;
