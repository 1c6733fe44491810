//! Frames and messages between nodes.

pub mod peer;
