//! `status`: the cluster at a glance.

use netfabric::wire::api::{NodeStatus, Status};
use scheduler::model::{NodeId, UnixMs};

use super::rows::role;
use super::{View, table};

pub fn status(status: &Status, wide: bool, now: UnixMs) -> String {
    let alive = status.nodes.iter().filter(|node| node.alive).count();
    let counts = &status.instances;
    let instances: Vec<String> = [
        (counts.ready, "ready"),
        (counts.frozen, "frozen"),
        (counts.starting, "starting"),
        (counts.parked, "parked"),
        (counts.draining, "draining"),
        (counts.failed, "failed"),
    ]
    .iter()
    .filter(|(count, word)| *count > 0 || *word == "ready")
    .map(|(count, word)| format!("{count} {word}"))
    .collect();
    let view = View {
        wide,
        namespaced: false,
        now,
    };
    let node = &status.node;
    format!(
        "Cluster    {}\nAsked      {} ({}, {})\nRegistry   {}\nNodes      {alive} of {} reachable\n\
         Services   {}\nInstances  {}\n\n{}\n",
        status.cluster.id,
        node.name,
        node.region,
        role(status.registry.role),
        registry(status),
        status.nodes.len(),
        status.services,
        instances.join(", "),
        table(&status.nodes, &view),
    )
}

fn registry(status: &Status) -> String {
    let registry = &status.registry;
    let named = |id: &NodeId| name_of(&status.nodes, *id);
    let voters: Vec<String> = registry.voters.iter().map(named).collect();
    let leader = registry.leader.as_ref().map_or_else(
        || "no leader".to_owned(),
        |id| format!("leader {}", named(id)),
    );
    let quorum = if registry.quorum {
        "quorum"
    } else {
        "NO QUORUM: changes wait, services go on"
    };
    let failed = registry.failed.as_ref().map_or_else(String::new, |why| {
        format!("\n           the asked node is out, its store failed: {why}")
    });
    format!(
        "index {}, {leader}, voters {}, {quorum}{failed}",
        registry.index,
        voters.join(" ")
    )
}

pub(super) fn name_of(nodes: &[NodeStatus], id: NodeId) -> String {
    nodes
        .iter()
        .find(|n| n.id == id)
        .map_or_else(|| id.to_string(), |n| n.name.to_string())
}
