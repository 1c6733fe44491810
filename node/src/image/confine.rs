//! Giving up power, for good: what a process of this room's that reads a stranger's bytes can still
//! do once [`enter`] has returned. Owns how that is done; what each of them keeps is its own to say.
//!
//! - Files: its root is the folder it stood in, and nothing outside of it is open but what it opened
//!   before. Of capabilities it keeps those it names.
//! - The kernel: only the system calls it names and those that any program takes. There is none among
//!   them that makes a process or a namespace, that mounts, traces, signals or runs a program. So
//!   namespaces of its own would take nothing more away, and cost their making.
//! - Amounts: memory, open files, the size of a file, and what else it names.

use std::ffi::CString;
use std::io;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall, scmp_cmp};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// A window of zstd (128 MiB), names and times of half a million entries, and the program itself.
const MEMORY: u64 = 1024 * 1024 * 1024;
const OPEN_FILES: u64 = 64;

/// What any program of ours takes.
#[rustfmt::skip]
const ALLOWED: [&str; 36] = [
    // Bytes of what is open.
    "read", "readv", "pread64", "write", "writev", "close", "fcntl", "poll", "ppoll",
    // Memory.
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise",
    // Threads and time.
    "futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "gettid", "getpid",
    "clock_gettime", "clock_nanosleep", "nanosleep", "getrandom", "prctl", "restart_syscall",
    // Signals, as far as a program uses them on itself; the end.
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill", "membarrier", "exit",
    "exit_group",
];

/// What a process keeps.
pub(super) struct Kept<'a> {
    pub name: &'a str,
    pub capabilities: CapabilitySet,
    /// System calls beyond those that any program takes.
    pub calls: &'a [&'a str],
    /// Whether it may make a Unix socket.
    pub sockets: bool,
    /// Bytes of the largest file it may write.
    pub file: u64,
    /// Further limits: the first value warns or refuses, the second ends it.
    pub limits: &'a [(Resource, u64, u64)],
}

/// Confines the calling process, which has one thread, to the folder it stands in.
pub(super) fn enter(kept: &Kept<'_>) -> io::Result<()> {
    rustix::thread::set_name(&CString::new(kept.name)?)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for (resource, soft, hard) in [
        (Resource::Core, 0, 0),
        (Resource::As, MEMORY, MEMORY),
        (Resource::Nofile, OPEN_FILES, OPEN_FILES),
        (Resource::Fsize, kept.file, kept.file),
    ]
    .iter()
    .chain(kept.limits)
    {
        let (current, maximum) = (Some(*soft), Some(*hard));
        setrlimit(*resource, Rlimit { current, maximum })?;
    }
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    let sets = CapabilitySets {
        effective: kept.capabilities,
        permitted: kept.capabilities,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    filter(kept).map_err(io::Error::other)
}

/// What is not allowed does not exist: libraries then try what they did before there was it.
fn filter(kept: &Kept<'_>) -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::ENOSYS))?;
    for name in ALLOWED.iter().chain(kept.calls) {
        filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_name(name)?)?;
    }
    // A thread of its own; never a process.
    let threads = libc::CLONE_THREAD.unsigned_abs().into();
    let clone = ScmpSyscall::from_name("clone")?;
    filter.add_rule_conditional(
        ScmpAction::Allow,
        clone,
        &[scmp_cmp!($arg0 & threads == threads)],
    )?;
    if kept.sockets {
        let unix = libc::AF_UNIX.unsigned_abs().into();
        let socket = ScmpSyscall::from_name("socket")?;
        filter.add_rule_conditional(ScmpAction::Allow, socket, &[scmp_cmp!($arg0 == unix)])?;
    }
    filter.set_ctl_tsync(true)?;
    filter.load()
}
