//! What the registry takes in of a container: how it is run and given volumes.

use std::collections::BTreeSet;

use super::Refusal;
use super::validate::{at_most, ensure, invalid, limits, short, validate_reference};
use super::validate_probe::validate_probe;
use crate::model::{Container, EnvVar, Name, Volume, VolumeMount, VolumeSource};

/// Set by the platform, refused as Knative refuses them.
const RESERVED_ENV: [&str; 4] = ["PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION"];
/// A volume's name in its service: `config-` and the longest name fit.
const MAX_VOLUME_NAME: usize = 128;
/// Mounting over them would hide what the sandbox masks.
const RESERVED_MOUNTS: [&str; 3] = ["proc", "sys", "dev"];
/// What may be asked for: Docker's default set without `MKNOD` and `NET_RAW`. The rest of the
/// kernel's opens the sandbox.
const CAPABILITIES: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub(super) fn validate_container(container: &Container) -> Result<(), Refusal> {
    validate_reference(&container.image)?;
    validate_ports(container)?;
    validate_resources(container)?;
    validate_exec(container)?;
    if let Some(dir) = &container.working_dir {
        validate_path("workdir", dir)?;
    }
    for (field, probe) in [
        ("health.ready", &container.readiness),
        ("health.live", &container.liveness),
        ("health.startup", &container.startup),
    ] {
        if let Some(probe) = probe {
            validate_probe(field, probe, field == "health.ready")?;
        }
    }
    for capability in &container.security.add_capabilities {
        let known = CAPABILITIES.contains(&capability.as_str());
        ensure(known, "capabilities", || {
            let known = CAPABILITIES.join(", ");
            format!(
                "`{}` cannot be given; these can: {known}",
                short(capability)
            )
        })?;
    }
    let policy = container.image_pull_policy.as_str();
    let known = matches!(policy, "" | "Always" | "IfNotPresent" | "Never");
    ensure(known, "pull", || {
        format!("`{}` is not Always, IfNotPresent or Never", short(policy))
    })
}

fn validate_ports(container: &Container) -> Result<(), Refusal> {
    let ports = &container.ports;
    ensure(ports.len() <= 1, "port", || {
        format!("requests come in on one port, not on {}", ports.len())
    })?;
    let zero = ports.iter().any(|p| p.container_port == 0);
    ensure(!zero, "port", || "0 is not within 1 to 65535".to_owned())
}

fn validate_resources(container: &Container) -> Result<(), Refusal> {
    let cpu = container.cpu_millis;
    let cpus = limits::MIN_CPU_MILLIS..=limits::MAX_CPU_MILLIS;
    ensure(cpu == 0 || cpus.contains(&cpu), "resources.cpu", || {
        format!("{cpu}m is not within {}m to {}m", cpus.start(), cpus.end())
    })?;
    let memory = container.memory_bytes;
    let enough = memory == 0 || memory >= limits::MIN_MEMORY;
    ensure(enough, "resources.memory", || {
        format!("{memory} bytes is below 4MiB, which setting the container up takes by itself")
    })?;
    at_most("resources.memory", memory, limits::MAX_MEMORY)?;
    at_most("pids", container.pids.into(), limits::MAX_PIDS.into())
}

fn validate_exec(container: &Container) -> Result<(), Refusal> {
    for (field, words) in [("cmd", &container.command), ("arg", &container.args)] {
        for word in words {
            ensure(!word.contains('\0'), field, || {
                "holds a zero byte".to_owned()
            })?;
            at_most(field, word.len() as u64, limits::ENV_BYTES as u64 - 1)?;
        }
    }
    let env = &container.env;
    at_most("env", env.len() as u64, limits::ENV_VARS as u64)?;
    let mut seen = BTreeSet::new();
    for var in env {
        validate_env(var)?;
        let field = format!("env.{}", short(&var.name));
        ensure(seen.insert(&var.name), &field, || {
            "is given twice".to_owned()
        })?;
    }
    let words = container
        .command
        .iter()
        .chain(&container.args)
        .map(|w| w.len() + 1);
    let vars = env.iter().map(|v| v.name.len() + v.value.len() + 2);
    let total: usize = words.chain(vars).sum();
    at_most("env", total as u64, limits::EXEC_BYTES as u64)
}

fn validate_env(var: &EnvVar) -> Result<(), Refusal> {
    let field = format!("env.{}", short(&var.name));
    let name = &var.name;
    let good = !name.is_empty() && name.len() <= 256 && !name.contains(['=', '\0']);
    ensure(good, &field, || "is no name of a variable".to_owned())?;
    ensure(!RESERVED_ENV.contains(&name.as_str()), &field, || {
        "is set by the platform: set `port` instead, or choose another name".to_owned()
    })?;
    ensure(!var.value.contains('\0'), &field, || {
        "holds a zero byte".to_owned()
    })?;
    let bytes = name.len() + var.value.len() + 2;
    ensure(bytes <= limits::ENV_BYTES, &field, || {
        format!("has {bytes} bytes, above Linux's {}", limits::ENV_BYTES)
    })?;
    for (source, what) in [
        (&var.secret, "a secret is written SECRET:KEY"),
        (&var.config, "a config is written CONFIG:KEY"),
    ] {
        let halves = |text: &String| {
            let halves = text.split_once(':');
            halves.is_some_and(|(name, key)| Name::new(name).is_ok() && !key.is_empty())
        };
        let good = source.as_ref().is_none_or(halves);
        ensure(good, &field, || what.to_owned())?;
    }
    let sources = u8::from(!var.value.is_empty())
        + u8::from(var.secret.is_some())
        + u8::from(var.config.is_some());
    ensure(sources <= 1, &field, || {
        "has more than one of a value, a secret and a config".to_owned()
    })
}

pub(super) fn validate_volumes(volumes: &[Volume], mounts: &[VolumeMount]) -> Result<(), Refusal> {
    at_most("mount", volumes.len() as u64, limits::VOLUMES as u64)?;
    at_most("mount", mounts.len() as u64, limits::VOLUMES as u64)?;
    let mut names = BTreeSet::new();
    for volume in volumes {
        let name = short(&volume.name);
        ensure(!volume.name.is_empty(), "mount", || {
            "a volume has no name".to_owned()
        })?;
        ensure(names.insert(volume.name.as_str()), "mount", || {
            format!("two volumes are named `{name}`")
        })?;
        validate_volume_name(&volume.name)?;
        validate_source(&volume.source)?;
    }
    let mut paths = BTreeSet::new();
    for mount in mounts {
        let field = format!("mount.{}", short(&mount.mount_path));
        validate_mount(&field, mount)?;
        let path = mount.mount_path.trim_end_matches('/');
        ensure(paths.insert(path), &field, || "is mounted twice".to_owned())?;
        ensure(names.contains(mount.name.as_str()), &field, || {
            format!("there is no volume `{}`", short(&mount.name))
        })?;
    }
    Ok(())
}

/// It names a folder on the node.
fn validate_volume_name(name: &str) -> Result<(), Refusal> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let good = name.len() <= MAX_VOLUME_NAME && name.bytes().all(plain);
    ensure(good, "mount", || {
        format!(
            "`{}` is no name of a volume: use up to 128 letters, digits, '-' and '_'",
            short(name)
        )
    })
}

fn validate_source(source: &VolumeSource) -> Result<(), Refusal> {
    match source {
        VolumeSource::EmptyDir { memory, size_bytes } => {
            at_most("mount", *size_bytes, limits::MAX_MEMORY)?;
            // Less than a page the kernel takes for no limit at all.
            let enough = *size_bytes == 0 || *size_bytes >= 4096;
            let kind = if *memory { "in memory" } else { "on disk" };
            ensure(enough, "mount", || {
                format!("{size_bytes} bytes {kind} are less than 4Ki")
            })
        }
        VolumeSource::Secret { name, .. }
        | VolumeSource::ConfigMap { name, .. }
        | VolumeSource::Local { name } => match Name::new(name.as_str()) {
            Ok(_) => Ok(()),
            Err(error) => Err(invalid("mount", error.to_string())),
        },
        VolumeSource::HostPath { path } => validate_path("mount.host", path),
    }
}

fn validate_mount(field: &str, mount: &VolumeMount) -> Result<(), Refusal> {
    let path = &mount.mount_path;
    validate_path(field, path)?;
    ensure(!is_own_tree(path), field, || {
        "is the container's own: mount elsewhere".to_owned()
    })?;
    if let Some(sub) = &mount.sub_path {
        let good = !sub.starts_with('/') && !has_parent(sub) && !sub.contains('\0');
        ensure(good, field, || {
            format!("sub path `{}` leads out of the volume", short(sub))
        })?;
    }
    Ok(())
}

/// Whether `path` is the root or in a tree that is the container's own.
pub(super) fn is_own_tree(path: &str) -> bool {
    let top = path.split('/').find(|w| !w.is_empty() && *w != ".");
    top.is_none_or(|top| RESERVED_MOUNTS.contains(&top))
}

pub(super) fn validate_path(field: &str, path: &str) -> Result<(), Refusal> {
    let good =
        path.starts_with('/') && path.len() < 4096 && !path.contains('\0') && !has_parent(path);
    ensure(good, field, || {
        format!("`{}` is no absolute path without `..`", short(path))
    })
}

fn has_parent(path: &str) -> bool {
    path.split('/').any(|word| word == "..")
}
