//! The node's configuration file, as `up` and `join` write it. The node is its only reader; the
//! keys are the names of the flags.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use crate::args::NodeFlags;

#[derive(Serialize)]
struct File<'a> {
    node: Node<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<Capacity>,
    mesh: Mesh,
    api: Api,
    ingress: Ingress<'a>,
    dns: Dns<'a>,
    #[serde(skip_serializing_if = "Runtime::is_empty")]
    runtime: Runtime<'a>,
    observe: Observe<'a>,
}

#[derive(Serialize)]
struct Node<'a> {
    name: &'a str,
    region: &'a str,
    zone: &'a str,
    data: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Capacity {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
}

#[derive(Serialize)]
struct Mesh {
    listen: SocketAddr,
    advertise: SocketAddr,
    seeds: Vec<SocketAddr>,
}

#[derive(Serialize)]
struct Api {
    listen: SocketAddr,
}

#[derive(Serialize)]
struct Ingress<'a> {
    http: &'a str,
    https: &'a str,
}

#[derive(Serialize)]
struct Dns<'a> {
    listen: &'a str,
    origin: &'a str,
}

#[derive(Serialize)]
struct Runtime<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    registries: BTreeMap<&'a str, Registry>,
}

impl Runtime<'_> {
    fn is_empty(&self) -> bool {
        self.cgroup.is_none() && self.registries.is_empty()
    }
}

#[derive(Serialize)]
struct Registry {
    insecure: bool,
}

#[derive(Serialize)]
struct Observe<'a> {
    log: &'a str,
}

/// Where the node is reached and whom it asks first.
#[derive(Debug, Clone)]
pub struct Reach {
    pub advertise: SocketAddr,
    pub seeds: Vec<SocketAddr>,
}

/// The file's text.
pub fn render(flags: &NodeFlags, name: &str, reach: &Reach) -> Result<String, toml::ser::Error> {
    let offered = flags.capacity_cpu.is_some() || flags.capacity_memory.is_some();
    let file = File {
        node: Node {
            name,
            region: flags.region.as_str(),
            zone: flags.zone.as_ref().unwrap_or(&flags.region).as_str(),
            data: &flags.data,
            labels: flags
                .labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect(),
        },
        capacity: offered.then(|| Capacity {
            cpu: flags.capacity_cpu.map(|millis| format!("{millis}m")),
            memory: flags.capacity_memory.map(|bytes| bytes.to_string()),
        }),
        mesh: Mesh {
            listen: flags.mesh_listen,
            advertise: reach.advertise,
            seeds: reach.seeds.clone(),
        },
        api: Api { listen: flags.api },
        ingress: Ingress {
            http: &flags.http,
            https: &flags.https,
        },
        dns: Dns {
            listen: &flags.dns,
            origin: &flags.origin,
        },
        runtime: Runtime {
            cgroup: flags.cgroup.as_deref(),
            registries: flags
                .registry_insecure
                .iter()
                .map(|host| (host.as_str(), Registry { insecure: true }))
                .collect(),
        },
        observe: Observe { log: &flags.log },
    };
    let body = toml::to_string(&file)?;
    Ok(format!(
        "# Written by selvedge; selvedged reads it when it starts.\n{body}"
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn up(line: &str) -> NodeFlags {
        let words = ["selvedge", "up"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Up(args) => args.node,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_file_says_what_the_flags_said() {
        let flags = up(
            "--region par --zone par-a --label disk=nvme --data /tmp/par-1 --http :8080 \
                        --dns off --origin edge.example --cgroup /demo/par-1 --capacity-cpu 1.5 \
                        --capacity-memory 2Gi --registry-insecure 10.9.0.1:5000 --log debug",
        );
        let reach = Reach {
            advertise: "10.9.0.11:8422".parse().unwrap(),
            seeds: vec!["10.9.0.12:8422".parse().unwrap()],
        };
        insta::assert_snapshot!(render(&flags, "par-1", &reach).unwrap());
    }

    #[test]
    fn a_plain_up_writes_little() {
        let reach = Reach {
            advertise: "192.0.2.7:8422".parse().unwrap(),
            seeds: Vec::new(),
        };
        insta::assert_snapshot!("plain", render(&up(""), "edge", &reach).unwrap());
    }
}
