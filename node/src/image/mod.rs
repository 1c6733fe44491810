//! Images on this node: found in a registry or an archive, verified, unpacked, kept, and laid out
//! as an instance's root file system. Owns `DATA/images` and the mounts below instance folders;
//! neither runs anything nor decides what should run.
//!
//! ```text
//! images/blobs/sha256/HEX     manifests and configurations, the exact bytes
//! images/layers/HEX/fs        an unpacked layer, named by its diff id
//! images/layers/HEX/recipe    how the layer's tar is put together again from the tree
//! images/layers/HEX/chunks    how that tar is cut, with the hash of every chunk
//! images/layers/HEX/implied   the directories of the tree that no entry describes
//! images/layers/HEX/complete  its marker, written last
//! images/index/HEX.json       an image held here, named by its manifest's digest; its time is the
//!                             image's last use
//! images/indexes/HEX          an index that led to an image, its exact bytes
//! images/proofs/HEX.json      who signed an image: its signatures, verified whenever they are read
//! images/uses/HEX.json        a snapshot made of one
//! images/coming/              layers that are read while they arrive (see `lazy`)
//! images/partial/             packed layers of which the rest is still to come
//! images/tmp/                 what is not finished; emptied at start
//! ```

mod apart;
mod archive;
mod assembly;
mod beside;
mod books;
mod budget;
mod chunks;
mod config;
mod confine;
mod digest;
mod disk;
mod entry;
mod error;
mod fetch;
mod flight;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod gc;
mod health;
mod holders;
mod implied;
mod import;
mod indexes;
mod layer;
pub mod lazy;
mod likeness;
mod manifest;
mod mend;
mod pax;
mod peers;
mod pipeline;
mod policy;
mod proofs;
mod pull;
mod push;
mod recipe;
mod record;
mod records;
mod reference;
mod registry;
mod room;
mod serve;
mod shares;
mod signature;
mod snapshot;
mod source;
mod spool;
mod store;
mod tally;
mod tree;
mod unpack;
mod uses;
mod verify;

pub use apart::main as unpack_main;
pub use books::Image;
pub use budget::Limits;
pub use config::ImageConfig;
pub use digest::Digest;
pub use error::ImageError;
pub use gc::{Marks, Wanted};
pub(crate) use manifest::host_architecture;
pub use manifest::media_type;
pub use policy::{Policy, SignatureRule};
pub use pull::{Progress, ProgressFn};
pub use push::{PushError, Pushed, Pushes};
pub use reference::Reference;
pub use registry::access::{Credentials, Patience, RegistryConfig};
pub use room::{Prune, Removed, Stocked};
pub use serve::serve;
pub use shares::Share;
pub use snapshot::Snapshot;
pub use source::{Answers, Near, Neighbour, Waits};
pub use store::{Store, WantedFn};
pub use tally::{ImageCounts, PULL_BOUNDS, Pulls};

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod field;
#[cfg(test)]
mod signing;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests_beside;
#[cfg(test)]
mod tests_bombs;
#[cfg(test)]
mod tests_chunks;
#[cfg(test)]
mod tests_documents;
#[cfg(test)]
mod tests_faults;
#[cfg(test)]
mod tests_flips;
#[cfg(test)]
mod tests_full;
#[cfg(test)]
mod tests_gc;
#[cfg(test)]
mod tests_health;
#[cfg(test)]
mod tests_hostile;
#[cfg(test)]
mod tests_import;
#[cfg(test)]
mod tests_peers;
#[cfg(test)]
mod tests_proofs;
#[cfg(test)]
mod tests_protocol;
#[cfg(test)]
mod tests_pull;
#[cfg(test)]
mod tests_signatures;
#[cfg(test)]
mod tests_unpack;
