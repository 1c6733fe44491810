//! What services are given besides their image: it is there, it is kept up to date, it stays within
//! its bounds, and what is secret is nowhere else.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{World, run, until};
use serde_json::Value;

use crate::THREE;

const PATIENCE: Duration = Duration::from_mins(1);
const ONE: [&str; 4] = ["--scale", "1..1", "--cpu", "0.1"];
/// A change's way to a running instance's files.
const SOON: Duration = Duration::from_secs(10);

/// Both files of a config, read through the one folder they were together in.
const BOTH: &str = "cd -P /etc/app/..data && cat a && echo && cat b";

#[test]
fn a_config_changes_under_a_running_instance_all_at_once() -> Result<()> {
    let world = World::of(&THREE)?;
    let (here, there) = (&world["par-1"], &world["lis-1"]);
    here.cli(&["config", "set", "app", "a=v1", "b=v1", "level=debug"])?
        .ok()?;
    let mount = ["--region", "lis", "--mount", "config/app:/etc/app"];
    world.deploy("reader", &[&ONE[..], &mount].concat())?.ok()?;
    let before = there.containers();
    ensure!(here.inside_container("reader", "cat /etc/app/level")? == "debug");
    let written = "echo x > /etc/app/a || echo denied";
    ensure!(here.inside_container("reader", written)?.contains("denied"));
    for version in ["v2", "v3", "v4"] {
        let (a, b) = (format!("a={version}"), format!("b={version}"));
        here.cli(&["config", "set", "app", &a, &b])?.ok()?;
        until("the new version", SOON, || {
            let said = here.inside_container("reader", BOTH)?;
            let words: Vec<_> = said.split_whitespace().collect();
            // A folder that was exchanged meanwhile may be empty, but never half of each.
            ensure!(words.len() < 2 || words[0] == words[1], "{said}");
            Ok((words == [version, version]).then_some(()))
        })?;
    }
    here.cli(&["config", "unset", "app", "level"])?.ok()?;
    until("the key to go", SOON, || {
        let said = here.inside_container("reader", "ls /etc/app")?;
        Ok((!said.contains("level")).then_some(()))
    })?;
    // What a dead daemon missed, its successor makes up for.
    there.kill()?;
    here.cli(&["config", "set", "app", "a=v5", "b=v5"])?.ok()?;
    there.start()?;
    until("the version that was missed", PATIENCE, || {
        let said = here.inside_container("reader", BOTH)?;
        Ok(said.contains("v5").then_some(()))
    })?;
    here.cli(&["config", "unset", "app", "-y"])?.ok()?;
    let kept = here.inside_container("reader", BOTH)?;
    ensure!(kept.contains("v5"), "what runs keeps what it has: {kept}");
    ensure!(there.containers() == before, "nothing was started anew");
    Ok(())
}

/// The forms in which a text could lie somewhere.
fn forms(text: &str) -> Result<Vec<String>> {
    let hex: Vec<String> = text.bytes().map(|b| format!("{b:02x}")).collect();
    let hex = hex.concat();
    let file = std::env::temp_dir().join(format!("selvedge-form-{}", std::process::id()));
    fs::write(&file, text)?;
    let base64 = run("base64", ["-w0".as_ref(), file.as_os_str()]);
    fs::remove_file(&file)?;
    // Its last letters depend on what follows.
    let base64 = base64?.ok()?.out;
    let stable = base64.trim_end_matches('=');
    let stable = &stable[..stable.len().saturating_sub(2)];
    Ok(vec![text.to_owned(), hex, stable.to_owned()])
}

/// Files on the disk of `folder` that hold one of the forms; what is mounted there is not its disk.
fn holding(folder: &Path, forms: &[String]) -> Result<String> {
    let mut found = String::new();
    for form in forms {
        let words = [
            "-xdev", "-type", "f", "-exec", "grep", "-laF", form, "{}", "+",
        ];
        let find = std::iter::once(folder.as_os_str()).chain(words.iter().map(AsRef::as_ref));
        found.push_str(&run("find", find)?.out);
    }
    Ok(found)
}

#[test]
fn a_secret_is_where_it_is_needed_and_nowhere_else() -> Result<()> {
    let secret = format!("hunter2/{}/correct-horse", std::process::id());
    let open = format!("open/{}/canary", std::process::id());
    let world = World::of(&THREE)?;
    let first = world.first().clone();
    let file = world.dir().join("password");
    fs::write(&file, &secret)?;
    let value = format!("password=@{}", file.display());
    first.cli(&["secret", "set", "db", &value])?.ok()?;
    fs::remove_file(&file)?;
    let canary = format!("word={open}");
    first.cli(&["config", "set", "app", &canary])?.ok()?;
    let more = [
        "--region",
        "fra",
        "--secret",
        "PASSWORD=db:password",
        "--mount",
        "secret/db:/run/secrets",
    ];
    world.deploy("user", &[&ONE[..], &more].concat())?.ok()?;
    let inside = |script| first.inside_container("user", script);
    ensure!(inside("echo $PASSWORD")?.trim() == secret);
    ensure!(inside("cat /run/secrets/password")? == secret);
    let listed = first.cli(&["-o", "json", "secret", "ls"])?.ok()?.out;
    ensure!(listed.contains("password"), "{listed}");

    let forms = forms(&secret)?;
    let shown = |what: &str, text: &str| {
        let found = forms.iter().find(|form| text.contains(form.as_str()));
        ensure!(found.is_none(), "{what} shows the secret");
        Ok(())
    };
    shown("the list", &listed)?;
    shown("ps", &run("ps", ["axww", "-o", "args"])?.ok()?.out)?;
    for node in world.nodes() {
        let socket = node.socket();
        for path in [
            "/v1/watch?after=1",
            "/v1/secrets",
            "/v1/secrets/default/db",
            "/v1/services",
            "/v1/revisions",
            "/v1/instances",
        ] {
            let url = format!("http://node{path}");
            let socket = socket.to_string_lossy();
            let said = run("curl", ["-sm", "2", "--unix-socket", &socket, &url])?;
            ensure!(!said.out.is_empty(), "{path} says nothing");
            shown(path, &said.out)?;
        }
        node.stop()?;
    }
    let mut seen = 0;
    for node in world.nodes() {
        let found = holding(node.dir(), &forms)?;
        ensure!(found.is_empty(), "{} has it in {found}", node.name);
        seen += holding(node.dir(), &self::forms(&open)?)?.lines().count();
    }
    ensure!(seen > 0, "what is no secret is found: the means work");
    Ok(())
}

#[test]
fn folders_have_their_bounds() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    let more = [
        "--user",
        "1000:1000",
        "--mount",
        "memory=1Mi:/scratch",
        "--mount",
        "emptydir=8Mi:/cache",
    ];
    world.deploy("writer", &[&ONE[..], &more].concat())?.ok()?;
    let inside = |script| node.inside_container("writer", script);
    let full = inside("dd if=/dev/zero of=/scratch/big bs=64k count=32 2>&1; ls -l /scratch/big")?;
    ensure!(full.contains("No space left"), "{full}");
    ensure!(full.contains(" 1048576 "), "{full}");
    ensure!(inside("echo small > /cache/file && cat /cache/file")?.trim() == "small");
    ensure!(inside("rm /scratch/big && touch /scratch/x && echo well")?.contains("well"));
    // On disk the bound is measured: the instance that is beyond it is replaced by a fresh one.
    let first = node.containers();
    let grown = inside("dd if=/dev/zero of=/cache/big bs=1M count=10 2>&1 && echo grown")?;
    ensure!(grown.contains("grown"), "{grown}");
    until("a fresh instance", PATIENCE, || {
        let fresh = node.containers();
        let replaced = !fresh.is_empty() && fresh.iter().all(|c| !first.contains(c));
        Ok(replaced.then_some(()))
    })?;
    until("its empty folder", PATIENCE, || {
        Ok((inside("ls /cache")?.trim().is_empty()).then_some(()))
    })?;
    ensure!(node.log().contains("evicted: its volume"), "it is said");
    Ok(())
}

#[test]
fn a_local_volume_outlives_its_users_and_keeps_them_near() -> Result<()> {
    let world = World::of(&THREE)?;
    let first = world.first();
    let mount = ["--mount", "volume/db:/data"];
    let deploy =
        |service: &str, more: &[&str]| world.deploy(service, &[&ONE[..], &mount, more].concat());
    deploy("one", &["--region", "lis"])?.ok()?;
    first.inside_container("one", "echo row > /data/table")?;
    let place = first.read(&["volume", "ls"])?;
    ensure!(place[0]["nodeName"] == "lis-1", "{place}");
    let used = first.cli(&["volume", "rm", "db", "-y"])?;
    ensure!(
        used.code != 0 && used.err.contains("used by service default/one"),
        "{}",
        used.err
    );
    // Elsewhere it cannot run; anywhere means there.
    let elsewhere = deploy("two", &["--region", "par"])?;
    ensure!(elsewhere.code == 5, "{}", elsewhere.err);
    ensure!(
        elsewhere.err.contains("its volume `db` is on lis-1"),
        "{}",
        elsewhere.err
    );
    first.cli(&["delete", "one", "-y"])?.ok()?;
    deploy("two", &[])?.ok()?;
    ensure!(first.inside_container("two", "cat /data/table")?.trim() == "row");
    first.cli(&["delete", "two", "-y"])?.ok()?;
    first.cli(&["volume", "rm", "db", "-y"])?.ok()?;
    let folder = world["lis-1"].dir().join("volumes/default/db");
    until("its data to go", PATIENCE, || {
        Ok((!folder.exists()).then_some(()))
    })?;
    deploy("three", &[])?.ok()?;
    ensure!(
        first
            .inside_container("three", "ls /data")?
            .trim()
            .is_empty()
    );
    Ok(())
}

#[test]
fn what_cannot_be_given_is_named() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    let share = world.dir().join("share");
    fs::create_dir_all(share.join("sub"))?;
    fs::write(share.join("sub/file"), "shared")?;
    let path = share.display().to_string();
    let mount = format!("{path}/sub:/mnt/share");
    node.cli(&["secret", "set", "db", "user=me"])?.ok()?;
    for (service, flags, said) in [
        (
            "m1",
            ["--mount", "config/nope:/x"],
            "config `nope` does not exist",
        ),
        (
            "m2",
            ["--mount", "secret/nope:/x"],
            "secret `nope` does not exist",
        ),
        (
            "m3",
            ["--secret", "P=db:password"],
            "secret `db` has no key `password`",
        ),
        ("m4", ["--mount", mount.as_str()], "allows none there"),
    ] {
        let refused = world.deploy(service, &[&ONE[..], &flags].concat())?;
        let told = format!("{}{}", refused.out, refused.err);
        ensure!(
            refused.code != 0 && told.contains(said),
            "{service}: {told}"
        );
        node.cli(&["delete", service, "-y"])?.ok()?;
    }
    node.configure_runtime(&format!("host_paths = [\"{path}\"]"))?;
    node.kill()?;
    node.start()?;
    world.settle()?;
    world
        .deploy("host", &[&ONE[..], &["--mount", &mount]].concat())?
        .ok()?;
    let script = "cat /mnt/share/file; touch /mnt/share/x || echo denied";
    let said = node.inside_container("host", script)?;
    ensure!(said.contains("shared") && said.contains("denied"), "{said}");
    node.cli(&["delete", "host", "-y"])?.ok()?;
    ensure!(fs::read_to_string(share.join("sub/file"))? == "shared");
    let left: Value = node.read(&["get", "instances"])?;
    let none = left.as_array().context("a list")?.is_empty();
    ensure!(none, "{left}");
    Ok(())
}
