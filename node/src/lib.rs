//! Acts: what `scheduler` decides and `netfabric` carries is done here. Binary `selvedged`.

pub mod agent;
pub mod api;
pub mod app;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod distribution;
pub mod enrol;
pub mod failpoints;
pub mod fleet;
pub mod image;
pub mod imagemesh;
pub mod images;
pub mod links;
pub mod logs;
pub mod meter;
pub mod names;
pub mod network;
pub mod peers;
pub mod protections;
pub mod runtime;
pub mod stewardship;
pub mod telemetry;
pub mod touch;
pub mod userns;
pub mod volumes;
