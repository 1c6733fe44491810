//! `[[mount]]` and `--mount`, `[secrets]`, `[config]` and `--secret`: what a service is given
//! besides its image.

use scheduler::model::{EnvVar, RevisionSpec, Volume, VolumeMount, VolumeSource, units};

use super::ManifestError;
use super::section::Section;
use crate::args::MountFlag;

/// The kinds, of which a mount has exactly one.
const KINDS: [&str; 5] = ["emptydir", "config", "secret", "volume", "host"];
const KEYS: &[&str] = &[
    "emptydir",
    "config",
    "secret",
    "volume",
    "host",
    "at",
    "size",
    "memory",
    "read_only",
    "optional",
    "path",
];

type Read<T> = Result<T, ManifestError>;

/// Reads all `[[mount]]` tables into the revision.
pub(super) fn mounts(top: &Section<'_>, spec: &mut RevisionSpec) -> Read<()> {
    for table in top.tables("mount", KEYS)? {
        let (volume, mount) = one(&table)?;
        add(spec, volume, mount).map_err(|message| table.fault("at", message, ""))?;
    }
    Ok(())
}

fn one(table: &Section<'_>) -> Read<(Volume, VolumeMount)> {
    let mut named = KINDS.iter().filter(|kind| table.item(kind).is_some());
    let (Some(kind), None) = (named.next(), named.next()) else {
        let message = format!("a mount has exactly one of {}", KINDS.join(", "));
        return Err(table.fault("at", message, ""));
    };
    let name = table.string(kind)?.unwrap_or_default();
    let Some(at) = table.string("at")? else {
        let help = "write at = \"/path\", where the container sees it";
        return Err(table.fault(kind, "the mount has no `at`", help));
    };
    let size = table.parsed("size", units::bytes)?;
    let memory = table.flag("memory")?;
    if *kind != "emptydir" && (size.is_some() || memory.is_some()) {
        let key = if size.is_some() { "size" } else { "memory" };
        let message = format!("only an emptydir has a `{key}`");
        return Err(table.fault(key, message, ""));
    }
    let optional = table.flag("optional")?;
    if optional.is_some() && !matches!(*kind, "config" | "secret") {
        let message = "only a config or a secret can be optional";
        return Err(table.fault("optional", message, ""));
    }
    let optional = optional.unwrap_or(false);
    let name = name.to_owned();
    let source = match *kind {
        "emptydir" => VolumeSource::EmptyDir {
            memory: memory.unwrap_or(false),
            size_bytes: size.unwrap_or(0),
        },
        "config" => VolumeSource::ConfigMap {
            name: name.clone(),
            optional,
        },
        "secret" => VolumeSource::Secret {
            name: name.clone(),
            optional,
        },
        "volume" => VolumeSource::Local { name: name.clone() },
        _ => VolumeSource::HostPath { path: name.clone() },
    };
    let mount = VolumeMount {
        name: volume_name(&source, &name),
        mount_path: at.to_owned(),
        read_only: table.flag("read_only")?.unwrap_or(false),
        sub_path: table.string("path")?.map(str::to_owned),
    };
    let volume = Volume {
        name: mount.name.clone(),
        source,
    };
    Ok((volume, mount))
}

/// What the service calls the volume; `own` is an emptydir's name.
fn volume_name(source: &VolumeSource, own: &str) -> String {
    match source {
        VolumeSource::EmptyDir { .. } => plain(own),
        VolumeSource::ConfigMap { name, .. } => format!("config-{name}"),
        VolumeSource::Secret { name, .. } => format!("secret-{name}"),
        VolumeSource::Local { name } => format!("volume-{name}"),
        VolumeSource::HostPath { path } => format!("host-{}", plain(path)),
    }
}

/// A path as a word.
fn plain(path: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    path.trim_matches('/').chars().map(letter).collect()
}

/// Adds a mount, in the place of one at the same path; several mounts share a volume.
fn add(spec: &mut RevisionSpec, volume: Volume, mount: VolumeMount) -> Result<(), String> {
    match spec.volumes.iter().find(|v| v.name == volume.name) {
        Some(known) if known.source != volume.source => {
            return Err(format!(
                "`{}` is mounted twice, as different things",
                volume.name
            ));
        }
        Some(_) => {}
        None => spec.volumes.push(volume),
    }
    if let Some(container) = spec.containers.first_mut() {
        let mounts = &mut container.volume_mounts;
        match mounts.iter().position(|m| m.mount_path == mount.mount_path) {
            Some(at) => mounts[at] = mount,
            None => mounts.push(mount),
        }
    }
    Ok(())
}

/// Applies `--mount`: adds, replaces and removes mounts, and drops volumes nothing mounts then.
pub(super) fn change(spec: &mut RevisionSpec, flags: &[MountFlag]) -> Result<(), String> {
    for flag in flags {
        if let Some(container) = spec.containers.first_mut() {
            container.volume_mounts.retain(|m| m.mount_path != flag.at);
        }
        drop_unused(spec);
        let Some(source) = &flag.source else { continue };
        let name = volume_name(source, &flag.at);
        let mount = VolumeMount {
            name: name.clone(),
            mount_path: flag.at.clone(),
            read_only: flag.read_only,
            sub_path: None,
        };
        let source = source.clone();
        add(spec, Volume { name, source }, mount).map_err(|e| format!("--mount: {e}"))?;
    }
    Ok(())
}

fn drop_unused(spec: &mut RevisionSpec) {
    let mounts = spec.containers.first().map(|c| c.volume_mounts.clone());
    let mounts = mounts.unwrap_or_default();
    spec.volumes
        .retain(|v| mounts.iter().any(|m| m.name == v.name));
}

/// `DB_URL = "db/url"` in `[secrets]` or `[config]`: a variable and the key its value is under.
pub(super) fn variables(top: &Section<'_>, env: &mut Vec<EnvVar>) -> Read<()> {
    for section in ["secrets", "config"] {
        let Some(table) = top.free(section)? else {
            continue;
        };
        for name in table.keys() {
            let place = table.parsed(name, place)?.unwrap_or_default();
            if env.iter().any(|var| var.name == name) {
                return Err(table.fault(name, format!("`{name}` is given twice"), ""));
            }
            let (secret, config) = match section {
                "secrets" => (Some(place), None),
                _ => (None, Some(place)),
            };
            env.push(EnvVar {
                name: name.to_owned(),
                secret,
                config,
                ..EnvVar::default()
            });
        }
    }
    Ok(())
}

/// `NAME/KEY` or `NAME:KEY`, as the registry writes it.
fn place(text: &str) -> Result<String, String> {
    match text.split_once(['/', ':']) {
        Some((name, key)) if !name.is_empty() && !key.is_empty() => Ok(format!("{name}:{key}")),
        _ => Err(format!("`{text}` is not NAME/KEY")),
    }
}
