//! Frames and messages between nodes.

pub mod codec;
pub mod frame;
pub mod peer;
