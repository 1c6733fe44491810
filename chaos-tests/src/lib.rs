//! Breaks. Whole clusters of real processes on namespace hosts, and what tests do to them.

pub mod world;
