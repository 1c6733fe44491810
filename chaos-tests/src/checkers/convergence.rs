//! Whether all nodes that live say the same of the world, and whether what they say is so: members,
//! registry, services, instances, names, and the containers that really run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::world::{Node, World, until};

/// The world as one node tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Names of the nodes it holds for alive.
    alive: BTreeSet<String>,
    /// The index of its copy of the registry.
    index: u64,
    /// Each service and its newest revision that is ready.
    services: BTreeMap<String, String>,
    /// Each instance that is not at its end: where it is and in what state.
    instances: BTreeMap<String, String>,
    /// Addresses that its DNS gives for each service.
    names: BTreeMap<String, BTreeSet<String>>,
}

impl Outlook {
    /// Asks one node for everything.
    pub fn of(node: &Node) -> Result<Self> {
        let status = node.status()?;
        let nodes = list(&status["nodes"])?;
        let alive = nodes.iter().filter(|n| n["alive"] == true);
        let services = node.read(&["get", "services"])?;
        let services: BTreeMap<_, _> = list(&services)?.iter().map(service).collect();
        let names = services.keys().map(|service| {
            let answer = node.dig(service, "A")?;
            Ok((service.clone(), answer.into_iter().collect()))
        });
        Ok(Self {
            alive: alive.map(|n| text(&n["name"])).collect(),
            index: status["registry"]["index"].as_u64().context("an index")?,
            names: names.collect::<Result<_>>()?,
            instances: instances(node)?,
            services,
        })
    }

    /// What two nodes tell differently, in words.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<String> {
        let parts = [
            ("members", self.alive == other.alive),
            ("registry index", self.index == other.index),
            ("services", self.services == other.services),
            ("instances", self.instances == other.instances),
            ("names", self.names == other.names),
        ];
        let different: Vec<_> = parts.iter().filter(|(_, same)| !same).collect();
        let words: Vec<_> = different.iter().map(|(part, _)| *part).collect();
        (!words.is_empty()).then(|| format!("{}: {self:?} and {other:?}", words.join(", ")))
    }
}

fn service(view: &Value) -> (String, String) {
    let service = &view["service"];
    let status = &service["status"];
    (
        text(&service["key"]["name"]),
        text(&status["latestReady"]["name"]),
    )
}

fn instances(node: &Node) -> Result<BTreeMap<String, String>> {
    let all = node.read(&["get", "instances"])?;
    let living = list(&all)?
        .iter()
        .filter(|i| !matches!(i["state"].as_str(), Some("Stopped" | "Failed")));
    let told = |i: &Value| {
        let place = format!("{} at {}", text(&i["state"]), text(&i["nodeName"]));
        (text(&i["id"]), place)
    };
    Ok(living.map(told).collect())
}

fn list(value: &Value) -> Result<&[Value]> {
    let list = value.as_array().context("a list was expected")?;
    Ok(list)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// While changes go on nobody can agree on everything: waits until all running nodes hold each
/// other for alive and each has what any of them had of the registry when this was called.
pub fn caught_up(world: &World, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    let mut newest = 0;
    for node in living(world) {
        newest = newest.max(Outlook::of(node)?.index);
    }
    until("the nodes catch up", within, || {
        for node in living(world) {
            let outlook = Outlook::of(node).with_context(|| node.name.clone())?;
            let Outlook { alive, index, .. } = &outlook;
            let behind = *index < newest || *alive != names(world);
            ensure!(
                !behind,
                "{} has {index} of {newest} and {alive:?}",
                node.name
            );
        }
        Ok(Some(()))
    })?;
    Ok(began.elapsed())
}

fn living(world: &World) -> Vec<&Node> {
    let nodes = world.nodes().iter();
    nodes.filter(|n| n.daemon().is_some()).collect()
}

fn names(world: &World) -> BTreeSet<String> {
    let living = living(world).into_iter();
    living.map(|n| n.name.clone()).collect()
}

/// Waits until all running nodes agree, nothing is on its way, and every container that runs is an
/// instance they speak of; returns how long that took.
pub fn converged(world: &World, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    until("the nodes agree", within, || agreed(world).map(Some))?;
    Ok(began.elapsed())
}

fn agreed(world: &World) -> Result<()> {
    let living = living(world);
    let mut outlooks = Vec::new();
    for node in &living {
        let outlook = Outlook::of(node).with_context(|| node.name.clone())?;
        outlooks.push((node, outlook));
    }
    let names = names(world);
    let (first, told) = outlooks.first().context("no node lives")?;
    for (node, outlook) in &outlooks {
        let pair = format!("{} and {}", first.name, node.name);
        ensure!(
            told.differs(outlook).is_none(),
            "{pair} differ in {:?}",
            told.differs(outlook)
        );
    }
    ensure!(
        told.alive == names,
        "alive are {names:?}, told is {:?}",
        told.alive
    );
    for (instance, place) in &told.instances {
        let state = place.split(' ').next();
        let settled = matches!(state, Some("Ready" | "Frozen" | "Parked"));
        ensure!(settled, "{instance} is {place}");
    }
    for node in &living {
        let at = format!(" at {}", node.name);
        let told = told
            .instances
            .values()
            .filter(|place| place.ends_with(&at))
            .count();
        let real = node.instance_folders()?;
        ensure!(
            told == real.len(),
            "{} has {real:?}, told are {told}",
            node.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_two_nodes_tell_differently_is_found() {
        let told = || Outlook {
            alive: BTreeSet::from(["a".to_owned(), "b".to_owned()]),
            index: 7,
            services: BTreeMap::from([("web".to_owned(), "web-00001".to_owned())]),
            instances: BTreeMap::from([("web-00001-x".to_owned(), "Ready at a".to_owned())]),
            names: BTreeMap::from([("web".to_owned(), BTreeSet::from(["10.0.0.1".to_owned()]))]),
        };
        assert_eq!(told().differs(&told()), None);
        let mut others: Vec<_> = (0..5).map(|_| told()).collect();
        others[0].alive.remove("b");
        others[1].index = 6;
        others[2].services.clear();
        others[3]
            .instances
            .insert("web-00001-x".to_owned(), "Draining at a".to_owned());
        others[4].names.clear();
        let parts = [
            "members",
            "registry index",
            "services",
            "instances",
            "names",
        ];
        for (other, part) in others.iter().zip(parts) {
            let found = told().differs(other).unwrap_or_default();
            assert!(found.starts_with(&format!("{part}: ")), "{part}: {found}");
        }
    }
}
