//! Frames and messages between nodes.

pub mod api;
pub mod codec;
pub mod frame;
pub mod peer;
