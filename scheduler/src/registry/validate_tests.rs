//! What is refused, and how the refusal names it.

use super::tests::{key, put};
use super::{PutService, limits, validate};
use crate::model::{
    Container, ContainerPort, DOMAINS, EnvVar, Metric, Preference, Protocol, SLOW_START, STICKY,
    Schedule, VolumeMount,
};

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
        ("place.energy: 101", |p| p.spec.place.energy = 101),
        ("place.priority: 1000000001", |p| {
            p.spec.place.priority = -1_000_000_001;
        }),
        ("place.prefer.weight: 101", |p| prefer(p, "ssd", 101)),
        ("place.prefer.weight: 0", |p| prefer(p, "ssd", 0)),
        ("place.prefer: `disk` contradicts place.require", |p| {
            let rule = ("disk".to_owned(), "hdd".to_owned());
            p.spec.place.require.extend([rule]);
            prefer(p, "ssd", 5);
        }),
        ("scale.window: 5s", |p| p.scale.window_seconds = 5),
        ("scale.utilization: 0", |p| p.scale.utilization_percent = 0),
        ("scale.max: 1001", |p| p.scale.max = 1001),
        ("scale.initial: 0", |p| p.scale.initial = 0),
        ("scale.activation: 4", |p| {
            (p.scale.max, p.scale.activation) = (3, 4);
        }),
        ("scale.down_delay: ", |p| p.scale.down_delay_seconds = 3_601),
        (
            "scale.schedule.cron: `61 * * * *`: `61` is no minute",
            |p| {
                schedule(p, "61 * * * *", 3600, 1);
            },
        ),
        ("scale.schedule.for: 59s", |p| {
            schedule(p, "0 8 * * *", 59, 1);
        }),
        ("scale.schedule.min: 9 is not within 1 to 8", |p| {
            p.scale.max = 8;
            schedule(p, "0 8 * * *", 60, 9);
        }),
        ("scale.schedule.utc_offset: 900", |p| {
            schedule(p, "0 8 * * *", 60, 1);
            p.scale.schedules[0].utc_offset_minutes = 900;
        }),
        ("scale.schedule: 17 is above", |p| {
            (0..17).for_each(|_| schedule(p, "0 8 * * *", 60, 1));
        }),
        ("service: is 52", large),
    ];
    for (expected, spoil) in table {
        let mut put = put("web", 'a');
        spoil(&mut put);
        let error = validate(&put).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
    assert_eq!(validate(&put("web", 'a')), Ok(()));
}

fn large(put: &mut PutService) {
    let long = "x".repeat(27_000);
    put.annotations = (0..20).map(|i| (i.to_string(), long.clone())).collect();
}

#[test]
fn what_a_number_follows_must_be_known_and_end() {
    type Spoil = fn(&mut PutService);
    let table: &[(&str, Spoil)] = &[
        ("scale.metric: cpu is a part of", |p| {
            p.scale.metric = Metric::Cpu;
        }),
        ("scale.metric: memory is a part of", |p| {
            p.scale.metric = Metric::Memory;
            p.scale.max = 3;
        }),
        ("scale.max: memory is not freed", |p| {
            p.scale.metric = Metric::Memory;
            main(p).memory_bytes = 64 << 20;
        }),
        ("scale.target: 101 is above", |p| {
            p.scale.metric = Metric::Cpu;
            p.scale.target = 101;
            main(p).cpu_request_millis = 100;
        }),
    ];
    for (says, spoil) in table {
        let mut wrong = put("web", 'a');
        spoil(&mut wrong);
        let refusal = validate(&wrong).unwrap_err().to_string();
        assert!(refusal.starts_with(says), "{refusal}");
    }
    let mut right = put("web", 'a');
    right.scale.metric = Metric::Rps;
    right.scale.target = 500;
    validate(&right).unwrap();
    right.scale.metric = Metric::Cpu;
    right.scale.target = 60;
    main(&mut right).cpu_request_millis = 100;
    validate(&right).unwrap();
}

#[test]
fn annotations_of_our_own_say_what_they_may() {
    for (name, good, bad, said) in [
        (
            "selvedge.dev/rate",
            "100/s burst 5",
            "fast",
            "`fast` is no rate",
        ),
        ("selvedge.dev/proxy-protocol", "v2", "v1", "is `v2`"),
    ] {
        for of_revision in [false, true] {
            let judged = |value: &str| {
                let mut put = put("web", 'a');
                let annotations = if of_revision {
                    &mut put.spec.annotations
                } else {
                    &mut put.annotations
                };
                annotations.insert(name.to_owned(), value.to_owned());
                validate(&put)
            };
            assert_eq!(judged(good), Ok(()));
            // A rate is the service's, and means nothing on a revision.
            if !of_revision || !name.ends_with("rate") {
                let error = judged(bad).unwrap_err().to_string();
                assert!(error.starts_with("annotations: selvedge.dev/"), "{error}");
                assert!(error.contains(said), "{error}");
            }
        }
    }
}

#[test]
fn what_is_asked_of_the_front_door_is_in_its_words() {
    let table = [
        (STICKY, "on", None),
        (STICKY, "8h", None),
        (STICKY, "a while", Some("selvedge.dev/sticky: write `on`")),
        (DOMAINS, "a.test,*.a.test", None),
        (DOMAINS, "a.test,b", Some("domains: `b` is no domain")),
        (SLOW_START, "30s", None),
        (
            SLOW_START,
            "1h",
            Some("selvedge.dev/slow-start: write `off`"),
        ),
    ];
    for (name, text, want) in table {
        let mut put = put("web", '1');
        put.annotations.insert(name.to_owned(), text.to_owned());
        let told = validate(&put).err().map(|refusal| refusal.to_string());
        let fits = |want: &str| told.as_ref().is_some_and(|t| t.contains(want));
        assert!(want.map_or(told.is_none(), fits), "{name}={text}: {told:?}");
    }
}

fn main(put: &mut PutService) -> &mut Container {
    &mut put.spec.containers[0]
}

fn prefer(put: &mut PutService, disk: &str, weight: i32) {
    put.spec.place.prefer.push(Preference {
        label: "disk".to_owned(),
        value: disk.to_owned(),
        weight,
    });
}

fn schedule(put: &mut PutService, cron: &str, for_seconds: u32, min: u32) {
    put.scale.schedules.push(Schedule {
        cron: cron.to_owned(),
        for_seconds,
        min,
        utc_offset_minutes: 0,
    });
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
