//! Every field of a container's sandbox and of its probes out of its bounds, and the words that
//! refuse it.

use std::collections::BTreeMap;

use super::tests::put;
use super::{PutService, validate};
use crate::model::{
    Container, HostAlias, Probe, ProbeAction, RevisionSpec, Tmpfs, Ulimit, VolumeMount,
};

type Spoil = fn(&mut RevisionSpec);

fn refused(table: &[(&str, Spoil)]) {
    for (expected, spoil) in table {
        let mut put = put("web", 'a');
        spoil(&mut put.spec);
        let said = validate(&put).expect_err(expected).to_string();
        assert_eq!(said, *expected);
    }
}

fn main(spec: &mut RevisionSpec) -> &mut Container {
    &mut spec.containers[0]
}

#[test]
fn users_and_resources() {
    refused(&[
        ("user: is given by number and by name", |s| {
            main(s).security.run_as_user = Some(3);
            main(s).security.run_as_user_name = Some("web".to_owned());
        }),
        ("user: 4294967295 stands for nobody in Linux", |s| {
            main(s).security.run_as_user = Some(u32::MAX);
        }),
        ("group: `a:b` is no name of a user or group", |s| {
            main(s).security.run_as_group_name = Some("a:b".to_owned());
        }),
        ("groups: `` is no name of a user or group", |s| {
            main(s).security.supplemental_groups = vec![String::new()];
        }),
        ("groups: 65 is above 64", |s| {
            main(s).security.supplemental_groups = vec!["4".to_owned(); 65];
        }),
        ("resources.cpu_request: 9 is below 10", |s| {
            main(s).cpu_request_millis = 9;
        }),
        (
            "resources.cpu_request: 200 is above the limit of 100",
            |s| {
                main(s).cpu_millis = 100;
                main(s).cpu_request_millis = 200;
            },
        ),
        ("resources.memory_request: 1 is below 4194304", |s| {
            main(s).memory_request_bytes = 1;
        }),
        (
            "resources.shm: 17592186044417 is above 17592186044416",
            |s| {
                main(s).shm_bytes = (16 << 40) + 1;
            },
        ),
        ("io.weight: 1001 is above 1000", |s| {
            main(s).io.weight = 1001;
        }),
        ("io.read: 65535 a second is below 65536", |s| {
            main(s).io.read_bps = 65_535;
        }),
        ("io.write_ops: 9 a second is below 10", |s| {
            main(s).io.write_iops = 9;
        }),
        (
            "stop_signal: `SIGNOPE` is no signal: write SIGTERM, QUIT or 15",
            |s| {
                main(s).stop_signal = Some("SIGNOPE".to_owned());
            },
        ),
    ]);
}

#[test]
fn bounds_and_folders() {
    refused(&[
        (
            "ulimits.rtprio: cannot be set; these can: core, memlock, msgqueue, nofile, nproc, \
             sigpending, stack",
            |s| ulimit(s, "rtprio", 1, 1),
        ),
        ("ulimits.nofile: is given twice", |s| {
            ulimit(s, "nofile", 64, 64);
            ulimit(s, "nofile", 64, 64);
        }),
        ("ulimits.nofile: soft 100 is above hard 99", |s| {
            ulimit(s, "nofile", 100, 99);
        }),
        ("ulimits.nofile: 1:99 is not within 64 to 1048576", |s| {
            ulimit(s, "nofile", 1, 99);
        }),
        (
            "tmpfs.cache: `cache` is no absolute path without `..`",
            |s| {
                tmpfs(s, "cache", 1);
            },
        ),
        (
            "tmpfs./dev/shm: is the container's own: mount elsewhere",
            |s| {
                tmpfs(s, "/dev/shm", 0);
            },
        ),
        ("tmpfs./: is the container's own: mount elsewhere", |s| {
            tmpfs(s, "/", 0);
        }),
        ("tmpfs./cache/: is mounted twice", |s| {
            tmpfs(s, "/cache", 0);
            tmpfs(s, "/cache/", 0);
        }),
        ("tmpfs./a: is mounted twice", |s| {
            tmpfs(s, "/a", 0);
            main(s).volume_mounts.push(VolumeMount {
                name: "v".to_owned(),
                mount_path: "/a".to_owned(),
                read_only: false,
                sub_path: None,
            });
        }),
    ]);
}

#[test]
fn names_and_kernel_settings() {
    refused(&[
        (
            "hostname: `My_Host` is no host's name: use 1 to 63 of a-z, 0-9 and '-'",
            |s| s.hostname = Some("My_Host".to_owned()),
        ),
        ("hosts: 10.0.0.1 has no name", |s| host(s, &[])),
        ("hosts.a b: is no host's name", |s| host(s, &["a b"])),
        ("hosts.localhost: is the container itself", |s| {
            host(s, &["localhost"]);
        }),
        ("dns.servers: 4 is above 3", |s| {
            s.dns.servers = vec!["9.9.9.9".parse().unwrap(); 4];
        }),
        ("dns.search: `a..b` is no domain", |s| {
            s.dns.search = vec!["a..b".to_owned()];
        }),
        (
            "dns.options: `ndots:2\nnameserver 6.6.6.6` is no option of a resolver",
            |s| {
                s.dns.options = vec!["ndots:2\nnameserver 6.6.6.6".to_owned()];
            },
        ),
        (
            "sysctls.kernel.panic: cannot be set; these can: kernel.shm_rmid_forced, \
             net.ipv4.ip_local_port_range, net.ipv4.ip_unprivileged_port_start, \
             net.ipv4.ping_group_range, net.ipv4.tcp_fin_timeout, net.ipv4.tcp_keepalive_intvl, \
             net.ipv4.tcp_keepalive_probes, net.ipv4.tcp_keepalive_time, net.ipv4.tcp_syncookies",
            |s| sysctl(s, "kernel.panic", "1"),
        ),
        (
            "sysctls.net.ipv4.tcp_syncookies: `3` is not a number within 0 to 2",
            |s| sysctl(s, "net.ipv4.tcp_syncookies", "3"),
        ),
        (
            "sysctls.net.ipv4.ip_local_port_range: `9 8` is not two numbers, the smaller first, \
             within 1 to 65535",
            |s| sysctl(s, "net.ipv4.ip_local_port_range", "9 8"),
        ),
    ]);
}

#[test]
fn probes() {
    refused(&[
        ("health.ready: `x` is no path", |s| {
            ready(s, http("x"));
        }),
        ("health.ready: `A:` is no name of a header", |s| {
            header(s, "A:", "1");
        }),
        (
            "health.ready: the value of header `A` is not plain text of at most 4096 bytes",
            |s| header(s, "A", "1\r\nB: 2"),
        ),
        ("health.ready: `a b` is no name of a gRPC service", |s| {
            let service = "a b".to_owned();
            ready(s, ProbeAction::Grpc { port: 1, service });
        }),
        ("health.ready: names no command", |s| exec(s, &[])),
        ("health.ready: names no command", |s| exec(s, &[""])),
        ("health.ready: its command holds a zero byte", |s| {
            exec(s, &["a\0"]);
        }),
        (
            "health.ready: its command has 16386 bytes of at most 16384: put a script into the image",
            |s| exec(s, &["x".repeat(16_385).as_str()]),
        ),
        ("health.ready: period 3601s is above 3600s", |s| {
            ready(s, http("/")).period_seconds = 3601;
        }),
        ("health.ready: timeout 3601s is above 3600s", |s| {
            ready(s, http("/")).timeout_seconds = 3601;
        }),
        ("health.ready: 1001 failures in a row is above 1000", |s| {
            ready(s, http("/")).failure_threshold = 1001;
        }),
        ("health.live: 2 successes in a row is above 1", |s| {
            ready(s, http("/")).success_threshold = 2;
            let container = main(s);
            container.liveness = container.readiness.take();
        }),
        ("health.startup: 2 successes in a row is above 1", |s| {
            ready(s, http("/")).success_threshold = 2;
            let container = main(s);
            container.startup = container.readiness.take();
        }),
    ]);
}

#[test]
fn all_of_it_within_bounds_is_taken() {
    let mut put: PutService = put("web", 'a');
    let spec = &mut put.spec;
    spec.hostname = Some("db-1".to_owned());
    host(spec, &["db", "db.internal", "_srv.db."]);
    spec.dns.search = vec!["svc.internal".to_owned()];
    spec.dns.options = vec!["ndots:2".to_owned()];
    sysctl(spec, "net.ipv4.ping_group_range", "0 2147483647");
    ulimit(spec, "nofile", 1024, 4096);
    tmpfs(spec, "/cache", 1 << 20);
    // A probe's port may be another than the one requests come in on.
    ready(spec, ProbeAction::Tcp { port: 9090 }).success_threshold = 2;
    let container = main(spec);
    container.cpu_millis = 500;
    container.cpu_request_millis = 100;
    container.io.weight = 500;
    container.io.write_bps = 1 << 20;
    container.stop_signal = Some("SIGRTMIN+3".to_owned());
    container.security.run_as_user_name = Some("www-data".to_owned());
    container.security.supplemental_groups = vec!["adm".to_owned(), "4".to_owned()];
    assert_eq!(validate(&put), Ok(()));
}

/// What an earlier version stored lacks these fields and reads as a service that asks for none.
#[test]
fn a_service_stored_before_these_fields_is_read() {
    let spec = put("web", 'a').spec;
    let mut stored = serde_json::to_value(&spec).unwrap();
    let top = stored.as_object_mut().unwrap();
    for key in ["hostname", "hostAliases", "dns", "sysctls"] {
        top.remove(key).expect(key);
    }
    let container = top["containers"][0].as_object_mut().unwrap();
    for key in [
        "cpuRequestMillis",
        "memoryRequestBytes",
        "io",
        "ulimits",
        "tmpfs",
        "shmBytes",
        "init",
        "stopSignal",
    ] {
        container.remove(key).expect(key);
    }
    let security = container["security"].as_object_mut().unwrap();
    for key in ["runAsUserName", "runAsGroupName", "supplementalGroups"] {
        security.remove(key).expect(key);
    }
    assert_eq!(
        serde_json::from_value::<RevisionSpec>(stored).unwrap(),
        spec
    );
    let action = serde_json::json!({"http": {"path": "/", "port": 0}});
    assert_eq!(
        serde_json::from_value::<ProbeAction>(action).unwrap(),
        http("/")
    );
}

fn ulimit(spec: &mut RevisionSpec, name: &str, soft: u64, hard: u64) {
    let name = name.to_owned();
    main(spec).ulimits.push(Ulimit { name, soft, hard });
}

fn tmpfs(spec: &mut RevisionSpec, path: &str, size_bytes: u64) {
    let path = path.to_owned();
    main(spec).tmpfs.push(Tmpfs { path, size_bytes });
}

fn host(spec: &mut RevisionSpec, names: &[&str]) {
    spec.host_aliases.push(HostAlias {
        ip: "10.0.0.1".parse().unwrap(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    });
}

fn sysctl(spec: &mut RevisionSpec, name: &str, value: &str) {
    spec.sysctls.insert(name.to_owned(), value.to_owned());
}

fn http(path: &str) -> ProbeAction {
    ProbeAction::Http {
        path: path.to_owned(),
        port: 0,
        headers: BTreeMap::new(),
    }
}

fn ready(spec: &mut RevisionSpec, action: ProbeAction) -> &mut Probe {
    main(spec).readiness.insert(Probe {
        action,
        initial_delay_seconds: 0,
        period_seconds: 0,
        timeout_seconds: 0,
        success_threshold: 0,
        failure_threshold: 0,
    })
}

fn header(spec: &mut RevisionSpec, name: &str, value: &str) {
    let headers = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let (path, port) = ("/".to_owned(), 0);
    ready(
        spec,
        ProbeAction::Http {
            path,
            port,
            headers,
        },
    );
}

fn exec(spec: &mut RevisionSpec, words: &[&str]) {
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    ready(spec, ProbeAction::Exec { command });
}
