//! The plan as it is played: services are deployed and deleted, the registry takes changes and hosts
//! follow it, faults take effect and end.

use std::collections::BTreeMap;

use rand::RngExt as _;
use scheduler::model::{
    Container, ImagePin, PlacementRules, Resources, RevisionSpec, Volume, VolumeMount, VolumeSource,
};
use scheduler::registry::{Action, PutService, Reply};

use super::plan::{Bug, Fault, Plan, WARM, Workload};
use super::queue::Millis;
use super::world::{Event, World};

/// A change that the registry did not take is proposed again after this.
const AGAIN: Millis = 500;

impl World {
    /// Deploys the next version of a service.
    pub(super) fn deploy(&mut self, service: usize) {
        self.versions[service] += 1;
        let workload = &self.plan.services[service];
        let key = &self.services[service];
        let image = format!("sim/{}:{}", key.name, self.versions[service]);
        let regions = match self.plan.bug {
            Some(Bug::IgnoresResidency) => Vec::new(),
            _ => workload
                .only
                .iter()
                .map(|s| self.plan.sites[*s].name.clone())
                .collect(),
        };
        let put = PutService {
            key: key.clone(),
            spec: spec(workload, service, &image, regions),
            image: ImagePin {
                digest: digest(service, self.versions[service]),
                reference: image,
            },
            scale: workload.scale.clone(),
            traffic: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            uid: key.to_string(),
            if_version: None,
        };
        self.change(Action::PutService(Box::new(put)));
    }

    /// Somebody changes the registry, and tries until it is acknowledged.
    pub(super) fn change(&mut self, action: Action) {
        let now = self.queue.now();
        match self.log.propose(now, action.clone()) {
            Some(Reply::Refused(refusal)) => {
                // A plan asks for nothing wrong; what it deletes may be gone already.
                self.note(format_args!("registry refuses: {refusal}"));
            }
            Some(reply) => {
                let index = self.log.newest().index;
                self.note(format_args!("registry {index} {reply:?}"));
                self.announce();
            }
            None => self.queue.after(AGAIN, Event::Change(Box::new(action))),
        }
    }

    /// Hosts learn of a change after a while.
    pub(super) fn announce(&mut self) {
        for host in 0..self.hosts.len() {
            let delay = self.rng.random_range(5..150);
            self.queue.after(delay, Event::Follow(host));
        }
    }

    pub(super) fn follow(&mut self, host: usize) {
        let stuck = self.plan.bug == Some(Bug::StopsFollowing) && host == 1;
        if stuck && self.queue.now() > WARM || !self.has_registry(host) {
            return;
        }
        let now = self.queue.now();
        let quorum = now >= self.log.out_until;
        let host = &mut self.hosts[host];
        if host.up && quorum {
            host.quorum = Some(now);
        }
        if host.up && host.state.index < self.log.newest().index {
            host.state = self.log.newest().clone();
            host.stale = true;
        }
    }

    /// Whether the host reaches a majority of the voters, which are spread over all hosts.
    pub(super) fn has_registry(&self, host: usize) -> bool {
        let all = self.hosts.len();
        let voters = [0, all / 3, 2 * all / 3];
        let reached = voters
            .iter()
            .filter(|v| self.hosts[**v].up && self.network.reaches(host, **v));
        reached.count() >= 2
    }

    pub(super) fn fault(&mut self, number: usize) {
        let fault = self.plan.faults[number].1.clone();
        self.note(format_args!("fault {fault:?}"));
        let now = self.queue.now();
        match fault {
            Fault::Kill(hosts) => hosts.into_iter().for_each(|host| self.kill(host)),
            Fault::Return(hosts) => hosts.into_iter().for_each(|host| self.bring_back(host)),
            Fault::CutOff(hosts) => {
                self.groups += 1;
                self.network.cut_off(hosts, self.groups);
                self.oracle.cut(now);
            }
            Fault::Mend => self.network.heal(),
            Fault::Loss(permille) => self.network.loss_permille = permille,
            Fault::Delay { micros } => self.network.delay_micros = micros,
            Fault::Outage(millis) => self.log.out_until = now + millis,
            Fault::Drift {
                host,
                parts_per_million,
            } => {
                // A clock may be corrected, but a monotonic one does not go back.
                if parts_per_million > self.hosts[host].drift {
                    self.hosts[host].drift = parts_per_million;
                }
            }
            Fault::Slow { host, percent } => self.hosts[host].slow_percent = percent,
            Fault::Deploy(service) => self.deploy(service),
            Fault::Delete(service) => {
                let key = self.services[service].clone();
                self.change(Action::DeleteService { key });
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.note("healed");
        self.oracle.cut(self.queue.now());
        self.network.heal();
        self.log.out_until = 0;
        for host in 0..self.hosts.len() {
            self.bring_back(host);
            self.hosts[host].slow_percent = 100;
        }
    }

    fn kill(&mut self, host: usize) {
        if !self.hosts[host].up {
            return;
        }
        self.oracle.cut(self.queue.now());
        self.hosts[host].up = false;
        self.lose_requests(host);
        self.lose_calls(host);
        self.hosts[host].programs.clear();
    }

    fn bring_back(&mut self, host: usize) {
        if self.hosts[host].up {
            return;
        }
        let capacity = capacity(&self.plan, host);
        self.hosts[host].reborn(capacity);
        self.wake_host(host);
    }
}

fn spec(workload: &Workload, service: usize, image: &str, regions: Vec<String>) -> RevisionSpec {
    let mut container = Container {
        image: image.to_owned(),
        cpu_millis: workload.cpu_millis,
        memory_bytes: workload.memory_bytes,
        ..Container::default()
    };
    let mut volumes = Vec::new();
    if workload.volume {
        container.volume_mounts.push(VolumeMount {
            name: "data".to_owned(),
            mount_path: "/data".to_owned(),
            read_only: false,
            sub_path: None,
        });
        volumes.push(Volume {
            name: "data".to_owned(),
            source: VolumeSource::Local {
                name: format!("data-{service}"),
            },
        });
    }
    RevisionSpec {
        container_concurrency: workload.concurrency,
        containers: vec![container],
        volumes,
        place: PlacementRules {
            regions,
            spread: workload.spread,
            ..PlacementRules::default()
        },
        ..RevisionSpec::default()
    }
}

/// A digest that no other version has.
fn digest(service: usize, version: u32) -> String {
    format!("sha256:{service:032x}{version:032x}")
}

/// What a host gives to instances; with the bug that takes all, more than it has.
pub(super) fn capacity(plan: &Plan, host: usize) -> Resources {
    let own = plan.capacity(host);
    if plan.bug != Some(Bug::TakesAll) {
        return own;
    }
    Resources {
        cpu_millis: own.cpu_millis.saturating_mul(100),
        memory_bytes: own.memory_bytes.saturating_mul(100),
        instances: own.instances.saturating_mul(100),
    }
}
