//! The node's parts on real kernels: containers and their networks. Needs root. One binary, so that
//! everything is linked once.

mod network;
mod runtime;
mod world;
