//! From a revision and its image to the container the runtime is asked for. Pure.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use scheduler::model::{
    Container, EnvVar, FailReason, InstanceId, ProbeAction, Revision, RevisionSpec,
};

use crate::image::ImageConfig;
use crate::runtime::{ContainerSpec, parse_signal};

/// Where one instance's parts are.
pub(super) struct Parts<'a> {
    pub id: &'a InstanceId,
    pub rootfs: &'a Path,
    pub netns: &'a Path,
    pub address: Ipv4Addr,
    pub cgroup: PathBuf,
}

/// What of a service this node cannot give; refused when it is deployed, never ignored.
pub fn unsupported(spec: &RevisionSpec) -> Option<&'static str> {
    let container = spec.main()?;
    let readiness = container.readiness.as_ref().map(|probe| &probe.action);
    if matches!(
        readiness,
        Some(ProbeAction::Grpc { .. } | ProbeAction::Exec { .. })
    ) {
        return Some("readiness: only http and tcp probes are understood");
    }
    if container.liveness.is_some() || container.startup.is_some() {
        return Some("liveness and startup probes are not understood; use readiness");
    }
    None
}

pub(super) fn container(
    revision: &Revision,
    image: &ImageConfig,
    parts: &Parts<'_>,
) -> Result<ContainerSpec, FailReason> {
    let Some(container) = revision.spec.main() else {
        let message = "the revision names no container".to_owned();
        return Err(FailReason {
            code: "BadSpec".to_owned(),
            message,
        });
    };
    let mut spec = ContainerSpec::new(parts.id.clone(), parts.rootfs, &parts.cgroup);
    spec.netns = Some(parts.netns.to_owned());
    spec.address = Some(parts.address.into());
    spec.args = command(container, image);
    spec.env = environment(revision, container, image);
    spec.cwd = container
        .working_dir
        .clone()
        .unwrap_or_else(|| image.working_dir.clone());
    spec.user = user(container, image);
    spec.cpu_millis = container.cpu_millis;
    spec.memory_bytes = container.memory_bytes;
    spec.pids = container.pids;
    spec.read_only_root = container.security.read_only_root_filesystem;
    spec.add_capabilities
        .clone_from(&container.security.add_capabilities);
    if let Some(signal) = parse_signal(&image.stop_signal) {
        spec.stop_signal = signal;
    }
    Ok(spec)
}

/// Kubernetes' rule: `command` replaces the entrypoint and, with it, the image's arguments; `args`
/// replaces those alone.
fn command(container: &Container, image: &ImageConfig) -> Vec<String> {
    let (head, tail) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &container.args),
        (false, _) => (&container.command, &container.args),
    };
    head.iter().chain(tail).cloned().collect()
}

/// The image's variables, then what the platform promises, then the service's own, later ones
/// winning; `PORT` and the `K_` names are the platform's and cannot be overridden.
fn environment(
    revision: &Revision,
    container: &Container,
    image: &ImageConfig,
) -> Vec<(String, String)> {
    let split = |text: &String| {
        text.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    // Those whose values stand elsewhere are the volumes' room's business.
    let here = |e: &&EnvVar| e.secret.is_none() && e.config.is_none();
    let own = container
        .env
        .iter()
        .filter(here)
        .map(|e| (e.name.clone(), e.value.clone()));
    let platform = [
        ("PORT", revision.spec.port().container_port.to_string()),
        ("K_SERVICE", revision.service.name.to_string()),
        ("K_CONFIGURATION", revision.service.name.to_string()),
        ("K_REVISION", revision.key.name.to_string()),
    ];
    let platform = platform
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    image
        .env
        .iter()
        .filter_map(split)
        .chain(own)
        .chain(platform)
        .collect()
}

fn user(container: &Container, image: &ImageConfig) -> String {
    match (
        container.security.run_as_user,
        container.security.run_as_group,
    ) {
        (None, None) => image.user.clone(),
        (Some(user), None) => user.to_string(),
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (None, Some(group)) => {
            let user = image
                .user
                .split(':')
                .next()
                .filter(|u| !u.is_empty())
                .unwrap_or("0");
            format!("{user}:{group}")
        }
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::{
        ImagePin, Name, RevisionKey, RevisionState, SecurityContext, ServiceKey, UnixMs,
    };

    use super::*;

    fn revision(container: Container) -> Revision {
        let name = |text: &str| Name::new(text).unwrap();
        Revision {
            key: RevisionKey {
                namespace: name("default"),
                name: name("web-00001"),
            },
            service: ServiceKey {
                namespace: name("default"),
                name: name("web"),
            },
            generation: 1,
            created: UnixMs(0),
            spec: RevisionSpec {
                containers: vec![container],
                ..RevisionSpec::default()
            },
            image: ImagePin {
                reference: "r/web:1".into(),
                digest: "sha256:0".into(),
            },
            state: RevisionState::Pending,
        }
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["serve".into()],
            env: vec!["PATH=/bin".into(), "PORT=1".into(), "LOG=image".into()],
            user: "www:www".into(),
            working_dir: "/srv".into(),
            stop_signal: "SIGQUIT".into(),
            ..ImageConfig::default()
        }
    }

    fn built(container: Container) -> ContainerSpec {
        let id = InstanceId("web-00001-a".into());
        let parts = Parts {
            id: &id,
            rootfs: Path::new("/r"),
            netns: Path::new("/n"),
            address: Ipv4Addr::new(10, 201, 0, 2),
            cgroup: "/selvedge/par-1/web-00001-a".into(),
        };
        super::container(&revision(container), &image(), &parts).unwrap()
    }

    #[test]
    fn commands_follow_kubernetes() {
        let of = |command: &[&str], args: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
            built(Container {
                command: own(command),
                args: own(args),
                ..Container::default()
            })
            .args
        };
        assert_eq!(of(&[], &[]), ["/entry", "serve"]);
        assert_eq!(of(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(of(&["/c"], &[]), ["/c"]);
        assert_eq!(of(&["/c"], &["x"]), ["/c", "x"]);
    }

    #[test]
    fn the_services_variables_beat_the_images_and_the_platforms_beat_both() {
        let var = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: value.into(),
            ..EnvVar::default()
        };
        let env = vec![var("LOG", "mine"), var("PORT", "9")];
        let spec = built(Container {
            env,
            ..Container::default()
        });
        let last = |wanted: &str| {
            spec.env
                .iter()
                .rev()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(last("LOG"), Some("mine"));
        assert_eq!(last("PORT"), Some("8080"));
        assert_eq!(last("K_REVISION"), Some("web-00001"));
    }

    #[test]
    fn users_and_signals() {
        let with = |user, group| {
            let security = SecurityContext {
                run_as_user: user,
                run_as_group: group,
                ..SecurityContext::default()
            };
            built(Container {
                security,
                ..Container::default()
            })
            .user
        };
        assert_eq!(with(None, None), "www:www");
        assert_eq!(with(Some(7), None), "7");
        assert_eq!(with(None, Some(8)), "www:8");
        assert_eq!(built(Container::default()).stop_signal, libc::SIGQUIT);
    }
}
