//! HTTP/3 at a real node's front door, spoken by a client of another make: ngtcp2 and nghttp3 over `GnuTLS`.

use std::fs;

use anyhow::{Result, ensure};
use chaos_tests::world::{Node, ORIGIN, Outcome, PATIENCE, Systemd, World, run, until};

use crate::SMALL;
use crate::tls::{add, made};

/// Runs what follows with these hosts: the client shows the name that it resolves, and no other.
const KNOWING: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";

/// Asks a service for `path` on a connection of its own; what it shows are heads and bodies.
fn ask(node: &Node, service: &str, path: &str, more: &[&str]) -> Result<Outcome> {
    let host = format!("{service}.{ORIGIN}");
    let hosts = node.dir().join("hosts");
    fs::write(&hosts, format!("{} {host}\n", node.address))?;
    let hosts = hosts.to_string_lossy().into_owned();
    let url = format!("https://{host}{path}");
    let words = [
        "--mount",
        "sh",
        "-c",
        KNOWING,
        &hosts,
        "gtlsclient",
        "--exit-on-all-streams-close",
        "--no-quic-dump",
        "--disable-early-data",
        "--handshake-timeout=60s",
        "--timeout=60s",
    ];
    run(
        "unshare",
        [&words[..], more, &[&host, "443", &url]].concat(),
    )
}

/// How often it shows that; of bodies it shows lines of sixteen bytes.
fn count(said: &Outcome, text: &str) -> usize {
    said.out.matches(text).count() + said.err.matches(text).count()
}

const OK: &str = "[:status: 200]";

/// A node that speaks HTTP/3 and has a certificate for `web`, which is at zero.
fn world() -> Result<World> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    node.stop()?;
    node.configure_section("ingress", "http3 = true")?;
    node.start()?;
    world.settle()?;
    world.deploy("web", &SMALL)?.ok()?;
    let own = made(&world.dir(), "web", &format!("web.{ORIGIN}"), false)?;
    add(node, "web", (&own.0, &own.1))?.ok()?;
    world.rest("web")?;
    Ok(world)
}

#[test]
fn a_client_of_another_make_wakes_a_service() -> Result<()> {
    let world = world()?;
    let node = world.first();
    ensure!(node.instances("web")?.is_empty(), "it is at zero");
    let said = ask(node, "web", "/", &[])?.ok()?;
    ensure!(count(&said, OK) == 1, "{said}");
    ensure!(count(&said, "[x-request-id: ") == 1, "{said}");
    ensure!(count(&said, "|box.|") == 1, "{said}");
    ensure!(node.instances("web")?.len() == 1, "one was started");

    // Many on one connection.
    let said = ask(node, "web", "/", &["--nstreams=200"])?.ok()?;
    ensure!(count(&said, OK) == 200, "{} answers", count(&said, OK));
    // A body.
    let script = world.dir().join("script");
    fs::write(&script, "echo it is $((6 * 7))\n")?;
    let script = script.to_string_lossy().into_owned();
    let said = ask(
        node,
        "web",
        "/sh",
        &["--http-method=POST", "--data", &script],
    )?
    .ok()?;
    ensure!(count(&said, "it is 42") == 1, "{said}");
    // From another address in the middle of a request.
    let said = ask(node, "web", "/slow", &["--change-local-addr=100ms"])?.ok()?;
    ensure!(count(&said, OK) == 1, "{said}");

    let said = ask(node, "nobody", "/", &[])?;
    ensure!(
        count(&said, "[:status: ") == 0,
        "a name without a certificate: {said}"
    );
    Ok(())
}

/// Who comes over TCP hears of it.
#[test]
fn answers_over_https_tell_of_http3() -> Result<()> {
    let world = world()?;
    let node = world.first();
    let host = format!("web.{ORIGIN}");
    let resolve = format!("{host}:443:{}", node.address);
    let url = format!("https://{host}/");
    for version in ["--http1.1", "--http2"] {
        let words = ["-sSki", version, "-m", "60", "--resolve", &resolve, &url];
        run("curl", words)?
            .ok()?
            .says("alt-svc: h3=\":443\"; ma=3600")?
            .says("box")?;
    }
    Ok(())
}

/// The socket is kept over the death of the daemon, as the listening ones are.
#[test]
fn who_asks_while_the_daemon_is_dead_is_answered_by_the_next() -> Result<()> {
    let world = world()?;
    let node = world.first();
    node.stop()?;
    let systemd = Systemd::supervise(node)?;
    until("it serves", PATIENCE, || {
        let said = ask(node, "web", "/", &[])?.ok()?;
        Ok((count(&said, OK) == 1).then_some(()))
    })?;
    systemd.kill()?;
    let said = ask(node, "web", "/", &[])?.ok()?;
    ensure!(count(&said, OK) == 1, "{said}");
    ensure!(systemd.restarts()? == 1);
    Ok(())
}
