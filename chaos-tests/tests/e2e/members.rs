//! Nodes that join, follow, and are refused.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::world::{Node, PATIENCE, World, until};

use crate::{SMALL, THREE};

/// A fourth and a fifth node follow; one of them starts again with nobody else there.
#[test]
fn followers_join_serve_and_start_alone() -> Result<()> {
    let mut world = World::of(&THREE)?;
    world.deploy("web", &SMALL)?.ok()?;
    let mad = world.add("mad-1")?;
    let waw = world.add("waw-1")?;
    world.settle()?;
    for node in [&mad, &waw] {
        ensure!(node.status()?["registry"]["role"] == "follower");
        until("it serves", PATIENCE, || {
            node.get("web", "/")?.ok()?.says("box").map(Some)
        })?;
    }
    world
        .deploy("east", &[&SMALL[..], &["--region", "waw"]].concat())?
        .ok()?;
    until("the follower runs it", PATIENCE, || {
        waw.get("east", "/")?.ok().map(Some)
    })?;
    let on = waw.instances("east")?;
    ensure!(on.iter().all(|i| i["nodeName"] == "waw-1"), "{on:?}");

    world.rest("east")?;
    world.nodes().iter().try_for_each(Node::kill)?;
    waw.start()?;
    waw.get("east", "/")?.ok()?.says("box")?;
    world
        .deploy_at(&waw, "more", &SMALL)?
        .code(8)?
        .says("quorum")?;
    Ok(())
}

/// Join tokens work once and not for ever, and only in their cluster.
#[test]
fn a_token_is_used_once_in_time_in_its_cluster() -> Result<()> {
    let mut world = World::of(&["par-1"])?;
    let (at, used) = world.first().invite("10m")?;
    let (_, expired) = world.first().invite("1s")?;
    let fra = world.bare("fra-1")?;
    fra.enrol(&["join", &at, "--token", &used], &[])?.ok()?;
    std::thread::sleep(Duration::from_secs(2)); // The token's own life, not luck.
    let lis = world.bare("lis-1")?;
    for (token, says) in [(&used, "used"), (&expired, "expired")] {
        let refused = lis.enrol(&["join", &at, "--token", token], &[])?;
        ensure!(refused.code == 7, "{refused}");
        refused.says(says)?;
        ensure!(lis.daemon().is_none(), "a refused node runs no daemon");
    }
    // What another cluster signed is worth nothing here.
    lis.enrol(&["up"], &[])?.ok()?;
    let (_, foreign) = lis.invite("10m")?;
    let mad = world.bare("mad-1")?;
    let refused = mad.enrol(&["join", &at, "--token", &foreign], &[])?;
    ensure!(refused.code != 0, "{refused}");
    let nodes = world.first().status()?["nodes"]
        .as_array()
        .map_or(0, Vec::len);
    ensure!(nodes == 2, "{nodes} nodes");
    Ok(())
}

/// A node whose seeds belong to another cluster: neither side takes the other for its own.
#[test]
fn a_node_of_another_cluster_stays_a_stranger() -> Result<()> {
    let mut world = World::of(&["par-1"])?;
    let stranger = world.bare("fra-1")?;
    stranger.enrol(&["up"], &[])?.ok()?;
    stranger.kill()?;
    let config = world.dir().join("fra-1/selvedge.toml");
    let text = std::fs::read_to_string(&config)?;
    let seeds = format!("seeds = [\"{}:8422\"]", world.first().address);
    ensure!(text.contains("[mesh]"), "{text}");
    let kept = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("seeds"));
    let text = kept
        .collect::<Vec<_>>()
        .join("\n")
        .replace("[mesh]", &format!("[mesh]\n{seeds}"));
    std::fs::write(&config, text)?;
    stranger.start()?;
    // Time to knock, several gossip rounds long.
    std::thread::sleep(Duration::from_secs(5));
    for node in world.nodes() {
        let nodes = node.status()?["nodes"].as_array().map_or(0, Vec::len);
        ensure!(nodes == 1, "{} knows {nodes} nodes", node.name);
    }
    Ok(())
}
