//! The helper behind a further program in a container: re-executed from the daemon's binary before
//! any thread exists, since only a single thread may join namespaces and fork.
//!
//! It starts the program, says how that went and how the program ended, and ends it when the daemon
//! lets go of the socket. What the program may do is `join`'s business.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use super::super::exec::{MAX_REQUEST, Report, Request};
use super::super::wire::{FailCode, Failure};
use super::{bad, join};

/// What the process calls itself.
pub const NAME: &str = "selvedge-exec";
/// Why a program could not be started: a failure as JSON.
const MAX_REFUSAL: u64 = 16 << 10;

/// `selvedged exec --dir DIR`: `args` is what follows `exec`; stdin is the daemon's socket. Must be
/// called before the process has a second thread.
pub fn main(args: &[OsString]) -> ExitCode {
    let [flag, folder] = args else { return usage() };
    if flag != "--dir" {
        return usage();
    }
    match Helper::hear(folder.into()) {
        Ok(helper) => helper.serve(),
        // The daemon sees the socket close.
        Err(_) => ExitCode::FAILURE,
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: selvedged exec --dir FOLDER (the daemon calls this itself)");
    ExitCode::from(2)
}

struct Helper {
    folder: PathBuf,
    daemon: UnixStream,
    streams: [OwnedFd; 3],
    request: Request,
}

impl Helper {
    fn hear(folder: PathBuf) -> io::Result<Self> {
        // SAFETY: plain system calls with constant arguments; nothing above 2 is in use yet.
        unsafe {
            libc::close_range(3, libc::c_uint::MAX, 0);
            libc::prctl(libc::PR_SET_NAME, c"selvedge-exec".as_ptr());
            // Nothing in the container may look into us or reach our descriptors while we join it.
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
        }
        let daemon = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let streams = receive_streams(&daemon)?;
        let mut line = Vec::new();
        BufReader::new((&daemon).take(MAX_REQUEST)).read_until(b'\n', &mut line)?;
        Ok(Self {
            folder,
            daemon,
            streams,
            request: serde_json::from_slice(&line)?,
        })
    }

    fn serve(self) -> ExitCode {
        let Self {
            folder,
            daemon,
            streams,
            request,
        } = self;
        let grace = request.grace_millis;
        let started = start(&folder, request, streams);
        let said = match started {
            Ok((program, refusal)) => attend(&daemon, &program, refusal, grace),
            Err(failure) => say(&daemon, &Report::Refused(failure)),
        };
        if said.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn receive_streams(daemon: &UnixStream) -> io::Result<[OwnedFd; 3]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(
        daemon,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    )?;
    let streams: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    streams
        .try_into()
        .map_err(|_| io::Error::other("three descriptors were promised"))
}

/// The program's first process, ours to reap.
struct Program {
    pid: Pid,
    /// Readable once it has ended.
    end: OwnedFd,
}

/// Starts the program; the file ends without a word once it runs, or says why it does not.
fn start(
    folder: &Path,
    request: Request,
    streams: [OwnedFd; 3],
) -> Result<(Program, File), Failure> {
    let place = join::Place::find(folder, &request)?;
    let other = |e: io::Error| bad(FailCode::StartContainer, e.to_string());
    let (refusal, tell) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| other(e.into()))?;
    place.enter_processes()?;
    // SAFETY: this process has one thread, so the child's copy of memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(other(io::Error::last_os_error())),
        0 => {
            drop(refusal);
            place.become_program(request, streams, File::from(tell));
        }
        pid => {
            let pid = Pid::from_raw(pid).ok_or_else(|| other(io::ErrorKind::Other.into()))?;
            // Ours to reap, so the number is still its.
            let end = rustix::process::pidfd_open(pid, PidfdFlags::empty())
                .map_err(|e| other(e.into()))?;
            Ok((Program { pid, end }, File::from(refusal)))
        }
    }
}

/// Says how the start went and how the program ended; ends it when the daemon lets go.
fn attend(daemon: &UnixStream, program: &Program, refusal: File, grace: u64) -> io::Result<()> {
    let mut refusal = Some(refusal);
    loop {
        let ready = wait(daemon, program, refusal.as_ref())?;
        if ready.refusal
            && let Some(file) = refusal.take()
        {
            let mut text = Vec::new();
            file.take(MAX_REFUSAL).read_to_end(&mut text)?;
            if !text.is_empty() {
                program.reap()?;
                return say(daemon, &Report::Refused(serde_json::from_slice(&text)?));
            }
            say(daemon, &Report::Started)?;
        }
        // Only once it is known that it ran: a refusal comes before the end.
        if ready.ended && refusal.is_none() {
            return say(daemon, &Report::Ended(program.reap()?));
        }
        if ready.gone {
            return program.hang_up(grace);
        }
    }
}

#[derive(Default)]
struct Ready {
    refusal: bool,
    ended: bool,
    gone: bool,
}

fn wait(daemon: &UnixStream, program: &Program, refusal: Option<&File>) -> io::Result<Ready> {
    let mut fds = vec![
        PollFd::new(&program.end, PollFlags::IN),
        PollFd::new(daemon, PollFlags::IN),
    ];
    fds.extend(refusal.map(|file| PollFd::new(file, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let hit = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready {
        ended: hit(0),
        // It says nothing more, so anything here is its end.
        gone: hit(1),
        refusal: hit(2),
    })
}

impl Program {
    fn reap(&self) -> io::Result<i32> {
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(code(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Nobody is there any more: the program and what it started in its session end.
    fn hang_up(&self, grace: u64) -> io::Result<()> {
        let signal = |signal| {
            // Gone already, or not yet a group of its own: then it alone.
            if rustix::process::kill_process_group(self.pid, signal).is_err() {
                let _ = rustix::process::kill_process(self.pid, signal);
            }
        };
        if grace > 0 {
            signal(Signal::HUP);
            signal(Signal::CONT);
            let grace = Timespec {
                tv_sec: i64::try_from(grace / 1000).unwrap_or(0),
                tv_nsec: i64::try_from(grace % 1000 * 1_000_000).unwrap_or(0),
            };
            // Interrupted is early, which only shortens its grace.
            let _ = poll(&mut [PollFd::new(&self.end, PollFlags::IN)], Some(&grace));
        }
        signal(Signal::KILL);
        self.reap().map(drop)
    }
}

fn code(status: WaitStatus) -> i32 {
    let signalled = || status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or_else(signalled).unwrap_or(255)
}

fn say(mut daemon: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    daemon.write_all(&line)
}
