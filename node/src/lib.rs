//! The node: acts. See each room.

pub mod image;
