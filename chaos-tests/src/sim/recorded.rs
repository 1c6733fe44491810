//! A fleet as it was recorded, made into a plan: what would come of it if a node died, a site were cut off,
//! or the traffic rose.
//!
//! A record is a folder with what a node's API says: `nodes.json` (`GET /v1/nodes`), `services.json`
//! (`GET /v1/services`) and, for the traffic, `usage.json` (`GET /v1/usage`). Traffic is taken to come from
//! where it was answered; distances between two sites are at most by way of the node that was asked; starts
//! and pulls, which the API does not tell, are `Workload`'s own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use netfabric::wire::api::{NodeStatus, ServiceView};
use netfabric::wire::usage::UsageView;
use scheduler::model::Resources;
use serde::de::DeserializeOwned;

use super::oracle::{Answer, Report};
use super::plan::{Fault, Plan, Site, WARM, Workload};
use super::queue::Millis;
use super::traffic::Pattern;

const MAX_BYTES: u64 = 64 << 20;
const MAX_NODES: usize = 2_000;
const MAX_SERVICES: usize = 5_000;
/// Requests a second that one service has in one region at most, times 1000.
const MAX_RATE: u64 = 20_000_000;
/// A site whose distance nobody measured.
const UNMEASURED_MICROS: u64 = 40_000;

/// What is changed about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A node's power goes.
    Kill(String),
    /// A region reaches nobody outside.
    Cut(String),
    /// The traffic of a service, or of all, is this many percent of what it was.
    Traffic {
        service: Option<String>,
        percent: u64,
    },
}

#[derive(Debug, Clone, Default)]
pub struct Recorded {
    pub nodes: Vec<NodeStatus>,
    pub services: Vec<ServiceView>,
    pub usage: UsageView,
}

/// A plan with the names that the record has for what the plan numbers.
#[derive(Debug, Clone)]
pub struct WhatIf {
    pub plan: Plan,
    pub regions: Vec<String>,
    pub services: Vec<String>,
    /// When the change takes place.
    pub at: Millis,
}

impl Recorded {
    /// # Errors
    /// A file cannot be read, is none of the API's, or describes more than is simulated here.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut recorded = Self {
            nodes: read(&folder.join("nodes.json"))?,
            services: read(&folder.join("services.json"))?,
            usage: UsageView::default(),
        };
        if folder.join("usage.json").exists() {
            recorded.usage = read(&folder.join("usage.json"))?;
        }
        recorded.nodes.retain(|node| node.alive);
        recorded.nodes.sort_by(|a, b| {
            let key = |n: &NodeStatus| (n.region.clone(), n.zone.clone(), n.name.clone());
            key(a).cmp(&key(b))
        });
        let (nodes, services) = (recorded.nodes.len(), recorded.services.len());
        if nodes == 0 || nodes > MAX_NODES || services > MAX_SERVICES {
            bail!(
                "{nodes} live nodes and {services} services: from 1 to {MAX_NODES} nodes and up to {MAX_SERVICES} services are simulated"
            );
        }
        Ok(recorded)
    }

    /// The fleet under its traffic for so long, with the changes after a third of it.
    ///
    /// # Errors
    /// A change names what the record does not have.
    pub fn plan(&self, seed: u64, lasts: Millis, changes: &[Change]) -> Result<WhatIf> {
        let at = WARM + lasts / 3;
        let regions: BTreeSet<&str> = self.nodes.iter().map(|n| n.region.as_str()).collect();
        let regions: Vec<String> = regions.into_iter().map(ToOwned::to_owned).collect();
        let mut faults = Vec::new();
        for change in changes {
            if let Some(fault) = self.fault(change)? {
                faults.push((at, fault));
            }
        }
        let services: Vec<String> = self
            .services
            .iter()
            .map(|s| s.service.key.to_string())
            .collect();
        let plan = Plan {
            seed,
            sites: regions.iter().map(|region| self.site(region)).collect(),
            between: self.between(&regions),
            services: self
                .services
                .iter()
                .map(|view| self.workload(view, &regions, at, changes))
                .collect(),
            faults,
            heal: None,
            end: WARM + lasts,
            bug: None,
            capacity: self.nodes.iter().map(|node| node.capacity).collect(),
        };
        Ok(WhatIf {
            plan,
            regions,
            services,
            at,
        })
    }

    /// Traffic is no fault.
    fn fault(&self, change: &Change) -> Result<Option<Fault>> {
        let numbers = |is: &dyn Fn(&NodeStatus) -> bool| -> Vec<usize> {
            let nodes = self.nodes.iter().enumerate();
            nodes.filter(|(_, n)| is(n)).map(|(n, _)| n).collect()
        };
        let (hosts, what) = match change {
            Change::Kill(name) => (numbers(&|n| n.name.as_str() == name), name),
            Change::Cut(region) => (numbers(&|n| n.region.as_str() == region), region),
            Change::Traffic {
                service: Some(name),
                ..
            } => {
                let known = |s: &ServiceView| s.service.key.to_string() == *name;
                if self.services.iter().any(known) {
                    return Ok(None);
                }
                bail!("the record has no service `{name}`: say NAMESPACE/NAME");
            }
            Change::Traffic { service: None, .. } => return Ok(None),
        };
        if hosts.is_empty() {
            bail!("the record has no live node and no region `{what}`");
        }
        Ok(Some(match change {
            Change::Cut(_) => Fault::CutOff(hosts),
            _ => Fault::Kill(hosts),
        }))
    }

    fn site(&self, region: &str) -> Site {
        let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
        for node in self.nodes.iter().filter(|n| n.region.as_str() == region) {
            *zones.entry(node.zone.as_str()).or_default() += 1;
        }
        Site {
            name: region.to_owned(),
            zones: zones.into_values().collect(),
        }
    }

    /// Round trips, by way of the node that was asked.
    fn between(&self, regions: &[String]) -> Vec<Vec<u64>> {
        let far = |region: &String| {
            let of = |n: &&NodeStatus| n.region.as_str() == region;
            let rtts = self.nodes.iter().filter(of).filter_map(|n| n.rtt_micros);
            rtts.min().map_or(UNMEASURED_MICROS, u64::from)
        };
        let far: Vec<u64> = regions.iter().map(far).collect();
        let sum = |a: usize, b: usize| if a == b { 0 } else { far[a] + far[b] };
        (0..far.len())
            .map(|a| (0..far.len()).map(|b| sum(a, b)).collect())
            .collect()
    }

    fn workload(
        &self,
        view: &ServiceView,
        regions: &[String],
        at: Millis,
        changes: &[Change],
    ) -> Workload {
        let service = &view.service;
        let key = service.key.to_string();
        let percent = changes.iter().fold(100, |percent, change| match change {
            Change::Traffic {
                service,
                percent: more,
            } if service.as_ref().is_none_or(|name| *name == key) => percent * more / 100,
            _ => percent,
        });
        let (rates_milli, work) = self.traffic(view, regions);
        let plain = Workload::default();
        let needs = scheduler::place::needs(&service.spec);
        let number = |region: &String| regions.iter().position(|r| r == region);
        Workload {
            scale: service.scale.clone(),
            concurrency: service.spec.container_concurrency,
            cpu_millis: needs.cpu_millis,
            memory_bytes: needs.memory_bytes,
            work: work.unwrap_or(plain.work),
            only: service
                .spec
                .place
                .regions
                .iter()
                .filter_map(number)
                .collect(),
            spread: service.spec.place.spread,
            pattern: Pattern::Recorded {
                rates_milli,
                at,
                percent,
            },
            ..plain
        }
    }

    /// Requests a second by region, times 1000, and what one takes.
    fn traffic(&self, view: &ServiceView, regions: &[String]) -> (Vec<u64>, Option<Millis>) {
        let key = &view.service.key;
        let mut rates = vec![0_u64; regions.len()];
        let (mut requests, mut micros) = (0_u64, 0_u64);
        let own = |i: &&netfabric::wire::usage::InstanceUsage| {
            i.namespace == key.namespace && i.service == key.name
        };
        for instance in self.usage.instances.iter().filter(own) {
            let node = self.nodes.iter().find(|n| n.id == instance.node);
            let region = node.and_then(|n| regions.iter().position(|r| *r == *n.region.as_str()));
            let Some(region) = region else { continue };
            let window = instance.window_millis.max(1);
            let rate = instance.window.requests.saturating_mul(1_000_000) / window;
            rates[region] = rates[region].saturating_add(rate).min(MAX_RATE);
            requests = requests.saturating_add(instance.window.requests);
            micros = micros.saturating_add(instance.window.request_micros);
        }
        let work = (micros / 1_000).checked_div(requests);
        (rates, work.map(|millis| millis.clamp(1, 60_000)))
    }
}

impl WhatIf {
    /// By region, before and after the change: what requests took, how many were not answered, and how
    /// many instances there were at the end of each.
    #[must_use]
    pub fn table(&self, report: &Report) -> String {
        let mut out = String::new();
        for (number, region) in self.regions.iter().enumerate() {
            let spans = [("before", WARM..self.at), ("after", self.at..self.plan.end)];
            for (when, span) in spans {
                let those = report.figures.answers.iter();
                let those = those.filter(|a| a.region == number && span.contains(&a.at));
                let (ok, not): (Vec<&Answer>, Vec<&Answer>) = those.partition(|a| a.ok);
                let mut took: Vec<Millis> = ok.iter().map(|a| a.took).collect();
                took.sort_unstable();
                let at = |percent: usize| took.get(took.len() * percent / 100).unwrap_or(&0);
                let second = usize::try_from(span.end / 1_000).unwrap_or(0);
                let there = report.figures.instances.iter().filter_map(|series| {
                    let moment = series.get(second.saturating_sub(2))?;
                    moment.get(number)
                });
                // Writing into a String cannot fail.
                let _ = writeln!(
                    out,
                    "  {region} {when}: {} answered (median {} ms, p99 {} ms), {} not, {} instances",
                    took.len(),
                    at(50),
                    at(99),
                    not.len(),
                    there.sum::<u32>(),
                );
            }
        }
        out
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let opened = File::open(path).and_then(|file| {
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    });
    let text = opened.with_context(|| path.display().to_string())?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what the API answers", path.display()))
}

impl Plan {
    /// What a host has for instances.
    pub(super) fn capacity(&self, host: usize) -> Resources {
        let own = self.capacity.get(host).copied();
        own.unwrap_or(super::host::CAPACITY)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::sim::run;

    fn node(id: u64, region: &str, rtt: u64) -> serde_json::Value {
        json!({
            "id": id, "name": format!("{region}-{id}"), "region": region, "zone": "a",
            "role": "voter", "alive": true, "serving": true, "cordoned": false,
            "rttMicros": rtt, "mesh": "127.0.0.1:1", "ingress": [],
            "capacity": {"cpuMillis": 2000, "memoryBytes": 4_u64 << 30, "instances": 50},
            "free": {"cpuMillis": 2000, "memoryBytes": 4_u64 << 30, "instances": 50},
            "registryIndex": 1, "version": "", "instances": 0
        })
    }

    fn record(folder: &Path) {
        let nodes = [
            node(1, "par", 0),
            node(2, "par", 300),
            node(3, "fra", 20_000),
            node(4, "fra", 21_000),
        ];
        let service = json!([{
            "service": {
                "key": {"namespace": "default", "name": "web"},
                "meta": serde_json::to_value(scheduler::model::Meta::default()).unwrap(),
                "spec": serde_json::to_value(scheduler::model::RevisionSpec {
                    containers: vec![scheduler::model::Container {
                        image: "x".to_owned(),
                        cpu_millis: 100,
                        memory_bytes: 64 << 20,
                        ..Default::default()
                    }],
                    container_concurrency: 10,
                    ..Default::default()
                }).unwrap(),
                "scale": serde_json::to_value(scheduler::model::Scale::default()).unwrap(),
                "traffic": [],
                "status": {"latestCreated": null, "latestReady": null}
            },
            "url": "", "instances": {}, "condition": {"ready": "True"}
        }]);
        let used = json!({"requests": 200, "requestMicros": 6_000_000});
        let usage = json!({"instances": [{
            "instance": "web-00001-a", "namespace": "default", "service": "web",
            "revision": "web-00001", "node": 3, "nodeName": "fra-3", "state": "Ready",
            "memoryBytes": 1, "memoryLimitBytes": 1, "memoryPeakBytes": 1, "pids": 1,
            "windowMillis": 10_000, "window": used, "total": used
        }], "revisions": []});
        let put = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
        put("nodes.json", json!(nodes).to_string());
        put("services.json", service.to_string());
        put("usage.json", usage.to_string());
    }

    #[test]
    fn a_recorded_fleet_is_played_as_it_was_and_as_it_would_be() {
        let folder = tempfile::tempdir().unwrap();
        record(folder.path());
        let recorded = Recorded::read(folder.path()).unwrap();
        let was = recorded.plan(1, 60_000, &[]).unwrap();
        assert_eq!(was.regions, ["fra", "par"]);
        assert_eq!(was.plan.between, [[0, 20_000], [20_000, 0]]);
        assert_eq!(was.plan.services[0].work, 30);
        let rate = |plan: &Plan, at| plan.services[0].pattern.rate_milli(0, 2, at);
        assert_eq!(rate(&was.plan, was.at), 20_000, "where it was answered");
        let report = run(was.plan.clone());
        assert_eq!(report.findings, [""; 0]);
        assert!(report.figures.answers.iter().all(|a| a.ok && a.region == 0));

        let changes = [
            Change::Kill("fra-3".to_owned()),
            Change::Traffic {
                service: Some("default/web".to_owned()),
                percent: 200,
            },
        ];
        let would = recorded.plan(1, 60_000, &changes).unwrap();
        assert_eq!(rate(&would.plan, would.at), 40_000);
        let more = run(would.plan.clone());
        assert_eq!(more.findings, [""; 0]);
        assert!(more.figures.answered > report.figures.answered * 3 / 2);
        let table = would.table(&more);
        assert!(table.contains("fra after: "), "{table}");
        let odd = [Change::Cut("ber".to_owned())];
        let odd = recorded.plan(1, 60_000, &odd).unwrap_err();
        assert!(odd.to_string().contains("`ber`"), "{odd}");
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Recorded::read(folder.path()).unwrap_err();
        assert!(missing.to_string().contains("nodes.json"), "{missing}");
        record(folder.path());
        fs::write(folder.path().join("services.json"), "[{}]").unwrap();
        let odd = format!("{:#}", Recorded::read(folder.path()).unwrap_err());
        assert!(
            odd.contains("services.json") && odd.contains("missing field"),
            "{odd}"
        );
        fs::write(folder.path().join("services.json"), "[]").unwrap();
        fs::write(folder.path().join("nodes.json"), "[]").unwrap();
        let none = Recorded::read(folder.path()).unwrap_err();
        assert!(none.to_string().contains("0 live nodes"), "{none}");
    }
}
