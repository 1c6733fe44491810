//! What clients do to a cluster while it is broken, and the books they keep.

pub mod ledger;
pub mod load;
