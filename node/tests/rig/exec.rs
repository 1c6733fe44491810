//! Further programs in a container: their streams, their end, and that they can do no more than the
//! container's first program.

use std::fs;
use std::path::Path;
use std::time::Duration;

use netfabric::wire::touch::Size;
use node::runtime::{
    ContainerSpec, CopyJob, Exec, ExecSpec, FailCode, Failure, Runtime, RuntimeError, Shims,
};
use scheduler::model::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::runtime::in_this_hierarchy;
use crate::world::{PATIENCE, World, until};

fn sh(script: &str) -> ExecSpec {
    ExecSpec {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

/// A container that rests, with something changed about it.
async fn resting(world: &World, name: &str, change: fn(&mut ContainerSpec)) -> (Shims, InstanceId) {
    let shims = world.shims();
    let mut spec = world.spec(name, "echo up; sleep 1000");
    change(&mut spec);
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    until("the program to be up", || world.output(name) == "up").await;
    (shims, spec.id)
}

/// What it wrote, and its exit code.
async fn outcome(exec: Exec) -> (String, String, i32) {
    let Exec {
        mut stdout,
        stderr,
        ended,
        ..
    } = exec;
    let mut stderr = stderr.unwrap_or_else(|| Box::new(tokio::io::empty()));
    let (mut out, mut err) = (String::new(), String::new());
    let all = async {
        tokio::join!(
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err),
            ended
        )
    };
    let (out_read, err_read, code) = tokio::time::timeout(PATIENCE, all).await.unwrap();
    out_read.unwrap();
    err_read.unwrap();
    (out, err, code.unwrap())
}

async fn say(shims: &Shims, id: &InstanceId, spec: &ExecSpec) -> (String, i32) {
    let (out, err, code) = outcome(shims.exec(id, spec).await.unwrap()).await;
    (out + &err, code)
}

fn code_of(result: Result<Exec, RuntimeError>) -> FailCode {
    match result {
        Err(RuntimeError::Failed(Failure { code, .. })) => code,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it ran"),
    }
}

#[tokio::test]
async fn a_program_has_its_streams_its_end_and_its_own_wishes() {
    let world = World::new();
    let (shims, id) = resting(&world, "streams", |s| {
        s.env.push(("OWN".into(), "kept".into()));
        s.cwd = "/made".into();
    })
    .await;
    let (out, err, code) = outcome(
        shims
            .exec(&id, &sh("echo out; echo err >&2; exit 7"))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((out.as_str(), err.as_str(), code), ("out\n", "err\n", 7));
    // Killed by a signal, and input from nowhere.
    assert_eq!(
        say(&shims, &id, &sh("cat; kill -9 $$")).await,
        (String::new(), 137)
    );
    let mut wish = sh("echo $OWN $MORE $HOME; pwd; id -u; id -g");
    wish.env.push(("MORE".into(), "given".into()));
    let (said, _) = say(&shims, &id, &wish).await;
    assert_eq!(said, "kept given /root\n/made\n0\n0\n");
    wish.user = Some("web".into());
    wish.cwd = Some("/etc".into());
    let (said, _) = say(&shims, &id, &wish).await;
    assert_eq!(said, "kept given /\n/etc\n33\n44\n");

    let mut echo = sh("cat; echo over");
    echo.stdin = true;
    let mut exec = shims.exec(&id, &echo).await.unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    let text = "line\n".repeat(50_000);
    let writing = async {
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
    };
    let ((out, _, code), ()) = tokio::join!(outcome(exec), writing);
    assert_eq!((out.len(), code), (text.len() + 5, 0));
    assert!(out.ends_with("line\nover\n"));
    shims.delete(&id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_terminal_has_a_size_a_name_and_an_end() {
    let world = World::new();
    let (shims, id) = resting(&world, "terminal", |_| {}).await;
    let mut wish = sh(
        "stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all; \
                       trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.01; done",
    );
    wish.tty = Some(Size {
        columns: 132,
        rows: 43,
    });
    let mut exec = shims.exec(&id, &wish).await.unwrap();
    assert!(exec.stderr.is_none());
    let mut said = String::new();
    let mut chunk = [0; 512];
    while !said.contains("ready\r\n") {
        let read = tokio::time::timeout(PATIENCE, exec.stdout.read(&mut chunk)).await;
        let count = read.unwrap().unwrap();
        assert_ne!(count, 0, "it ended: {said}");
        said.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
    }
    assert!(said.starts_with("43 132\r\n/dev/pts/"), "{said}");
    assert!(said.contains("all\r\n"), "{said}");
    let size = Size {
        columns: 80,
        rows: 24,
    };
    exec.terminal.as_ref().unwrap().resize(size).unwrap();
    let (rest, _, code) = outcome(exec).await;
    assert_eq!((rest.as_str(), code), ("24 80\r\n", 4));
    shims.delete(&id).await.unwrap();
}

/// Says what it is itself: no shell between, which has signals of its own.
fn status() -> ExecSpec {
    ExecSpec {
        args: ["cat", "/proc/self/status"].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

#[tokio::test]
async fn it_can_do_no_more_than_the_first_program() {
    let world = World::new();
    let (shims, id) = resting(&world, "powers", |s| {
        s.memory_bytes = 64 << 20;
        s.pids = 40;
    })
    .await;
    let first = fs::read_to_string(format!("/proc/{}/status", shims.pid(&id).unwrap())).unwrap();
    let (said, _) = say(&shims, &id, &status()).await;
    let value = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name} in {text}"))
            .to_owned()
    };
    for name in [
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp:",
    ] {
        assert_eq!(value(&said, name), value(&first, name));
    }
    for (name, want) in [
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp:", "2"),
        ("SigIgn", "0000000000000000"),
        ("SigBlk", "0000000000000000"),
    ] {
        assert!(value(&said, name).ends_with(want), "{said}");
    }
    let mut other = status();
    other.user = Some("web".into());
    let (said, _) = say(&shims, &id, &other).await;
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(value(&said, name).ends_with("\t0000000000000000"), "{said}");
    }
    assert!(value(&said, "Groups").contains("4 44"), "{said}");

    for (script, want) in [
        // Its own descriptors, and the one `ls` reads the folder by.
        ("ls /proc/self/fd", "0\n1\n2\n3\n"),
        ("set -- /proc/[0-9]*; echo $#", "2\n"),
        ("hostname", "powers\n"),
        ("sed -n 's/.*memory://p' /proc/self/cgroup", "/\n"),
        ("cat /sys/fs/cgroup/pids/pids.max", "40\n"),
        (
            "sed -n 's/Max core file size *\\([0-9]*\\).*/\\1/p' /proc/self/limits",
            "0\n",
        ),
        ("umask", "0022\n"),
        ("echo more > /dev/stdout", "more\n"),
    ] {
        let (said, _) = say(&shims, &id, &sh(&in_this_hierarchy(script))).await;
        assert_eq!(said, want, "{script}");
    }
    for (script, want) in [
        ("mount -t tmpfs none /root 2>&1", "permission denied"),
        ("unshare -n true 2>&1", "not permitted"),
        ("unshare -U true 2>&1", "not permitted"),
        ("echo 1 > /proc/sys/kernel/panic", "Read-only"),
    ] {
        let (said, code) = say(&shims, &id, &sh(script)).await;
        assert!(said.contains(want) && code != 0, "{script}: {said}");
    }
    shims.delete(&id).await.unwrap();
}

#[tokio::test]
async fn what_cannot_run_is_refused_by_name() {
    let world = World::new();
    let (shims, id) = resting(&world, "refusals", |_| {}).await;
    let root = world.folder.join("roots/refusals");
    std::os::unix::fs::symlink("/proc/self/fd/4", root.join("leak")).unwrap();
    let command = |name: &str| ExecSpec {
        args: vec![name.to_owned()],
        ..ExecSpec::default()
    };
    let with = |change: fn(&mut ExecSpec)| {
        let mut spec = sh("true");
        change(&mut spec);
        spec
    };
    for (spec, want) in [
        (command("nope"), FailCode::CommandNotFound),
        (command("/bin/nope"), FailCode::CommandNotFound),
        (command("/etc"), FailCode::CommandNotExecutable),
        (command("/etc/passwd"), FailCode::CommandNotExecutable),
        (ExecSpec::default(), FailCode::BadSpec),
        (with(|s| s.user = Some("nobody".into())), FailCode::BadUser),
        (
            with(|s| s.cwd = Some("/none".into())),
            FailCode::BadWorkingDir,
        ),
        (
            with(|s| s.cwd = Some("/leak".into())),
            FailCode::BadWorkingDir,
        ),
        (
            with(|s| s.cwd = Some("/proc/self/fd/0/..".into())),
            FailCode::BadWorkingDir,
        ),
    ] {
        assert_eq!(code_of(shims.exec(&id, &spec).await), want, "{spec:?}");
    }
    // Not started, ended, and never there.
    let waiting = world.spec("waiting", "true");
    shims.create(&waiting).await.unwrap();
    assert_eq!(
        code_of(shims.exec(&waiting.id, &sh("true")).await),
        FailCode::WrongState
    );
    shims.start(&waiting.id).await.unwrap();
    tokio::time::timeout(PATIENCE, shims.exit(&waiting.id))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        code_of(shims.exec(&waiting.id, &sh("true")).await),
        FailCode::WrongState
    );
    for id in [&id, &waiting.id] {
        shims.delete(id).await.unwrap();
    }
    assert!(matches!(
        shims.exec(&id, &sh("true")).await,
        Err(RuntimeError::Unknown(_))
    ));
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Processes of the container's cgroup.
fn members(world: &World, name: &str) -> Vec<String> {
    let group = node::runtime::cgroup::Cgroup::at(&world.group.join(name));
    let procs = group.folder("pids").unwrap().join("cgroup.procs");
    let text = fs::read_to_string(procs).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn it_ends_with_who_asked_for_it_and_with_the_container() {
    let world = World::new();
    let (shims, id) = resting(&world, "ends", |_| {}).await;
    // Not a word to a stderr nobody reads any more: that alone would end it.
    let mut exec = shims
        .exec(&id, &sh("exec 2>/dev/null; trap 'touch /hung-up; exit' HUP; echo up; while :; do sleep 0.01; done"))
        .await
        .unwrap();
    let mut up = [0; 3];
    exec.stdout.read_exact(&mut up).await.unwrap();
    assert!(members(&world, "ends").len() > 1);
    drop(exec);
    until("only the first program to be left", || {
        members(&world, "ends").len() == 1
    })
    .await;
    let rootfs = world.folder.join("roots/ends");
    assert!(rootfs.join("hung-up").exists(), "it was told first");

    // One that will not hear of it.
    let mut deaf = shims
        .exec(
            &id,
            &sh("exec 2>/dev/null; trap '' HUP; echo up; while :; do sleep 0.01; done"),
        )
        .await
        .unwrap();
    deaf.stdout.read_exact(&mut up).await.unwrap();
    drop(deaf);
    until("only the first program to be left", || {
        members(&world, "ends").len() == 1
    })
    .await;

    let exec = shims.exec(&id, &sh("sleep 1000")).await.unwrap();
    shims.kill(&id).await.unwrap();
    let (_, _, code) = outcome(exec).await;
    assert_eq!(code, 137);
    shims.delete(&id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_short_program_is_bounded_in_time_and_words() {
    let world = World::new();
    let (shims, id) = resting(&world, "probes", |_| {}).await;
    let args = |script: &str| sh(script).args;
    let ran = shims
        .run(&id, &args("seq 1 10000; exit 3"), PATIENCE)
        .await
        .unwrap();
    assert_eq!((ran.code, ran.said.len()), (3, 4096));
    assert!(ran.said.ends_with("9999\n10000\n"), "{}", ran.said);
    let slow = Duration::from_millis(300);
    let ran = shims
        .run(&id, &args("trap '' HUP; echo slow; sleep 1000"), slow)
        .await
        .unwrap();
    assert_eq!((ran.code, ran.said.as_str()), (137, "slow\n"));
    until("only the first program to be left", || {
        members(&world, "probes").len() == 1
    })
    .await;
    // A frozen container runs again for it.
    shims.freeze(&id).await.unwrap();
    let ran = shims
        .run(&id, &args("echo thawed"), PATIENCE)
        .await
        .unwrap();
    assert_eq!((ran.code, ran.said.as_str()), (0, "thawed\n"));
    shims.delete(&id).await.unwrap();
}

/// Runs one copy; what came out, what it said, its code.
async fn copied(
    shims: &Shims,
    id: &InstanceId,
    job: CopyJob,
    tar: &[u8],
) -> (Vec<u8>, String, i32) {
    let exec = shims.copy(id, job, None).await.unwrap();
    let (mut stdin, mut stdout) = (exec.stdin.unwrap(), exec.stdout);
    let mut stderr = exec.stderr.unwrap();
    let (mut out, mut err) = (Vec::new(), String::new());
    let writing = async {
        // Refused before it was read: its reason comes by the other way.
        let _ = stdin.write_all(tar).await;
        drop(stdin);
    };
    let all = async {
        tokio::join!(
            stdout.read_to_end(&mut out),
            stderr.read_to_string(&mut err),
            exec.ended,
            writing
        )
    };
    let (.., code, ()) = tokio::time::timeout(PATIENCE, all).await.unwrap();
    (out, err, code.unwrap())
}

#[tokio::test]
async fn files_go_out_and_in_as_the_containers_own() {
    let world = World::new();
    let (shims, id) = resting(&world, "files", |s| s.user = "web".into()).await;
    let rootfs = world.folder.join("roots/files");
    // A link out is a link within: there is another /etc/passwd in there.
    std::os::unix::fs::symlink("/etc/passwd", rootfs.join("link")).unwrap();
    fs::write(rootfs.join("root/secret"), "root's").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(rootfs.join("root/secret"), mode).unwrap();
    let pack = |path: &str| CopyJob::Pack { path: path.into() };
    let unpack = |path: &str| CopyJob::Unpack {
        path: path.into(),
        renames: true,
    };
    let (tar, err, code) = copied(&shims, &id, pack("/link"), b"").await;
    assert_eq!((err.as_str(), code), ("", 0));
    let mut entries = tar::Archive::new(&tar[..]);
    let mut text = String::new();
    let mut entry = entries.entries().unwrap().next().unwrap().unwrap();
    std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
    assert_eq!(entry.path().unwrap(), Path::new("link"));
    assert_eq!(text, fs::read_to_string(rootfs.join("etc/passwd")).unwrap());

    let (_, err, code) = copied(&shims, &id, unpack("/tmp/copy"), &tar).await;
    assert_eq!((err.as_str(), code), ("", 0));
    let copy = fs::metadata(rootfs.join("tmp/copy")).unwrap();
    let owner = (
        std::os::unix::fs::MetadataExt::uid(&copy),
        std::os::unix::fs::MetadataExt::gid(&copy),
    );
    let block = World::ids().unwrap();
    assert_eq!(owner, (block.host_id(33), block.host_id(44)));
    for (job, want) in [
        (unpack("/copy"), "Permission denied"),
        (unpack("/none/copy"), "there is no such folder"),
        (pack("/none"), "No such file"),
        (pack("/root/secret"), "Permission denied"),
    ] {
        let (_, err, code) = copied(&shims, &id, job.clone(), &tar).await;
        assert!(code == 1 && err.contains(want), "{job:?}: {code} {err}");
    }
    shims.delete(&id).await.unwrap();

    let (shims, id) = resting(&world, "fixed", |s| s.read_only_root = true).await;
    let (_, err, code) = copied(&shims, &id, unpack("/copy"), &tar).await;
    assert!(code == 1 && err.contains("Read-only file system"), "{err}");
    shims.delete(&id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
