//! What is refused, and how the refusal names it.

use super::tests::{key, put};
use super::{PutService, limits, validate};
use crate::model::{Container, ContainerPort, EnvVar, Protocol, VolumeMount};

#[test]
fn what_is_wrong_is_named_as_the_operator_wrote_it() {
    type Spoil = fn(&mut PutService);
    let table: &[(&str, Spoil)] = &[
        ("name: `", |p| p.key = key(&"x".repeat(53))),
        ("image: is not pinned", |p| {
            p.image.digest = "sha256:zz".to_owned();
        }),
        ("image: is missing", |p| main(p).image.clear()),
        ("containers: exactly one", |p| p.spec.containers.clear()),
        ("containers: exactly one", |p| {
            let second = p.spec.containers[0].clone();
            p.spec.containers.push(second);
        }),
        ("port: 0 is not", |p| main(p).ports = vec![port(0)]),
        ("port: requests come", |p| {
            main(p).ports = vec![port(1), port(2)];
        }),
        ("concurrency: 1001 is above", |p| {
            p.spec.container_concurrency = 1001;
        }),
        ("timeout: 0s is not", |p| p.spec.timeout_seconds = 0),
        ("grace: 601 is above", |p| {
            p.spec.termination_grace_seconds = 601;
        }),
        ("resources.cpu: 9m is not", |p| main(p).cpu_millis = 9),
        ("resources.memory: 4194303 bytes is below", |p| {
            main(p).memory_bytes = limits::MIN_MEMORY - 1;
        }),
        ("pids: ", |p| main(p).pids = 70_000),
        ("env.PORT: is set by", |p| env(p, "PORT", "1")),
        ("env.A=B: is no name", |p| env(p, "A=B", "1")),
        ("env.A: holds a zero", |p| env(p, "A", "\0")),
        ("env.A: has 131073 bytes", |p| {
            env(p, "A", &"x".repeat(131_070));
        }),
        ("env.A: is given twice", |p| {
            env(p, "A", "1");
            env(p, "A", "2");
        }),
        ("workdir: `srv` is no absolute", |p| {
            main(p).working_dir = Some("srv".to_owned());
        }),
        ("capabilities: `SYS_ADMIN` cannot", |p| {
            main(p).security.add_capabilities = vec!["SYS_ADMIN".to_owned()];
        }),
        ("mount./a/../b: ", |p| mount(p, "/a/../b")),
        ("mount.a: ", |p| mount(p, "a")),
        ("mount./: is the container's", |p| mount(p, "/")),
        ("mount.//./proc/x: is the", |p| mount(p, "//./proc/x")),
        ("mount./a: there is no volume", |p| mount(p, "/a")),
        ("place.regions: `eu*west`", |p| {
            p.spec.place.regions = vec!["eu*west".to_owned()];
        }),
        ("scale.window: 5s", |p| p.scale.window_seconds = 5),
        ("scale.utilization: 0", |p| p.scale.utilization_percent = 0),
        ("scale.max: 1001", |p| p.scale.max = 1001),
        ("scale.initial: 0", |p| p.scale.initial = 0),
        ("scale.activation: 4", |p| {
            (p.scale.max, p.scale.activation) = (3, 4);
        }),
        ("scale.down_delay: ", |p| p.scale.down_delay_seconds = 3_601),
        ("service: is 52", |p| {
            let long = "x".repeat(27_000);
            p.annotations = (0..20).map(|i| (i.to_string(), long.clone())).collect();
        }),
    ];
    for (expected, spoil) in table {
        let mut put = put("web", 'a');
        spoil(&mut put);
        let error = validate(&put).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
    assert_eq!(validate(&put("web", 'a')), Ok(()));
}

fn main(put: &mut PutService) -> &mut Container {
    &mut put.spec.containers[0]
}

fn port(container_port: u16) -> ContainerPort {
    ContainerPort {
        container_port,
        protocol: Protocol::Http1,
    }
}

fn env(put: &mut PutService, name: &str, value: &str) {
    main(put).env.push(EnvVar {
        name: name.to_owned(),
        value: value.to_owned(),
        ..EnvVar::default()
    });
}

fn mount(put: &mut PutService, path: &str) {
    main(put).volume_mounts.push(VolumeMount {
        name: "cache".to_owned(),
        mount_path: path.to_owned(),
        read_only: false,
        sub_path: None,
    });
}
