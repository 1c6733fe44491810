//! A layer that an instance reads while it still arrives. Its recipe comes first and gives the whole
//! tree; a file system in user space shows it, and waits in a read for the bytes that are not here.
//! Owns that file system, what it shows, and the file that the layer arrives in. Where the bytes come
//! from is another's.
//!
//! What is trusted: a layer's diff id can only be checked when all of it is here. Until then, the word
//! of one member of the fleet, who proved by its certificate that it is one: that the recipe and the
//! chunk list it gave are those of the layer it has unpacked and verified itself. Every byte of content
//! is checked against that list before it is handed out; names and attributes are the recipe's. At the
//! end the layer is unpacked from the chunks and its diff id checked, and the recipe made in doing so
//! must be the one that was given: the chunks alone do not vouch for headers that came beside them.

mod arrivals;
mod arriving;
mod fs;
mod holes;
mod outline;
mod wire;

mod tests;
mod tests_arriving;
