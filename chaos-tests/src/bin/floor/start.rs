//! A container without a runtime: namespaces, a root of its own over the image's, proc, sys and
//! dev, exec. No cgroup, no filters, no network of its own: it starts on the host it is on. One system
//! call makes process and namespaces; the program is the only one that is executed.
#![allow(unsafe_code)] // One call, see `clone`.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{Pid, WaitOptions, pivot_root, waitpid};

/// Waits for a line, then starts one container and waits for its end.
pub fn one(root: &str, work: &str, program: &[&str]) -> Result<()> {
    wait_for_a_line()?;
    let pid = clone(|| inside(root, work, program, None))?;
    waitpid(Some(pid), WaitOptions::empty())?;
    Ok(())
}

/// Waits for a line, then starts so many and says so; waits for another before it ends.
pub fn many(count: &str, root: &str, work: &str, program: &[&str]) -> Result<()> {
    let count: usize = count.parse()?;
    wait_for_a_line()?;
    // They are on one network: a server among them needs a port of its own.
    let first: Option<usize> = std::env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok());
    for number in 0..count {
        let port = first.map(|first| first + number);
        clone(|| inside(root, work, program, port))?;
    }
    println!("started");
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

fn wait_for_a_line() -> Result<()> {
    println!("waiting");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Runs `child`, which does not come back, in a process with namespaces of its own.
fn clone(child: impl FnOnce() -> Result<()>) -> Result<Pid> {
    let flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    // SAFETY: plain data, and zero is its default.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = u64::from(flags.cast_unsigned());
    how.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: as fork(2): no memory is shared, and this process has one thread, so that the child's
    // copy of memory is consistent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut how, size_of_val(&how)) };
    if pid == 0 {
        let error = child();
        eprintln!("floor: {error:?}");
        std::process::exit(1);
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| std::io::Error::last_os_error().into())
}

/// In the namespaces: puts the root together and becomes the program.
fn inside(root: &str, work: &str, program: &[&str], port: Option<usize>) -> Result<()> {
    let work = Path::new(work);
    let (upper, spare, merged) = (work.join("upper"), work.join("spare"), work.join("merged"));
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    mount("tmpfs", work, "tmpfs", MountFlags::empty(), None)?;
    for dir in [&upper, &spare, &merged] {
        fs::create_dir(dir)?;
    }
    let layers = format!(
        "lowerdir={root},upperdir={},workdir={}",
        upper.display(),
        spare.display()
    );
    let layers = std::ffi::CString::new(layers)?;
    let none = MountFlags::empty();
    mount("overlay", &merged, "overlay", none, layers.as_c_str()).context("overlay")?;
    let strict = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("proc", merged.join("proc"), "proc", strict, None).context("proc")?;
    let fixed = strict | MountFlags::RDONLY;
    mount("sysfs", merged.join("sys"), "sysfs", fixed, None).context("sys")?;
    let dev = merged.join("dev");
    mount("tmpfs", dev, "tmpfs", MountFlags::NOSUID, None).context("dev")?;
    std::env::set_current_dir(&merged)?;
    pivot_root(".", ".").context("pivot_root")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    let (name, words) = program.split_first().context("no program")?;
    let mut program = Command::new(name);
    // What it says is not what the floor says.
    program.args(words).stdout(std::io::stderr());
    if let Some(port) = port {
        program.env("PORT", port.to_string());
    }
    Err(program.exec()).with_context(|| format!("exec of {name}"))
}
