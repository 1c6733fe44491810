//! The shim's one loop: the container's output, its end, and what the daemon asks. One thread, one
//! `poll`, nothing that blocks for long.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use scheduler::model::{Exit, UnixMs};

use super::super::cgroup::Cgroup;
use super::super::process;
use super::super::wire::{self, EXIT, FailCode, Failure, MAX_LINE, Phase, Reply, Request};
use super::{CLEANUP, Shim, bad};

/// Connections served at once; the daemon needs two.
const MAX_CLIENTS: usize = 16;
/// How soon a flooding program's output is looked at again.
const SLOWED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Who asks for the secrets reads them at once, or goes without.
const SECRETS_PATIENCE: Duration = Duration::from_secs(1);

/// How far a shim that cleans up stands back from those that start.
const DELETE_NICE: i32 = 10;

struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    waiting: bool,
}

/// What became of a request.
enum Answer {
    Now(Reply),
    Secrets,
    /// When the container has ended.
    Later,
    /// Then the shim ends.
    Last(Reply),
}

/// One round's findings, so that nothing borrowed outlives the wait.
#[derive(Default)]
struct Ready {
    child: bool,
    caller: bool,
    pipes: Vec<usize>,
    clients: Vec<usize>,
}

impl Shim {
    /// Serves until the daemon is done with this container.
    pub(super) fn serve(&mut self) -> io::Result<()> {
        let children = child_signals()?;
        let mut clients: Vec<Client> = Vec::new();
        // It may have died before its signal was blocked.
        self.reap();
        loop {
            let ready = self.wait(&children, &clients)?;
            for at in ready.pipes {
                self.output.take(at);
            }
            self.output.settle();
            if ready.child {
                drain(&children);
                self.reap();
            }
            let mut ended = Vec::new();
            for at in ready.clients {
                match self.read(&mut clients[at]) {
                    Some(Answer::Now(reply)) => {
                        send(&mut clients[at], &reply);
                        ended.push(at);
                    }
                    Some(Answer::Secrets) => {
                        if let Err(error) = self.tell_secrets(&mut clients[at]) {
                            eprintln!("{}: secrets were not told: {error}", super::NAME);
                        }
                        ended.push(at);
                    }
                    Some(Answer::Last(reply)) => {
                        send(&mut clients[at], &reply);
                        return Ok(());
                    }
                    Some(Answer::Later) => clients[at].waiting = true,
                    None if clients[at].line.is_empty() => ended.push(at),
                    None => {}
                }
            }
            for at in ended.into_iter().rev() {
                clients.swap_remove(at);
            }
            if ready.caller {
                self.accept(&mut clients);
            }
            if self.exit.is_some() {
                let reply = Reply::State(self.state());
                clients
                    .iter_mut()
                    .filter(|c| c.waiting)
                    .for_each(|c| send(c, &reply));
                clients.retain(|c| !c.waiting);
            }
        }
    }

    fn wait(&mut self, children: &OwnedFd, clients: &[Client]) -> io::Result<Ready> {
        // Nothing to do is no wake-up: hundreds of shims must cost an idle node nothing.
        let timeout = self.output.is_slowed().then_some(SLOWED);
        let listener = self.listener.as_fd();
        let mut fds = vec![
            PollFd::new(children, PollFlags::IN),
            PollFd::from_borrowed_fd(listener, PollFlags::IN),
        ];
        let pipes: Vec<_> = self.output.pipes().collect();
        for (_, pipe) in &pipes {
            fds.push(PollFd::from_borrowed_fd(*pipe, PollFlags::IN));
        }
        for client in clients {
            fds.push(PollFd::new(&client.stream, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let hit = |at: usize| !fds[at].revents().is_empty();
        let first_client = 2 + pipes.len();
        Ok(Ready {
            child: hit(0),
            caller: hit(1),
            pipes: pipes
                .iter()
                .enumerate()
                .filter(|(n, _)| hit(2 + n))
                .map(|(_, p)| p.0)
                .collect(),
            clients: (0..clients.len())
                .filter(|n| hit(first_client + n))
                .collect(),
        })
    }

    fn accept(&self, clients: &mut Vec<Client>) {
        while let Ok((stream, _)) = self.listener.accept() {
            // Past the bound the caller sees its connection closed and comes again.
            if clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok() {
                clients.push(Client {
                    stream,
                    line: Vec::new(),
                    waiting: false,
                });
            }
        }
    }

    /// Reads what a client has sent; an answer once its line is whole. Leaves the line empty when
    /// the client is gone.
    fn read(&mut self, client: &mut Client) -> Option<Answer> {
        let mut chunk = [0; 4096];
        match client.stream.read(&mut chunk) {
            Ok(count) if count > 0 && !client.waiting => {
                client.line.extend_from_slice(&chunk[..count]);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            _ => {
                client.line.clear();
                return None;
            }
        }
        let end = client.line.iter().position(|b| *b == b'\n');
        match end.map(|end| serde_json::from_slice(&client.line[..end])) {
            Some(Ok(request)) => Some(self.answer(&request)),
            Some(Err(error)) => Some(refuse(FailCode::WrongState, &error.to_string())),
            None if client.line.len() as u64 > MAX_LINE => {
                Some(refuse(FailCode::WrongState, "the request is too long"))
            }
            None => None,
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match *request {
            Request::Start => Answer::Now(self.start()),
            Request::Signal { signal } => Answer::Now(self.signal(signal)),
            Request::Wait if self.exit.is_none() => Answer::Later,
            Request::State | Request::Wait => Answer::Now(Reply::State(self.state())),
            Request::Delete => match self.delete() {
                Ok(()) => Answer::Last(Reply::State(self.state())),
                Err(failure) => Answer::Now(Reply::Refused(failure)),
            },
            Request::StopShim if self.exit.is_some() => Answer::Last(Reply::State(self.state())),
            Request::StopShim => refuse(FailCode::WrongState, "the container has not ended"),
            Request::Secrets => Answer::Secrets,
        }
    }

    /// They may be more than the socket holds: this is waited for, though not long.
    fn tell_secrets(&self, client: &mut Client) -> io::Result<()> {
        client.stream.set_nonblocking(false)?;
        client.stream.set_write_timeout(Some(SECRETS_PATIENCE))?;
        client
            .stream
            .write_all(&wire::secrets(&self.spec.secret_env)?)
    }

    fn start(&mut self) -> Reply {
        if self.phase != Phase::Created {
            return Reply::Refused(bad(FailCode::WrongState, "it was started before"));
        }
        let sent = match self.go.take() {
            Some(go) => rustix::io::write(go, b"!"),
            None => Err(rustix::io::Errno::PIPE),
        };
        match sent {
            Ok(_) => {
                self.phase = Phase::Running;
                Reply::State(self.state())
            }
            Err(error) => Reply::Refused(bad(FailCode::StartContainer, error.to_string())),
        }
    }

    fn signal(&mut self, number: i32) -> Reply {
        if !(1..=64).contains(&number) {
            return Reply::Refused(bad(FailCode::WrongState, format!("no signal {number}")));
        }
        if self.exit.is_none() {
            // SAFETY: ours to reap, so the number cannot have passed to another process. (The
            // safe call knows no real-time signals.)
            unsafe { libc::kill(self.pid, number) };
        }
        Reply::State(self.state())
    }

    /// Waits for nothing: takes what has ended, and if the container has, records how.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: waits for our own children only, and fills in `status`.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            if pid == self.pid {
                self.ended(status);
            }
        }
    }

    fn ended(&mut self, status: i32) {
        self.output.finish();
        let (code, signal) = if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            (128 + signal, Some(signal))
        } else {
            (libc::WEXITSTATUS(status), None)
        };
        let oom = code != 0 && Cgroup::at(&self.spec.cgroup).oom_kills() > 0;
        let exit = Exit {
            code,
            signal,
            oom,
            lost: false,
            at: UnixMs(wire::unix_ms()),
        };
        if let Err(error) = wire::write_record(Path::new("."), EXIT, &exit) {
            eprintln!("{}: the end could not be recorded: {error}", super::NAME);
        }
        self.phase = Phase::Exited;
        self.exit = Some(exit);
    }

    fn delete(&mut self) -> Result<(), Failure> {
        // Somebody may be waiting for a start; nobody waits for this.
        let _ = rustix::process::nice(DELETE_NICE);
        if self.exit.is_none() {
            process::kill(self.pid, Signal::KILL);
            // Under version 1 it dies of it only when it is not frozen.
            let _ = Cgroup::at(&self.spec.cgroup).freeze(false);
            let mut status = 0;
            // SAFETY: waits for our own child, which was just killed, and fills in `status`.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            if pid == self.pid {
                self.ended(status);
            }
        }
        Cgroup::at(&self.spec.cgroup)
            .remove(CLEANUP)
            .map_err(|e| bad(FailCode::Cgroup, format!("the cgroup stays: {e}")))?;
        wire::remove_own_files(&self.folder)
            .map_err(|e| bad(FailCode::StartContainer, format!("records stay: {e}")))
    }
}

fn refuse(code: FailCode, message: &str) -> Answer {
    Answer::Now(Reply::Refused(bad(code, message)))
}

fn send(client: &mut Client, reply: &Reply) {
    // A few hundred bytes into an empty socket buffer: it takes them whole, or the client is gone.
    if let Ok(mut line) = serde_json::to_vec(reply) {
        line.push(b'\n');
        let _ = client.stream.write_all(&line);
    }
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable with it. Only after the container
/// was built: its program must not inherit the mask.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the descriptor is new and ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) == -1 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

fn drain(children: &OwnedFd) {
    let mut buffer = [0_u8; 1024];
    while rustix::io::read(children, &mut buffer).is_ok_and(|count| count > 0) {}
}
