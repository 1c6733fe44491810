//! Acts. What runs on a node: consensus, images, containers, networks and the agent over them.

pub mod consensus;
//! The node: acts. See each room.
pub mod image;
//! The node: acts on what `scheduler` decides and `netfabric` carries. Binary `selvedged`.
pub mod runtime;
