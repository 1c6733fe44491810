//! What clients do to a cluster while it is broken, and the books they keep.
