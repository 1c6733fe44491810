//! The daemon's end of the nursery: the process that shims are forked from. It is started once, and
//! again should it have died; a shim then costs a fork instead of running and linking a large
//! binary anew, and shares with its siblings the memory that linking fills.
//!
//! Owns the nursery's process and socket. What the nursery does is the shim room's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};
use tokio::net::UnixStream;

use super::shim;

/// The nursery, or none yet.
#[derive(Debug)]
pub(super) struct Nursery {
    binary: PathBuf,
    instances: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    socket: OwnedFd,
}

impl Nursery {
    pub(super) fn new(binary: &Path, instances: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            instances: instances.to_owned(),
            running: Mutex::new(None),
        }
    }

    /// Starts it ahead of its first shim.
    pub(super) fn warm(&self) -> io::Result<()> {
        self.with(|_| Ok(()))
    }

    /// Has a shim forked for the container in `folder`. It reads its secrets from the stream to
    /// their end, and then reports.
    pub(super) fn shim(&self, folder: &Path) -> io::Result<UnixStream> {
        let (report, said) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let asked = self.with(|socket| ask(socket, folder, &said));
        match asked {
            // It was killed since: another one.
            Err(e) if is_gone(&e) => self.with(|socket| ask(socket, folder, &said))?,
            other => other?,
        }
        rustix::io::ioctl_fionbio(&report, true)?;
        UnixStream::from_std(report.into())
    }

    /// Works with the socket of a nursery that runs; one that turns out to be gone is forgotten.
    fn with<T>(&self, work: impl FnOnce(&OwnedFd) -> io::Result<T>) -> io::Result<T> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let nursery = match running.take() {
            Some(nursery) => nursery,
            None => self.start()?,
        };
        let done = work(&nursery.socket);
        if !done.as_ref().is_err_and(is_gone) {
            *running = Some(nursery);
        }
        done
    }

    fn start(&self) -> io::Result<Running> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let process = Command::new(&self.binary)
            .arg0(shim::NAME)
            .args(["shim", "--nursery"])
            .arg(&self.instances)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Running { process, socket })
    }
}

fn ask(socket: &OwnedFd, folder: &Path, report: &OwnedFd) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [report.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // No more are under way than containers are made at once: the socket has room.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let text = io::IoSlice::new(folder.as_os_str().as_bytes());
    sendmsg(socket, &[text], &mut control, flags)?;
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

impl Drop for Running {
    fn drop(&mut self) {
        // It would end by itself with the socket, but nobody would reap it. Shims live on.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
