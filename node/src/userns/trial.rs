//! Whether this kernel, as it is set up, can give containers user namespaces: tried once, with all that
//! a container will need, because no version number tells.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::kernel::{Child, Errand, Failed};
use super::{Block, Owner, owning, path_of};

/// Tries it below `instances`, where containers' root file systems will be.
///
/// # Errors
/// A sentence: what is missing.
pub fn trial(instances: &Path) -> Result<(), String> {
    let stage = Stage::new(instances)
        .map_err(|e| format!("{} cannot be written to: {e}", instances.display()))?;
    let block = Block::number(Block::COUNT - 1).ok_or("no block of ids")?;
    let enter = c_string(&stage.0);
    let [proc, sys] = ["proc", "sys"].map(|name| c_string(&stage.0.join(name)));
    let errand = Errand {
        enter: &enter,
        mounts: &[(c"proc", &proc), (c"sysfs", &sys)],
    };
    let spaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | spaces;
    let refused = |e: io::Error| format!("the kernel makes no user namespace: {e}");
    let child = Child::start(flags, &errand).map_err(refused)?;
    child.process().map(block).map_err(refused)?;
    let network = child.process().namespace("net").map_err(refused)?;
    let namespace = owning(network.as_fd()).map_err(refused)?;
    overlay(&stage, &Owner { block, namespace })?;
    child.run().map_err(|failed| explain(failed, instances))
}

fn explain((step, error): Failed, instances: &Path) -> String {
    match step {
        0 => format!(
            "a container's root cannot enter {}: every folder above it must let others pass (chmod o+x): {error}",
            instances.display()
        ),
        1 => format!("no /proc can be mounted in a user namespace: {error}"),
        _ => format!("no /sys can be mounted in a user namespace: {error}"),
    }
}

/// An overlay of a folder with mapped owners, as an instance's root file system is one.
fn overlay(stage: &Stage, owner: &Owner) -> Result<(), String> {
    let missing = |what: &str, e: io::Error| format!("{what}: {e}");
    let lower = owner
        .show(&stage.0.join("lower"))
        .map_err(|e| missing("layers cannot be shown with mapped owners", e))?;
    let name = |folder: &str| stage.0.join(folder).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        path_of(&lower).display(),
        name("upper"),
        name("work")
    );
    let options = CString::new(options).map_err(|e| missing("a path", e.into()))?;
    let root = stage.0.join("root");
    let flags = MountFlags::NODEV;
    let mount = || rustix::mount::mount("overlay", &root, "overlay", flags, options.as_c_str());
    lower
        .build_on((&stage.0.join("shown"), &stage.0.join("work")), mount)
        .map_err(|e| missing("overlayfs takes no layers with mapped owners", e))?;
    let found = fs::metadata(root.join("file")).map(|meta| meta.uid());
    match found {
        Ok(uid) if uid == owner.block.root() => Ok(()),
        Ok(uid) => Err(format!("overlayfs shows a layer's owner as {uid}")),
        Err(error) => Err(missing("overlayfs over mapped owners", error)),
    }
}

fn c_string(path: &Path) -> CString {
    // A path that came from the configuration and the kernel took holds no NUL.
    CString::new(OsStr::as_bytes(path.as_os_str())).unwrap_or_default()
}

/// The folder of one trial, gone with it.
struct Stage(PathBuf);

impl Stage {
    fn new(instances: &Path) -> io::Result<Self> {
        // No instance's name begins with a dot, and a node has one daemon.
        let stage = Self(instances.join(".trial"));
        stage.clear();
        for name in ["", "lower", "upper", "work", "root", "proc", "sys"] {
            let path = stage.0.join(name);
            fs::create_dir_all(&path)?;
            // Whatever the umask is.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(stage.0.join("lower/file"), "")?;
        Ok(stage)
    }
}

impl Stage {
    /// What was never there is cleared too.
    fn clear(&self) {
        for mount in ["root", "shown"] {
            let _ = rustix::mount::unmount(self.0.join(mount), UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clear();
    }
}
