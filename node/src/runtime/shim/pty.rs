//! What a terminal's master needs that has no safe call: its size, and being waited for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use netfabric::wire::touch::Size;
use tokio::io::unix::AsyncFd;

/// Tells the kernel, which tells the programs on it.
pub fn resize(terminal: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: reads one winsize that lives through the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A descriptor that tokio waits for.
pub fn watched(master: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is the same descriptor until it is dropped, and nobody else closes it.
    unsafe { AsyncFd::register(master) }.map_err(io::Error::from)
}
