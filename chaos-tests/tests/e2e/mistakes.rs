//! Mistakes of operators and of clients: a clear error each, and nothing half-done.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Outcome, PATIENCE, World, run, until};

#[test]
fn a_bad_image_says_why() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    let wrong_digest = format!("{}@sha256:{}", world.image("box"), "0".repeat(64));
    let unreachable = format!("{}:1/box:1", node.address);
    let missing = world.image("no-such-image");
    for (image, says) in [
        (missing.as_str(), "does not exist"),
        (&wrong_digest, "sha256"),
        (&unreachable, "refused"),
    ] {
        let deploy = ["deploy", "bad", "--image", image, "--wait-timeout", "40s"];
        node.cli(&deploy)?
            .code(1)?
            .says(says)
            .with_context(|| image.to_owned())?;
        ensure!(
            node.read(&["get", "services"])?
                .as_array()
                .is_some_and(Vec::is_empty)
        );
    }
    Ok(())
}

#[test]
fn a_bad_program_says_why() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    let sh = |script: &'static str| ["--cmd", "/bin/sh", "--arg", "-c", "--arg", script];
    let fails = |more: &[&str], says: &str| -> Result<()> {
        let outcome = world.deploy("bad", more)?;
        ensure!(outcome.code != 0, "expected a failure: {outcome}");
        outcome.says(says)?;
        node.cli(&["-y", "delete", "bad"])?;
        until("nothing of it runs", PATIENCE, || {
            Ok(node.containers().is_empty().then_some(()))
        })
    };
    fails(&["--cmd", "/no/such/command"], "/no/such/command")?;
    fails(&sh("echo because >&2; exit 3"), "because")?;
    fails(&["--user", "www-data"], "the image has no user `www-data`")?;
    let silent = ["--cmd", "/bin/sleep", "--arg", "1000"];
    let wrong_port = [&silent[..], &["--readiness", "tcp:81"]].concat();
    fails(&wrong_port, ":81: connection refused")?;
    let hungry = sh("head -c 200000000 /dev/zero | tail");
    fails(&[&["--memory", "16Mi"], &hungry[..]].concat(), "memory")
}

#[test]
fn a_bad_command_line_says_why() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world.deploy("Not_A_Label", &[])?.code(2)?;
    world
        .deploy("huge", &["--cpu", "900"])?
        .code(5)?
        .says("par-1")?;
    node.cli(&["get", "services", "nobody"])?.code(3)?;
    node.cli(&["scale", "nobody", "1..2"])?.code(3)?;
    node.cli(&["explain", "01JAAAAAAAAAAAAAAAAAAAAAAA"])?
        .code(3)?;
    node.cli(&["frobnicate"])?.code(2)?;
    ensure!(
        node.read(&["get", "services"])?
            .as_array()
            .is_some_and(Vec::is_empty)
    );
    Ok(())
}

/// Layers that reach outside the root: refused or kept inside, and nothing appears outside.
#[test]
fn a_layer_cannot_write_outside_its_root() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let (dir, mark) = (world.dir(), format!("escaped-{}", std::process::id()));
    let outside = PathBuf::from("/tmp").join(&mark);
    std::fs::write(dir.join(&mark), "out\n")?;
    let at = dir.to_string_lossy().into_owned();
    let tar = |args: &[&str]| run("tar", [&["-C", &at], args].concat())?.ok();
    let up = format!("s,^,{}tmp/,", "../".repeat(16));
    tar(&[
        "-P",
        "-cf",
        &format!("{at}/up.tar"),
        "--transform",
        &up,
        &mark,
    ])?;
    // A symlink to a host folder, then a file through it.
    std::os::unix::fs::symlink("/tmp", dir.join("door"))?;
    tar(&["-cf", &format!("{at}/door.tar"), "door"])?;
    tar(&[
        "-rf",
        &format!("{at}/door.tar"),
        "--transform",
        "s,^escaped,door/escaped,",
        &mark,
    ])?;
    for name in ["up", "door"] {
        world.push(name, &[dir.join(format!("{name}.tar"))])?;
        let image = world.image(name);
        let deploy = ["deploy", name, "--image", &image, "--wait-timeout", "40s"];
        let said = world.first().cli(&deploy)?;
        let escaped = outside.exists();
        std::fs::remove_file(&outside).ok();
        ensure!(!escaped, "{name} wrote {}: {said}", outside.display());
    }
    Ok(())
}

/// A taken port is named, and no daemon stays behind.
#[test]
fn a_taken_port_is_named() -> Result<()> {
    let mut world = World::empty()?;
    let node = world.bare("par-1")?;
    let netns = format!("--net=/run/netns/{}", node.netns);
    let mut squatter = std::process::Command::new("nsenter")
        .args([&netns, "--", "busybox", "httpd", "-f", "-p", "80"])
        .spawn()?;
    until("the port is taken", PATIENCE, || {
        let listening = node.run("ss", &["-ltnH", "sport = :80"])?.ok()?.out;
        Ok((!listening.is_empty()).then_some(()))
    })?;
    let refused = node.enrol(&["up"], &[]);
    squatter.kill()?;
    squatter.wait()?;
    let refused = refused?;
    ensure!(refused.code != 0, "{refused}");
    refused.says("80")?;
    ensure!(node.daemon().is_none(), "no daemon may stay");
    Ok(())
}

/// The operator's API takes nonsense without harm.
#[test]
fn the_api_refuses_nonsense() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    for (body, status) in [
        ("{".to_owned(), "400"),
        ("{\"spec\": 1, \"surprise\": true}".to_owned(), "400"),
        ("[".repeat(100_000), "400"),
        (" ".repeat(64 << 20), "413"),
    ] {
        put(&world, &body)?.says(status)?;
    }
    let open = [
        "-sS",
        "-w",
        "%{http_code}",
        "http://127.0.0.1:8420/v1/services",
    ];
    node.run("curl", &open)?.ok()?.says("401")?;
    ensure!(
        node.read(&["get", "services"])?
            .as_array()
            .is_some_and(Vec::is_empty)
    );
    Ok(())
}

/// PUTs a service's body as it is; stdout ends with the status.
fn put(world: &World, body: &str) -> Result<Outcome> {
    let file = world.dir().join("body");
    std::fs::write(&file, body)?;
    let data = format!("@{}", file.display());
    let socket = world.first().socket().to_string_lossy().into_owned();
    let url = "http://node/v1/services/default/web";
    let curl = [
        "-sS",
        "-m",
        "20",
        "-w",
        "\n%{http_code}",
        "-X",
        "PUT",
        "--unix-socket",
        &socket,
    ];
    let json = [
        "-H",
        "content-type: application/json",
        "--data-binary",
        &data,
        url,
    ];
    run("curl", [&curl[..], &json].concat())
}
