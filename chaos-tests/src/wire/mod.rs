//! A user-space switch between the hosts of a world.
