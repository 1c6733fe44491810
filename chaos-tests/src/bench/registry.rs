//! `registry`: writes that three nodes have on disk when they are acknowledged, asked of the
//! leader. Ours is a PUT of a service with 512 bytes of annotation, all its checks included; etcd's
//! is a put of a 512-byte value through its HTTP gateway, so that both are asked by the same client
//! in the same way (its gRPC would cost it less); the floor appends 512 bytes to one file and syncs
//! it.

mod etcd;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::board::{Board, OURS, Reading, WRITES};
use super::group::Group;
use super::load::{Door, Load, Measured, drive};
use super::proxy::{connections, readings};
use super::race::{Contestant, race};
use super::sync::{self, PAYLOAD};
use super::{Plan, peers, yard};
use crate::world::World;

const NODES: [&str; 3] = ["par-1", "fra-1", "lis-1"];
const SERVICE: &str = "ledger";
const CASES: [&str; 2] = ["c1", "c64"];
const TIME: Duration = Duration::from_secs(2);

pub fn run(plan: &Plan) -> Result<Board> {
    let mut board = Board::new("registry");
    let world = World::of(&NODES)?;
    let mut contestants: Vec<Box<dyn Contestant + '_>> = vec![
        Box::new(Ours::new(&world)?),
        Box::new(Floor(world.dir().join("floor.log"))),
    ];
    match peers::ETCD.fetch() {
        Ok(()) => contestants.push(Box::new(etcd::Etcd::new(&world)?)),
        Err(error) => board.missing("etcd", format!("{error:#}")),
    }
    race(&mut board, &CASES, plan.rounds, &mut contestants)?;
    Ok(board)
}

/// What is written: never twice the same in a row, for a write that changes nothing might be saved.
fn payloads() -> [String; 2] {
    ["a", "b"].map(|letter| letter.repeat(PAYLOAD))
}

fn post(method: &str, path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    let head = "content-type: application/json\r\nhost: localhost";
    format!("{method} {path} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Drives writes from the leader's host and says what they cost.
fn write(
    netns: &str,
    door: Door,
    case: &str,
    requests: &[Vec<u8>],
    group: &Group,
) -> Result<Vec<Reading>> {
    let load = Load {
        door,
        connections: connections(case)?,
        time: TIME,
        requests,
    };
    let before = group.used()?;
    let measured = yard::on_host(netns, || drive(&load))?;
    let used = group.used()?.saturating_sub(before);
    Ok(readings(WRITES, &measured, used))
}

struct Ours<'a> {
    world: &'a World,
    /// All three daemons.
    group: Group,
    requests: Vec<Vec<u8>>,
}

impl<'a> Ours<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let image = world.image("box");
        for node in world.nodes() {
            // Every node can say what the tag means without asking where images come from.
            node.cli(&["image", "pull", &image])?.ok()?;
        }
        world
            .deploy(SERVICE, &["--pull", "never", "--scale", "0..1"])?
            .ok()?;
        let services = world.first().read(&["get", "services"])?;
        let stored = &services
            .as_array()
            .and_then(|s| s.first())
            .context("no service")?["service"];
        let requests = payloads().map(|payload| {
            let body = json!({
                "spec": stored["spec"], "scale": stored["scale"], "annotations": {"bench": payload},
            });
            post("PUT", &format!("/v1/services/default/{SERVICE}"), &body)
        });
        let group = Group::of(world, "bench-selvedge")?;
        for node in world.nodes() {
            group.add(node.daemon().context("no daemon")?)?;
        }
        world.rest(SERVICE)?;
        Ok(Self {
            world,
            group,
            requests: requests.to_vec(),
        })
    }
}

impl Contestant for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let leader = self.world.leader()?;
        let door = Door::Unix(leader.socket());
        write(&leader.netns, door, case, &self.requests, &self.group)
    }
}

struct Floor(PathBuf);

impl Contestant for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let mut measured: Measured = sync::drive(&self.0, connections(case)?, TIME)?;
        // Who asks is who writes.
        let used = std::mem::take(&mut measured.cpu);
        Ok(readings(WRITES, &measured, used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_length() {
        let text = String::from_utf8(post("PUT", "/x", &json!({"a": 1}))).unwrap();
        assert!(text.starts_with("PUT /x HTTP/1.1\r\n"), "{text}");
        assert!(
            text.ends_with("\r\ncontent-length: 7\r\n\r\n{\"a\":1}"),
            "{text}"
        );
    }
}
