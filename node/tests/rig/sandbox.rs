//! What a service may ask of its container's sandbox, as the container itself sees it.

use std::fs;

use node::runtime::cgroup::Cgroup;
use node::runtime::{ContainerSpec, Failure, Runtime, RuntimeError};
use scheduler::model::{Exit, HostAlias, InstanceId, Tmpfs, Ulimit};

use crate::world::{PATIENCE, World, until};

#[tokio::test]
async fn what_is_asked_for_is_there_inside() {
    let world = World::new();
    let script = "hostname; cat /etc/hosts /etc/resolv.conf; id; \
         sed -n 's/^Max open files *//p;s/^Max processes *//p' /proc/self/limits; \
         sed -n 's,^tmpfs \\(/cache\\|/dev/shm\\) .*\\(size=[0-9]*k\\).*,\\1 \\2,p;\
                 s,^shm \\(/dev/shm\\) .*\\(size=[0-9]*k\\).*,\\1 \\2,p' /proc/mounts; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; \
         dd if=/dev/zero of=/cache/x bs=1024 count=2048 2>&1 | sed -n 's/.*No space.*/full/p'; \
         echo 9 > /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let mut spec = world.spec("asked", script);
    spec.user = "web".into();
    spec.groups = vec!["root".into(), "77".into()];
    spec.hostname = "db-1".into();
    spec.host_aliases = vec![HostAlias {
        ip: "10.9.9.9".parse().unwrap(),
        names: vec!["cache".into(), "cache.internal".into()],
    }];
    spec.nameservers = vec!["9.9.9.9".parse().unwrap()];
    spec.dns_search = vec!["svc.internal".into()];
    spec.dns_options = vec!["ndots:2".into()];
    spec.ulimits = vec![ulimit("nofile", 100, 200), ulimit("nproc", 50, 60)];
    spec.tmpfs = vec![Tmpfs {
        path: "/cache".into(),
        size_bytes: 1 << 20,
    }];
    spec.shm_bytes = 2 << 20;
    spec.sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("kernel.shm_rmid_forced", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let (text, _) = world.run_spec(&spec).await;
    for want in [
        "db-1",
        "10.9.9.9\tcache cache.internal",
        "nameserver 9.9.9.9",
        "search svc.internal",
        "options ndots:2",
        "uid=33(web) gid=44(web) groups=0(root),4(log),44(web),77",
        "/cache size=1024k",
        "/dev/shm size=2048k",
        "80",
        "1",
        "full",
    ] {
        assert!(text.lines().any(|line| line == want), "{want} in\n{text}");
    }
    for bounds in ["100 200 files", "50 60 processes"] {
        let seen = |line: &str| line.split_whitespace().eq(bounds.split(' '));
        assert!(text.lines().any(seen), "{bounds} in\n{text}");
    }
    assert!(text.contains("Read-only file system"), "{text}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_folder_in_memory_may_be_the_tmp_of_a_read_only_root() {
    let world = World::new();
    let mut spec = world.spec(
        "tmp",
        "touch /tmp/x && touch /x; sed -n 's,.* /tmp .*\\(size=[0-9]*k\\).*,\\1,p' /proc/mounts",
    );
    spec.read_only_root = true;
    spec.tmpfs = vec![Tmpfs {
        path: "/tmp".into(),
        size_bytes: 1 << 20,
    }];
    let (text, _) = world.run_spec(&spec).await;
    assert!(text.contains("Read-only file system"), "{text}");
    // The two streams may come in either order.
    assert_eq!(
        text.matches("size=1024k").count(),
        1,
        "mounted once: {text}"
    );
}

/// The kernel's own files, seen from the host: the container does not see its disk's controller.
#[tokio::test]
async fn shares_and_disk_bounds_reach_the_kernel() {
    let world = World::new();
    let shims = world.shims();
    let mut spec = world.spec("bounds", "sleep 1000");
    spec.cpu_request_millis = 250;
    spec.memory_request_bytes = 16 << 20;
    spec.io.write_bps = 1 << 20;
    spec.io.read_iops = 50;
    shims.create(&spec).await.unwrap();
    let group = Cgroup::at(&spec.cgroup);
    let read = |controller: &str, file: &str| {
        let path = group.folder(controller).unwrap().join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    if node::runtime::cgroup::is_unified() {
        let bounds = read("io", "io.max");
        assert!(
            bounds.contains("wbps=1048576") && bounds.contains("riops=50"),
            "{bounds}"
        );
        assert_eq!(read("memory", "memory.low").trim(), "16777216");
    } else {
        assert_eq!(read("cpu", "cpu.shares").trim(), "256");
        assert_eq!(read("cpu", "cpu.cfs_quota_us").trim(), "-1");
        assert_eq!(
            read("memory", "memory.soft_limit_in_bytes").trim(),
            "16777216"
        );
        let bytes = read("blkio", "blkio.throttle.write_bps_device");
        assert!(bytes.trim().ends_with(" 1048576"), "{bytes}");
        let ops = read("blkio", "blkio.throttle.read_iops_device");
        assert!(ops.trim().ends_with(" 50"), "{ops}");
    }
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// With an init the program is not the first process, orphans are reaped, signals and the exit code
/// pass through, and what is root in the container cannot reach the host's executable.
#[tokio::test]
async fn an_init_reaps_and_passes_on() {
    let world = World::new();
    let shims = world.shims();
    let script = "trap 'echo got; exit 9' USR1; echo me $$; \
         sh -c 'sleep 0.01 & exit 0'; \
         while cat /proc/[0-9]*/stat 2>/dev/null | grep -q '(sleep)'; do :; done; echo reaped; \
         cat /proc/1/comm; ls -l /proc/1/exe 2>&1; head -c 1 /proc/1/exe 2>&1; cat /proc/1/environ 2>&1; \
         echo up; while :; do sleep 0.01; done";
    let mut spec = world.spec("first", script);
    spec.init = true;
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    until("the program to be up", || {
        world.output("first").ends_with("up")
    })
    .await;
    let text = world.output("first");
    assert!(text.starts_with("me 2\nreaped\ninit\n"), "{text}");
    assert_eq!(text.matches("ermission denied").count(), 3, "{text}");
    shims.signal(&spec.id, libc::SIGUSR1).await.unwrap();
    assert_eq!(exit(&shims, "first").await.code, 9);
    assert!(
        world.output("first").ends_with("got"),
        "{}",
        world.output("first")
    );
    shims.delete(&spec.id).await.unwrap();
    // A program that a signal ends, and one that is not there after all.
    for (name, script, want) in [("killed", "kill -9 $$", 137), ("ended", "exit 3", 3)] {
        let mut spec = world.spec(name, script);
        spec.init = true;
        assert_eq!(world.run_spec(&spec).await.1, want, "{name}");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_in_words_and_leaves_nothing() {
    type Spoil = fn(&mut ContainerSpec);
    let world = World::new();
    let shims = world.shims();
    let table: [(&str, Spoil, &str); 7] = [
        (
            "stranger",
            |s| s.user = "www-data".into(),
            "BadUser: the image has no user `www-data`",
        ),
        (
            "lonely",
            |s| s.user = "web:staff".into(),
            "BadUser: the image has no group `staff`",
        ),
        (
            "outsider",
            |s| s.groups = vec!["wheel".into()],
            "BadUser: the image has no group `wheel`",
        ),
        (
            "greedy",
            |s| s.ulimits = vec![ulimit("nofile", 1, u64::MAX - 1)],
            "BadLimit: nofile 18446744073709551614 is above this node's own ",
        ),
        (
            "kernel",
            |s| s.sysctls = vec![("kernel.panic".into(), "1".into())],
            "BadSpec: `kernel.panic` is no kernel setting of a container",
        ),
        (
            "heavy",
            |s| s.io.weight = 100,
            "BadLimit: this node's kernel has no ",
        ),
        (
            "outside",
            |s| {
                s.tmpfs = vec![Tmpfs {
                    path: "/a/../../x".into(),
                    size_bytes: 0,
                }];
            },
            "BadSpec: `/a/../../x` is no mount path",
        ),
    ];
    for (name, spoil, want) in table {
        let mut spec = world.spec(name, "true");
        spoil(&mut spec);
        if name == "heavy" && weighs_disks(&spec) {
            continue;
        }
        match shims.create(&spec).await {
            Err(RuntimeError::Failed(failure)) => {
                let Failure { code, message } = failure;
                let said = format!("{code}: {message}");
                assert!(said.starts_with(want), "{name}: {said}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(!world.instance(name).join("spec.json").exists(), "{name}");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Whether this kernel has a file to weigh disk use with, in any group below the first.
fn weighs_disks(spec: &ContainerSpec) -> bool {
    let group = Cgroup::at(spec.cgroup.parent().unwrap());
    let folder = group.folder("blkio").unwrap();
    fs::create_dir_all(&folder).unwrap();
    [
        "io.weight",
        "io.bfq.weight",
        "blkio.weight",
        "blkio.bfq.weight",
    ]
    .iter()
    .any(|file| folder.join(file).exists())
}

fn ulimit(name: &str, soft: u64, hard: u64) -> Ulimit {
    let name = name.to_owned();
    Ulimit { name, soft, hard }
}

async fn exit(shims: &node::runtime::Shims, name: &str) -> Exit {
    tokio::time::timeout(PATIENCE, shims.exit(&InstanceId(name.to_owned())))
        .await
        .unwrap()
        .unwrap()
}
