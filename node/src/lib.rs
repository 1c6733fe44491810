//! The node: acts on what `scheduler` decides and `netfabric` carries. Binary `selvedged`.

pub mod network;
pub mod runtime;
