//! From a revision and its image to the container the runtime is asked for. Pure.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use scheduler::model::{
    Container, EnvVar, FailReason, InstanceId, Revision, RevisionSpec, parse_signal,
};
use scheduler::registry::limits;

use super::busy::{BUSY, ON};
use super::expand::expand;
use super::work::{ASKED, FREEZE, NEVER};
use crate::image::ImageConfig;
use crate::runtime::ContainerSpec;
use crate::userns::Block;

/// Where one instance's parts are.
pub(super) struct Parts<'a> {
    pub id: &'a InstanceId,
    pub rootfs: &'a Path,
    pub netns: &'a Path,
    pub address: Ipv4Addr,
    /// The node on the bridge, which knows the services' names.
    pub gateway: Ipv4Addr,
    pub ids: Option<Block>,
    pub cgroup: PathBuf,
}

/// The domain services have for containers.
pub const INTERNAL: &str = "internal";

/// What of a service this node cannot give; refused when it is deployed, never ignored.
pub fn unsupported(spec: &RevisionSpec) -> Option<&'static str> {
    let freeze = spec.annotations.get(FREEZE);
    if freeze.is_some_and(|v| v != NEVER && v != ASKED) {
        return Some("selvedge.dev/freeze can only be \"never\" or \"asked\"");
    }
    if spec.annotations.get(BUSY).is_some_and(|v| v != ON) {
        return Some("selvedge.dev/busy can only be \"on\"");
    }
    None
}

pub(super) fn container(
    revision: &Revision,
    image: &ImageConfig,
    parts: &Parts<'_>,
) -> Result<ContainerSpec, FailReason> {
    let Some(container) = revision.spec.main() else {
        return Err(bad("the revision names no container"));
    };
    let mut spec = ContainerSpec::new(parts.id.clone(), parts.rootfs, &parts.cgroup);
    spec.netns = Some(parts.netns.to_owned());
    spec.address = Some(parts.address.into());
    spec.ids = parts.ids;
    let env = environment(revision, container)?;
    spec.args = command(container, image, &env);
    spec.env = image
        .env
        .iter()
        .filter_map(|text| split(text))
        .chain(env)
        .collect();
    check_size(&spec)?;
    spec.cwd = container
        .working_dir
        .clone()
        .unwrap_or_else(|| image.working_dir.clone());
    spec.user = user(container, image);
    spec.groups
        .clone_from(&container.security.supplemental_groups);
    spec.read_only_root = container.security.read_only_root_filesystem;
    spec.add_capabilities
        .clone_from(&container.security.add_capabilities);
    limit(&mut spec, container);
    name(&mut spec, revision, parts.gateway);
    spec.init = container.init;
    let signal = container.stop_signal.as_ref().unwrap_or(&image.stop_signal);
    if let Some(signal) = parse_signal(signal) {
        spec.stop_signal = signal;
    }
    Ok(spec)
}

fn limit(spec: &mut ContainerSpec, container: &Container) {
    spec.cpu_millis = container.cpu_millis;
    spec.cpu_request_millis = container.cpu_request_millis;
    spec.memory_bytes = container.memory_bytes;
    spec.memory_request_bytes = container.memory_request_bytes;
    spec.pids = container.pids;
    spec.io = container.io;
    spec.ulimits.clone_from(&container.ulimits);
    spec.tmpfs.clone_from(&container.tmpfs);
    spec.shm_bytes = container.shm_bytes;
}

/// What it calls itself, what it calls others, and its network's settings.
fn name(spec: &mut ContainerSpec, of: &Revision, gateway: Ipv4Addr) {
    let revision = &of.spec;
    if let Some(hostname) = &revision.hostname {
        spec.hostname.clone_from(hostname);
    }
    spec.host_aliases.clone_from(&revision.host_aliases);
    spec.dns_search.clone_from(&revision.dns.search);
    if revision.dns.servers.is_empty() {
        spec.nameservers = vec![gateway.into()];
        // `web` of its own namespace, `web.shop` of another.
        let own = format!("{}.{INTERNAL}", of.key.namespace);
        spec.dns_search.extend([own, INTERNAL.to_owned()]);
    } else {
        spec.nameservers.clone_from(&revision.dns.servers);
    }
    spec.dns_options.clone_from(&revision.dns.options);
    let sysctls = revision.sysctls.iter();
    spec.sysctls = sysctls.map(|(k, v)| (k.clone(), v.clone())).collect();
}

fn bad(message: impl Into<String>) -> FailReason {
    FailReason {
        code: "BadSpec".to_owned(),
        message: message.into(),
    }
}

/// References may make more of the words than was written down; the kernel takes so much.
fn check_size(spec: &ContainerSpec) -> Result<(), FailReason> {
    let words = spec.args.iter().map(|word| word.len() + 1);
    let vars = spec.env.iter().map(|(k, v)| k.len() + v.len() + 2);
    let bytes: usize = words.chain(vars).sum();
    if bytes > limits::EXEC_BYTES {
        return Err(bad(format!(
            "command, arguments and environment have {bytes} bytes, above Linux's {}",
            limits::EXEC_BYTES
        )));
    }
    Ok(())
}

/// Kubernetes' rule: `command` replaces the entrypoint and, with it, the image's arguments; `args`
/// replaces those alone. References in the service's own words are replaced, in the image's not.
fn command(container: &Container, image: &ImageConfig, env: &[(String, String)]) -> Vec<String> {
    let value_of = |name: &str| value_of(env, name);
    let own = |words: &[String]| -> Vec<String> {
        words.iter().map(|word| expand(word, value_of)).collect()
    };
    let (head, tail) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (image.entrypoint.clone(), image.cmd.clone()),
        (true, false) => (image.entrypoint.clone(), own(&container.args)),
        (false, _) => (own(&container.command), own(&container.args)),
    };
    head.into_iter().chain(tail).collect()
}

/// What the platform promises and the service's own variables, in which what stands before them
/// may be named; `PORT` and the `K_` names are the platform's and cannot be overridden.
fn environment(
    revision: &Revision,
    container: &Container,
) -> Result<Vec<(String, String)>, FailReason> {
    let platform = [
        ("PORT", revision.spec.port().container_port.to_string()),
        ("K_SERVICE", revision.service.name.to_string()),
        ("K_CONFIGURATION", revision.service.name.to_string()),
        ("K_REVISION", revision.key.name.to_string()),
    ];
    let mut env: Vec<_> = platform
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    let mut bytes = 0;
    // Those whose values stand elsewhere are the volumes' room's business.
    let here = |var: &&EnvVar| var.secret.is_none() && var.config.is_none();
    for var in container.env.iter().filter(here) {
        let value = expand(&var.value, |name| value_of(&env, name));
        // A few that name each other could fill the memory.
        bytes += value.len();
        if bytes > limits::EXEC_BYTES {
            let name = &var.name;
            return Err(bad(format!("env.{name}: its references make it too long")));
        }
        env.push((var.name.clone(), value));
    }
    // The platform's last, so that they win.
    env.rotate_left(PLATFORM);
    Ok(env)
}

/// Variables the platform sets.
const PLATFORM: usize = 4;

fn value_of<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let known = env.iter().find(|(known, _)| known == name);
    known.map(|(_, value)| value.as_str())
}

fn split(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

/// `user:group` of names and numbers, the image's where the service names none.
fn user(container: &Container, image: &ImageConfig) -> String {
    let asked = &container.security;
    let text = |number: Option<u32>, name: &Option<String>| {
        number.map_or_else(|| name.clone(), |number| Some(number.to_string()))
    };
    let user = text(asked.run_as_user, &asked.run_as_user_name);
    let group = text(asked.run_as_group, &asked.run_as_group_name);
    match (user, group) {
        (None, None) => image.user.clone(),
        (Some(user), None) => user,
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
        EnvVar, ImagePin, Name, RevisionKey, RevisionState, SecurityContext, ServiceKey, Tmpfs,
        UnixMs,
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
        of(&revision(container))
    }

    fn of(revision: &Revision) -> ContainerSpec {
        let id = InstanceId("web-00001-a".into());
        let parts = Parts {
            id: &id,
            rootfs: Path::new("/r"),
            netns: Path::new("/n"),
            address: Ipv4Addr::new(10, 201, 0, 2),
            gateway: Ipv4Addr::new(10, 201, 0, 1),
            ids: Block::number(2),
            cgroup: "/selvedge/par-1/web-00001-a".into(),
        };
        super::container(revision, &image(), &parts).unwrap()
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
    fn references_see_what_stands_before_them_and_the_platforms_words() {
        let var = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: value.into(),
            ..EnvVar::default()
        };
        let spec = built(Container {
            env: vec![
                var("EARLY", "$(LATE)"),
                var("LATE", "late"),
                var("URL", "http://x:$(PORT)/$(LATE)"),
            ],
            args: vec!["$(URL)".into(), "$$(URL)".into(), "$(LOG)".into()],
            ..Container::default()
        });
        // The image's variables are not known before its container runs.
        let want = ["/entry", "http://x:8080/late", "$(URL)", "$(LOG)"];
        assert_eq!(spec.args, want);
        let has = |name: &str, value: &str| {
            let pair = (name.to_owned(), value.to_owned());
            assert!(spec.env.contains(&pair), "{pair:?}");
        };
        has("EARLY", "$(LATE)");
        has("URL", "http://x:8080/late");
    }

    #[test]
    fn references_cannot_fill_the_memory() {
        let ten = |name: &str| format!("$({name})").repeat(10);
        let mut env = vec![("V0".to_owned(), "x".repeat(10))];
        for n in 1..20 {
            env.push((format!("V{n}"), ten(&format!("V{}", n - 1))));
        }
        let env = env.into_iter().map(|(name, value)| EnvVar {
            name,
            value,
            ..EnvVar::default()
        });
        let container = Container {
            env: env.collect(),
            ..Container::default()
        };
        let refused = environment(&revision(container.clone()), &container).unwrap_err();
        assert_eq!(refused.message, "env.V5: its references make it too long");
    }

    #[test]
    fn what_a_service_asks_of_its_sandbox_reaches_the_container() {
        let mut revision = revision(Container {
            cpu_request_millis: 100,
            init: true,
            stop_signal: Some("USR1".into()),
            tmpfs: vec![Tmpfs {
                path: "/cache".into(),
                size_bytes: 1,
            }],
            security: SecurityContext {
                run_as_user_name: Some("web".into()),
                run_as_group: Some(8),
                supplemental_groups: vec!["adm".into()],
                ..SecurityContext::default()
            },
            ..Container::default()
        });
        let asked = &mut revision.spec;
        asked.hostname = Some("db".into());
        asked.dns.servers = vec!["9.9.9.9".parse().unwrap()];
        asked.sysctls = [("net.ipv4.tcp_syncookies".into(), "1".into())].into();
        let spec = of(&revision);
        assert_eq!(
            (spec.user.as_str(), spec.groups[0].as_str()),
            ("web:8", "adm")
        );
        assert_eq!((spec.cpu_request_millis, spec.init), (100, true));
        assert_eq!(
            spec.stop_signal,
            libc::SIGUSR1,
            "the service's, not the image's"
        );
        assert_eq!(spec.tmpfs[0].path, "/cache");
        assert_eq!(spec.hostname, "db");
        assert_eq!(spec.nameservers[0].to_string(), "9.9.9.9");
        assert!(spec.dns_search.is_empty(), "that one knows no services");
        revision.spec.dns.servers.clear();
        revision.spec.dns.search = vec!["example.com".into()];
        let spec_of_ours = of(&revision);
        assert_eq!(spec_of_ours.nameservers[0].to_string(), "10.201.0.1");
        let search = ["example.com", "default.internal", "internal"];
        assert_eq!(spec_of_ours.dns_search, search);
        assert_eq!(spec.sysctls.len(), 1);
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
