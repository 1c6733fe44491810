//! The node's parts on real kernels: containers and their networks. Needs root. One binary, so that
//! everything is linked once.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

mod cycles;
mod exec;
mod hostile;
mod network;
mod runtime;
mod sandbox;
mod scarce;
mod secrets;
mod umoci;
mod unpacker;
mod usage;
mod world;
