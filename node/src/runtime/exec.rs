//! Further programs in a running container: what is asked of one, its streams, how it ended.
//!
//! The daemon has threads, so a helper of one thread joins the container and starts the program
//! (`shim::exec`). The two speak over a socket, which is also what holds the program: when the
//! daemon lets go of it, by will or by death, the helper ends the program.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use netfabric::wire::touch::Size;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use scheduler::model::InstanceId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::io::{Lines, ReadHalf, Take};
use tokio::net::UnixStream;

use super::copy::CopyJob;
use super::streams::{self, Far, Near};
use super::wire::{FailCode, Failure, MAX_LINE};
use super::{Ran, RuntimeError, shim};

pub use super::streams::Terminal;

/// Joining takes tens of milliseconds; a machine under load, seconds.
const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// All words of a command, and all of its environment.
pub const MAX_WORDS: usize = 96 << 10;
/// What the helper reads as one request: the words as JSON, escaped at worst.
pub const MAX_REQUEST: u64 = 1 << 20;
/// So much of what a short program wrote is kept.
const KEPT: usize = 4 << 10;
/// How long the program of someone who went away has after its hang-up.
pub(super) const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// A program has ended, yet something it started may hold its streams open: silence for so long is
/// the end of them.
pub const LAST_WORDS: Duration = Duration::from_millis(200);

/// A program to run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    pub args: Vec<String>,
    /// Beyond the container's own; later ones win.
    pub env: Vec<(String, String)>,
    /// The container's own when `None`.
    pub cwd: Option<String>,
    /// As in an image; the container's own when `None`.
    pub user: Option<String>,
    /// A terminal of this size instead of three pipes.
    pub tty: Option<Size>,
    /// Whether something is to be read from stdin; otherwise it is empty.
    pub stdin: bool,
}

impl ExecSpec {
    /// What is wrong with it before anything was tried.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn check(&self) -> Result<(), String> {
        if self.args.first().is_none_or(String::is_empty) {
            return Err("no command: name the program to run".to_owned());
        }
        let env = self.env.iter().flat_map(|(name, value)| [name, value]);
        let words = self.args.iter().chain(env);
        let words = words.chain(&self.cwd).chain(&self.user);
        let mut sum = 0;
        for word in words {
            if word.contains('\0') {
                return Err("a NUL byte is no part of a command".to_owned());
            }
            sum += word.len() + 1;
        }
        if sum > MAX_WORDS {
            return Err(format!(
                "the command and its environment are longer than {MAX_WORDS} bytes"
            ));
        }
        match self
            .env
            .iter()
            .find(|(name, _)| name.is_empty() || name.contains('='))
        {
            Some((name, _)) => Err(format!("`{name}` cannot name an environment variable")),
            None => Ok(()),
        }
    }
}

/// What the helper is asked, after the three descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub pid: i32,
    pub work: Work,
    pub user: Option<String>,
    pub tty: bool,
    /// From the hang-up to the kill.
    pub grace_millis: u64,
}

/// What is done in the container.
#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    Run {
        args: Vec<String>,
        env: Vec<(String, String)>,
        cwd: Option<String>,
    },
    Copy(CopyJob),
}

/// What the helper says, one line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    Started,
    Refused(Failure),
    /// Its exit code, or 128 + signal.
    Ended(i32),
}

pub(super) type Input = Box<dyn AsyncWrite + Send + Unpin>;
pub(super) type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A running program. Dropping it hangs up: the program gets SIGHUP, then SIGKILL.
pub struct Exec {
    /// Dropping it is the end of the program's input.
    pub stdin: Option<Input>,
    pub stdout: Output,
    /// None with a terminal, which has one stream.
    pub stderr: Option<Output>,
    pub terminal: Option<Terminal>,
    /// The exit code, or 128 + signal. Dropping it hangs up.
    pub ended: BoxFuture<'static, Result<i32, RuntimeError>>,
}

/// The container a program goes to.
pub(super) struct Place<'a> {
    pub id: &'a InstanceId,
    pub folder: &'a Path,
    pub binary: &'a Path,
    pub pid: i32,
}

impl Place<'_> {
    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> RuntimeError + use<> {
        let id = self.id.clone();
        move |source| RuntimeError::Io { id, what, source }
    }

    /// Starts a program and returns once it runs.
    pub(super) async fn run(&self, spec: &ExecSpec, grace: Duration) -> Result<Exec, RuntimeError> {
        spec.check()
            .map_err(|m| Failure::new(FailCode::BadSpec, m))?;
        let work = Work::Run {
            args: spec.args.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
        };
        let (far, near) = match spec.tty {
            Some(size) => streams::terminal(self.pid, size),
            None => streams::pipes(spec.stdin),
        }
        .map_err(self.failed("making the program's streams"))?;
        let request = Request {
            pid: self.pid,
            work,
            user: spec.user.clone(),
            tty: spec.tty.is_some(),
            grace_millis: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        self.begin(&request, far, near).await
    }

    /// Packs or unpacks files in the container; a tar comes from stdout or goes to stdin.
    pub(super) async fn copy(
        &self,
        job: CopyJob,
        user: Option<String>,
    ) -> Result<Exec, RuntimeError> {
        let (far, near) = streams::pipes(true).map_err(self.failed("making the copy's streams"))?;
        let request = Request {
            pid: self.pid,
            work: Work::Copy(job),
            user,
            tty: false,
            grace_millis: 0,
        };
        self.begin(&request, far, near).await
    }

    async fn begin(&self, request: &Request, far: Far, near: Near) -> Result<Exec, RuntimeError> {
        let begun = self.helper(request, far);
        let mut reports = match tokio::time::timeout(JOIN_DEADLINE, begun).await {
            Ok(begun) => begun?,
            Err(_) => {
                return Err(RuntimeError::Deadline {
                    id: self.id.clone(),
                    what: "starting a program in it",
                    waited: JOIN_DEADLINE,
                });
            }
        };
        let id = self.id.clone();
        let ended = async move {
            match reports.next().await {
                Ok(Report::Ended(code)) => Ok(code),
                Ok(_) => Err(RuntimeError::Unreadable(id)),
                Err(source) => Err(RuntimeError::Io {
                    id,
                    what: "waiting for a program in it",
                    source,
                }),
            }
        };
        Ok(Exec {
            stdin: near.stdin,
            stdout: near.stdout,
            stderr: near.stderr,
            terminal: near.terminal,
            ended: ended.boxed(),
        })
    }

    /// Starts the helper, hands it the streams and waits until the program runs.
    async fn helper(&self, request: &Request, far: Far) -> Result<Reports, RuntimeError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .map_err(self.failed("making the helper's socket"))?;
        // It ends when its socket does; tokio reaps it whoever waits.
        tokio::process::Command::new(self.binary)
            .arg0(shim::exec::NAME)
            .arg("exec")
            .arg("--dir")
            .arg(self.folder)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(self.failed("starting the helper"))?;
        let streams = [far.fds[0].as_fd(), far.fds[1].as_fd(), far.fds[2].as_fd()];
        send_streams(ours.as_fd(), &streams).map_err(self.failed("handing over the streams"))?;
        drop(far);
        ours.set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(ours))
            .map(Reports::new)
            .map_err(self.failed("reaching the helper"))?
            .start(request)
            .await
            .map_err(|error| match error {
                Start::Refused(failure) => failure.into(),
                Start::Io(error) => self.failed("starting a program in it")(error),
            })
    }
}

/// One byte that carries the descriptors.
fn send_streams(socket: BorrowedFd<'_>, streams: &[BorrowedFd<'_>; 3]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(streams)) {
        return Err(io::Error::other("no room for three descriptors"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(b".")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// The helper's end of the conversation, read line by line.
struct Reports {
    lines: Lines<BufReader<Take<ReadHalf<UnixStream>>>>,
    /// Kept: its end is the hang-up.
    socket: tokio::io::WriteHalf<UnixStream>,
}

enum Start {
    Refused(Failure),
    Io(io::Error),
}

impl Reports {
    fn new(socket: UnixStream) -> Self {
        let (read, socket) = tokio::io::split(socket);
        let lines = BufReader::new(read.take(2 * MAX_LINE)).lines();
        Self { lines, socket }
    }

    async fn start(mut self, request: &Request) -> Result<Self, Start> {
        let mut line = serde_json::to_vec(request).map_err(|e| Start::Io(e.into()))?;
        line.push(b'\n');
        self.socket.write_all(&line).await.map_err(Start::Io)?;
        match self.next().await.map_err(Start::Io)? {
            Report::Started => Ok(self),
            Report::Refused(failure) => Err(Start::Refused(failure)),
            Report::Ended(_) => Err(Start::Io(io::ErrorKind::InvalidData.into())),
        }
    }

    async fn next(&mut self) -> io::Result<Report> {
        let line = self.lines.next_line().await?;
        let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Waits for a program's end, at most `patience`, and keeps the end of what it wrote.
pub(super) async fn finish(exec: Exec, patience: Duration) -> Result<Ran, RuntimeError> {
    let Exec {
        stdout,
        stderr,
        ended,
        ..
    } = exec;
    let mut kept = Vec::new();
    let code = {
        let reading = read_both(stdout, stderr, &mut kept);
        tokio::pin!(reading);
        let mut read = false;
        let ended = tokio::time::timeout(patience, ended);
        tokio::pin!(ended);
        let code = loop {
            tokio::select! {
                code = &mut ended => break code,
                () = &mut reading, if !read => read = true,
            }
        };
        if !read && code.is_ok() {
            // What it started may still hold its streams.
            let _ = tokio::time::timeout(LAST_WORDS, reading).await;
        }
        code
    };
    let said = String::from_utf8_lossy(&kept).into_owned();
    match code {
        Ok(code) => Ok(Ran { code: code?, said }),
        Err(_) => Ok(Ran {
            code: 128 + libc::SIGKILL,
            said,
        }),
    }
}

async fn read_both(mut stdout: Output, stderr: Option<Output>, kept: &mut Vec<u8>) {
    let mut stderr = stderr.unwrap_or_else(|| Box::new(tokio::io::empty()));
    let (mut out_open, mut err_open) = (true, true);
    let (mut out, mut err) = ([0; KEPT], [0; KEPT]);
    while out_open || err_open {
        // An unreadable stream has ended.
        let (count, bytes) = tokio::select! {
            read = stdout.read(&mut out), if out_open => {
                let count = read.unwrap_or(0);
                out_open = count > 0;
                (count, &out)
            }
            read = stderr.read(&mut err), if err_open => {
                let count = read.unwrap_or(0);
                err_open = count > 0;
                (count, &err)
            }
        };
        kept.extend_from_slice(&bytes[..count]);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_before_anything_is_tried() {
        let good = ExecSpec {
            args: vec!["true".into()],
            ..ExecSpec::default()
        };
        assert_eq!(good.check(), Ok(()));
        let bad: [fn(&mut ExecSpec); 5] = [
            |s| s.args.clear(),
            |s| s.args[0].push('\0'),
            |s| s.env.push(("A=B".into(), String::new())),
            |s| s.user = Some("a\0".into()),
            |s| s.args.push("x".repeat(MAX_WORDS)),
        ];
        for (at, spoil) in bad.iter().enumerate() {
            let mut spec = good.clone();
            spoil(&mut spec);
            assert!(spec.check().is_err(), "case {at}");
        }
    }
}
