//! Frames and messages between nodes, and the shapes of the operator API.

pub mod api;
pub mod codec;
pub mod decision;
pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub mod image;
pub mod passage;
pub mod peer;
pub mod touch;
pub mod usage;
