//! The system calls no safe library has: a child in namespaces of its own, owners mapped on a mount,
//! and whose a namespace is.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Block;

/// `NS_GET_USERNS` of linux/nsfs.h.
const OWNING: libc::Ioctl = 0xb701;

/// A process of ours with namespaces of its own; dropped, it is ended.
pub struct Process(libc::pid_t);

/// One that only keeps its namespaces, until it is dropped. It stands on this process's memory: to copy what a
/// daemon with a thousand instances has mapped, and to fault it in again, takes longer than all else that a
/// network does.
pub struct Keeper {
    process: Process,
    // Freed after it.
    _stack: Box<[u8]>,
}

/// One that waits until it is let go, and then runs an errand.
pub struct Child {
    process: Process,
    line: OwnedFd,
}

/// What a child does when it is let go, as root of its user namespace: it enters a folder and mounts
/// file systems, each a kind and a place, in order.
pub struct Errand<'a> {
    pub enter: &'a CStr,
    pub mounts: &'a [(&'a CStr, &'a CStr)],
}

/// Which of an [`Errand`]'s steps failed (entering is the first), and why.
pub type Failed = (usize, io::Error);

impl Child {
    /// Starts one with the namespaces `flags` name.
    pub fn start(flags: libc::c_int, errand: &Errand<'_>) -> io::Result<Self> {
        let (line, end) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let none: libc::c_long = 0;
        let flags = libc::c_long::from(flags);
        // SAFETY: like fork(2) without libc's preparations. The child has its own copy of memory and makes
        // nothing but raw system calls with what was made before (see `live`), so no lock that another
        // thread of ours held at this moment can matter to it.
        match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the child.
            0 => unsafe { live(end.as_raw_fd(), line.as_raw_fd(), errand) },
            pid => Ok(Self {
                process: Process(libc::pid_t::try_from(pid).map_err(io::Error::other)?),
                line,
            }),
        }
    }

    /// The process, to give it ids.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Lets it go and waits for its end.
    pub fn run(mut self) -> Result<(), Failed> {
        let lost = |error: rustix::io::Errno| (0, error.into());
        rustix::net::send(&self.line, &[1], SendFlags::NOSIGNAL).map_err(lost)?;
        self.process.reap();
        let mut report = [0_u8; 8];
        let (count, _) =
            rustix::net::recv(&self.line, &mut report, RecvFlags::DONTWAIT).map_err(lost)?;
        let [s0, s1, s2, s3, e0, e1, e2, e3] = report;
        let step = u32::from_ne_bytes([s0, s1, s2, s3]);
        match i32::from_ne_bytes([e0, e1, e2, e3]) {
            0 if count == report.len() => Ok(()),
            error => Err((step as usize, io::Error::from_raw_os_error(error))),
        }
    }
}

/// What a [`Keeper`] stands on: it calls nothing that needs more.
const STACK: usize = 32 * 1024;

impl Keeper {
    /// Starts one with the namespaces `flags` name.
    pub fn start(flags: libc::c_int) -> io::Result<Self> {
        let mut stack = vec![0_u8; STACK].into_boxed_slice();
        let range = stack.as_mut_ptr_range();
        let top = range.end.map_addr(|address| address & !15);
        let parent: *mut libc::c_void =
            std::ptr::without_provenance_mut(std::process::id() as usize);
        // No handler of ours may run in it, as that would be beside us in the same memory.
        let masked = Masked::all()?;
        // SAFETY: `top` is the aligned end of a stack that outlives the child (`Process` is ended before it is
        // freed). What runs there is `stay`, which shares no more than memory with us and touches none of it.
        let pid = unsafe { libc::clone(stay, top.cast(), flags | libc::CLONE_VM, parent) };
        drop(masked);
        match pid {
            -1 => Err(io::Error::last_os_error()),
            pid => Ok(Self {
                process: Process(pid),
                _stack: stack,
            }),
        }
    }

    /// The process, to give it ids.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// A keeper's life: it sleeps until it is killed, with its parent at the latest. It makes raw system calls that do
/// not fail, and so does not touch what libc keeps for the thread that it was made by.
extern "C" fn stay(parent: *mut libc::c_void) -> libc::c_int {
    // SAFETY: none of them is given memory.
    unsafe {
        libc::syscall(
            libc::SYS_prctl,
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL,
            0,
            0,
            0,
        );
        while libc::syscall(libc::SYS_getppid).cast_unsigned() == parent.addr() as u64 {
            libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
        }
    }
    0
}

/// All signals held back from this thread; dropped, they come again.
struct Masked(libc::sigset_t);

impl Masked {
    fn all() -> io::Result<Self> {
        let mut all = std::mem::MaybeUninit::uninit();
        let mut before = std::mem::MaybeUninit::uninit();
        // SAFETY: both are large enough, and filled when nothing failed.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self(before.assume_init())),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: it is what was there before.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

impl Process {
    /// Gives its user namespace the ids of `block`.
    pub fn map(&self, block: Block) -> io::Result<()> {
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{file}", self.0), block.map())?;
        }
        Ok(())
    }

    /// Holds one of its namespaces.
    pub fn namespace(&self, kind: &str) -> io::Result<File> {
        File::open(format!("/proc/{}/ns/{kind}", self.0))
    }

    fn reap(&mut self) {
        // SAFETY: a child of ours that nobody else waits for; it ends by itself or was killed.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
        self.0 = 0;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0 > 0 {
            // SAFETY: ours and not waited for yet, so the number is still its own.
            unsafe { libc::kill(self.0, libc::SIGKILL) };
            self.reap();
        }
    }
}

/// The child's life, to its end, or to that of its parent.
///
/// # Safety
/// Only in a process that shares no memory with another. Allocates nothing and takes no lock.
unsafe fn live(line: RawFd, parents: RawFd, errand: &Errand<'_>) -> ! {
    unsafe {
        // A parent that is gone by now sends no signal any more. The line's end tells of that too, once
        // nobody holds the parent's side: else this process would wait for ever, with the daemon's lock.
        libc::close(parents);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let mut gate = [0_u8; 1];
        if libc::read(line, gate.as_mut_ptr().cast(), 1) == 1 {
            let (step, error) = do_errand(errand);
            let mut report = [0_u8; 8];
            report[..4].copy_from_slice(&step.to_ne_bytes());
            report[4..].copy_from_slice(&error.to_ne_bytes());
            libc::write(line, report.as_ptr().cast(), report.len());
        }
        libc::_exit(0);
    }
}

/// The last step that was tried and its error, which is 0 when all went well.
unsafe fn do_errand(errand: &Errand<'_>) -> (u32, i32) {
    // libc's own setresuid would talk to threads that are not there.
    let root = unsafe {
        libc::syscall(libc::SYS_setresgid, 0, 0, 0) | libc::syscall(libc::SYS_setresuid, 0, 0, 0)
    };
    if root != 0 || unsafe { libc::chdir(errand.enter.as_ptr()) } != 0 {
        return (0, errno());
    }
    let mut step = 0;
    for (kind, place) in errand.mounts {
        step += 1;
        let (kind, place) = (kind.as_ptr(), place.as_ptr());
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
        if unsafe { libc::mount(kind, place, kind, flags, std::ptr::null()) } != 0 {
            return (step, errno());
        }
    }
    (step, 0)
}

fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// Shows a detached mount with owners mapped by a user namespace, and with the attributes `more`.
pub fn map_owners(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>, more: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | more,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: both descriptors are open, the name is empty and ends, `attr` has the size that is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The user namespace a namespace belongs to.
pub fn owning(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes no argument, returns a new descriptor (close-on-exec) or an error.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), OWNING) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: it is new and nobody else's.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const FLAGS: libc::c_int = libc::WNOHANG | libc::__WALL;

    #[test]
    fn a_child_ends_when_nobody_is_at_the_other_end_of_its_line() {
        let errand = Errand {
            enter: c"/",
            mounts: &[],
        };
        let Child { mut process, line } = Child::start(libc::CLONE_NEWUSER, &errand).unwrap();
        // What a parent that is killed leaves, but for the signal, which may come too early to be sent.
        drop(line);
        let began = Instant::now();
        // SAFETY: a child of ours; nothing is written.
        while unsafe { libc::waitpid(process.0, std::ptr::null_mut(), FLAGS) } == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "it lives on");
            std::thread::sleep(Duration::from_millis(1));
        }
        process.0 = 0;
    }
}
