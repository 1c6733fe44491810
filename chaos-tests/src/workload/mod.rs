//! What clients do to a cluster while it is broken, and the books they keep.

pub mod api;
pub mod deployer;
pub mod history;
pub mod ledger;
pub mod load;
pub mod registry;
mod watcher;
