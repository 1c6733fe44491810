//! A layer that an instance reads while it still arrives. Its recipe comes first and gives the whole
//! tree; a file system in user space shows it, and waits in a read for the bytes that are not here.
//! Owns that file system and its process, the folder that the layer arrives in, and the order in which
//! the bytes are fetched. How peers are spoken to is another's.
//!
//! What is trusted: a layer's diff id can only be checked when all of it is here. Until then, the word
//! of one member of the fleet, who proved by its certificate that it is one: that the recipe and the
//! chunk list it gave are those of the layer it has unpacked and verified itself. Every byte of content
//! is checked against that list before it is handed out; names and attributes are the recipe's. At the
//! end the layer is unpacked from the chunks and its diff id checked, and the recipe made in doing so
//! must be the one that was given: the chunks alone do not vouch for headers that came beside them.
//! After that it is a layer like any other, and nothing tells how it came. Layers of the same image that
//! are here are read before a start as they always are.
//! Where either is wrong, the instances that read it are ended, and it is said loudly. A node that does
//! not want to take a member's word says `[runtime] image_lazy = "off"`.
//!
//! ```text
//! images/coming/HEX/{recipe,chunks,tar}   a layer that arrives, named by its diff id
//! images/coming/HEX.json                  an image that instances were made of before all of it was here
//! images/layers/HEX/profile               what starts read first, for those who fetch it from here
//! images/lazy/daemon.sock                 where the processes speak with the daemon: all they see of a disk
//! ```

mod ahead;
mod arrival;
mod arrivals;
mod arriving;
mod coming;
mod fs;
mod holes;
mod links;
mod outline;
mod process;
mod show;
mod start;
mod supply;
mod told;
mod wire;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_arriving;
#[cfg(test)]
mod tests_supply;

pub(super) use arrival::{Arrival, Point, outline};
pub(super) use coming::Coming;
#[cfg(any(test, feature = "fuzz"))]
pub(super) use holes::Holes;
pub(super) use outline::{Kind, Node, OPAQUE, Outline, ROOT};
pub use process::main;
pub(super) use show::show;
pub(super) use supply::{arrive, settle};

/// What such a process calls itself, so that killing every `selvedged` by name spares it.
const NAME: &str = "selvedge-lazy";
/// Below `images/`: the root of the processes that show layers.
const LAIR: &str = "lazy";
/// In there.
const SOCKET: &str = "daemon.sock";
