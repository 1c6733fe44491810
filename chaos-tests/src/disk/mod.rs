//! Disks a host can have that can be broken: too small, torn, slow, cut from power.
