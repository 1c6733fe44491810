//! What `describe` says of a container's sandbox and of its probes: only what was asked for.

use scheduler::model::{Container, IoLimits, Probe, ProbeAction, RevisionSpec};

use super::words::{bytes, cores};

type Line = (&'static str, String);

/// Lines of a name and a value; a value that is empty is not worth a line.
pub(super) fn lines(spec: &RevisionSpec, main: &Container) -> Vec<Line> {
    let mut all = vec![
        (
            "Liveness",
            main.liveness.as_ref().map_or_else(String::new, probe),
        ),
        (
            "Startup",
            main.startup.as_ref().map_or_else(String::new, probe),
        ),
        ("User", user(main)),
        ("Groups", main.security.supplemental_groups.join(" ")),
        ("Requests", requests(main)),
        ("Disk", disk(&main.io)),
    ];
    let limits = main.ulimits.iter();
    let limits = limits.map(|l| format!("{} {}:{}", l.name, l.soft, l.hard));
    all.push(("Ulimits", limits.collect::<Vec<_>>().join("\n")));
    let folders = main.tmpfs.iter().map(|f| (f.path.as_str(), f.size_bytes));
    let shm = Some(("/dev/shm", main.shm_bytes)).filter(|(_, size)| *size > 0);
    let folders = folders.chain(shm).map(|(path, size)| match size {
        0 => path.to_owned(),
        size => format!("{path} {}", bytes(size)),
    });
    all.push(("In memory", folders.collect::<Vec<_>>().join("\n")));
    let mut ways = Vec::new();
    if main.security.read_only_root_filesystem {
        ways.push("read-only");
    }
    if main.init {
        ways.push("with an init");
    }
    all.push(("Root", ways.join(", ")));
    all.push(("Stop signal", main.stop_signal.clone().unwrap_or_default()));
    all.extend(names(spec));
    all
}

fn names(spec: &RevisionSpec) -> [Line; 4] {
    let hosts = spec.host_aliases.iter();
    let hosts = hosts.map(|host| format!("{} {}", host.ip, host.names.join(" ")));
    let servers: Vec<String> = spec.dns.servers.iter().map(ToString::to_string).collect();
    let dns = [
        ("", servers.join(" ")),
        ("search ", spec.dns.search.join(" ")),
        ("options ", spec.dns.options.join(" ")),
    ];
    let dns = dns.into_iter().filter(|(_, text)| !text.is_empty());
    let sysctls = spec.sysctls.iter().map(|(k, v)| format!("{k}={v}"));
    [
        ("Hostname", spec.hostname.clone().unwrap_or_default()),
        ("Hosts", hosts.collect::<Vec<_>>().join("\n")),
        (
            "DNS",
            dns.map(|(word, text)| format!("{word}{text}"))
                .collect::<Vec<_>>()
                .join("\n"),
        ),
        ("Sysctls", sysctls.collect::<Vec<_>>().join("\n")),
    ]
}

fn user(main: &Container) -> String {
    let of = |number: Option<u32>, name: &Option<String>| {
        number.map_or_else(|| name.clone(), |number| Some(number.to_string()))
    };
    let asked = &main.security;
    let user = of(asked.run_as_user, &asked.run_as_user_name);
    match of(asked.run_as_group, &asked.run_as_group_name) {
        Some(group) => format!("{}:{group}", user.unwrap_or_default()),
        None => user.unwrap_or_default(),
    }
}

fn requests(main: &Container) -> String {
    let mut parts = Vec::new();
    if main.cpu_request_millis > 0 {
        parts.push(format!("{} CPU", cores(main.cpu_request_millis)));
    }
    if main.memory_request_bytes > 0 {
        parts.push(bytes(main.memory_request_bytes));
    }
    parts.join(", ")
}

fn disk(io: &IoLimits) -> String {
    let weight = (io.weight > 0).then(|| format!("weight {}", io.weight));
    let bounds = [
        ("read", bytes(io.read_bps), io.read_bps),
        ("write", bytes(io.write_bps), io.write_bps),
        ("read", format!("{} times", io.read_iops), io.read_iops),
        ("write", format!("{} times", io.write_iops), io.write_iops),
    ];
    let bounds = bounds.into_iter().filter(|(.., value)| *value > 0);
    let bounds = bounds.map(|(verb, amount, _)| format!("{verb} {amount} a second"));
    weight
        .into_iter()
        .chain(bounds)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A probe and those of its timings that are not the default.
pub(super) fn probe(probe: &Probe) -> String {
    let mut text = action(&probe.action);
    for (word, value, unit) in [
        ("after", probe.initial_delay_seconds, "s"),
        ("every", probe.period_seconds, "s"),
        ("within", probe.timeout_seconds, "s"),
        ("failures", probe.failure_threshold, ""),
        ("successes", probe.success_threshold, ""),
    ] {
        if value > 0 {
            text = format!("{text}, {word} {value}{unit}");
        }
    }
    text
}

fn action(action: &ProbeAction) -> String {
    let on = |port: &u16| match port {
        0 => String::new(),
        port => format!(" on {port}"),
    };
    match action {
        ProbeAction::Http { path, port, .. } => format!("http:{path}{}", on(port)),
        ProbeAction::Tcp { port } => format!("tcp{}", on(port)),
        ProbeAction::Grpc { port, service } if service.is_empty() => format!("grpc{}", on(port)),
        ProbeAction::Grpc { port, service } => format!("grpc {service}{}", on(port)),
        ProbeAction::Exec { command } => format!("exec {}", command.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::{HostAlias, SecurityContext, Tmpfs, Ulimit};

    use super::*;

    #[test]
    fn only_what_was_asked_for_is_said() {
        let plain = lines(&RevisionSpec::default(), &Container::default());
        assert!(plain.iter().all(|(_, value)| value.is_empty()), "{plain:?}");
        let main = Container {
            liveness: Some(Probe {
                action: ProbeAction::Grpc {
                    port: 9000,
                    service: "web".into(),
                },
                initial_delay_seconds: 0,
                period_seconds: 5,
                timeout_seconds: 0,
                success_threshold: 0,
                failure_threshold: 2,
            }),
            cpu_request_millis: 250,
            memory_request_bytes: 64 << 20,
            io: IoLimits {
                weight: 50,
                read_bps: 1 << 20,
                write_iops: 100,
                ..IoLimits::default()
            },
            ulimits: vec![Ulimit {
                name: "nofile".into(),
                soft: 64,
                hard: 128,
            }],
            tmpfs: vec![Tmpfs {
                path: "/cache".into(),
                size_bytes: 1 << 20,
            }],
            init: true,
            security: SecurityContext {
                run_as_user_name: Some("www-data".into()),
                run_as_group: Some(4),
                ..SecurityContext::default()
            },
            ..Container::default()
        };
        let mut spec = RevisionSpec {
            host_aliases: vec![HostAlias {
                ip: "10.0.0.1".parse().unwrap(),
                names: vec!["db".into()],
            }],
            ..RevisionSpec::default()
        };
        spec.dns.options = vec!["ndots:2".into()];
        let said: Vec<String> = lines(&spec, &main)
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            said,
            [
                "Liveness: grpc web on 9000, every 5s, failures 2",
                "User: www-data:4",
                "Requests: 0.25 CPU, 64Mi",
                "Disk: weight 50, read 1Mi a second, write 100 times a second",
                "Ulimits: nofile 64:128",
                "In memory: /cache 1Mi",
                "Root: with an init",
                "Hosts: 10.0.0.1 db",
                "DNS: options ndots:2",
            ]
        );
    }
}
