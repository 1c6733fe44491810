//! A machine that loses its power and boots again: what is on its disk stays, nothing else.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::node::Node;
use super::shell::run;
use super::{Launch, World, host, traces};
use crate::disk::Disk;

impl World {
    /// Ends every process of this node at once, takes its network, its mounts and its cgroups
    /// away. What was synced to its disk stays.
    pub fn power_off(&self, node: &Node) -> Result<()> {
        if let Disk::Powered(disk) = &*self.disk(&node.name)? {
            // First: nothing that a dying process writes may reach it.
            disk.power_cut()?;
        }
        let netns = PathBuf::from("/run/netns").join(&node.netns);
        traces::end_processes(&node.dir, &node.cgroup, &[netns])?;
        traces::unmount_below(&node.dir)?;
        self.wire.remove_port(&node.name)?;
        run("ip", ["netns", "delete", &node.netns])?.ok()?;
        traces::remove_cgroups(&node.cgroup)?;
        ensure!(node.containers().is_empty(), "{:?}", node.containers());
        Ok(())
    }

    /// The machine with a new kernel's network, and its daemon.
    pub fn boot(&self, node: &Node) -> Result<()> {
        self.boot_with(node, &Launch::default())
    }

    /// The same with a daemon started in another way.
    pub fn boot_with(&self, node: &Node, launch: &Launch) -> Result<()> {
        self.disk(&node.name)?.power_on()?;
        host(&self.tag, &self.wire, &node.name, last(node))?;
        node.start_with(launch)
    }
}

fn last(node: &Node) -> u8 {
    let [.., last] = node.address.octets();
    last
}
