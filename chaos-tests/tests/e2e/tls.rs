//! HTTPS at every node's front door: with certificates of an operator's own, and with those that a
//! real authority (Debian's pebble) issues in each of its ways, through its outages and ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Habits, Node, ORIGIN, Outcome, PATIENCE, World, run, until};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;

use crate::{SMALL, THREE};

/// Two terms of a lease, an order, and an authority that ponders.
const TAKEOVER: Duration = Duration::from_mins(2);

pub fn host(service: &str) -> String {
    format!("{service}.{ORIGIN}")
}

/// `curl` of a service over HTTPS at one node's front door.
fn curl(node: &Node, service: &str, trust: &Path, more: &[&str]) -> Result<Outcome> {
    curl_host(node, &host(service), trust, more)
}

pub fn curl_host(node: &Node, host: &str, trust: &Path, more: &[&str]) -> Result<Outcome> {
    let resolve = format!("{host}:443:{}", node.address);
    let trust = trust.to_string_lossy().into_owned();
    let url = format!("https://{host}/");
    let words = ["-sS", "--max-time", "20", "--resolve", &resolve];
    let words = [&words[..], &["--cacert", &trust], more, &[&url]].concat();
    run("curl", words)
}

/// Both versions of HTTP, at every node.
fn is_served(world: &World, service: &str, trust: &Path) -> Result<()> {
    for node in world.nodes() {
        for (version, want) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let more = ["--fail", version, "-w", "\nHTTP %{http_version}"];
            let said = curl(node, service, trust, &more)?.ok()?.says("box")?;
            let told = format!("HTTP {want}");
            ensure!(said.out.ends_with(&told), "{}: {said}", node.name);
        }
    }
    Ok(())
}

pub fn certificate(node: &Node, name: &str) -> Result<Option<Value>> {
    let all = node.read(&["cert", "ls"])?;
    let all = all.as_array().or_else(|| all["items"].as_array());
    let all = all.context("a list of certificates")?;
    Ok(all.iter().find(|c| c["name"] == name).cloned())
}

/// Waits until every node has the host's certificate in a newer version than this.
fn is_issued(world: &World, service: &str, after: u64, within: Duration) -> Result<u64> {
    let mut newest = 0;
    for node in world.nodes().iter().filter(|n| n.daemon().is_some()) {
        let what = format!("{} has the certificate of {service}", node.name);
        newest = until(&what, within, || {
            let found = certificate(node, &host(service))?;
            let found = found.context("no order yet")?;
            let version = found["version"].as_u64().unwrap_or(0);
            ensure!(version > after && found["state"] != "onOrder", "{found}");
            Ok(Some(version))
        })?;
    }
    Ok(newest)
}

/// Has these nodes order as this section of their configuration says.
pub fn ordering(world: &World, nodes: &[Node], section: &str) -> Result<()> {
    for node in nodes {
        let file = node.dir().join("selvedge.toml");
        let text = fs::read_to_string(&file)?;
        let before = text.split("[acme]").next().unwrap_or_default();
        node.stop()?;
        fs::write(&file, format!("{before}\n{section}"))?;
        node.start()?;
    }
    world.settle()
}

fn asking(world: &World, service: &str) -> Result<()> {
    let more = [&SMALL[..], &["--certificate", "acme"]].concat();
    world.deploy(service, &more)?.ok().map(drop)
}

#[test]
fn an_authority_issues_in_every_way_and_every_node_serves() -> Result<()> {
    let world = World::of(&THREE)?;
    let pebble = world.pebble(Habits::default())?;
    for (service, challenge) in [
        ("web", "http-01"),
        ("api", "tls-alpn-01"),
        ("shop", "dns-01"),
    ] {
        ordering(&world, world.nodes(), &pebble.section(challenge))?;
        let begun = Instant::now();
        asking(&world, service)?;
        is_issued(&world, service, 0, PATIENCE)
            .with_context(|| format!("{challenge}: {}", pebble.log()))?;
        eprintln!(
            "{challenge}: {:?} from deploy to certificate",
            begun.elapsed()
        );
        is_served(&world, service, &pebble.root()?)?;
    }
    // Who comes without TLS is sent there, with the path.
    let plain = world.first().get("web", "/a?b")?;
    ensure!(plain.status == 308, "{plain:?}");
    let there = format!("https://{}/a?b", host("web"));
    ensure!(plain.header("location")? == there, "{plain:?}");
    // What was issued before a restart needs no second order.
    let version = || is_issued(&world, "web", 0, PATIENCE);
    let before = version()?;
    for node in world.nodes() {
        node.stop()?;
        node.start()?;
    }
    is_served(&world, "web", &pebble.root()?)?;
    ensure!(version()? == before, "it was ordered again");
    Ok(())
}

/// One certificate for both, and for the service that comes later.
#[test]
fn one_certificate_serves_all_hosts_of_a_namespace() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let pebble = world.pebble(Habits::default())?;
    let section = format!("{}wildcard = true\n", pebble.section("dns-01"));
    ordering(&world, world.nodes(), &section)?;
    asking(&world, "web")?;
    let all = format!("*.{ORIGIN}");
    for node in world.nodes() {
        until(
            &format!("{} has the certificate", node.name),
            PATIENCE,
            || {
                let found = certificate(node, &all)?.context("no order yet")?;
                ensure!(found["state"] == "valid", "{found}");
                Ok(Some(()))
            },
        )
        .with_context(|| pebble.log())?;
    }
    asking(&world, "api")?;
    for service in ["web", "api"] {
        is_served(&world, service, &pebble.root()?)?;
    }
    let listed = world.first().read(&["cert", "ls"])?;
    let listed = listed.as_array().context("a list")?;
    ensure!(listed.len() == 1, "{listed:?}");
    Ok(())
}

/// The certificate lasts 60 seconds: it is renewed while clients come, and none of them notices.
#[test]
fn a_certificate_is_renewed_under_load() -> Result<()> {
    let world = World::of(&THREE)?;
    let pebble = world.pebble(Habits {
        seconds: 60,
        ..Habits::default()
    })?;
    ordering(&world, world.nodes(), &pebble.section("http-01"))?;
    asking(&world, "web")?;
    let first = is_issued(&world, "web", 0, PATIENCE)?;
    let root = pebble.root()?;
    let served = under_load(&world, "web", &root, || {
        is_issued(&world, "web", first, TAKEOVER).map(drop)
    })?;
    eprintln!("{served} requests while it was renewed");
    ensure!(served > 20, "only {served} requests");
    Ok(())
}

/// Clients with connections of their own at every node while something happens; how many were
/// served. None may fail.
fn under_load(
    world: &World,
    service: &str,
    trust: &Path,
    happening: impl FnOnce() -> Result<()>,
) -> Result<u32> {
    let (over, served) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let ask = |node| {
            while !over.load(Ordering::Relaxed) {
                curl(node, service, trust, &["--fail"])?.ok()?.says("box")?;
                served.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        };
        let nodes = world.nodes().iter();
        let clients: Vec<_> = nodes.map(|node| scope.spawn(move || ask(node))).collect();
        let happened = happening();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().ok().context("a client panicked")??;
        }
        happened
    })?;
    Ok(served.load(Ordering::Relaxed))
}

/// The authority is away, then it is back and takes its time, and the node that orders is lost.
#[test]
fn orders_outlive_the_authority_and_the_node_that_makes_them() -> Result<()> {
    let world = World::of(&THREE)?;
    let pebble = world.pebble(Habits::default())?;
    // The last one only tells the authority names.
    ordering(&world, &world.nodes()[..2], &pebble.section("http-01"))?;
    drop(pebble);
    asking(&world, "web")?;
    let failed = until("the order fails", PATIENCE, || {
        let found = certificate(world.first(), &host("web"))?.context("no order yet")?;
        Ok(found["error"].as_str().map(ToOwned::to_owned))
    })?;
    ensure!(failed.contains("asking https://"), "it says whom: {failed}");
    let plain = world.first().get("web", "/")?;
    ensure!(plain.status == 200, "it is served without: {plain:?}");

    let pebble = world.pebble(Habits {
        pondering: 5,
        ..Habits::default()
    })?;
    let holder = until("a node orders", PATIENCE, || {
        Ok(world.nodes().iter().find(|node| is_challenged(node)))
    })?;
    holder.kill()?;
    eprintln!("{} is killed in the middle of its order", holder.name);
    is_issued(&world, "web", 0, TAKEOVER).with_context(|| pebble.log())?;
    holder.start()?;
    let root = pebble.root()?;
    // It was not there when the certificate came.
    until("it has heard of it", PATIENCE, || {
        let said = curl(holder, "web", &root, &[])?;
        Ok((said.code == 0).then_some(()))
    })?;
    is_served(&world, "web", &root)
}

/// Whether an authority may ask this node for a proof now.
fn is_challenged(node: &Node) -> bool {
    let log = fs::read_to_string(node.dir().join("log/selvedged.log")).unwrap_or_default();
    log.contains("an order waits for the authority")
}

/// A certificate for one host, and its key, in files.
pub fn made(dir: &Path, name: &str, host: &str, over: bool) -> Result<(PathBuf, PathBuf)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    if over {
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    let certificate = params.self_signed(&key)?;
    let files = (
        dir.join(format!("{name}.pem")),
        dir.join(format!("{name}.key")),
    );
    fs::write(&files.0, certificate.pem())?;
    fs::write(&files.1, key.serialize_pem())?;
    Ok(files)
}

pub fn add(node: &Node, name: &str, (cert, key): (&Path, &Path)) -> Result<Outcome> {
    let (cert, key) = (cert.to_string_lossy(), key.to_string_lossy());
    node.cli(&["cert", "add", name, "--cert", &cert, "--key", &key])
}

#[test]
fn an_own_certificate_is_served_and_replaced_under_load() -> Result<()> {
    let world = World::of(&THREE)?;
    world.deploy("web", &SMALL)?.ok()?;
    let (dir, first) = (world.dir(), world.first());
    let one = made(&dir, "one", &host("web"), false)?;
    let two = made(&dir, "two", &host("web"), false)?;
    let old = made(&dir, "old", &host("web"), true)?;
    let trust = dir.join("both.pem");
    let both = fs::read_to_string(&one.0)? + &fs::read_to_string(&two.0)?;
    fs::write(&trust, both)?;

    add(first, "web", (&one.0, &two.1))?
        .code(2)?
        .says("not this certificate's")?;
    add(first, "web", (&old.0, &old.1))?
        .code(2)?
        .says("expired")?;
    add(first, "web", (&one.0, &one.1))?
        .ok()?
        .says("is served for")?;
    let begun = Instant::now();
    for node in world.nodes() {
        until("the node serves it", PATIENCE, || {
            curl(node, "web", &one.0, &["--fail"])?.ok().map(Some)
        })?;
    }
    eprintln!("served by all nodes after {:?}", begun.elapsed());
    is_served(&world, "web", &one.0)?;
    let said = first.cli(&["cert", "ls"])?.ok()?;
    said.clone().says("web")?.says("own")?.says("valid")?;
    let shown = first.read(&["get", "services", "web"])?.to_string();
    let url = format!("\"https://{}\"", host("web"));
    ensure!(shown.contains(&url), "{shown}");
    let served = under_load(&world, "web", &trust, || {
        for turn in 0..10 {
            let (cert, key) = if turn % 2 == 0 { &two } else { &one };
            add(&world.nodes()[turn % 3], "web", (cert, key))?.ok()?;
        }
        Ok(())
    })?;
    eprintln!("{served} requests while it was replaced");
    ensure!(served > 10, "only {served} requests");

    // A name without a certificate, and plain HTTP at the port of HTTPS.
    let unknown = curl(first, "nobody", &trust, &[])?;
    ensure!(unknown.code == 35, "a handshake that fails: {unknown}");
    let url = format!("http://{}:443/", first.address);
    let plain = run("curl", ["-sS", "--max-time", "10", "-i", &url])?.ok()?;
    plain.says("400 bad request")?.says("tls-expected")?;

    first.cli(&["-y", "cert", "rm", "web"])?.ok()?;
    until("nobody serves it", PATIENCE, || {
        let served = curl(&world["lis-1"], "web", &trust, &[])?;
        Ok((served.code == 35).then_some(()))
    })?;
    world.first().get("web", "/")?.ok()?.says("box").map(drop)
}
