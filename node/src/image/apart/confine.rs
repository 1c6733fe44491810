//! Giving up power, for good: what the process that unpacks can still do once this has returned.
//!
//! - Files: its root is the folder it stood in, and nothing outside of it is open. Everything in an
//!   image is owned by whoever the image says, so it keeps the four capabilities that owning files
//!   takes, and no other: it can make no device (a whiteout takes no right) and set no attribute that
//!   only root may.
//! - The kernel: only the system calls that reading, writing and making files take. There is none
//!   among them that makes a socket, a process or a namespace, that mounts, traces, signals or runs a
//!   program. So namespaces of its own would take nothing more away, and cost their making.
//! - Amounts: memory, CPU time, open files, the size of a file.
//! - Time: it dies with the thread that started it.

use std::io;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall, scmp_cmp};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::image::budget::Limits;

/// To give files away, to write into directories that were given away, to describe them, and to leave
/// the setgid bit on what was.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

/// A window of zstd (128 MiB), names and times of half a million entries, and the program itself.
const MEMORY: u64 = 1024 * 1024 * 1024;
const OPEN_FILES: u64 = 64;
/// A recipe and a list of chunks are files too.
const BESIDE: u64 = 1024 * 1024 * 1024;
/// The kernel kills this before it kills anything an operator would miss.
const OOM_SCORE: &str = "500";

#[rustfmt::skip]
const ALLOWED: [&str; 58] = [
    // Bytes and files.
    "read", "readv", "pread64", "write", "writev", "pwrite64", "close", "lseek", "fstat", "newfstatat",
    "statx", "fcntl", "openat", "openat2", "ftruncate", "fallocate", "getdents64", "poll", "ppoll",
    // A tree.
    "mkdirat", "mknodat", "symlinkat", "linkat", "unlink", "unlinkat", "fchown", "fchownat", "fchmod",
    "fchmodat", "utimensat", "fsetxattr",
    // Memory.
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise",
    // Threads and time.
    "futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "gettid", "getpid",
    "clock_gettime", "clock_nanosleep", "nanosleep", "getrandom", "prctl", "restart_syscall",
    // Signals, as far as a program uses them on itself; the end.
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill", "membarrier", "exit",
    "exit_group",
];

/// Confines the calling process, which has one thread, to the folder it stands in.
pub(super) fn enter(name: &str, limits: &Limits) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_name(&std::ffi::CString::new(name)?)?;
    // Not everywhere is there a /proc that takes it.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    bound(limits)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    let sets = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    filter().map_err(io::Error::other)
}

fn bound(limits: &Limits) -> io::Result<()> {
    let limit = |resource, soft, hard| {
        let (current, maximum) = (Some(soft), Some(hard));
        setrlimit(resource, Rlimit { current, maximum })
    };
    limit(Resource::Core, 0, 0)?;
    limit(Resource::As, MEMORY, MEMORY)?;
    limit(Resource::Nofile, OPEN_FILES, OPEN_FILES)?;
    // The first is told by a signal of its own, the second kills.
    let seconds = limits.seconds;
    limit(Resource::Cpu, seconds, seconds.saturating_add(1))?;
    let largest = limits.raw.saturating_add(BESIDE);
    Ok(limit(Resource::Fsize, largest, largest)?)
}

/// What is not allowed does not exist: libraries then try what they did before there was it.
fn filter() -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::ENOSYS))?;
    for name in ALLOWED {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_name(name)?)?;
    }
    // A thread of its own, for a decoder; never a process.
    let threads = libc::CLONE_THREAD.unsigned_abs().into();
    let clone = ScmpSyscall::from_name("clone")?;
    filter.add_rule_conditional(
        ScmpAction::Allow,
        clone,
        &[scmp_cmp!($arg0 & threads == threads)],
    )?;
    filter.set_ctl_tsync(true)?;
    filter.load()
}
