//! The node's parts on real kernels: containers and their networks. Needs root. One binary, so that
//! everything is linked once.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

mod exec;
mod network;
mod runtime;
mod world;
