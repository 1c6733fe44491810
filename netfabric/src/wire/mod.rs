//! Frames and messages between nodes.

pub mod api;
pub mod peer;
