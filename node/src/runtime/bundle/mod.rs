//! From a [`ContainerSpec`] to the OCI configuration libcontainer builds from: namespaces, limits,
//! capabilities, mounts, what is masked. Pure but for asking which cgroup hierarchy there is.

mod limits;
mod mounts;
mod process;

use std::collections::HashMap;
use std::path::Path;

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, RootBuilder,
    Spec, SpecBuilder,
};

use super::cgroup;
use super::seccomp;
use super::spec::ContainerSpec;
use super::user::Resolved;

use limits::resources;
use mounts::mounts;
use process::process;
pub use process::{check_ulimits, environment, may_add, working_dir};

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
        .sysctl(sysctls(spec))
        .seccomp(seccomp::profile()?)
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(read_only)
        .build()
}

/// Kernel settings of namespaces made with the container. Those of a network that is there before
/// it are the shim's to set.
fn sysctls(spec: &ContainerSpec) -> HashMap<String, String> {
    let made_here = |name: &str| spec.netns.is_none() || !name.starts_with("net.");
    let all = spec.sysctls.iter().filter(|(name, _)| made_here(name));
    all.cloned().collect()
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
