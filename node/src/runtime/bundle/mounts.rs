//! What a container sees of file systems besides its root.

use std::path::Path;

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{Mount, MountBuilder};

use super::super::cgroup::{self, Cgroup};
use super::super::spec::{ContainerSpec, DEFAULT_TMPFS};

/// Version 1 controllers whose limits a container may read below `/sys/fs/cgroup`.
const SHOWN_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

pub(super) fn mounts(spec: &ContainerSpec, etc: &Path) -> Result<Vec<Mount>, OciSpecError> {
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &[
                "nosuid",
                "noexec",
                "nodev",
                "mode=1777",
                &size(spec.shm_bytes),
            ],
        )?,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        )?,
    ];
    all.extend(cgroup_mounts(spec)?);
    for folder in &spec.tmpfs {
        let options = ["nosuid", "nodev", "mode=1777", &size(folder.size_bytes)];
        all.push(mount(&folder.path, "tmpfs", "tmpfs", &options)?);
    }
    let own_tmp = spec
        .tmpfs
        .iter()
        .any(|f| Path::new(&f.path) == Path::new("/tmp"));
    if spec.read_only_root && !own_tmp {
        // The runtime contract: /tmp is writable whatever the root is.
        all.push(mount(
            "/tmp",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "mode=1777"],
        )?);
    }
    for file in ["hosts", "hostname", "resolv.conf"] {
        let target = Path::new("/etc").join(file);
        all.push(bind(&etc.join(file), &target, true)?);
    }
    for wanted in &spec.mounts {
        let mut made = bind(&wanted.source, &wanted.destination, wanted.read_only)?;
        if let (true, Some(options)) = (wanted.no_exec, made.options_mut()) {
            options.push("noexec".to_owned());
        }
        all.push(made);
    }
    Ok(all)
}

/// How large a folder in memory may grow, as its mount's option.
fn size(bytes: u64) -> String {
    let bytes = if bytes == 0 { DEFAULT_TMPFS } else { bytes };
    format!("size={bytes}")
}

/// The container's own limits, to read. Under version 1 libcontainer's cgroup mount would be
/// writable, and root in a container could lift its own limits: so each controller's own folder
/// is bound read-only instead.
fn cgroup_mounts(spec: &ContainerSpec) -> Result<Vec<Mount>, OciSpecError> {
    if cgroup::is_unified() {
        let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        return Ok(vec![mount("/sys/fs/cgroup", "cgroup", "cgroup", &options)?]);
    }
    let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
    let mut all = vec![mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &options)?];
    let group = Cgroup::at(&spec.cgroup);
    for controller in SHOWN_CONTROLLERS {
        if let Some(folder) = group.folder(controller) {
            all.push(bind(
                &folder,
                &Path::new("/sys/fs/cgroup").join(controller),
                true,
            )?);
        }
    }
    Ok(all)
}

fn mount(at: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(at)
        .typ(typ)
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Result<Mount, OciSpecError> {
    let mut options = vec!["bind", "nosuid", "nodev"];
    if read_only {
        options.push("ro");
    }
    MountBuilder::default()
        .destination(target)
        .typ("bind")
        .source(source)
        .options(options.into_iter().map(str::to_owned).collect::<Vec<_>>())
        .build()
}
