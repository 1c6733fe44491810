//! Faults of what announces a node's addresses: N14. The node itself goes on; the router is to send
//! nobody there while its announcer does not speak, and to come back afterwards.

use anyhow::{Result, ensure};

use super::{SEEN_WITHIN, Undo, undo};
use crate::world::{Node, World, until};

/// As a firewall in the way would: the session is not closed, it goes silent.
const SILENCE: &str = "table inet bgp {
    chain heard { type filter hook input priority -300; tcp dport 179 drop; tcp sport 179 drop; }
    chain said { type filter hook output priority -300; tcp dport 179 drop; tcp sport 179 drop; }
}";

pub(super) fn session_lost(world: &World, node: &str) -> Result<Undo> {
    world[node].run("nft", &[SILENCE])?.ok()?;
    withdrawn(world, &world[node])?;
    let node = node.to_owned();
    Ok(undo(move |world| {
        let node = &world[&node];
        node.run("nft", &["delete", "table", "inet", "bgp"])?.ok()?;
        announced(world, node)
    }))
}

pub(super) fn bird_killed(world: &World, node: &str) -> Result<Undo> {
    world.anycast()?.signal(node, "-KILL")?;
    withdrawn(world, &world[node])?;
    let node = node.to_owned();
    Ok(undo(move |world| {
        world.anycast()?.start(&world[&node])?;
        announced(world, &world[&node])
    }))
}

pub(super) fn bird_hangs(world: &World, node: &str) -> Result<Undo> {
    world.anycast()?.signal(node, "-STOP")?;
    withdrawn(world, &world[node])?;
    let node = node.to_owned();
    Ok(undo(move |world| {
        world.anycast()?.signal(&node, "-CONT")?;
        announced(world, &world[&node])
    }))
}

/// The router has no way to the node, and still one to another.
fn withdrawn(world: &World, node: &Node) -> Result<()> {
    until("the router sends nobody there", SEEN_WITHIN, || {
        let ways = world.anycast()?.ways()?;
        ensure!(!ways.contains(&node.address), "ways to {ways:?}");
        ensure!(!ways.is_empty(), "nobody is announced any more");
        Ok(Some(()))
    })
}

fn announced(world: &World, node: &Node) -> Result<()> {
    until("the router sends somebody there again", SEEN_WITHIN, || {
        Ok(world
            .anycast()?
            .ways()?
            .contains(&node.address)
            .then_some(()))
    })
}
