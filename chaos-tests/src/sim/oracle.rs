//! What must hold, looked at from outside every second and at the end. It keeps accounts of its own and
//! believes no record.

use std::collections::{BTreeMap, BTreeSet};

use scheduler::model::{InstanceState, Resources, Revision, RevisionState, ServiceKey};
use scheduler::place::{Receipt, needs};
use scheduler::steward::steward_of;

use super::door::{Outcome, Request};
use super::host::Errand;
use super::plan::{CALM, Workload};
use super::queue::Millis;
use super::traffic::Pattern;
use super::world::World;

/// What a request may take beyond its patience: ways, silences of hosts that died, doors that did.
const SLACK: Millis = 25_000;
/// Requests may be lost with their hosts for so long after a fault took effect.
const AFTERMATH: Millis = 65_000;
/// Starts and stops of a service while nothing changes; and in each of its windows each of the instances
/// that are right may come and go, because random arrivals are at the edge of what they carry.
const CALM_CHANGES: usize = 4;
const FINDINGS: usize = 20;
/// Orders that are kept one by one.
const ORDERS: usize = 10_000;

/// What a simulation came to.
#[derive(Debug)]
pub struct Report {
    /// Of everything that happened.
    pub digest: String,
    /// What did not hold.
    pub findings: Vec<String>,
    pub figures: Figures,
    /// The last that happened.
    pub lines: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Figures {
    pub answered: u64,
    pub refused: BTreeMap<&'static str, u64>,
    pub lost: u64,
    pub starts: usize,
    pub stops: usize,
    /// Starts that stewards ordered, by the cause in their receipts.
    pub causes: BTreeMap<String, u32>,
    /// Those and the starts that doors had, one by one, as far as there is room for them.
    pub orders: Vec<Ordered>,
    pub answers: Vec<Answer>,
    /// Live instances of each service, by region, second by second.
    pub instances: Vec<Vec<Vec<u32>>>,
}

/// A start that was decided.
#[derive(Debug, Clone)]
pub struct Ordered {
    pub at: Millis,
    /// Who decided it.
    pub host: usize,
    pub cause: String,
    pub why: String,
}

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub at: Millis,
    pub service: usize,
    pub region: usize,
    pub took: Millis,
    pub ok: bool,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    findings: Vec<String>,
    figures: Figures,
    /// When hosts last died or were cut off.
    last_cut: Option<Millis>,
    /// The search that an instance was last admitted for, and where.
    last_start: Option<(Errand, usize)>,
    /// Starts and stops by service.
    changes: Vec<(Millis, usize)>,
    services: BTreeMap<ServiceKey, usize>,
}

impl Oracle {
    pub fn new(services: usize) -> Self {
        let figures = Figures {
            instances: vec![Vec::new(); services],
            ..Figures::default()
        };
        Self {
            figures,
            ..Self::default()
        }
    }

    pub fn find(&mut self, now: Millis, what: impl std::fmt::Display) {
        if self.findings.len() < FINDINGS {
            self.findings.push(format!("at {now} ms: {what}"));
        }
    }

    pub fn cut(&mut self, now: Millis) {
        self.last_cut = Some(now);
    }

    /// A host admitted an instance for a search.
    pub fn started(&mut self, now: Millis, revision: &Revision, wish: (Errand, usize)) {
        self.figures.starts += 1;
        if self.last_start.replace(wish) == Some(wish) {
            self.find(
                now,
                format!("one wish for {} made two instances", revision.key),
            );
        }
        if let Some(service) = self.services.get(&revision.service) {
            self.changes.push((now, *service));
        }
    }

    /// A start that a door or a steward decided.
    pub fn decided(&mut self, at: Millis, host: usize, receipt: &Receipt) {
        if self.figures.orders.len() < ORDERS {
            self.figures.orders.push(Ordered {
                at,
                host,
                cause: receipt.cause.clone(),
                why: receipt.why.clone(),
            });
        }
    }

    /// A start that a steward ordered.
    pub fn ordered(&mut self, at: Millis, host: usize, receipt: &Receipt) {
        self.decided(at, host, receipt);
        *self
            .figures
            .causes
            .entry(receipt.cause.clone())
            .or_default() += 1;
    }

    pub fn stopped(&mut self, now: Millis, service: usize) {
        self.figures.stops += 1;
        self.changes.push((now, service));
    }

    pub fn answered(&mut self, now: Millis, request: &Request, outcome: &Outcome) {
        self.figures.answers.push(Answer {
            at: now,
            service: request.service,
            region: request.region,
            took: now - request.born,
            ok: *outcome == Outcome::Ok,
        });
        match outcome {
            Outcome::Ok => self.figures.answered += 1,
            Outcome::Refused(why) => *self.figures.refused.entry(why).or_default() += 1,
            Outcome::Broken => {
                let what = format!(
                    "a request to {} was ended with its instance",
                    request.service
                );
                self.find(now, what);
            }
            Outcome::Lost => {
                self.figures.lost += 1;
                if self.last_cut.is_none_or(|cut| now > cut + AFTERMATH) {
                    let what = format!("a request to {} was lost for no reason", request.service);
                    self.find(now, what);
                }
            }
        }
    }

    /// Every second.
    pub fn sample(&mut self, world: &World) {
        if self.services.is_empty() {
            self.services = world.services.iter().cloned().zip(0..).collect();
        }
        let now = world.queue.now();
        for host in 0..world.hosts.len() {
            self.look_at_host(now, world, host);
        }
        self.look_at_volumes(now, world);
        self.look_at_requests(now, world);
        self.count_instances(world);
    }

    fn look_at_host(&mut self, now: Millis, world: &World, number: usize) {
        let host = &world.hosts[number];
        let mut taken = Resources::default();
        for (id, program) in &host.programs {
            let needs = needs(&program.revision.spec);
            taken.cpu_millis += needs.cpu_millis;
            taken.memory_bytes += needs.memory_bytes;
            taken.instances += needs.instances;
            let Some(service) = self.services.get(&program.revision.service) else {
                continue;
            };
            let only = &world.plan.services[*service].only;
            if !only.is_empty() && !only.contains(&host.spot.region) {
                self.find(
                    now,
                    format!("{id} is in site {}, which is not its own", host.spot.region),
                );
            }
        }
        let capacity = world.plan.capacity(number);
        let over = taken.cpu_millis > capacity.cpu_millis
            || taken.memory_bytes > capacity.memory_bytes
            || taken.instances > capacity.instances;
        if over {
            self.find(
                now,
                format!("host {number} is over its capacity: {taken:?}"),
            );
        }
    }

    /// Never two holders.
    fn look_at_volumes(&mut self, now: Millis, world: &World) {
        let mut holders: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (number, host) in world.hosts.iter().enumerate() {
            for program in host.programs.values() {
                let service = self.services.get(&program.revision.service);
                if let Some(service) = service.filter(|s| world.plan.services[**s].volume) {
                    holders.entry(*service).or_default().insert(number);
                }
            }
        }
        for (service, hosts) in holders.into_iter().filter(|(_, hosts)| hosts.len() > 1) {
            self.find(
                now,
                format!("service {service} has its one volume on hosts {hosts:?}"),
            );
        }
    }

    fn look_at_requests(&mut self, now: Millis, world: &World) {
        for (id, request) in &world.requests {
            let workload = &world.plan.services[request.service];
            let most = 2 * workload.patience() + 20 * workload.work + SLACK;
            if now.saturating_sub(request.born) > most {
                self.find(
                    now,
                    format!(
                        "request {id} to {} is not answered: {request:?}",
                        request.service
                    ),
                );
                return;
            }
        }
    }

    fn count_instances(&mut self, world: &World) {
        let sites = world.plan.sites.len();
        let mut counts = vec![vec![0; sites]; world.services.len()];
        for host in &world.hosts {
            for seen in host.agent.seen().filter(|s| host.up && s.state.is_live()) {
                if let Some(service) = self.services.get(seen.service) {
                    counts[*service][host.spot.region] += 1;
                }
            }
        }
        for (series, count) in self.figures.instances.iter_mut().zip(counts) {
            series.push(count);
        }
    }

    /// At the end: what only shows when all is healed and quiet.
    pub fn judge(mut self, world: &World) -> (Vec<String>, Figures) {
        if world.plan.heal.is_some() {
            self.judge_convergence(world);
            for service in 0..world.services.len() {
                self.judge_count(world, service);
            }
        }
        (self.findings, self.figures)
    }

    fn judge_convergence(&mut self, world: &World) {
        let now = world.queue.now();
        let newest = world.log.newest();
        for (number, host) in world.hosts.iter().enumerate() {
            if host.state.index != newest.index {
                let what = format!(
                    "host {number} is at {} of {} of the registry",
                    host.state.index, newest.index
                );
                self.find(now, what);
            }
            let routed = |key| {
                let revision = newest.revisions.get(key);
                let service = revision.and_then(|r| newest.services.get(&r.service));
                service.is_some_and(|s| {
                    s.routed().contains(key) || s.status.latest_created.as_ref() == Some(key)
                })
            };
            for seen in host.agent.seen() {
                let runs = seen.state.is_live() || seen.state == InstanceState::Draining;
                if runs && !routed(seen.revision) {
                    let what = format!(
                        "host {number} still runs {}, to which nothing is sent",
                        seen.id
                    );
                    self.find(now, what);
                }
            }
        }
        let stuck = newest
            .revisions
            .values()
            .filter(|r| r.state == RevisionState::Pending);
        for revision in stuck {
            let home = steward_of(&world.hosts[0].fleet, &revision.key, None);
            self.find(
                now,
                format!("{} was never judged by {home:?}", revision.key),
            );
        }
    }

    /// The number of instances is about what the traffic needs, and stays.
    fn judge_count(&mut self, world: &World, service: usize) {
        let now = world.queue.now();
        let exists = world.log.newest().services.get(&world.services[service]);
        let ready = exists.is_some_and(|s| s.status.latest_ready.is_some());
        let workload = &world.plan.services[service];
        let (least, most) = if ready {
            ideal(world, workload)
        } else {
            (0, 0)
        };
        let seconds = usize::try_from(CALM / 1_000).unwrap_or(0);
        let series = &self.figures.instances[service];
        let sums: Vec<u32> = series.iter().map(|sites| sites.iter().sum()).collect();
        let calm = &sums[sums.len().saturating_sub(seconds)..];
        let (low, high) = (calm.iter().min().copied(), calm.iter().max().copied());
        let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
        if low < least || high > most {
            let what = format!(
                "service {service} has {low} to {high} instances, and {least} to {most} are right"
            );
            self.find(now, what);
        }
        let calm = |(at, of): &&(Millis, usize)| *of == service && *at + CALM > now;
        let changes = self.changes.iter().filter(calm).count();
        let windows = CALM / (u64::from(workload.scale.window_seconds) * 1_000).max(1);
        let most = 2 * windows * u64::from(most);
        let most = CALM_CHANGES + usize::try_from(most).unwrap_or(usize::MAX);
        if changes > most {
            self.find(
                now,
                format!("service {service} had {changes} starts and stops in calm"),
            );
        }
    }
}

impl Workload {
    /// How long a door holds a request for it.
    pub(super) fn patience(&self) -> Millis {
        (4 * self.start + 2 * self.pull).max(10_000)
    }
}

/// The fewest and the most instances that steady traffic calls for, if nobody wasted any and if every
/// zone had its own.
fn ideal(world: &World, workload: &Workload) -> (u32, u32) {
    let regions = world.plan.sites.len();
    let target = u64::from(workload.scale.total_concurrency(workload.concurrency)) * 7 / 10;
    let mut most = u64::from(workload.scale.min);
    let mut any = false;
    for region in 0..regions {
        let rate = match &workload.calm {
            Pattern::Steady { .. } | Pattern::Local { .. } => {
                workload.calm.rate_milli(region, regions, 0)
            }
            _ => 0,
        };
        if rate > 0 {
            any = true;
            let busy = (rate * workload.work).div_ceil(1_000_000);
            let zones = u64::try_from(world.plan.sites[region].zones.len()).unwrap_or(1);
            most += zones + 2 * busy.div_ceil(target.max(1));
        }
    }
    let least = workload.scale.min.max(u32::from(any));
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(least);
    let bound = if workload.scale.max == 0 {
        most
    } else {
        workload.scale.max
    };
    (least.min(bound), most.min(bound))
}
