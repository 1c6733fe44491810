//! The one call that stops an ext4 as a power cut does. Owns its number and its flag.
#![allow(unsafe_code)] // An ioctl that rustix does not know by name: its argument's type is ours to vouch for.

use std::os::fd::AsFd;

use rustix::ioctl::{Setter, ioctl, opcode};

/// `EXT4_IOC_SHUTDOWN`, which is `FS_IOC_SHUTDOWN`: `_IOR('X', 125, __u32)`.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: the journal as it is now, nothing written any more.
const NOLOGFLUSH: u32 = 2;

/// Stops the file system of this file: nothing in memory reaches the disk from here on.
pub(super) fn shutdown(file: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: the kernel reads one u32 through the pointer (`ext4_force_shutdown`), and Setter
    // hands it a pointer to one that lives across the call.
    unsafe { ioctl(file, Setter::<SHUTDOWN, u32>::new(NOLOGFLUSH)) }
}
