//! What a container may use: CPU, memory, processes, devices.

use std::path::Path;

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemory, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

use super::super::cgroup;
use super::super::spec::{ContainerSpec, DEFAULT_PIDS};

/// Length of the CPU accounting period, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

pub(super) fn resources(spec: &ContainerSpec) -> Result<LinuxResources, OciSpecError> {
    let pids = if spec.pids == 0 {
        DEFAULT_PIDS
    } else {
        spec.pids
    };
    let mut limits = LinuxResourcesBuilder::default()
        .devices(devices()?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(pids)).build()?);
    if let Some(cpu) = cpu(spec)? {
        limits = limits.cpu(cpu);
    }
    if let Some(memory) = memory(spec)? {
        limits = limits.memory(memory);
    }
    limits.build()
}

fn cpu(spec: &ContainerSpec) -> Result<Option<LinuxCpu>, OciSpecError> {
    let Some(shares) = spec.cpu_shares() else {
        return Ok(None);
    };
    let mut cpu = LinuxCpuBuilder::default().shares(shares);
    if spec.cpu_millis > 0 {
        let quota = i64::from(spec.cpu_millis) * CPU_PERIOD.cast_signed() / 1000;
        // The kernel takes no quota under a millisecond.
        cpu = cpu.quota(quota.max(1000)).period(CPU_PERIOD);
    }
    cpu.build().map(Some)
}

fn memory(spec: &ContainerSpec) -> Result<Option<LinuxMemory>, OciSpecError> {
    if spec.memory_bytes == 0 && spec.memory_request_bytes == 0 {
        return Ok(None);
    }
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let mut memory = LinuxMemoryBuilder::default();
    if spec.memory_bytes > 0 {
        memory = memory.limit(signed(spec.memory_bytes));
        if counts_swap() {
            memory = memory.swap(signed(spec.memory_bytes));
        }
    }
    if spec.memory_request_bytes > 0 {
        memory = memory.reservation(signed(spec.memory_request_bytes));
    }
    memory.build().map(Some)
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

#[cfg(test)]
mod tests {
    use scheduler::model::InstanceId;

    use super::*;

    #[test]
    fn limits_become_kernel_numbers() {
        let mut spec = ContainerSpec::new(InstanceId("a".into()), "/r", "/selvedge/n/a");
        spec.cpu_millis = 250;
        spec.memory_bytes = 64 << 20;
        let limits = resources(&spec).unwrap();
        let cpu = limits.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(25_000), Some(100_000)));
        assert_eq!(limits.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(limits.pids().unwrap().limit(), 256);
        assert_eq!(cpu.shares(), Some(256));
    }

    #[test]
    fn a_request_is_a_share_and_no_bound() {
        let mut spec = ContainerSpec::new(InstanceId("a".into()), "/r", "/selvedge/n/a");
        spec.cpu_request_millis = 500;
        spec.memory_request_bytes = 32 << 20;
        let limits = resources(&spec).unwrap();
        let cpu = limits.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota()), (Some(512), None));
        let memory = limits.memory().unwrap();
        assert_eq!(
            (memory.reservation(), memory.limit()),
            (Some(32 << 20), None)
        );
    }
}
