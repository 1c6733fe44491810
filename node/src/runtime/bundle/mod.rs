//! From a [`ContainerSpec`] to the OCI configuration libcontainer builds from: namespaces, limits,
//! capabilities, mounts, what is masked. The filter of system calls is not among it: libcontainer would
//! compile it anew for every container. Pure but for asking which cgroup hierarchy there is.

mod limits;
mod mounts;
mod process;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, RootBuilder, Spec, SpecBuilder,
};

use super::cgroup;
use super::spec::ContainerSpec;
use super::user::Resolved;
use crate::userns::Block;

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

/// Namespaces a container joins instead of getting new ones, as paths to open.
#[derive(Debug, Default)]
pub struct Joined {
    pub network: Option<PathBuf>,
    pub user: Option<PathBuf>,
}

/// The OCI configuration of `spec` for `user`; `etc` holds the files written for it.
///
/// # Errors
/// A builder refused, which would be a mistake here.
pub fn oci_spec(
    spec: &ContainerSpec,
    user: &Resolved,
    joined: &Joined,
    etc: &Path,
) -> Result<Spec, OciSpecError> {
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
        .linux(linux(spec, joined)?)
        .build()
}

fn linux(spec: &ContainerSpec, joined: &Joined) -> Result<Linux, OciSpecError> {
    let mut read_only: Vec<String> = READ_ONLY.map(str::to_owned).to_vec();
    if !cgroup::is_unified() {
        // The tmpfs that holds the controllers' folders must be writable while they are mounted.
        read_only.push("/sys/fs/cgroup".to_owned());
    }
    let mut linux = LinuxBuilder::default();
    if let (Some(block), None) = (spec.ids, &joined.user) {
        let ids = LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(block.root())
            .size(Block::SIZE)
            .build()?;
        linux = linux.uid_mappings(vec![ids]).gid_mappings(vec![ids]);
    }
    linux
        .namespaces(namespaces(spec, joined)?)
        .cgroups_path(spec.cgroup.clone())
        .resources(resources(spec)?)
        .sysctl(sysctls(spec))
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

fn namespaces(spec: &ContainerSpec, joined: &Joined) -> Result<Vec<LinuxNamespace>, OciSpecError> {
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
    let mut given = vec![(LinuxNamespaceType::Network, &joined.network)];
    if spec.ids.is_some() {
        given.push((LinuxNamespaceType::User, &joined.user));
    }
    for (typ, path) in given {
        let mut namespace = LinuxNamespaceBuilder::default().typ(typ);
        if let Some(path) = path {
            namespace = namespace.path(path.clone());
        }
        all.push(namespace.build()?);
    }
    Ok(all)
}
