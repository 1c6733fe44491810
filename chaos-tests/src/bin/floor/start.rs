//! A container without a runtime: namespaces, a root of its own over the image's, proc, sys and
//! dev, exec. No cgroup, no filters, no network of its own: it starts on the host it is on.
#![allow(unsafe_code)] // One call, see `outside`.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::pivot_root;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The word by which the program calls itself.
pub const INSIDE: &str = "inside";

/// Makes the namespaces and waits for the first process in them.
pub fn outside(root: &str, work: &str, program: &str) -> Result<()> {
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWCGROUP;
    // SAFETY: unsafe only for a table of open files that threads stop sharing; it stays shared, and
    // there is one thread.
    unsafe { unshare_unsafe(flags) }?;
    let mut inside = Command::new("/proc/self/exe");
    let ended = inside.args([INSIDE, root, work, program]).status()?;
    ensure!(ended.success(), "{program}: {ended}");
    Ok(())
}

/// In the namespaces: puts the root together and becomes the program.
pub fn inside(root: &str, work: &str, program: &str) -> Result<()> {
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
    mount(
        "overlay",
        &merged,
        "overlay",
        MountFlags::empty(),
        layers.as_c_str(),
    )
    .context("overlay")?;
    let strict = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("proc", merged.join("proc"), "proc", strict, None).context("proc")?;
    mount(
        "sysfs",
        merged.join("sys"),
        "sysfs",
        strict | MountFlags::RDONLY,
        None,
    )
    .context("sys")?;
    mount(
        "tmpfs",
        merged.join("dev"),
        "tmpfs",
        MountFlags::NOSUID,
        None,
    )
    .context("dev")?;
    std::env::set_current_dir(&merged)?;
    pivot_root(".", ".").context("pivot_root")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    Err(Command::new(program).exec()).with_context(|| format!("exec of {program}"))
}
