//! From a [`ContainerSpec`] to the OCI configuration libcontainer builds from: namespaces, limits,
//! capabilities, mounts, what is masked. Pure but for asking which cgroup hierarchy there is.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::cgroup::{self, Cgroup};
use super::seccomp;
use super::spec::{ContainerSpec, DEFAULT_PIDS};
use super::user::Resolved;

/// What root in a container keeps: enough to own files, drop to another user and bind low ports, as images
/// that start as root do. Docker's set without `NET_RAW`, MKNOD, `AUDIT_WRITE`, `SYS_CHROOT`, SETFCAP
/// and SETPCAP. Any other user keeps none.
const ROOT_KEEPS: [Capability; 8] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setuid,
];

/// Searched for a command when the image sets no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files a container may have where the node itself may have as many.
const OPEN_FILES: u64 = 65_536;

/// Length of the CPU accounting period, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Version 1 controllers whose limits a container may read below `/sys/fs/cgroup`.
const SHOWN_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

/// Whether a service whose container runs as `uid` may ask for this capability: only for what it
/// has anyway. Low ports are open to every user in a container's network, so another user than
/// root may ask for that too.
#[must_use]
pub fn may_add(name: &str, uid: u32) -> bool {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let kept = ROOT_KEEPS.iter().any(|c| c.to_string() == name);
    kept && (uid == 0 || name == "NET_BIND_SERVICE")
}

/// The OCI configuration of `spec` for `user`; `etc` holds the files written for it.
///
/// # Errors
/// A builder refused, which would be a mistake here.
pub fn oci_spec(spec: &ContainerSpec, user: &Resolved, etc: &Path) -> Result<Spec, OciSpecError> {
    SpecBuilder::default()
        .version("1.2.0")
        .hostname(spec.hostname.clone())
        .root(
            RootBuilder::default()
                .path(spec.rootfs.clone())
                .readonly(spec.read_only_root)
                .build()?,
        )
        .process(process(spec, user)?)
        .mounts(mounts(spec, etc)?)
        .linux(linux(spec)?)
        .build()
}

fn process(spec: &ContainerSpec, user: &Resolved) -> Result<Process, OciSpecError> {
    // Never an empty list: libcontainer would leave the daemon's own groups in place.
    let groups: Vec<u32> = [user.gid].iter().chain(&user.groups).copied().collect();
    let who = UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(groups);
    ProcessBuilder::default()
        .terminal(false)
        .user(who.build()?)
        .args(spec.args.clone())
        .env(environment(spec, &user.home))
        .cwd(working_dir(spec))
        .no_new_privileges(true)
        .capabilities(capabilities(user)?)
        .rlimits(rlimits()?)
        .build()
}

/// The folder the program starts in.
#[must_use]
pub fn working_dir(spec: &ContainerSpec) -> PathBuf {
    Path::new("/").join(&spec.cwd)
}

/// `NAME=value` once per name. libcontainer would otherwise ask the image's own libc for HOME.
#[must_use]
pub fn environment(spec: &ContainerSpec, home: &str) -> Vec<String> {
    let mut env: std::collections::BTreeMap<&str, &str> =
        [("PATH", DEFAULT_PATH), ("HOME", home)].into();
    for (name, value) in &spec.env {
        if !(value.is_empty() && matches!(name.as_str(), "PATH" | "HOME")) {
            env.insert(name, value);
        }
    }
    env.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn capabilities(user: &Resolved) -> Result<LinuxCapabilities, OciSpecError> {
    let mut kept: HashSet<Capability> = HashSet::new();
    if user.uid == 0 {
        kept.extend(ROOT_KEEPS);
    }
    LinuxCapabilitiesBuilder::default()
        .bounding(kept.clone())
        .effective(kept.clone())
        .permitted(kept)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

/// Limits no higher than the shim's own: raising them takes a capability a node may lack.
fn rlimits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = own.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    let limit = |typ, value: u64| {
        PosixRlimitBuilder::default()
            .typ(typ)
            .hard(value)
            .soft(value)
            .build()
    };
    Ok(vec![
        limit(PosixRlimitType::RlimitNofile, files)?,
        limit(PosixRlimitType::RlimitCore, 0)?,
    ])
}

fn linux(spec: &ContainerSpec) -> Result<Linux, OciSpecError> {
    let mut read_only: Vec<String> = READ_ONLY.map(str::to_owned).to_vec();
    if !cgroup::is_unified() {
        // The tmpfs that holds the controllers' folders must be writable while they are mounted.
        read_only.push("/sys/fs/cgroup".to_owned());
    }
    LinuxBuilder::default()
        .namespaces(namespaces(spec)?)
        .cgroups_path(spec.cgroup.clone())
        .resources(resources(spec)?)
        .seccomp(seccomp::profile()?)
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(read_only)
        .build()
}

fn namespaces(spec: &ContainerSpec) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut all = Vec::new();
    for typ in [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ] {
        all.push(LinuxNamespaceBuilder::default().typ(typ).build()?);
    }
    let mut network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
    if let Some(path) = &spec.netns {
        network = network.path(path.clone());
    }
    all.push(network.build()?);
    Ok(all)
}

fn resources(spec: &ContainerSpec) -> Result<LinuxResources, OciSpecError> {
    let pids = if spec.pids == 0 {
        DEFAULT_PIDS
    } else {
        spec.pids
    };
    let mut limits = LinuxResourcesBuilder::default()
        .devices(devices()?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(pids)).build()?);
    if spec.cpu_millis > 0 {
        let millis = u64::from(spec.cpu_millis);
        let quota = i64::from(spec.cpu_millis) * CPU_PERIOD.cast_signed() / 1000;
        limits = limits.cpu(
            LinuxCpuBuilder::default()
                .shares((millis * 1024 / 1000).max(2))
                // The kernel takes no quota under a millisecond.
                .quota(quota.max(1000))
                .period(CPU_PERIOD)
                .build()?,
        );
    }
    if spec.memory_bytes > 0 {
        let bytes = i64::try_from(spec.memory_bytes).unwrap_or(i64::MAX);
        let mut memory = LinuxMemoryBuilder::default().limit(bytes);
        if counts_swap() {
            memory = memory.swap(bytes);
        }
        limits = limits.memory(memory.build()?);
    }
    limits.build()
}

/// Whether version 1 can bound memory and swap together. Under version 2 libcontainer writes no
/// swap limit of zero; the shim does.
fn counts_swap() -> bool {
    !cgroup::is_unified() && Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// Every device denied, then the harmless ones allowed. libcontainer adds a few of its own
/// (`/dev/net/tun` among them), which stay out of reach: nothing in a container may make nodes.
fn devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let all = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()?;
    let mut rules = vec![all];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(LinuxDeviceType::C)
                .major(major)
                .minor(minor)
                .access("rw")
                .build()?,
        );
    }
    Ok(rules)
}

fn mounts(spec: &ContainerSpec, etc: &Path) -> Result<Vec<Mount>, OciSpecError> {
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
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
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
    if spec.read_only_root {
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

#[cfg(test)]
mod tests {
    use scheduler::model::InstanceId;

    use super::*;

    fn spec() -> ContainerSpec {
        let mut spec = ContainerSpec::new(InstanceId("a".into()), "/r", "/selvedge/n/a");
        spec.args = vec!["/bin/sh".into()];
        spec
    }

    fn user(uid: u32) -> Resolved {
        Resolved {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/h".into(),
        }
    }

    #[test]
    fn only_root_keeps_capabilities_and_few() {
        let root = capabilities(&user(0)).unwrap();
        let kept = root.effective().clone().unwrap();
        assert_eq!(kept.len(), ROOT_KEEPS.len());
        assert!(!kept.contains(&Capability::NetRaw) && !kept.contains(&Capability::SysChroot));
        assert_eq!(root.inheritable(), &Some(HashSet::new()));
        let other = capabilities(&user(33)).unwrap();
        assert_eq!(other.bounding(), &Some(HashSet::new()));
        for (name, uid, want) in [
            ("CAP_CHOWN", 0, true),
            ("CHOWN", 33, false),
            ("NET_BIND_SERVICE", 33, true),
            ("SYS_ADMIN", 0, false),
            ("NET_RAW", 0, false),
        ] {
            assert_eq!(may_add(name, uid), want, "{name}");
        }
    }

    #[test]
    fn the_environment_has_a_path_a_home_and_the_last_word() {
        let mut spec = spec();
        for (name, value) in [("A", "1"), ("A", "2"), ("HOME", ""), ("PATH", "/bin")] {
            spec.env.push((name.into(), value.into()));
        }
        assert_eq!(environment(&spec, "/h"), ["A=2", "HOME=/h", "PATH=/bin"]);
    }

    #[test]
    fn limits_become_kernel_numbers() {
        let mut spec = spec();
        spec.cpu_millis = 250;
        spec.memory_bytes = 64 << 20;
        let limits = resources(&spec).unwrap();
        let cpu = limits.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(25_000), Some(100_000)));
        assert_eq!(limits.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(limits.pids().unwrap().limit(), 256);
    }
}
