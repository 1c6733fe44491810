//! The nursery: a process of one thread that forks a shim for every message it gets. What all shims
//! need alike (a linked binary, a logger, a filter) is made once, here, and shared by them.
//!
//! It ends with the daemon's end of the socket; the shims stay.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::super::seccomp;
use super::super::wire::{FailCode, Reply};
use super::mounts::Base;
use super::{bad, parked, say};

/// The longest path the kernel takes.
const MAX_PATH: usize = 4096;

/// A shim to be.
pub(super) struct Birth {
    /// The instance's.
    pub folder: PathBuf,
    /// Where the daemon waits for one line.
    pub report: File,
    pub common: Common,
}

/// What all shims need alike, or why there is no such thing.
pub(super) struct Common {
    /// Where they build their containers.
    pub base: io::Result<Base>,
    /// What their containers' programs may ask of the kernel.
    pub filter: io::Result<Vec<libc::sock_filter>>,
    /// What their first processes are until they are started.
    pub parked: io::Result<File>,
}

/// Forks shims until the daemon is gone. `None` is the nursery's own end; a birth is what a shim
/// goes on with.
pub(super) fn run(instances: &Path) -> io::Result<Option<Birth>> {
    prepare()?;
    // Once for all shims: what it writes to is theirs, by number.
    super::log_errors();
    let common = Common {
        base: Base::make(instances),
        filter: seccomp::compile(),
        parked: parked::program(),
    };
    loop {
        let Some((folder, report)) = hear()? else {
            return Ok(None);
        };
        // SAFETY: this process has one thread, so the child's copy of memory is consistent.
        match unsafe { libc::fork() } {
            -1 => {
                let why = format!("no process for a shim: {}", io::Error::last_os_error());
                say(
                    &report,
                    &Reply::Refused(bad(FailCode::CreateContainer, why)),
                );
            }
            0 => {
                // SAFETY: sets a disposition; a shim does wait for its children.
                unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
                return Ok(Some(Birth {
                    folder,
                    report,
                    common,
                }));
            }
            _ => {}
        }
    }
}

/// Away from the daemon: own session, nothing open but the socket, which is stdin.
fn prepare() -> io::Result<()> {
    // SAFETY: plain system calls with constant arguments; nothing above 2 is in use yet. Ignored,
    // the ends of shims need no reaping here.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
        libc::prctl(libc::PR_SET_NAME, c"selvedge-shim".as_ptr());
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::setsid()?;
    Ok(())
}

/// The next message: an instance's folder and where to report; `None` when no more will come.
fn hear() -> io::Result<Option<(PathBuf, File)>> {
    let mut text = [0; MAX_PATH];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = io::IoSliceMut::new(&mut text);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let count = match recvmsg(io::stdin(), &mut [into], &mut control, flags) {
            Ok(message) => message.bytes,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            return Ok(None);
        }
        let report: Option<OwnedFd> = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if let Some(report) = report {
            let folder = PathBuf::from(OsStr::from_bytes(&text[..count]));
            return Ok(Some((folder, File::from(report))));
        }
    }
}
