//! Debian's etcd: three members on the hosts of the world's nodes, beside its daemons, on the same
//! file system.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Contestant, Reading, payloads, post, write};
use crate::bench::group::Group;
use crate::bench::load::Door;
use crate::bench::yard::{self, Running};
use crate::world::{Node, PATIENCE, Request, World, until};

const CLIENTS: u16 = 2379;
const MEMBERS: u16 = 2380;

pub(super) struct Etcd<'a> {
    nodes: &'a [Node],
    group: Group,
    requests: Vec<Vec<u8>>,
    members: Vec<Running>,
}

impl<'a> Etcd<'a> {
    pub(super) fn new(world: &'a World) -> Result<Self> {
        let group = Group::of(world, "bench-etcd")?;
        let requests = payloads().map(|payload| {
            let body = json!({"key": base64(b"bench"), "value": base64(payload.as_bytes())});
            post("POST", "/v3/kv/put", &body)
        });
        let mut etcd = Self {
            nodes: world.nodes(),
            group,
            requests: requests.to_vec(),
            members: Vec::new(),
        };
        for node in world.nodes() {
            etcd.start(world, node)?;
        }
        etcd.leader()?;
        Ok(etcd)
    }

    fn start(&mut self, world: &World, node: &Node) -> Result<()> {
        let data = world.dir().join("etcd").join(&node.name);
        fs::create_dir_all(&data)?;
        let at = |node: &Node, port| format!("http://{}:{port}", node.address);
        let all = self
            .nodes
            .iter()
            .map(|n| format!("{}={}", n.name, at(n, MEMBERS)));
        let all = all.collect::<Vec<_>>().join(",");
        let (client, member) = (at(node, CLIENTS), at(node, MEMBERS));
        let log = data.with_extension("log");
        let data = data.join("data");
        let data = data.to_string_lossy();
        let name: &[&str] = &["etcd", "--name", &node.name];
        let home = ["--data-dir", &data, "--log-level", "error"];
        let ours = [
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ];
        let peers = [
            "--listen-peer-urls",
            &member,
            "--initial-advertise-peer-urls",
            &member,
        ];
        let cluster = ["--initial-cluster", &all, "--initial-cluster-state", "new"];
        let words = [name, &home, &ours, &peers, &cluster].concat();
        let started = yard::waiting(&node.netns, &self.group, &log, &words)?.begin()?;
        self.members.push(started);
        Ok(())
    }

    /// The node whose member leads.
    fn leader(&self) -> Result<&Node> {
        until("etcd has a leader", PATIENCE, || {
            for node in self.nodes {
                let status =
                    Request::post("etcd", "/v3/maintenance/status", b"{}").send(door(node))?;
                let status: Value = serde_json::from_str(&status.ok()?.body)?;
                let (leader, own) = (&status["leader"], &status["header"]["member_id"]);
                if leader.is_string() && leader == own {
                    return Ok(Some(node));
                }
            }
            Ok(None)
        })
        .context("etcd")
    }
}

fn door(node: &Node) -> SocketAddr {
    (node.address, CLIENTS).into()
}

impl Contestant for Etcd<'_> {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn take(&mut self, case: &str) -> Result<Vec<Reading>> {
        let leader = self.leader()?;
        let door = Door::Tcp(door(leader));
        write(&leader.netns, door, case, &self.requests, &self.group)
    }
}

/// As the gateway wants bytes in its JSON.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * place) & 63];
            text.push(if place <= three.len() {
                letter as char
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_standard_says() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
