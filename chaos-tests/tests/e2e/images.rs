//! Images: of real programs, and from a file, where no registry is asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use chaos_tests::disk::rot;
use chaos_tests::world::{Node, PATIENCE, Standard, World, change, noise, until};
use serde_json::Value;

use crate::{SMALL, THREE};

/// One instance for each node, and no room for two.
const ONE_EACH: [&str; 4] = ["--scale", "3..3", "--cpu", "1.2"];
/// What a daemon logs of a layer that no registry gave.
const FROM_PEERS: &str = "a layer came from peers";

/// Waits until every node has an instance of its own that answers.
pub(crate) fn on_every_node(world: &World, service: &str) -> Result<()> {
    until("every node has an instance", PATIENCE, || {
        let all = world.first().instances(service)?;
        let serves = |i: &&Value| i["state"] == "Ready" || i["state"] == "Frozen";
        let ready = all.iter().filter(serves);
        let on: BTreeSet<_> = ready.filter_map(|i| i["nodeName"].as_str()).collect();
        ensure!(
            on.len() == world.nodes().len(),
            "on {on:?}, of {all:?}\n{}",
            world.first().cli(&["explain", service])?.out
        );
        Ok(Some(()))
    })?;
    for node in world.nodes() {
        node.get(service, "/")?.ok()?.says("box")?;
    }
    Ok(())
}

/// One node was given it; the others, in other regions, get it from there.
#[test]
fn an_image_of_one_node_runs_on_all_without_a_registry() -> Result<()> {
    let world = World::of(&THREE)?;
    let archive = world.archive("oci-archive", "")?;
    world.stop_registry()?;
    let (archive, name) = (archive.to_string_lossy(), "imports.test/oci:1");
    let first = world.first();
    let import = ["image", "import", &archive, "--as", name];
    first.cli(&import)?.ok()?;
    let deploy = [&ONE_EACH[..], &["--pull", "never"]].concat();
    first.deploy("oci", name, &deploy)?.ok()?;
    on_every_node(&world, "oci")?;
    for node in &world.nodes()[1..] {
        ensure!(node.log().contains(FROM_PEERS), "{}", node.name);
    }
    Ok(())
}

/// Pushed to one node as a registry is pushed to, with the operator's token; again it moves nothing.
#[test]
fn a_pushed_image_runs_on_all_without_a_registry() -> Result<()> {
    const NAME: &str = "127.0.0.1:5000/app:1";
    let world = World::of(&THREE)?;
    let archive = world.archive("oci-archive", "")?;
    world.stop_registry()?;
    let first = world.first();
    first.configure("[images]\nlisten = \"127.0.0.1:5000\"\n")?;
    world.settle()?;
    let (from, to) = (
        format!("oci-archive:{}", archive.display()),
        format!("docker://{NAME}"),
    );
    let push = |creds: &str| {
        let words = [
            "--debug",
            "copy",
            "--dest-tls-verify=false",
            "--dest-creds",
            creds,
        ];
        first.run("skopeo", &[&words[..], &[&from, &to]].concat())
    };
    push("me:wrong")?.code(1)?.says("unauthorized")?;
    let creds = format!("me:{}", first.token()?);
    push(&creds)?.ok()?;
    push(&creds)?.ok()?.says("(already present)")?;
    first.deploy("app", NAME, &ONE_EACH)?.ok()?;
    on_every_node(&world, "app")
}

/// Pushed with its signature, as cosign and skopeo copy both: a rule is met where there never was a
/// registry, on other nodes too.
#[test]
fn a_pushed_image_is_signed_by_what_is_pushed_with_it() -> Result<()> {
    const NAME: &str = "127.0.0.1:5000/app";
    let world = World::of(&["par-1", "fra-1"])?;
    let (first, fra) = (world.first(), &world["fra-1"]);
    let signer = world.signer("team")?;
    let rule = format!("[[images.signatures]]\nkeys = [\"{}\"]\n", signer.display());
    fra.configure(&rule)?;
    first.configure(&format!("[images]\nlisten = \"127.0.0.1:5000\"\n{rule}"))?;
    world.settle()?;
    let tag = world.sign("box", &signer)?;
    let image = world.image("box");
    let (registry, _) = image.rsplit_once(':').context("a tag")?;
    let app = format!("{NAME}:1");
    first.push(&image, &app)?.ok()?;
    let refused = first.deploy("app", &app, &SMALL)?.code(2)?;
    refused.says("ImageUnsigned")?.says("it has no signature")?;
    first
        .push(&format!("{registry}:{tag}"), &format!("{NAME}:{tag}"))?
        .ok()?;
    world.stop_registry()?;
    let there = [&SMALL[..], &["--region", "fra"]].concat();
    first.deploy("app", &app, &there)?.ok()?;
    fra.get("app", "/")?.ok()?.says("box").map(drop)
}

/// With our own command, over the operator's API: the name needs no registry, and a second push moves
/// nothing.
#[test]
fn an_image_is_pushed_over_the_api() -> Result<()> {
    let world = World::of(&THREE)?;
    let archive = world.archive("oci-archive", "")?;
    let other = world.archive("docker-archive", "other:1")?;
    world.stop_registry()?;
    let (first, last) = (world.first(), &world["lis-1"]);
    let push = |node: &Node, from: &Path| {
        let from = from.to_string_lossy();
        node.cli(&["image", "push", &from, "app:1"])
    };
    push(first, &archive)?.ok()?.says("sent 2 blobs")?;
    push(first, &archive)?.ok()?.says("sent 0 blobs")?;
    push(first, &other)?
        .code(2)?
        .says("selvedge image import")?;
    push(first, &world.dir())?
        .code(2)?
        .says("it has no index.json")?;
    last.deploy("app", "localhost/app:1", &ONE_EACH)?
        .code(1)?
        .says("image localhost/app:1 is not held on this node")?
        .says("selvedge image push")?;
    first.deploy("app", "localhost/app:1", &ONE_EACH)?.ok()?;
    on_every_node(&world, "app")?;
    let usage = first.read(&["image", "usage"])?;
    let shares = usage.as_array().context("a list")?;
    let nodes: Vec<_> = shares.iter().map(|share| share["node"].as_str()).collect();
    ensure!(
        nodes == [Some("fra-1"), Some("lis-1"), Some("par-1")],
        "{usage}"
    );
    let all = |share: &Value| {
        let whole = share["bytes"].as_u64() > Some(0) && share["bytes"] == share["ownBytes"];
        share["service"] == "default/app" && share["images"] == 1 && whole
    };
    ensure!(shares.iter().all(all), "{usage}");
    Ok(())
}

/// Nodes of one region are behind one uplink: one of them asks the registry for all.
#[test]
fn a_site_asks_the_registry_once() -> Result<()> {
    let world = World::of(&["par-1", "par-2", "par-3"])?;
    world.deploy("web", &ONE_EACH)?.ok()?;
    on_every_node(&world, "web")?;
    let helped = |node: &&Node| node.log().contains(FROM_PEERS);
    let helped = world.nodes().iter().filter(helped).count();
    ensure!(helped == 2, "{helped} nodes got it from a peer");
    Ok(())
}

/// What one node runs is brought to the one that would be next, so that neither the first node nor
/// the registry is needed when that day comes.
#[test]
fn an_image_goes_ahead_to_the_likely_next_host() -> Result<()> {
    let world = World::of(&["par-1", "par-2", "fra-1"])?;
    for node in world.nodes() {
        // How full this machine's disk is does not count.
        node.configure_runtime("image_gc = { high = 100, low = 99 }")?;
        node.stop()?;
        node.start()?;
    }
    world.settle()?;
    world.deploy("web", &["--scale", "1..1"])?.ok()?;
    let holders = || -> Result<BTreeSet<String>> {
        let images = world.first().read(&["image", "ls"])?;
        let nodes = images[0]["nodes"].as_array().context("nodes")?;
        Ok(nodes
            .iter()
            .filter_map(|n| n.as_str())
            .map(str::to_owned)
            .collect())
    };
    let held = until("another node has the image", PATIENCE, || {
        Ok(Some(holders()?).filter(|nodes| nodes.len() > 1))
    })?;
    let ready = world.first().instances("web")?;
    let host = ready[0]["nodeName"].as_str().context("a node")?;
    ensure!(held.contains(host), "{host} is none of {held:?}");
    world.stop_registry()?;
    world[host].kill()?;
    // Who brought it may have had its site's elected node bring it: either may be next.
    let others = || world.nodes().iter().filter(|node| node.name != host);
    let next = until("another host has an instance", PATIENCE, || {
        for node in others() {
            let all = node.instances("web")?;
            let here = |i: &Value| i["nodeName"] == *node.name && i["state"] == "Ready";
            if all.iter().any(here) {
                return Ok(Some(node));
            }
        }
        Ok(None)
    })?;
    next.get("web", "/")?.ok()?.says("box").map(drop)
}

/// What the log of a node says of the layers that came from peers: their sizes and what was moved.
fn moved(node: &Node) -> Result<Vec<(u64, u64)>> {
    let log = std::fs::read_to_string(node.dir().join("log/selvedged.log"))?;
    let number = |line: &str, field: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!("{field}="))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let lines = log.lines().filter(|line| line.contains(FROM_PEERS));
    let both = lines.map(|line| number(line, "raw").zip(number(line, "moved")));
    both.map(|both| both.with_context(|| format!("no figures in the log of {}", node.name)))
        .collect()
}

/// The second version of an image crosses the mesh only where it differs from the first.
#[test]
fn a_new_version_moves_only_what_changed() -> Result<()> {
    const FILES: u64 = 200;
    const SIZE: u64 = 20_000;
    let world = World::of(&THREE)?;
    let root = world.dir().join("data");
    std::fs::create_dir(&root)?;
    for file in 0..FILES {
        noise(&root.join(format!("f{file:03}")), SIZE, 1000 + file)?;
    }
    world.push("one", &[world.pack(&root, "one")?])?;
    ensure!(change(&root, 100)? == 2);
    world.push("two", &[world.pack(&root, "two")?])?;
    let (one, two) = (world.image("one"), world.image("two"));
    let first = world.first();
    for image in [&one, &two] {
        first.cli(&["image", "pull", image])?.ok()?;
    }
    let others = &world.nodes()[1..];
    for node in others {
        node.cli(&["image", "pull", &one])?.ok()?;
    }
    let before: Result<Vec<_>> = others.iter().map(moved).collect();
    world.stop_registry()?;
    let deploy = [&ONE_EACH[..], &["--pull", "never"]].concat();
    first.deploy("two", &two, &deploy)?.ok()?;
    on_every_node(&world, "two")?;
    for (node, before) in others.iter().zip(before?) {
        let moved = moved(node)?;
        // The layer of `box` was there already, whole.
        let [(raw, moved)] = moved[before.len()..] else {
            anyhow::bail!("{}: {moved:?}", node.name);
        };
        ensure!(raw > FILES * SIZE, "{raw} bytes are not all");
        ensure!(moved > 2 * SIZE && moved * 10 < raw, "{moved} of {raw}");
    }
    Ok(())
}

/// Turns over a byte in the middle of the program that all instances run.
fn damage(node: &Node) -> Result<PathBuf> {
    for layer in std::fs::read_dir(node.dir().join("images/layers"))? {
        let program = layer?.path().join("fs/bin/box");
        if program.exists() {
            rot::flip(&program, std::fs::metadata(&program)?.len() / 2)?;
            return Ok(program);
        }
    }
    anyhow::bail!("{} has no image", node.name)
}

/// A bit flips in a file while the daemon is down: it is fetched from another node before anything
/// starts from it, and with no other node that has it nothing starts.
#[test]
fn a_flipped_bit_never_runs() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    let image = world.image("box");
    for node in world.nodes() {
        node.cli(&["image", "pull", &image])?.ok()?;
    }
    let there = ["--region", "fra", "--scale", "0..1", "--cpu", "0.1"];
    world.deploy("web", &there)?.ok()?;
    world.rest("web")?;
    world.stop_registry()?;

    fra.stop()?;
    let program = damage(fra)?;
    fra.start()?;
    world.settle()?;
    until("it serves", PATIENCE, || {
        fra.get("web", "/")?.ok()?.says("box").map(Some)
    })?;
    let same = std::fs::read(&program)? == std::fs::read(world.dir().join("root/bin/box"))?;
    ensure!(same, "it serves, but not what it should");
    let log = std::fs::read_to_string(fra.dir().join("log/selvedged.log"))?;
    for words in ["bin/box", "damaged on this node's disk", "whole again"] {
        ensure!(log.contains(words), "the log does not say `{words}`");
    }

    world.rest("web")?;
    par.cli(&["-y", "image", "rm", &image])?.ok()?;
    fra.stop()?;
    damage(fra)?;
    fra.start()?;
    world.settle()?;
    let said = fra.get("web", "/")?;
    ensure!(said.status >= 500, "{said:?}");
    until("the log says why", PATIENCE, || {
        let log = std::fs::read_to_string(fra.dir().join("log/selvedged.log"))?;
        let says = log.contains("could not be brought in again");
        Ok(says.then_some(()))
    })
}

/// Both kinds of archives, with the registry gone: imported on one node, deployed, and served from
/// zero there and through another node.
#[test]
fn an_imported_image_is_served_without_a_registry() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let nameless = world.archive("oci-archive", "")?;
    let named = world.archive("docker-archive", "imports.test/docker:1")?;
    world.stop_registry()?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    ensure!(par.cli(&["image", "pull", &world.image("box")])?.code != 0);
    par.deploy(
        "early",
        "imports.test/oci:1",
        &[&SMALL[..], &["--pull", "never"]].concat(),
    )?
    .code(1)?
    .says("imports.test/oci:1")?;

    let (nameless, named) = (nameless.to_string_lossy(), named.to_string_lossy());
    let import = |more: &[&str]| par.cli(&[&["image", "import"], more].concat())?.ok();
    import(&[&nameless, "--as", "imports.test/oci:1"])?.says("imports.test/oci:1")?;
    import(&[&named])?.says("imports.test/docker:1")?;

    for service in ["oci", "docker"] {
        let image = format!("imports.test/{service}:1");
        par.deploy(
            service,
            &image,
            &[&SMALL[..], &["--pull", "never"]].concat(),
        )?
        .ok()?;
        world.rest(service)?;
        par.get(service, "/")?.ok()?.says("box")?;
        world.rest(service)?;
        until("the other node hears of the service", PATIENCE, || {
            let services = fra.read(&["get", "services"])?;
            Ok(services.to_string().contains(service).then_some(()))
        })?;
        fra.get(service, "/")?.ok()?.says("box")?;
    }
    Ok(())
}

/// Where signatures are demanded an unsigned image is refused at deploy; a signed one runs, also after
/// a restart without the registry, and on a node that gets all from another.
#[test]
fn only_signed_images_run_where_signatures_are_demanded() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    let signer = world.signer("team")?;
    let rule = format!(
        "[[images.signatures]]\nnamespaces = [\"default\"]\nkeys = [\"{}\"]\n",
        signer.display()
    );
    for node in world.nodes() {
        node.configure(&rule)?;
    }
    world.settle()?;
    let image = world.image("box");
    let here = [&SMALL[..], &["--region", "par"]].concat();
    let refused = par.deploy("web", &image, &here)?.code(2)?;
    let key = signer.display().to_string();
    for words in ["ImageUnsigned", &image, &key, "it has no signature"] {
        refused.clone().says(words)?;
    }
    ensure!(!par.read(&["get", "services"])?.to_string().contains("web"));

    world.sign("box", &signer)?;
    par.deploy("web", &image, &here)?.ok()?;
    par.get("web", "/")?.ok()?.says("box")?;
    world.rest("web")?;
    world.stop_registry()?;
    par.stop()?;
    par.start()?;
    world.settle()?;
    until("it serves", PATIENCE, || {
        par.get("web", "/")?.ok()?.says("box").map(Some)
    })?;
    let there = [&SMALL[..], &["--region", "fra", "--pull", "never"]].concat();
    par.deploy("far", &image, &there)?.ok()?;
    fra.get("far", "/")?.ok()?.says("box")?;
    Ok(())
}

/// Programs of somebody else's, as Debian ships them: served from zero by both nodes, logged, and
/// ended when they are asked to.
#[test]
fn real_programs_serve_from_zero() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    for (service, program, says) in [
        ("nginx", Standard::Nginx, "Welcome to nginx!"),
        ("python", Standard::Python, "hello from python"),
    ] {
        let image = world.standard(program)?;
        world.first().deploy(service, &image, &SMALL)?.ok()?;
        world.rest(service)?;
        for node in world.nodes() {
            node.get(service, "/")?.ok()?.says(says)?;
        }
        until("its log shows a request", PATIENCE, || {
            let logs = world.first().cli(&["logs", service])?.ok()?;
            logs.says("GET / HTTP/1.1").map(Some)
        })?;
        world.rest(service)?;
        let ended = world.first().read(&["get", "instances"])?.to_string();
        ensure!(!ended.contains("\"Failed\""), "{service}: {ended}");
    }
    Ok(())
}
