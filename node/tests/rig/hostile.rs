//! Root filesystems that are traps: each either is refused or runs harmlessly, and what it aimed at on the
//! host is as it was. The runtime's part of what the image room refuses earlier.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use node::runtime::{ContainerSpec, Runtime, RuntimeError};

use crate::world::World;

/// Prepares a root filesystem; `victim` is a folder of the host.
type Trap = fn(&mut ContainerSpec, victim: &Path);

/// What a link in place of something the runtime mounts over leads to.
fn replace(spec: &ContainerSpec, name: &str, target: &Path) {
    let place = spec.rootfs.join(name);
    let _ = fs::remove_dir_all(&place);
    let _ = fs::remove_file(&place);
    symlink(target, place).unwrap();
}

#[rustfmt::skip]
const TRAPS: [(&str, Trap); 13] = [
    // CVE-2025-31133, CVE-2025-62161: what masks paths is the image's own file.
    ("null-link", |s, _| replace(s, "dev/null", Path::new("/proc/sys/kernel/core_pattern"))),
    ("null-file", |s, _| fs::write(s.rootfs.join("dev/null"), "not a device").unwrap()),
    // CVE-2025-52565: a console where none is.
    ("console", |s, v| replace(s, "dev/console", &v.join("file"))),
    // CVE-2025-54867, CVE-2025-62596: mounts and writes that land elsewhere.
    ("proc-link", |s, v| replace(s, "proc", v)),
    ("proc-inside", |s, _| replace(s, "proc", Path::new("/etc"))),
    ("sys-link", |s, v| replace(s, "sys", v)),
    ("dev-link", |s, v| replace(s, "dev", v)),
    ("etc-link", |s, v| replace(s, "etc", v)),
    ("etc-up", |s, _| replace(s, "etc", Path::new("../../../../../../../../etc"))),
    ("tmp-link", |s, v| { replace(s, "tmp", v); s.read_only_root = true; }),
    ("cwd-link", |s, v| { replace(s, "work", v); s.cwd = "/work".into(); }),
    ("bin-link", |s, v| { replace(s, "run", &v.join("file")); s.args[0] = "/run".into(); }),
    ("passwd-link", |s, _| { replace(s, "etc/passwd", Path::new("/proc/1/root/etc/passwd")); s.user = "daemon".into(); }),
];

#[tokio::test]
async fn a_root_filesystem_that_is_a_trap_catches_nobody() {
    let world = World::new();
    let victim = world.folder.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "the host's").unwrap();
    let pattern = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = pattern();
    // What shows that a path is masked or a device real, and what would show the host.
    let script = "echo x > /dev/null; cat /proc/kcore | head -c 1; cat /dev/null; ls /proc/1/comm; \
                  cat /file /work/file; echo end";
    let mut ran = 0;
    for (name, trap) in TRAPS {
        let mut spec = world.spec(name, script);
        trap(&mut spec, &victim);
        let shims = world.shims();
        match shims.create(&spec).await {
            Err(RuntimeError::Failed(_)) => {}
            Err(other) => panic!("{name}: {other:?}"),
            Ok(_) => {
                shims.start(&spec.id).await.unwrap();
                shims.exit(&spec.id).await.unwrap();
                let said = world.output(name);
                assert!(!said.contains("the host's"), "{name}: {said}");
                assert!(!said.contains("not a device"), "{name}: {said}");
                // The two streams come in any order.
                ran += usize::from(said.lines().any(|line| line == "end"));
                shims.delete(&spec.id).await.unwrap();
            }
        }
        assert_eq!(pattern(), before, "{name}");
        let left: Vec<_> = fs::read_dir(&victim)
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(left, ["file"], "{name}");
        assert_eq!(
            fs::read_to_string(victim.join("file")).unwrap(),
            "the host's",
            "{name}"
        );
        assert_eq!(world.leftovers(), Vec::<String>::new(), "{name}");
    }
    assert!(ran >= 3, "some run all the same: {ran}");
}

#[tokio::test]
async fn no_working_folder_is_a_descriptor_of_the_host() {
    let world = World::new();
    let shims = world.shims();
    for fd in [3, 7, 12, 20] {
        let direct = format!("/proc/self/fd/{fd}");
        let hidden = format!("/proc/self/fd/{fd}/../../..");
        for cwd in [
            direct,
            hidden,
            format!("/../proc/self/fd/{fd}"),
            format!("/link-{fd}"),
        ] {
            let mut spec = world.spec("cwd", "pwd; ls");
            symlink(
                format!("/proc/self/fd/{fd}"),
                spec.rootfs.join(format!("link-{fd}")),
            )
            .unwrap();
            spec.cwd = cwd.clone();
            let refused = shims.create(&spec).await;
            assert!(
                matches!(refused, Err(RuntimeError::Failed(_))),
                "{cwd}: {refused:?}"
            );
            fs::remove_dir_all(&spec.rootfs).unwrap();
        }
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn with_ids_of_its_own_or_the_hosts_a_container_works_the_same() {
    let world = World::new();
    for ids in [None, node::userns::Block::number(77)] {
        let script = "id -u; touch /new && echo writes; cat /proc/self/uid_map; \
                      sed -n 's/CapEff:\\t//p' /proc/self/status";
        let mut spec = world.spec("both", script);
        World::map(&mut spec, ids);
        let (said, code) = world.run_spec(&spec).await;
        assert_eq!(code, 0, "{said}");
        assert!(said.starts_with("0\nwrites\n"), "{said}");
        assert!(said.ends_with("00000000000004fb"), "{said}");
        let root = ids.map_or(0, node::userns::Block::root);
        let map: Vec<&str> = said.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(map[..2], ["0".to_owned(), root.to_string()], "{said}");
        fs::remove_dir_all(&spec.rootfs).unwrap();
        fs::remove_dir_all(world.instance("both")).unwrap();
    }
    let mut spec = world.spec("far", "true");
    spec.user = "65536".into();
    let refused = world.shims().create(&spec).await;
    assert!(refused.unwrap_err().to_string().contains("0 to 65535"));
}
