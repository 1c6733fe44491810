//! Decides. Every policy of Selvedge as pure functions and state machines: no I/O, no clock, no
//! runtime, no logging. Time and randomness come in as arguments, reasons go out as data.

pub mod acme;
pub mod activate;
pub mod autoscale;
pub mod converge;
pub mod coordinates;
pub mod fleet;
pub mod model;
pub mod place;
pub mod registry;
pub mod route;
pub mod steward;
