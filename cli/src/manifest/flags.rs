//! The flags of `deploy` over a manifest: what a flag names wins, the rest stays.

use scheduler::model::{CERTIFICATE, EnvVar, PLAIN_HTTP, domains_of, set_domains};

use super::lower::{env_line, pull_policy, whole_seconds};
use super::probe::probe;
use super::{Manifest, mount, sandbox};
use crate::args::{DeployArgs, EnvChange, SecretFlag};

/// Applies the flags; `env_files` are the contents of `--env-file`, each with its name.
///
/// # Errors
/// What is wrong, for people.
pub fn override_with(
    mut manifest: Manifest,
    flags: &DeployArgs,
    env_files: &[(String, String)],
) -> Result<Manifest, String> {
    scale(&mut manifest, flags)?;
    container(&mut manifest, flags)?;
    environment(&mut manifest, flags, env_files)?;
    sandbox::override_with(&mut manifest, &flags.sandbox)?;
    mount::change(&mut manifest.spec, &flags.mounts)?;
    let spec = &mut manifest.spec;
    if let Some(limit) = flags.concurrency {
        spec.container_concurrency = limit;
    }
    if let Some(timeout) = flags.timeout {
        spec.timeout_seconds = whole_seconds(timeout).map_err(|e| format!("--timeout: {e}"))?;
    }
    if let Some(grace) = flags.grace {
        let seconds = whole_seconds(grace).map_err(|e| format!("--grace: {e}"))?;
        spec.termination_grace_seconds = seconds;
    }
    if !flags.regions.is_empty() {
        spec.place.regions.clone_from(&flags.regions);
    }
    if let Some(spread) = flags.spread {
        spec.place.spread = spread;
    }
    spec.place.require.extend(flags.node_labels.iter().cloned());
    for (name, value) in [
        (CERTIFICATE, &flags.certificate),
        (PLAIN_HTTP, &flags.plain_http),
    ] {
        if let Some(value) = value {
            manifest.annotations.insert(name.to_owned(), value.clone());
        }
    }
    domains(&mut manifest, flags);
    manifest.labels.extend(flags.labels.iter().cloned());
    Ok(manifest)
}

fn domains(manifest: &mut Manifest, flags: &DeployArgs) {
    if flags.domains.is_empty() {
        return;
    }
    let mut domains = domains_of(&manifest.annotations);
    for flag in &flags.domains {
        domains.retain(|known| *known != flag.domain);
        domains.extend(Some(flag.domain.clone()).filter(|_| !flag.away));
    }
    set_domains(&mut manifest.annotations, &domains);
}

fn scale(manifest: &mut Manifest, flags: &DeployArgs) -> Result<(), String> {
    let scale = &mut manifest.scale;
    if let Some(bounds) = flags.scale {
        scale.min = bounds.min;
        scale.max = bounds.max;
    }
    scale.min = flags.min_instances.unwrap_or(scale.min);
    scale.max = flags.max_instances.unwrap_or(scale.max);
    if scale.max != 0 && scale.min > scale.max {
        return Err(format!(
            "scale: {} at least is more than {} at most",
            scale.min, scale.max
        ));
    }
    scale.target = flags.target.unwrap_or(scale.target);
    if let Some(window) = flags.window {
        scale.window_seconds = whole_seconds(window).map_err(|e| format!("--window: {e}"))?;
    }
    Ok(())
}

fn container(manifest: &mut Manifest, flags: &DeployArgs) -> Result<(), String> {
    let container = manifest.container();
    if let Some(image) = &flags.image {
        container.image.clone_from(image);
    }
    if let Some(port) = flags.port {
        container.ports = vec![port.into()];
    }
    container.cpu_millis = flags.cpu.unwrap_or(container.cpu_millis);
    container.memory_bytes = flags.memory.unwrap_or(container.memory_bytes);
    container.pids = flags.pids.unwrap_or(container.pids);
    for (flag, text, place) in [
        ("--readiness", &flags.readiness, &mut container.readiness),
        ("--liveness", &flags.liveness, &mut container.liveness),
        ("--startup", &flags.startup, &mut container.startup),
    ] {
        if let Some(text) = text {
            *place = probe(text).map_err(|e| format!("{flag}: {e}"))?;
        }
    }
    if !flags.cmd.is_empty() {
        container.command.clone_from(&flags.cmd);
    }
    if !flags.arg.is_empty() {
        container.args.clone_from(&flags.arg);
    }
    if let Some(policy) = &flags.pull {
        pull_policy(policy)?.clone_into(&mut container.image_pull_policy);
    }
    Ok(())
}

fn environment(
    manifest: &mut Manifest,
    flags: &DeployArgs,
    env_files: &[(String, String)],
) -> Result<(), String> {
    let mut changes = Vec::new();
    for (file, text) in env_files {
        for (number, line) in text.lines().enumerate() {
            let at = |error| format!("{file}:{}: {error}", number + 1);
            changes.extend(env_line(line).map_err(at)?);
        }
    }
    changes.extend(flags.set_env_vars.iter().cloned());
    changes.extend(flags.env.iter().cloned());
    let env = &mut manifest.container().env;
    for EnvChange { name, value } in changes {
        let known = env.iter().position(|var| var.name == name);
        match (known, value) {
            // In its place: an order that changes would make a revision of nothing.
            (Some(at), Some(value)) => {
                env[at] = EnvVar {
                    name,
                    value,
                    ..EnvVar::default()
                }
            }
            (Some(at), None) => drop(env.remove(at)),
            (None, Some(value)) => env.push(EnvVar {
                name,
                value,
                ..EnvVar::default()
            }),
            (None, None) => {}
        }
    }
    for SecretFlag { name, place } in &flags.secrets {
        let var = EnvVar {
            name: name.clone(),
            secret: Some(place.clone()),
            ..EnvVar::default()
        };
        match env.iter().position(|known| known.name == *name) {
            Some(at) => env[at] = var,
            None => env.push(var),
        }
    }
    Ok(())
}
