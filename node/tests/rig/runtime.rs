//! Containers: their life, their limits, their walls, and how they outlive the daemon.

use std::fs;
use std::time::Instant;

use node::runtime::{
    AdoptedState, BindMount, ContainerSpec, FailCode, Failure, Runtime, RuntimeError, Shims,
};
use scheduler::model::{Exit, InstanceId};

use crate::world::{PATIENCE, World, until};

/// Turns a good specification into one to be refused.
type Spoil = fn(&mut ContainerSpec);

fn id(name: &str) -> InstanceId {
    InstanceId(name.to_owned())
}

/// A script that names files of cgroup version 1, as it is where there is version 2 alone.
pub fn in_this_hierarchy(script: &str) -> String {
    let names = [
        ("memory/memory.limit_in_bytes", "memory.max"),
        ("pids/pids.max", "pids.max"),
        (".*memory:", "0::"),
    ];
    let unified = node::runtime::cgroup::is_unified();
    let names = names.iter().filter(|_| unified);
    names.fold(script.to_owned(), |script, (one, two)| {
        script.replace(one, two)
    })
}

async fn exit(shims: &Shims, name: &str) -> Exit {
    tokio::time::timeout(PATIENCE, shims.exit(&id(name)))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_container_is_created_started_awaited_and_removed() {
    let world = World::new();
    let shims = world.shims();
    let spec = world.spec("life", "echo out; echo err >&2; id; exit 7");
    let handle = shims.create(&spec).await.unwrap();
    assert_eq!(shims.pid(&spec.id), Some(handle.pid));
    assert_eq!(world.output("life"), "", "its program waits for start");
    assert!(matches!(
        shims.create(&spec).await,
        Err(RuntimeError::Exists(_))
    ));
    shims.start(&spec.id).await.unwrap();
    let end = exit(&shims, "life").await;
    assert_eq!((end.code, end.signal, end.oom), (7, None, false));
    assert_eq!(end, exit(&shims, "life").await, "asked twice, said twice");
    let lines = node::runtime::logs::tail(&world.instance("life"), 10).unwrap();
    let mut said: Vec<_> = lines
        .iter()
        .map(|l| (l.stream.as_str(), l.line.as_str()))
        .collect();
    said.sort_unstable();
    assert_eq!(said[0], ("stderr", "err"));
    assert!(said.contains(&("stdout", "out")));
    assert!(
        said.contains(&("stdout", "uid=0(root) gid=0(root) groups=0(root)")),
        "{said:?}"
    );
    shims.delete(&spec.id).await.unwrap();
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
    let left: Vec<_> = fs::read_dir(world.instance("life"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "only the log stays: {left:?}");
    assert!(matches!(
        shims.exit(&spec.id).await,
        Err(RuntimeError::Unknown(_))
    ));
}

#[tokio::test]
async fn a_signal_reaches_the_program_and_a_kill_ends_everything() {
    let world = World::new();
    let shims = world.shims();
    let polite = world.spec(
        "polite",
        "trap 'exit 143' TERM; echo up; while :; do sleep 0.01; done",
    );
    let deaf = world.spec("deaf", "sleep 1000 & sleep 1000");
    for spec in [&polite, &deaf] {
        shims.create(spec).await.unwrap();
        shims.start(&spec.id).await.unwrap();
    }
    until("the program to be up", || world.output("polite") == "up").await;
    shims.signal(&polite.id, libc::SIGTERM).await.unwrap();
    assert_eq!(exit(&shims, "polite").await.code, 143);
    shims
        .signal(&polite.id, libc::SIGTERM)
        .await
        .expect("a dead program needs no signal");
    shims.kill(&deaf.id).await.unwrap();
    let end = exit(&shims, "deaf").await;
    assert_eq!((end.code, end.signal, end.oom), (137, Some(9), false));
    for spec in [&polite, &deaf] {
        shims.delete(&spec.id).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_created_or_running_container_can_be_deleted_at_once() {
    let world = World::new();
    let shims = world.shims();
    for (name, start) in [("never", false), ("running", true)] {
        let spec = world.spec(name, "sleep 1000");
        let pid = shims.create(&spec).await.unwrap().pid;
        if start {
            shims.start(&spec.id).await.unwrap();
        }
        shims.delete(&spec.id).await.unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn out_of_memory_is_called_by_its_name() {
    let world = World::new();
    let shims = world.shims();
    let mut spec = world.spec("hungry", "tail /dev/zero");
    spec.memory_bytes = 8 << 20;
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    let end = exit(&shims, "hungry").await;
    assert!(end.oom && end.code == 137, "{end:?}");
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_run_is_refused_by_name_and_leaves_nothing() {
    let world = World::new();
    let shims = world.shims();
    let table: [(&str, Spoil, FailCode); 9] = [
        (
            "absent",
            |s| s.args = vec!["/bin/nope".into()],
            FailCode::CommandNotFound,
        ),
        (
            "pathless",
            |s| s.args = vec!["nope".into()],
            FailCode::CommandNotFound,
        ),
        (
            "folder",
            |s| s.args = vec!["/bin".into()],
            FailCode::CommandNotExecutable,
        ),
        ("empty", |s| s.args.clear(), FailCode::BadSpec),
        ("nobody", |s| s.user = "nobody".into(), FailCode::BadUser),
        (
            "grabby",
            |s| s.add_capabilities.push("SYS_ADMIN".into()),
            FailCode::BadCapability,
        ),
        (
            "leaky",
            |s| s.cwd = "/proc/self/fd/7".into(),
            FailCode::BadWorkingDir,
        ),
        (
            "rootless",
            |s| s.rootfs = "/nonexistent".into(),
            FailCode::BadUser,
        ),
        (
            "netless",
            |s| s.netns = Some("/nonexistent".into()),
            FailCode::Namespace,
        ),
    ];
    for (name, spoil, want) in table {
        let mut spec = world.spec(name, "true");
        spoil(&mut spec);
        match shims.create(&spec).await {
            Err(RuntimeError::Failed(Failure { code, message })) => {
                // A refused specification or root filesystem may carry either name first.
                assert!(
                    code == want || name == "rootless",
                    "{name}: {code} {message}"
                );
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(!world.instance(name).join("spec.json").exists(), "{name}");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_program_the_kernel_will_not_run_says_so_in_its_log() {
    let world = World::new();
    let spec = world.spec("script", "");
    fs::write(spec.rootfs.join("bin/run"), "#!/bin/bash\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(spec.rootfs.join("bin/run"), mode).unwrap();
    let spec = ContainerSpec {
        args: vec!["run".into()],
        ..spec
    };
    let (text, code) = world.run_spec(&spec).await;
    assert_eq!(code, 127);
    assert!(text.contains("cannot run `run`"), "{text}");
}

#[tokio::test]
async fn the_walls_hold_from_inside() {
    let world = World::new();
    let mut holes = Vec::new();
    for (script, want) in [
        ("mount -t tmpfs none /root 2>&1", "permission denied"),
        ("mount -o remount,rw /sys 2>&1", "permission denied"),
        ("unshare -n true 2>&1", "not permitted"),
        ("unshare -U true 2>&1", "not permitted"),
        ("chroot / true 2>&1", "not permitted"),
        ("echo 1 > /proc/sys/kernel/panic", "Read-only"),
        ("echo b > /proc/sysrq-trigger", "can't create"),
        (
            "echo 9 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
            "Read-only",
        ),
        ("touch /sys/x; touch /sys/fs/cgroup/x", "Read-only"),
        (
            "wc -c < /proc/kcore; cat /proc/kcore | head -c 1; echo end",
            "end",
        ),
        (
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
            "67108864",
        ),
        ("cat /sys/fs/cgroup/pids/pids.max", "32"),
        ("set -- /proc/[0-9]*; echo processes $#", "processes 1"),
        ("ls /proc/self/fd | sed -n '$='", "4"),
        (
            "sed -n 's/CapEff:\\t//p' /proc/self/status",
            "00000000000004fb",
        ),
        ("sed -n 's/NoNewPrivs:\\t//p' /proc/self/status", "1"),
        (
            "sed -n 's/SigIgn:\\t//p;s/SigBlk:\\t//p' /proc/self/status",
            "0000000000000000",
        ),
        ("sed -n 's/Seccomp:\\t//p' /proc/self/status", "2"),
        ("hostname; cat /etc/hostname", "walls"),
        ("touch /tmp/x && echo writable", "writable"),
        (
            "ls /dev/shm /dev/null /dev/net 2>&1",
            "/dev/net: No such file",
        ),
        (
            "dd if=/dev/sda of=/dev/null 2>&1; dd if=/dev/mem 2>&1",
            "No such file",
        ),
        ("mknod /root/sda b 8 0 2>&1", "not"),
        ("cat /proc/1/cgroup | sed -n 's/.*memory://p'", "/"),
    ] {
        let mut spec = world.spec("walls", "");
        spec.args[2] = in_this_hierarchy(script);
        spec.memory_bytes = 64 << 20;
        spec.pids = 32;
        let _ = fs::remove_dir_all(world.instance("walls"));
        let (text, _) = world.run_spec(&spec).await;
        if !text.contains(want) {
            holes.push(format!("{script}\n  said: {text}\n  want: {want}"));
        }
        fs::remove_dir_all(world.folder.join("roots")).unwrap();
    }
    assert!(holes.is_empty(), "{}", holes.join("\n"));
}

#[tokio::test]
async fn a_user_of_the_image_has_no_power_but_its_output() {
    let world = World::new();
    let script = "id; echo more > /dev/stdout; pwd; echo $HOME; \
                  sed -n 's/CapBnd:\\t//p;s/CapEff:\\t//p' /proc/self/status; touch /x 2>&1";
    let mut spec = world.spec("user", script);
    spec.user = "web".into();
    spec.cwd = "/made/for/it".into();
    spec.env = vec![("HOME".into(), "/home/web".into())];
    let (text, _) = world.run_spec(&spec).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0], "uid=33(web) gid=44(web) groups=4(log),44(web)",
        "{text}"
    );
    assert_eq!(lines[1..4], ["more", "/made/for/it", "/home/web"], "{text}");
    assert_eq!(
        lines[4..6],
        ["0000000000000000", "0000000000000000"],
        "{text}"
    );
    assert!(lines[6].contains("Permission denied"), "{text}");
}

#[tokio::test]
async fn a_read_only_root_still_has_a_tmp() {
    let world = World::new();
    let mut spec = world.spec("ro", "touch /x 2>&1; touch /tmp/x && echo fine");
    spec.read_only_root = true;
    let (text, _) = world.run_spec(&spec).await;
    assert!(
        text.contains("Read-only file system") && text.contains("fine"),
        "{text}"
    );
}

#[tokio::test]
async fn a_link_in_the_image_does_not_lead_out() {
    let world = World::new();
    let spec = world.spec("links", "cat /etc/resolv.conf; ls /");
    let victim = world.folder.join("victim");
    fs::write(&victim, "host").unwrap();
    for (link, target) in [
        ("etc/resolv.conf", victim.to_str().unwrap()),
        ("etc/hosts", "/nowhere/at/all"),
        ("fds", "/proc/self/fd/7"),
    ] {
        std::os::unix::fs::symlink(target, spec.rootfs.join(link)).unwrap();
    }
    let mut spec = spec;
    spec.nameservers = vec!["9.9.9.9".parse().unwrap()];
    let (text, code) = world.run_spec(&spec).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("nameserver 9.9.9.9"), "{text}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "host");
    // A working folder behind a link to a descriptor: refused, or inside the container.
    fs::remove_dir_all(world.folder.join("roots")).unwrap();
    let mut spec = world.spec("cwd", "pwd; ls ..");
    std::os::unix::fs::symlink("/proc/self/fd/7/..", spec.rootfs.join("fds")).unwrap();
    spec.cwd = "/fds".into();
    let shims = world.shims();
    match shims.create(&spec).await {
        Err(RuntimeError::Failed(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_flood_fills_neither_disk_nor_shim() {
    let world = World::new();
    let spec = world.spec("flood", "seq 1 500000; echo done");
    let shims = world.shims();
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    assert_eq!(exit(&shims, "flood").await.code, 0);
    let size =
        |name: &str| fs::metadata(world.instance("flood").join(name)).map_or(0, |meta| meta.len());
    assert!(size("log") <= 4 << 20 && size("log.1") <= 4 << 20);
    shims.delete(&spec.id).await.unwrap();
}

#[tokio::test]
async fn containers_outlive_the_daemon_and_are_found_again() {
    let world = World::new();
    let script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done";
    let running = world.spec("running", script);
    let created = world.spec("created", "echo late");
    let ended = world.spec("ended", "exit 5");
    let pid = {
        // Dropped without a word, like a daemon that was killed.
        let shims = world.shims();
        for spec in [&running, &created, &ended] {
            shims.create(spec).await.unwrap();
        }
        shims.start(&running.id).await.unwrap();
        shims.start(&ended.id).await.unwrap();
        exit(&shims, "ended").await;
        until("the program to be up", || world.output("running") == "up").await;
        shims.pid(&running.id)
    };
    let shims = world.shims();
    let found = shims.adopt().await.unwrap();
    let states: Vec<_> = found
        .iter()
        .map(|a| (a.id.0.as_str(), &a.state, a.pid))
        .collect();
    assert_eq!(states[1], ("ended", &AdoptedState::Exited, None));
    assert_eq!(states[2], ("running", &AdoptedState::Running, pid));
    assert!(matches!(
        states[0],
        ("created", AdoptedState::Created, Some(_))
    ));
    assert_eq!(found[1].exit.as_ref().unwrap().code, 5);
    assert_eq!(found[2].spec.as_ref(), Some(&running));
    shims.start(&created.id).await.unwrap();
    assert_eq!(exit(&shims, "created").await.code, 0);
    shims.signal(&running.id, libc::SIGTERM).await.unwrap();
    assert_eq!(exit(&shims, "running").await.code, 3);
    for spec in [&running, &created, &ended] {
        shims.delete(&spec.id).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_dead_shim_takes_its_container_along() {
    let world = World::new();
    let shims = world.shims();
    for name in ["awaited", "adopted"] {
        let spec = world.spec(name, "echo up; sleep 1000");
        shims.create(&spec).await.unwrap();
        shims.start(&spec.id).await.unwrap();
        until("the program to be up", || world.output(name) == "up").await;
    }
    let waiting = exit(&shims, "awaited");
    let killing = async {
        for name in ["awaited", "adopted"] {
            world.record(name).shim.kill();
        }
    };
    let (end, ()) = tokio::join!(waiting, killing);
    assert!(matches!(end.code, 137 | 255) && end.lost, "{end:?}");
    let found = world.shims().adopt().await.unwrap();
    assert!(
        found.iter().all(|a| a.state == AdoptedState::Exited),
        "{found:?}"
    );
    for name in ["awaited", "adopted"] {
        let container = world.record(name).container.unwrap();
        until("the container to be gone", || !container.is_alive()).await;
        shims.delete(&id(name)).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_frozen_container_stands_still_and_ends_all_the_same() {
    let world = World::new();
    let shims = world.shims();
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    for name in ["thawed", "deleted", "orphaned", "lost"] {
        let spec = world.spec(name, script);
        shims.create(&spec).await.unwrap();
        shims.start(&spec.id).await.unwrap();
        until("it counts", || !world.output(name).is_empty()).await;
        shims.freeze(&spec.id).await.unwrap();
        shims.freeze(&spec.id).await.expect("it is frozen already");
    }
    shims.thaw(&id("thawed")).await.unwrap();
    let before = world.output("thawed");
    until("it counts on", || world.output("thawed") != before).await;
    shims.kill(&id("thawed")).await.unwrap();
    exit(&shims, "thawed").await;
    // Without its shim, for who waits for it and for a later daemon.
    let waiting = exit(&shims, "orphaned");
    let killing = async { world.record("orphaned").shim.kill() };
    let (end, ()) = tokio::join!(waiting, killing);
    assert!(matches!(end.code, 137 | 255), "{end:?}");
    world.record("lost").shim.kill();
    let found = world.shims().adopt().await.unwrap();
    let lost = found.iter().find(|a| a.id == id("lost")).unwrap();
    assert_eq!(lost.state, AdoptedState::Exited);
    for name in ["thawed", "deleted", "orphaned", "lost"] {
        shims.delete(&id(name)).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_half_made_is_cleaned_up() {
    let world = World::new();
    let spec = world.spec("half", "true");
    let folder = world.instance("half");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(node::runtime::scratch::of(&folder).join("state/half")).unwrap();
    fs::write(folder.join("spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let memory = node::runtime::cgroup::Cgroup::at(&spec.cgroup)
        .folder("memory")
        .unwrap();
    fs::create_dir_all(&memory).unwrap();
    let found = world.shims().adopt().await.unwrap();
    assert_eq!(found[0].state, AdoptedState::Leftover);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[tokio::test]
async fn shims_have_their_own_name_and_parent() {
    let world = World::new();
    let shims = world.shims();
    let spec = world.spec("named", "sleep 1000");
    shims.create(&spec).await.unwrap();
    let pid = world.record("named").shim.pid;
    let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(read("comm").trim(), "selvedge-shim");
    assert!(read("cmdline").starts_with("selvedge-shim\0shim\0--nursery\0"));
    assert_eq!(
        read("status").lines().find(|l| l.starts_with("Threads")),
        Some("Threads:\t1")
    );
    let me = format!("PPid:\t{}", std::process::id());
    assert!(!read("status").contains(&me), "its parent is init");
    shims.delete(&spec.id).await.unwrap();
}

/// Not an assertion: prints how long the steps take, with a user namespace and without in turns, for
/// `--nocapture`.
#[tokio::test]
async fn times() {
    let world = World::new();
    let shims = world.shims();
    let mut steps: [[Vec<u128>; 3]; 2] = Default::default();
    for round in 0..20 {
        let kind = round % 2;
        let mut spec = world.spec(&format!("time-{round}"), "exit 0");
        if kind == 1 {
            World::map(&mut spec, None);
        }
        let at = Instant::now();
        shims.create(&spec).await.unwrap();
        steps[kind][0].push(at.elapsed().as_micros());
        let at = Instant::now();
        shims.start(&spec.id).await.unwrap();
        steps[kind][1].push(at.elapsed().as_micros());
        exit(&shims, &spec.id.0).await;
        let at = Instant::now();
        shims.delete(&spec.id).await.unwrap();
        steps[kind][2].push(at.elapsed().as_micros());
    }
    for (kind, steps) in ["own ids", "host's ids"].iter().zip(&mut steps) {
        for (name, times) in ["create", "start", "delete"].iter().zip(steps) {
            times.sort_unstable();
            println!(
                "{kind}: {name}: median {} us, fastest {} us, slowest {} us",
                times[5], times[0], times[9]
            );
        }
    }
}

#[tokio::test]
async fn a_frozen_container_can_be_deleted() {
    let world = World::new();
    let spec = world.spec("frozen", "echo up; sleep 1000");
    let shims = world.shims();
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    until("the program to be up", || world.output("frozen") == "up").await;
    shims.freeze(&spec.id).await.unwrap();
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_nursery_that_was_killed_is_replaced_and_its_shims_live_on() {
    let world = World::new();
    let shims = world.shims();
    let before = world.spec("before", "echo up; sleep 1000");
    shims.create(&before).await.unwrap();
    let shim = world.record("before").shim.pid;
    let stat = fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
    let parent: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let nursery = node::runtime::process::Process::of(parent[1].parse().unwrap()).unwrap();
    nursery.kill();
    until("the nursery to be gone", || !nursery.is_alive()).await;
    let after = world.spec("after", "exit 7");
    shims.create(&after).await.unwrap();
    shims.start(&after.id).await.unwrap();
    assert_eq!(exit(&shims, "after").await.code, 7);
    shims.start(&before.id).await.unwrap();
    until("the program to be up", || world.output("before") == "up").await;
    for spec in [&before, &after] {
        shims.delete(&spec.id).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// A file system on a folder, until dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn on(folder: std::path::PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &folder, "tmpfs", flags, None).unwrap();
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_shim_has_its_own_mounts_and_lets_go_of_volumes() {
    let world = World::new();
    let shims = world.shims();
    let first = world.spec("first", "sleep 1000");
    shims.create(&first).await.unwrap();
    // After the first: its nursery has not seen them.
    let volumes: Vec<_> = ["one", "two"]
        .map(|name| Mounted::on(world.folder.join("volumes").join(name)))
        .into();
    for (volume, text) in volumes.iter().zip(["1", "2"]) {
        fs::write(volume.0.join("kept"), text).unwrap();
    }
    let mut second = world.spec(
        "second",
        "echo $(cat /one/kept /file); echo new > /one/added; sleep 1000",
    );
    let places = [
        (volumes[0].0.clone(), "/one"),
        (volumes[1].0.join("kept"), "/file"),
    ];
    second.mounts.extend(places.map(|(source, at)| BindMount {
        source,
        destination: at.into(),
        read_only: false,
        no_exec: false,
    }));
    shims.create(&second).await.unwrap();
    shims.start(&second.id).await.unwrap();
    until("it says something", || !world.output("second").is_empty()).await;
    assert_eq!(world.output("second"), "12");
    until("it writes", || volumes[0].0.join("added").exists()).await;

    let ours = world.folder.to_str().unwrap();
    for name in ["first", "second"] {
        let shim = world.record(name).shim.pid;
        let mounts = fs::read_to_string(format!("/proc/{shim}/mountinfo")).unwrap();
        let of_instances: Vec<_> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| at.starts_with(ours) && !at.ends_with("/scratch"))
            .collect();
        assert_eq!(of_instances, Vec::<&str>::new(), "{name}");
    }
    for spec in [&first, &second] {
        shims.delete(&spec.id).await.unwrap();
    }
    let left = |volume: usize, name: &str| fs::read_to_string(volumes[volume].0.join(name));
    assert_eq!(left(0, "kept").unwrap(), "1");
    assert_eq!(left(0, "added").unwrap(), "new\n");
    assert_eq!(left(1, "kept").unwrap(), "2");
    drop(volumes);
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
