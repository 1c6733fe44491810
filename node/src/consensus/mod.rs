//! The registry on this node: Raft among the voters, the change feed to everyone else. Owns how
//! commands become agreed and durable and how the agreed state reaches every node; what commands
//! mean is `scheduler::registry`'s, bytes between nodes are the carrier's.

mod batch;
mod candidacy;
mod feed;
mod follow_file;
mod inbox;
mod keeper;
mod membership;
mod network;
mod propose;
mod registry;
#[cfg(test)]
mod sim;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod types;
mod view;
mod voter;
mod wire;

pub use self::feed::{FeedSource, FeedStream};
pub use self::follow_file::FileError;
pub use self::keeper::Outage;
pub use self::network::{Carrier, CarrierError};
pub use self::propose::{ProposeError, ReadError};
pub use self::registry::{Config, OpenError, Registry, Tuning};
pub use self::status::{Part, Status};
pub use self::store::StoreError;
pub use self::types::TypeConfig;
pub(crate) use self::view::Missing;
pub use self::view::{RING_CHANGES, Step, View};
pub use self::wire::MAX_MESSAGE;
