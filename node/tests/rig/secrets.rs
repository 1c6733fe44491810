//! Secret variables and mounts: what a container is given, and where it is not.

use std::fs;
use std::path::Path;

use node::runtime::{BindMount, Runtime, SecretEnv};

use crate::world::{PATIENCE, World, until};

const SECRET: &str = "hunter2-correct-horse";

fn holds(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holds(&path, text));
        } else if fs::read(&path).is_ok_and(|bytes| {
            let needle = text.as_bytes();
            bytes.windows(needle.len()).any(|part| part == needle)
        }) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn a_secret_variable_is_in_the_program_and_in_no_file() {
    let world = World::new();
    let shims = world.shims();
    let mut spec = world.spec(
        "secretive",
        "test -n \"$TOKEN\" && echo got ${#TOKEN} $OPEN; sleep 1000",
    );
    spec.env.push(("OPEN".into(), "shown-in-the-bundle".into()));
    spec.env.push(("TOKEN".into(), "overridden".into()));
    spec.secret_env.push("TOKEN".into(), SECRET.into());
    assert!(!format!("{spec:?}").contains(SECRET));
    let handle = shims.create(&spec).await.unwrap();
    let folder = world.instance("secretive");
    assert!(
        !holds(&folder, "shown-in-the-bundle").is_empty(),
        "the means work"
    );
    assert_eq!(holds(&folder, SECRET), Vec::<String>::new());
    shims.start(&spec.id).await.unwrap();
    let want = format!("got {} shown-in-the-bundle", SECRET.len());
    until("the program to speak", || world.output("secretive") == want).await;
    assert_eq!(holds(&folder, SECRET), Vec::<String>::new());
    let command = fs::read(format!("/proc/{}/cmdline", handle.pid)).unwrap();
    assert!(!String::from_utf8_lossy(&command).contains(SECRET));
    // Programs that join it have it too, as its probes would.
    let script = format!("test \"$TOKEN\" = {SECRET} && echo $OPEN");
    let joined = ["/bin/sh", "-c", &script].map(str::to_owned);
    let ran = shims.run(&spec.id, &joined, PATIENCE).await.unwrap();
    assert_eq!((ran.code, ran.said.trim()), (0, "shown-in-the-bundle"));
    assert_eq!(holds(&folder, SECRET), Vec::<String>::new());
    shims.delete(&spec.id).await.unwrap();
}

#[tokio::test]
async fn secret_variables_larger_than_a_socket_reach_a_program_that_joins() {
    let world = World::new();
    let shims = world.shims();
    let mut spec = world.spec("large", "echo up; sleep 1000");
    let each = "x".repeat(100 << 10);
    for name in ["A", "B", "C", "D", "E", "F"] {
        spec.secret_env.push(name.into(), each.clone());
    }
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    until("the program to be up", || world.output("large") == "up").await;
    let joined = ["/bin/sh", "-c", "echo ${#A} ${#F}"].map(str::to_owned);
    let ran = shims.run(&spec.id, &joined, PATIENCE).await.unwrap();
    assert_eq!((ran.code, ran.said.trim()), (0, "102400 102400"));
    shims.delete(&spec.id).await.unwrap();
}

#[tokio::test]
async fn a_secret_variable_that_is_none_is_refused() {
    let world = World::new();
    let mut spec = world.spec("zero", "true");
    spec.secret_env = SecretEnv::default();
    spec.secret_env.push("A".into(), "a\0b".into());
    let error = world.shims().create(&spec).await.unwrap_err().to_string();
    assert!(
        error.contains("NUL byte") && !error.contains("a\0b"),
        "{error}"
    );
}

#[tokio::test]
async fn a_mount_without_execution_has_none() {
    let world = World::new();
    let host = world.folder.join("given");
    fs::create_dir(&host).unwrap();
    fs::copy("/bin/busybox", host.join("true")).unwrap();
    let script =
        "/open/true && echo ran; /closed/true || echo denied; echo x > /closed/f || echo ro";
    let mut spec = world.spec("mounts", script);
    for (at, closed) in [("/open", false), ("/closed", true)] {
        spec.mounts.push(BindMount {
            source: host.clone(),
            destination: at.into(),
            read_only: closed,
            no_exec: closed,
        });
    }
    let (said, _) = world.run_spec(&spec).await;
    for word in ["ran", "denied", "ro"] {
        assert!(said.lines().any(|line| line == word), "{word}: {said}");
    }
}
