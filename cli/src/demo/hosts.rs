//! Hosts that are network namespaces: their names, addresses and links. A bridge in the root
//! namespace joins them, so that the operator's own shell reaches every node.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::shell::Run;

/// Everything the demo makes in the network carries one of these names; `traces` removes by them.
pub(super) const BRIDGE: &str = "svdemo0";
pub(super) const LINK_PREFIX: &str = "svd-";
pub(super) const NETNS_PREFIX: &str = "selvedge-demo-";
pub(super) const CGROUP: &str = "selvedge-demo";

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const REGISTRY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const FIRST_NODE: u8 = 11;
const NETMASK_BITS: u8 = 24;

/// Where the nodes pretend to be: three regions, then more for larger demos.
const PLACES: [&str; 7] = ["par", "fra", "lis", "mad", "waw", "dub", "vie"];
pub(super) const MAX_NODES: usize = PLACES.len();

/// One namespace host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub name: String,
    pub address: Ipv4Addr,
}

impl Host {
    /// The hosts of a demo of `count` nodes.
    pub fn nodes(count: usize) -> Vec<Self> {
        let numbered = PLACES.iter().take(count).zip(FIRST_NODE..);
        let host = |(place, last): (&&str, u8)| Self {
            name: format!("{place}-1"),
            address: Ipv4Addr::new(10, 77, 0, last),
        };
        numbered.map(host).collect()
    }

    pub fn registry() -> Self {
        Self {
            name: "registry".to_owned(),
            address: REGISTRY_ADDRESS,
        }
    }

    pub fn region(&self) -> &str {
        self.name.split('-').next().unwrap_or(&self.name)
    }

    pub fn zone(&self) -> String {
        format!("{}-a", self.region())
    }

    pub fn netns(&self) -> String {
        format!("{NETNS_PREFIX}{}", self.name)
    }

    fn netns_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns())
    }

    /// `program` inside this host. Not `ip netns exec`: that hides the cgroup file systems.
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.netns_path());
        Run::new("nsenter").arg(net).arg("--").arg(program)
    }
}

/// Makes the bridge and every host on it.
pub(super) async fn make(hosts: &[Host]) -> Result<()> {
    let names: Vec<_> = hosts.iter().map(Host::netns).collect();
    for name in &names {
        Run::new("ip")
            .args(["netns", "add", name])
            .ok()
            .await
            .context("making a host")?;
    }
    batch(None, bridge_commands(hosts)).await?;
    for host in hosts {
        batch(Some(&host.netns()), inside_commands(host)).await?;
    }
    Ok(())
}

fn bridge_commands(hosts: &[Host]) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "link add {BRIDGE} type bridge\n\
         address add {GATEWAY}/{NETMASK_BITS} dev {BRIDGE}\n\
         link set {BRIDGE} up\n"
    );
    for host in hosts {
        let link = format!("{LINK_PREFIX}{}", host.name);
        let netns = host.netns();
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "link add {link} type veth peer name eth0 netns {netns}\n\
             link set {link} master {BRIDGE} up\n"
        );
    }
    text
}

fn inside_commands(host: &Host) -> String {
    let address = host.address;
    format!(
        "link set lo up\n\
         address add {address}/{NETMASK_BITS} dev eth0\n\
         link set eth0 up\n\
         route add default via {GATEWAY}\n"
    )
}

async fn batch(netns: Option<&str>, commands: String) -> Result<()> {
    let run = Run::new("ip");
    let run = match netns {
        Some(name) => run.args(["-n", name]),
        None => run,
    };
    run.args(["-batch", "-"])
        .input(commands)
        .ok()
        .await
        .context("wiring the hosts")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_by_place_and_numbered() {
        let hosts = Host::nodes(3);
        let names: Vec<_> = hosts.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["par-1", "fra-1", "lis-1"]);
        assert_eq!(hosts[2].address, Ipv4Addr::new(10, 77, 0, 13));
        assert_eq!(
            (hosts[1].region(), hosts[1].zone().as_str()),
            ("fra", "fra-a")
        );
    }

    #[test]
    fn link_names_fit_the_kernel() {
        for host in Host::nodes(MAX_NODES).iter().chain([&Host::registry()]) {
            assert!(
                format!("{LINK_PREFIX}{}", host.name).len() < 16,
                "{}",
                host.name
            );
        }
    }
}
