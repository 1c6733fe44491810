//! What a program in a container gives up before it runs: system calls, and, where it joins the
//! container instead of being its first program, powers, limits, the daemon's settings of signals,
//! all read from the configuration of that first program.

use std::io;

use libcontainer::capabilities::CapabilityExt;
use libcontainer::oci_spec::runtime::{Capabilities, Spec};
use rustix::fs::{Gid, Mode, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::super::user::Resolved;

/// The limits of the container's first program.
pub(super) fn limit(config: &Spec) -> io::Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let process = config.process().as_ref();
    for limit in process
        .and_then(|p| p.rlimits().as_ref())
        .into_iter()
        .flatten()
    {
        let resource = match limit.typ().to_string().as_str() {
            "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
            "RLIMIT_CORE" => libc::RLIMIT_CORE,
            "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
            "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
            "RLIMIT_STACK" => libc::RLIMIT_STACK,
            "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
            "RLIMIT_CPU" => libc::RLIMIT_CPU,
            "RLIMIT_DATA" => libc::RLIMIT_DATA,
            "RLIMIT_AS" => libc::RLIMIT_AS,
            "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
            "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
            "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
            "RLIMIT_NICE" => libc::RLIMIT_NICE,
            "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
            other => return Err(io::Error::other(format!("unknown limit {other}"))),
        };
        let value = libc::rlimit {
            rlim_cur: limit.soft(),
            rlim_max: limit.hard(),
        };
        // SAFETY: reads one rlimit that lives through the call.
        if unsafe { libc::setrlimit(resource, &raw const value) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// No more than the container's first program could have: no power is inheritable or ambient
/// (CVE-2025-27612), and none can be gained.
pub(super) fn drop(config: &Spec, user: &Resolved, other_user: bool) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let given = config
        .process()
        .as_ref()
        .and_then(|p| p.capabilities().as_ref());
    let bounding = set_of(given.and_then(|c| c.bounding().as_ref()));
    let own = set_of(given.and_then(|c| c.effective().as_ref()));
    let kept = match (user.uid, other_user) {
        (_, false) => own,
        (0, true) => bounding,
        _ => CapabilitySet::empty(),
    };
    for number in 0..64 {
        // SAFETY: numbers only; an unknown capability is refused.
        if bounding.bits() & (1 << number) == 0
            && unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } == -1
        {
            // The kernel knows no more of them.
            break;
        }
    }
    rustix::thread::set_keep_capabilities(true)?;
    let groups: Vec<Gid> = std::iter::once(&user.gid)
        .chain(&user.groups)
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)?;
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn set_of(names: Option<&Capabilities>) -> CapabilitySet {
    let bits = names
        .into_iter()
        .flatten()
        .map(|name| 1 << name.to_cap().index());
    CapabilitySet::from_bits_retain(bits.fold(0, |all: u64, bit: u64| all | bit))
}

/// From now on this process makes no system calls but those `filter` allows, nor will its children. It
/// must have given up gaining powers before.
pub(super) fn filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len().try_into().map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, which lives through the call, and checks it.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the daemon, or who started it, ignores is not the program's to ignore.
pub(super) fn default_signals() {
    // The kernel's `struct sigaction`; all zero is the default action.
    let default = [0_u64; 4];
    for signal in 1..=64_i32 {
        // SAFETY: reads 32 bytes that live through the call. Past libc, which keeps two signals to
        // itself; the two that cannot be set are refused.
        unsafe {
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                none,
                8_usize,
            );
        }
    }
}
