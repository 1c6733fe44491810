//! The streams of a further program in a container: three pipes, or a terminal of the container's
//! own. What goes through them is not looked at here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use netfabric::wire::touch::Size;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use super::exec::{Input, Output};
use super::shim;

/// The program's ends of its streams.
pub(super) struct Far {
    pub fds: [OwnedFd; 3],
}

/// Our ends of the program's streams.
pub(super) struct Near {
    pub stdin: Option<Input>,
    pub stdout: Output,
    pub stderr: Option<Output>,
    pub terminal: Option<Terminal>,
}

pub(super) fn pipes(with_stdin: bool) -> io::Result<(Far, Near)> {
    let new = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (out, out_far) = new()?;
    let (err, err_far) = new()?;
    let (in_far, stdin): (OwnedFd, Option<Input>) = if with_stdin {
        let (far, near) = new()?;
        (far, Some(Box::new(pipe::Sender::from_owned_fd(near)?)))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let near = Near {
        stdin,
        stdout: Box::new(pipe::Receiver::from_owned_fd(out)?),
        stderr: Some(Box::new(pipe::Receiver::from_owned_fd(err)?)),
        terminal: None,
    };
    let fds = [in_far, out_far, err_far];
    Ok((Far { fds }, near))
}

/// A terminal of the container's own, so that programs find it by its name in `/dev/pts`.
pub(super) fn terminal(pid: i32, size: Size) -> io::Result<(Far, Near)> {
    let root = rustix::fs::open(
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Below its root and through no link: what is there is the container's to choose.
    let master = rustix::fs::openat2(
        &root,
        "dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    )?;
    let stat = rustix::fs::fstat(&master)?;
    if stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(io::Error::other("/dev/pts/ptmx is no terminal's master"));
    }
    rustix::pty::unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    shim::pty::resize(master.as_fd(), size)?;
    let fds = [slave.try_clone()?, slave.try_clone()?, slave];
    let terminal = Terminal(Arc::new(shim::pty::watched(master)?));
    let near = Near {
        stdin: Some(Box::new(terminal.clone())),
        stdout: Box::new(terminal.clone()),
        stderr: None,
        terminal: Some(terminal),
    };
    Ok((Far { fds }, near))
}

/// The program's terminal, to be resized.
#[derive(Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// # Errors
    /// The kernel refused, as for a terminal that is gone.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        shim::pty::resize(self.0.get_ref().as_fd(), size)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *space)?)) {
                Ok(Ok(count)) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The last who had it open has closed it.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
