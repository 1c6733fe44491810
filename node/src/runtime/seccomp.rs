//! Which system calls a container may make: Docker's default allow-list for the native
//! architecture, minus what reaches for the kernel's deeper parts.
//!
//! Left out against Docker: ptrace and `process_vm_*`, keyrings, `modify_ldt`, `fanotify_mark`, and all
//! that Docker allows only with a capability we never give. No 32-bit calls: their table doubles
//! the filter and the attack surface.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpFilterContext, ScmpSyscall, scmp_cmp};

/// All `CLONE_NEW*` flags `clone` can carry: a container makes no namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// Socket families containers get: unix, IPv4, IPv6 and netlink (which libc's `getifaddrs` needs).
const SOCKET_FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// The personalities that only query or ask for plain Linux.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// The filter every container runs under, as the kernel takes it. Compiling it takes longer than much
/// of a start: who makes many containers does it once.
pub fn compile() -> io::Result<Vec<libc::sock_filter>> {
    let filter = filter().map_err(io::Error::other)?;
    let mut code = File::from(rustix::fs::memfd_create(
        "filter",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    filter.export_bpf(&code).map_err(io::Error::other)?;
    code.rewind()?;
    let mut bytes = Vec::new();
    code.read_to_end(&mut bytes)?;
    // The kernel's `struct sock_filter`, in the machine's own byte order.
    let instruction = |bytes: &[u8; 8]| {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
        libc::sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        }
    };
    Ok(bytes.as_chunks().0.iter().map(instruction).collect())
}

fn filter() -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    // A name the library is too old for is a call that is refused.
    for call in ALLOWED.iter().flat_map(|name| ScmpSyscall::from_name(name)) {
        filter.add_rule(ScmpAction::Allow, call)?;
    }
    let mut only = |name: &str, condition: ScmpArgCompare| {
        let call = ScmpSyscall::from_name(name)?;
        let rule = filter.add_rule_conditional(ScmpAction::Allow, call, &[condition]);
        rule.map(drop)
    };
    only("clone", scmp_cmp!($arg0 & CLONE_NAMESPACES == 0))?;
    for family in SOCKET_FAMILIES {
        only("socket", scmp_cmp!($arg0 == family.unsigned_abs().into()))?;
    }
    for personality in PERSONALITIES {
        only("personality", scmp_cmp!($arg0 == personality))?;
    }
    // Its flags are behind a pointer a filter cannot follow; with ENOSYS libc falls back to clone.
    let clone3 = ScmpSyscall::from_name("clone3")?;
    filter.add_rule(ScmpAction::Errno(libc::ENOSYS), clone3)?;
    Ok(filter)
}

/// Allowed whatever their arguments.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl", "bind", "brk", "cachestat",
    "capget", "capset", "chdir", "chmod", "chown", "clock_adjtime", "clock_getres", "clock_gettime",
    "clock_nanosleep", "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown",
    "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr",
    "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futex", "futex_requeue", "futex_wait",
    "futex_waitv", "futex_wake", "futimesat", "get_robust_list", "getcpu", "getcwd", "getdents",
    "getdents64", "getegid", "geteuid", "getgid", "getgroups", "getitimer", "getpeername",
    "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrandom", "getresgid", "getresuid",
    "getrlimit", "getrusage", "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday",
    "getuid", "getxattr", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
    "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_setup", "io_submit", "ioctl",
    "ioprio_get", "ioprio_set", "kill", "landlock_add_rule", "landlock_create_ruleset",
    "landlock_restrict_self", "lchown", "lgetxattr", "link", "linkat", "listen", "listxattr",
    "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "madvise", "map_shadow_stack",
    "membarrier", "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat",
    "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mq_getsetattr", "mq_notify", "mq_open",
    "mq_timedreceive", "mq_timedsend", "mq_unlink", "mremap", "mseal", "msgctl", "msgget", "msgrcv",
    "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep",
    "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe",
    "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl", "pread64",
    "preadv", "preadv2", "prlimit64", "process_mrelease", "pselect6", "pwrite64", "pwritev",
    "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg",
    "recvmsg", "remap_file_pages", "removexattr", "rename", "renameat", "renameat2",
    "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
    "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity",
    "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "select",
    "semctl", "semget", "semop", "semtimedop", "sendfile", "sendmmsg", "sendmsg", "sendto",
    "set_robust_list", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups",
    "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid",
    "setrlimit", "setsid", "setsockopt", "setuid", "setxattr", "shmat", "shmctl", "shmdt", "shmget",
    "shutdown", "sigaltstack", "signalfd", "signalfd4", "socketpair", "splice", "stat", "statfs",
    "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo", "tee",
    "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_settime", "timerfd_create", "timerfd_gettime", "timerfd_settime", "times", "tkill",
    "truncate", "umask", "uname", "unlink", "unlinkat", "utime", "utimensat", "utimes", "vfork",
    "vmsplice", "wait4", "waitid", "write", "writev",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_filter() {
        let filter = compile().unwrap();
        // BPF_MAXINSNS; and the table is in there.
        assert!(filter.len() > ALLOWED.len() / 2 && filter.len() <= 4096);
    }

    #[test]
    fn what_reaches_for_the_kernel_is_not_allowed() {
        for name in [
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "unshare",
            "setns",
            "mount",
            "umount2",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsmount",
            "mount_setattr",
            "pivot_root",
            "ptrace",
            "process_vm_writev",
            "kexec_load",
            "kexec_file_load",
            "open_by_handle_at",
            "init_module",
            "finit_module",
            "reboot",
            "swapon",
            "settimeofday",
            "clock_settime",
            "chroot",
            "syslog",
            "quotactl",
        ] {
            assert!(!ALLOWED.contains(&name), "{name}");
        }
    }
}
