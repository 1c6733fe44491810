//! The process that stands between the daemon and one container: forked from a nursery, which is the
//! daemon's own binary before any thread exists, detached from both, alive as long as the container
//! is.
//!
//! It builds the container (libcontainer is safe only in a single thread), owns its output, reaps it,
//! records how it ended and serves one unix socket. It decides nothing.
#![allow(unsafe_code)] // fork, prctl, signalfd: each with its reason.

mod build;
mod etc;
pub mod exec;
mod init;
mod join;
mod log;
mod mounts;
mod nursery;
pub mod parked;
mod powers;
pub mod pty;
mod serve;
mod sysctl;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nursery::{Birth, Common};

use super::cgroup::Cgroup;
use super::process::Process;
use super::scratch;
use super::spec::{ContainerSpec, SecretEnv};
use super::wire::{
    self, FAILED, FailCode, Failure, Phase, Reply, SHIM, SHIM_LOG, SOCKET, SPEC, ShimRecord,
    ShimState,
};

/// What the process calls itself, so that killing every `selvedged` by name spares it.
pub const NAME: &str = "selvedge-shim";

/// How long the dying in a container's cgroup are waited for.
const CLEANUP: Duration = Duration::from_secs(5);

/// `selvedged shim --nursery INSTANCES`: `args` is what follows `shim`. Must be called before the
/// process has a second thread. Returns in the nursery and in every shim forked from it.
pub fn main(args: &[OsString]) -> ExitCode {
    let [flag, instances] = args else {
        return usage();
    };
    if flag != "--nursery" {
        return usage();
    }
    match nursery::run(Path::new(instances)) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(birth)) => match begin(&birth) {
            Ok(secrets) => run(birth, secrets),
            Err(error) => {
                let why = format!("{}: {error}", birth.folder.display());
                let failure = bad(FailCode::CreateContainer, why);
                say(&birth.report, &Reply::Refused(failure));
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: selvedged shim --nursery FOLDER (the daemon calls this itself)");
    ExitCode::from(2)
}

/// Closes all but the first three descriptors, whoever left them open. Must be called before anything
/// of this process is.
pub fn close_inherited() {
    // SAFETY: nothing above 2 is in use yet.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Leaves the nursery: own session, working folder `folder`, nothing of the nursery's open.
fn detach(folder: &Path) -> io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: a flag on ourselves.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    std::env::set_current_dir(folder)?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(scratch::of(folder).join(SHIM_LOG))?;
    for (from, to) in [(&null, 0), (&null, 1), (&log, 2)] {
        // SAFETY: both are open; what was behind 0 to 2 is meant to be closed.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Alone in its folder, and told what is told nowhere else.
fn begin(birth: &Birth) -> io::Result<SecretEnv> {
    detach(&birth.folder)?;
    wire::read_secrets(&birth.report)
}

fn run(birth: Birth, secrets: SecretEnv) -> ExitCode {
    let Birth {
        folder,
        report,
        common,
    } = birth;
    let mut shim = match Shim::create(&folder, &report, common, secrets) {
        Ok(shim) => shim,
        Err(failure) => {
            eprintln!("{NAME}: {failure}");
            // Records first: the reader of the report may look for them.
            let _ = wire::write_record(&folder, FAILED, &failure);
            say(&report, &Reply::Refused(failure));
            return ExitCode::FAILURE;
        }
    };
    say(&report, &Reply::State(shim.state()));
    drop(report);
    give_back_memory();
    match shim.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// libcontainer's reasons, for the shim's log; its child's come through the container's stderr.
fn log_errors() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}

/// Building a container takes memory that nothing needs again while hundreds of shims lie idle: free
/// pages of the allocator's, and of the stack.
fn give_back_memory() {
    /// What this function and those it calls may use of the stack.
    const IN_USE: usize = 16 << 10;
    /// The stack's other pages are within; the kernel maps nothing else this near.
    const DEPTH: usize = 1 << 20;
    const PAGE: usize = 4 << 10;
    let here = 0_u8;
    let end = (&raw const here).addr().saturating_sub(IN_USE) / PAGE * PAGE;
    let begin = end.saturating_sub(DEPTH);
    // SAFETY: this process has one thread, and below what it uses of its stack is nothing that is read
    // again. Pages that were never touched are no pages yet, which is no error that matters.
    unsafe {
        #[cfg(target_env = "gnu")]
        libc::malloc_trim(0);
        let begin = std::ptr::without_provenance_mut(begin);
        libc::madvise(begin, DEPTH, libc::MADV_DONTNEED);
    }
}

fn say(mut report: &File, reply: &Reply) {
    // A daemon that died meanwhile reads the records instead.
    if let Ok(mut line) = serde_json::to_vec(reply) {
        line.push(b'\n');
        let _ = report.write_all(&line);
    }
}

/// One container and all that is known of it.
struct Shim {
    spec: ContainerSpec,
    folder: PathBuf,
    pid: i32,
    /// Where its first process waits for a byte; none when that was sent.
    go: Option<OwnedFd>,
    phase: Phase,
    exit: Option<scheduler::model::Exit>,
    listener: UnixListener,
    output: log::Output,
}

impl Shim {
    fn create(
        folder: &Path,
        report: &File,
        common: Common,
        secrets: SecretEnv,
    ) -> Result<Self, Failure> {
        let mut spec: ContainerSpec = wire::read_record(Path::new("."), SPEC)
            .ok_or_else(|| bad(FailCode::BadSpec, "the specification cannot be read"))?;
        spec.secret_env = secrets;
        spec.check()
            .map_err(|message| bad(FailCode::BadSpec, message))?;
        let scratch = scratch::of(folder);
        let me = Process::of(std::process::id().cast_signed())
            .ok_or_else(|| bad(FailCode::CreateContainer, "/proc cannot be read"))?;
        let mut record = ShimRecord {
            shim: me,
            container: None,
            started: false,
        };
        let keep = |record: &ShimRecord| {
            wire::write_note(&scratch, SHIM, record)
                .map_err(|e| bad(FailCode::CreateContainer, format!("no record written: {e}")))
        };
        keep(&record)?;
        let listener = listen(&scratch).map_err(|e| {
            bad(
                FailCode::CreateContainer,
                format!("no socket to serve: {e}"),
            )
        })?;
        let private = [listener.as_raw_fd(), report.as_raw_fd()];
        let built = build::container(&spec, folder, common, private)
            .inspect_err(|_| undo(&spec, &scratch))?;
        record.container = Process::of(built.pid);
        keep(&record).inspect_err(|_| undo(&spec, &scratch))?;
        let output = log::Output::new(built.stdout, built.stderr)
            .map_err(|e| bad(FailCode::CreateContainer, format!("no log: {e}")))
            .inspect_err(|_| undo(&spec, &scratch))?;
        Ok(Self {
            spec,
            folder: folder.to_owned(),
            pid: built.pid,
            go: Some(built.go),
            phase: Phase::Created,
            exit: None,
            listener,
            output,
        })
    }

    fn state(&self) -> ShimState {
        ShimState {
            phase: self.phase,
            pid: self.pid,
            exit: self.exit.clone(),
        }
    }
}

/// Through the folder's descriptor: a socket's path has room for 108 bytes only.
fn listen(scratch: &Path) -> io::Result<UnixListener> {
    let folder = File::open(scratch)?;
    let at = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    let listener = UnixListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes back what a failed build left.
fn undo(spec: &ContainerSpec, scratch: &Path) {
    if let Err(error) = Cgroup::at(&spec.cgroup).remove(CLEANUP) {
        eprintln!("{NAME}: cgroup left behind: {error}");
    }
    let _ = build::forget_state(scratch);
    let _ = fs::remove_file(scratch.join(SOCKET));
}

fn bad(code: FailCode, message: impl Into<String>) -> Failure {
    Failure::new(code, message)
}

/// A pipe whose reading end never blocks and whose ends no other process inherits.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(read.as_fd(), true)?;
    Ok((read, write))
}
