//! What a hostile program tries, from inside: system calls that no container may make, hosts and ports it
//! may not reach, another user's powers. It says what came of each, a line each, and judges nothing.
//!
//! | command | says |
//! | --- | --- |
//! | `box probe calls` | `NAME ERRNO` for each system call, 0 when it was let through |
//! | `box probe reach HOST:PORT…` | `HOST:PORT open` or `shut` for each, all tried at once |
//! | `box probe as UID PROGRAM…` | what the program says when that user runs it |
#![allow(unsafe_code)] // The point is to make calls that no safe library offers.

use std::ffi::{c_int, c_long};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::join_all;
use tokio::net::TcpStream;

/// A closed port answers at once, a dropped packet never.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Runs what `args`, after `probe`, ask for.
pub async fn run(args: &[String]) -> Result<ExitCode> {
    match args {
        [word] if word == "calls" => calls(),
        [word, targets @ ..] if word == "reach" => reach(targets).await,
        [word, uid, program, rest @ ..] if word == "as" => {
            let uid = uid.parse().context("a user is a number")?;
            let error = Command::new(program).args(rest).uid(uid).gid(uid).exec();
            println!("{program}: {error}");
        }
        other => bail!("no probe: {other:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn reach(targets: &[String]) {
    let attempts = targets.iter().map(|target| async move {
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(target.as_str())).await;
        (target, matches!(connected, Ok(Ok(_))))
    });
    for (target, open) in join_all(attempts).await {
        println!("{target} {}", if open { "open" } else { "shut" });
    }
}

const NEW_USER: c_long = libc::CLONE_NEWUSER as c_long;
const NEW_NS: c_long = libc::CLONE_NEWNS as c_long;

/// Calls with arguments that the kernel refuses in another way than the filter does (EPERM), where
/// it can be told apart; none of them is made in earnest.
#[rustfmt::skip]
const CALLS: [(&str, c_long, [c_long; 3]); 43] = [
    ("keyctl", libc::SYS_keyctl, [0, -3, 0]),
    ("add_key", libc::SYS_add_key, [0, 0, 0]),
    ("request_key", libc::SYS_request_key, [0, 0, 0]),
    ("bpf", libc::SYS_bpf, [-1, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0, -1]),
    ("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
    ("io_uring_enter", libc::SYS_io_uring_enter, [-1, 0, 0]),
    ("io_uring_register", libc::SYS_io_uring_register, [-1, 0, 0]),
    ("unshare user", libc::SYS_unshare, [NEW_USER, 0, 0]),
    ("unshare mount", libc::SYS_unshare, [NEW_NS, 0, 0]),
    ("clone user", libc::SYS_clone, [NEW_USER, 0, 0]),
    ("clone3", libc::SYS_clone3, [0, 0, 0]),
    ("setns", libc::SYS_setns, [-1, 0, 0]),
    ("mount", libc::SYS_mount, [0, 0, 0]),
    ("umount2", libc::SYS_umount2, [0, 0, 0]),
    ("pivot_root", libc::SYS_pivot_root, [0, 0, 0]),
    ("fsopen", libc::SYS_fsopen, [0, 0, 0]),
    ("fsconfig", libc::SYS_fsconfig, [-1, 0, 0]),
    ("fsmount", libc::SYS_fsmount, [-1, 0, 0]),
    ("fspick", libc::SYS_fspick, [-1, 0, 0]),
    ("open_tree", libc::SYS_open_tree, [-1, 0, 0]),
    ("move_mount", libc::SYS_move_mount, [-1, 0, -1]),
    ("mount_setattr", libc::SYS_mount_setattr, [-1, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as c_long, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0, 0]),
    ("kexec_file_load", libc::SYS_kexec_file_load, [-1, -1, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0]),
    ("init_module", libc::SYS_init_module, [0, 0, 0]),
    ("finit_module", libc::SYS_finit_module, [-1, 0, 0]),
    ("delete_module", libc::SYS_delete_module, [0, 0, 0]),
    ("reboot", libc::SYS_reboot, [0, 0, 0]),
    ("swapon", libc::SYS_swapon, [0, 0, 0]),
    ("settimeofday", libc::SYS_settimeofday, [0, 0, 0]),
    ("clock_settime", libc::SYS_clock_settime, [0, 0, 0]),
    ("chroot", libc::SYS_chroot, [0, 0, 0]),
    ("syslog", libc::SYS_syslog, [-1, 0, 0]),
    ("quotactl", libc::SYS_quotactl, [-1, 0, 0]),
    ("packet socket", libc::SYS_socket, [libc::AF_PACKET as c_long, libc::SOCK_RAW as c_long, 0]),
    ("raw socket", libc::SYS_socket, [libc::AF_INET as c_long, libc::SOCK_RAW as c_long, libc::IPPROTO_ICMP as c_long]),
    ("vsock", libc::SYS_socket, [libc::AF_VSOCK as c_long, libc::SOCK_STREAM as c_long, 0]),
];

fn calls() {
    for (name, number, [a, b, c]) in CALLS {
        println!("{name} {}", errno(number, a, b, c));
    }
}

fn errno(number: c_long, a: c_long, b: c_long, c: c_long) -> c_int {
    let none: c_long = 0;
    // SAFETY: every pointer among the arguments is null, every descriptor invalid. A clone that is let
    // through has its own copy of memory and ends at once below.
    let said = unsafe { libc::syscall(number, a, b, c, none, none, none) };
    if number == libc::SYS_clone && said == 0 {
        std::process::exit(0);
    }
    match said {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}
