//! The hosts of a simulation and what happens to their processes and disks.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use scheduler::model::{NodeId, UnixMs};
use scheduler::registry::ClusterMeta;
use tempfile::TempDir;

use super::disk::{Disk, Faults};
use super::net::{Link, Ways};
use super::oracle::Oracle;
use super::plan::{Plan, VOTERS};
use super::trace::{broken, note, short};

use crate::consensus::follow_file::FollowFile;
use crate::consensus::store::Store;
use crate::consensus::tests::world::{CLUSTER, identity};
use crate::consensus::{Config, OpenError, Registry, StoreError};

pub(super) struct World {
    pub plan: Plan,
    dir: TempDir,
    hosts: Mutex<BTreeMap<u64, Host>>,
    ways: Mutex<Ways>,
    oracle: Mutex<Oracle>,
    /// Whoever was asked to leave: two voters, or two configurations, cannot spare anybody.
    leaving: Mutex<BTreeSet<u64>>,
}

struct Host {
    disk: Disk,
    /// Follows the feed; its file is a real one.
    follower: bool,
    running: Option<Running>,
    processes: u64,
    /// What this host's memory may be: only one voter's at a time is anything but whole.
    memory: Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Whole,
    /// Bits were flipped: it must be refused, or be as it was.
    Rotten,
    /// Lost, and being copied from the others.
    Empty,
}

struct Running {
    registry: Registry,
    process: u64,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// `kill -9`: the kernel still has what was written.
    Kill,
    /// What was not synced may be gone.
    PowerCut,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(plan: Plan) -> Arc<Self> {
        let ways = Ways {
            rng: StdRng::seed_from_u64(plan.seed ^ 0x11),
            cut: BTreeSet::new(),
            delay: plan.delay,
            loss: 0,
            twice: 0,
            messages: 0,
        };
        Arc::new(Self {
            plan,
            dir: tempfile::tempdir().unwrap(),
            hosts: Mutex::default(),
            ways: Mutex::new(ways),
            oracle: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    pub fn ways(&self) -> MutexGuard<'_, Ways> {
        lock(&self.ways)
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        lock(&self.oracle)
    }

    pub fn ids(&self) -> Vec<u64> {
        lock(&self.hosts).keys().copied().collect()
    }

    /// Hosts that nobody removed, as the newest of all views has it.
    pub fn members(&self) -> Vec<u64> {
        let views = self.ids().into_iter().filter_map(|id| self.registry(id));
        let newest = views
            .map(|registry| registry.view().state())
            .max_by_key(|state| state.index);
        let removed = |id: &u64| {
            let nodes = newest.as_ref().map(|state| &state.nodes);
            nodes
                .and_then(|nodes| nodes.get(&NodeId(*id)))
                .is_some_and(|node| node.revoked)
        };
        self.ids().into_iter().filter(|id| !removed(id)).collect()
    }

    pub fn voters(&self) -> Vec<u64> {
        let hosts = lock(&self.hosts);
        let voters = hosts.iter().filter(|(_, host)| !host.follower);
        voters.map(|(id, _)| *id).collect()
    }

    pub fn add_host(&self, id: u64, follower: bool) {
        let disk = Disk::new(id, self.plan.seed.wrapping_mul(31).wrapping_add(id));
        let host = Host {
            disk,
            follower,
            running: None,
            processes: 0,
            // A founder is the first to know anything; the others copy before they count.
            memory: if id == 1 || follower {
                Memory::Whole
            } else {
                Memory::Empty
            },
        };
        lock(&self.hosts).insert(id, host);
    }

    pub fn leaves(&self, id: u64) {
        lock(&self.leaving).insert(id);
    }

    /// It is gone for good.
    pub fn retire(&self, id: u64) {
        self.end(id, End::Kill);
        lock(&self.hosts).remove(&id);
    }

    pub fn disk(&self, id: u64) -> Option<Disk> {
        lock(&self.hosts).get(&id).map(|host| host.disk.clone())
    }

    /// The process that runs there, if its power holds.
    pub fn process(&self, id: u64) -> Option<u64> {
        let hosts = lock(&self.hosts);
        let host = hosts.get(&id)?;
        let powered = host.follower || host.disk.has_power();
        host.running
            .as_ref()
            .filter(|_| powered)
            .map(|running| running.process)
    }

    pub fn registry(&self, id: u64) -> Option<Registry> {
        let hosts = lock(&self.hosts);
        hosts
            .get(&id)?
            .running
            .as_ref()
            .map(|running| running.registry.clone())
    }

    /// Hosts whose process has to be started (again): none runs, its power failed, or its voter
    /// is out for good. Others come back by themselves.
    pub fn down(&self) -> Vec<u64> {
        let failed = |id: &u64| {
            let failed = |registry: Registry| {
                registry
                    .status()
                    .failed
                    .is_some_and(|outage| outage.for_good)
            };
            self.process(*id).is_none() || self.registry(*id).is_some_and(failed)
        };
        self.ids().into_iter().filter(failed).collect()
    }

    fn link(self: &Arc<Self>, me: u64, process: u64) -> Arc<Link> {
        Arc::new(Link {
            world: self.clone(),
            me,
            process,
        })
    }

    fn config(&self, id: u64) -> Config {
        Config {
            node: NodeId(id),
            cluster_id: CLUSTER.to_owned(),
            dir: self.dir.path().join(id.to_string()),
            tuning: self.plan.tuning.clone(),
        }
    }

    /// Ends a host's process at once; what is left of it reaches neither disk nor network.
    pub fn end(&self, id: u64, how: End) {
        let ended = {
            let mut hosts = lock(&self.hosts);
            let Some(host) = hosts.get_mut(&id) else {
                return;
            };
            match how {
                End::Kill => host.disk.kill(),
                End::PowerCut => host.disk.cut_power(),
            }
            host.running.take()
        };
        if let Some(running) = ended {
            note(format_args!("n{id} ends: {how:?}"));
            self.oracle().look(id, running.process, &running.registry);
            tokio::spawn(async move { running.registry.shutdown().await });
        }
    }

    /// Starts a host's process. What a voter's disk refuses is replaced by an empty disk when its
    /// content was damaged, and reported when it was not.
    pub async fn start(self: &Arc<Self>, id: u64) {
        self.end(id, End::Kill);
        let Some((disk, follower, process, memory)) = self.next_process(id) else {
            return;
        };
        note(format_args!("n{id} starts, its memory is {memory:?}"));
        let link = self.link(id, process);
        let opened = if follower {
            let config = self.config(id);
            let mut file = FollowFile::new(&config.dir);
            file.stores_here = true;
            let file = Arc::new(file);
            let loaded = file.load().unwrap();
            Registry::follower_on(file, loaded, config, link.clone(), link)
        } else {
            let file = disk.open();
            let opening = || Store::open_on(&file, id).map(drop);
            match catch_unwind(AssertUnwindSafe(opening)) {
                Ok(Ok(())) => {
                    Registry::voter_on_disk(file, self.config(id), link.clone(), link).await
                }
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(StoreError::Stopping.into()),
            }
        };
        match opened {
            Ok(registry) => self.enter(id, process, registry),
            Err(error) => self.refused(id, &disk, memory, &error),
        }
    }

    fn next_process(&self, id: u64) -> Option<(Disk, bool, u64, Memory)> {
        let mut hosts = lock(&self.hosts);
        let host = hosts.get_mut(&id)?;
        host.processes += 1;
        Some((
            host.disk.clone(),
            host.follower,
            host.processes,
            host.memory,
        ))
    }

    fn enter(&self, id: u64, process: u64, registry: Registry) {
        if let Some(host) = lock(&self.hosts).get_mut(&id) {
            host.running = Some(Running { registry, process });
        }
    }

    fn refused(&self, id: u64, disk: &Disk, memory: Memory, error: &OpenError) {
        note(format_args!("n{id} does not start: {error}"));
        // A disk that fails is tried again later.
        if disk.take_failed() || !disk.has_power() {
            disk.kill();
        } else if memory == Memory::Rotten {
            disk.wipe();
            self.remember(id, Memory::Empty);
        } else {
            broken(format_args!(
                "n{id} does not start from a whole disk: {error}"
            ));
        }
    }

    fn remember(&self, id: u64, memory: Memory) {
        if let Some(host) = lock(&self.hosts).get_mut(&id) {
            host.memory = memory;
        }
    }

    /// Whether one more voter may lose its memory, or leave.
    pub fn all_whole(&self) -> bool {
        for id in self.voters() {
            let settled = self.registry(id).is_some_and(|registry| {
                let newcomer = registry.voter().map(|voter| voter.store.is_newcomer());
                matches!(newcomer, Some(Ok(false)))
            });
            if settled {
                self.remember(id, Memory::Whole);
            }
        }
        let voters: Vec<NodeId> = self.voters().into_iter().map(NodeId).collect();
        // Between two configurations a minority of their union may be a majority of one.
        let agreed = |id: &NodeId| {
            let Some(registry) = self.registry(id.0) else {
                return false;
            };
            let metrics = registry.voter().map(|voter| voter.raft.metrics());
            let joint = metrics.is_none_or(|metrics| {
                let metrics = metrics.borrow();
                let membership = metrics.membership_config.membership();
                membership.get_joint_config().len() != 1
            });
            !joint && registry.status().voters == voters
        };
        let hosts_whole = || {
            let hosts = lock(&self.hosts);
            hosts
                .values()
                .all(|host| host.memory == Memory::Whole && host.running.is_some())
        };
        let leaving = || {
            let leaving = lock(&self.leaving);
            self.ids().iter().any(|id| leaving.contains(id))
        };
        voters.len() as u64 == VOTERS && !leaving() && voters.iter().all(agreed) && hosts_whole()
    }

    /// How every host stands, for the report.
    pub fn describe(&self) {
        for id in self.ids() {
            let status = self.registry(id).map(|registry| registry.status());
            note(format_args!(
                "n{id} stands {:?} {status:?}",
                self.process(id)
            ));
        }
    }

    /// The disk of `id` comes back empty.
    pub fn lose_disk(&self, id: u64) {
        if self.all_whole() {
            self.end(id, End::PowerCut);
            if let Some(disk) = self.disk(id) {
                disk.wipe();
                self.remember(id, Memory::Empty);
                note(format_args!("n{id} lost its disk"));
            }
        }
    }

    /// Flips bits on the disk of `id` while it is off, and holds the store to what it is for: it
    /// is refused, or it is what it was.
    pub fn rot(&self, id: u64, bits: usize, how: End) {
        if !self.all_whole() {
            return;
        }
        self.end(id, how);
        let Some(disk) = self.disk(id) else {
            return;
        };
        // Closed in order. (After a crash, damage to the last transaction cannot be told from one
        // that was torn, and is rolled back.)
        disk.faults(|faults| *faults = Faults::default());
        drop(Store::open_on(&disk.open(), id));
        disk.kill();
        let before = content(&disk, id);
        disk.rot(bits);
        let after = content(&disk, id);
        self.remember(id, Memory::Rotten);
        note(format_args!("n{id} rots, found: {}", after.is_none()));
        if after.is_some() && after != before {
            broken(format_args!(
                "n{id} opens a rotten store: {after:?} for {before:?}"
            ));
        }
    }

    pub async fn found(self: &Arc<Self>) {
        self.add_host(1, false);
        self.start(1).await;
        let cluster = ClusterMeta {
            id: CLUSTER.to_owned(),
            ca_hash: "0".repeat(64),
            created: UnixMs(1),
        };
        let registry = self.registry(1).unwrap();
        registry
            .begin(cluster, identity(1), UnixMs(1))
            .await
            .unwrap();
    }

    /// Looks at every replica.
    pub fn look(&self) {
        for id in self.ids() {
            if let (Some(process), Some(registry)) = (self.process(id), self.registry(id)) {
                self.oracle().look(id, process, &registry);
            }
        }
    }

    /// Everything that was armed or cut works again.
    pub fn heal(&self) {
        let mut ways = self.ways();
        ways.cut.clear();
        ways.loss = 0;
        ways.twice = 0;
        drop(ways);
        for id in self.ids() {
            if let Some(disk) = self.disk(id) {
                disk.faults(|faults| *faults = Faults::default());
            }
        }
        note("all is healed");
    }
}

/// What a store on a copy of this disk holds, if it opens.
fn content(disk: &Disk, id: u64) -> Option<String> {
    let copy = disk.copy().open();
    let store = catch_unwind(AssertUnwindSafe(|| Store::open_on(&copy, id)));
    let store = store.ok()?.ok()?;
    let log = store.entries(.., usize::MAX).ok()?;
    let log = short(&serde_json::to_vec(&log).ok()?);
    let snapshot = store
        .read_snapshot()
        .ok()?
        .map(|(meta, data)| (meta, short(&data)));
    let last = store.last_log_id().ok()?;
    Some(format!(
        "{:?} {last:?} {log} {snapshot:?}",
        store.read_vote().ok()?
    ))
}

/// For a condition of a healthy cluster.
pub(super) async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = tokio::time::Instant::now() + limit;
    while !holds() {
        if tokio::time::Instant::now() > end {
            broken(format_args!("waited {limit:?} in vain for: {what}"));
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    true
}
