//! The first process of a container that asked for one: it starts the program, passes signals on to
//! it, reaps what is orphaned, and ends as the program does. For programs that were not written to
//! be a system's first process.

use std::io;

use libc::{c_int, pid_t};

/// Forks. The child returns, to become the program; the parent never does.
///
/// # Errors
/// There is no room for another process.
pub fn stay_first() -> io::Result<()> {
    let all = every_signal();
    // SAFETY: sets the mask of this process's only thread. Blocked, a signal waits until it is
    // asked for below; none is lost between here and there.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    // SAFETY: one thread, so the child's copy of memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: as above. The program begins with no signal blocked.
            unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const all, std::ptr::null_mut()) };
            Ok(())
        }
        program => {
            // SAFETY: flags on ourselves, and descriptors nothing here uses. Not dumpable: what
            // runs in the container must not reach our executable, which is the host's, by
            // /proc/1/exe (CVE-2019-5736).
            unsafe {
                libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
                libc::prctl(libc::PR_SET_NAME, c"init".as_ptr());
                libc::close_range(3, libc::c_uint::MAX, 0);
            }
            std::process::exit(watch_over(program, &all))
        }
    }
}

fn every_signal() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset writes all of it.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Returns the exit code of `program`, a shell's where a signal ended it.
fn watch_over(program: pid_t, all: &libc::sigset_t) -> c_int {
    loop {
        let mut signal: c_int = 0;
        // SAFETY: waits for one of a valid set.
        if unsafe { libc::sigwait(all, &raw mut signal) } != 0 {
            continue;
        }
        if signal == libc::SIGCHLD {
            if let Some(code) = reap(program) {
                return code;
            }
        } else {
            // SAFETY: a plain call. The program is not reaped yet, so the number is still its own.
            unsafe { libc::kill(program, signal) };
        }
    }
}

/// Takes leave of every process that has ended; the exit code if the program is among them.
fn reap(program: pid_t) -> Option<c_int> {
    let mut code = None;
    loop {
        let mut status: c_int = 0;
        // SAFETY: writes to a number of ours.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if ended <= 0 {
            return code;
        }
        if ended == program {
            code = Some(if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            });
        }
    }
}
